"""Inputs to measure on: read, made up, and made more of."""
