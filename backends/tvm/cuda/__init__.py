"""Kernels for GPUs of NVIDIA, on their tensor cores."""
