"""The compiled kernels, one folder per target."""
