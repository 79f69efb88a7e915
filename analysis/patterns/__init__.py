"""Sparsity patterns: which weights of a layer may be zero together, and whether they are."""
