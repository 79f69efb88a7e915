"""Compiled models for 64-bit ARM, run by QEMU: what they compute, and in how many instructions."""
