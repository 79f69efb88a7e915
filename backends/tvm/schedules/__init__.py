"""Kernel families: for each, what it computes (TE) and how it runs (a schedule rule)."""
