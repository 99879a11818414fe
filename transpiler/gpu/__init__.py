"""Kernels for GPUs: which launches a kernel consists of, and how large each is."""
