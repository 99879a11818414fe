"""Running kernels on a device with a Vulkan driver. From the bottom up:

driver: the loader, its errors in words. device: which one, what it can do. memory: buffers, weights.
pipelines: kernels made for the device, and a cache of them. variants: which of the kernels.
recording: a call as a command buffer. library: what a model sees.
"""
