"""Running kernels on a GPU of NVIDIA. From the bottom up:

driver: the package `cuda-bindings`, errors in words. device: which one, its context, the kernels' code.
memory: allocations, weights, states. dlpack, arrays: tensors of other libraries and for them.
recording: a call as a graph. library: what a model sees.
"""
