"""Running kernels on the processor: which instruction set, and its library through ctypes."""
