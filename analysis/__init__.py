"""Reads a model and answers questions about it; never changes it."""
