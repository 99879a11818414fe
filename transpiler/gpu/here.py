"""Whether this machine has a device for a target."""

from __future__ import annotations


def has_vulkan() -> bool:
    """Whether there are a Vulkan loader, a driver and a device, and the package `vulkan`, through which they are
    reached."""
    try:
        import vulkan as vk
    except (ImportError, OSError):
        return False
    try:
        application = vk.VkApplicationInfo(pApplicationName="transpile", apiVersion=1 << 22 | 1 << 12)
        instance = vk.vkCreateInstance(vk.VkInstanceCreateInfo(pApplicationInfo=application), None)
    except (vk.VkError, vk.VkException):
        return False
    try:
        return bool(vk.vkEnumeratePhysicalDevices(instance))
    except (vk.VkError, vk.VkException):
        return False
    finally:
        vk.vkDestroyInstance(instance, None)


def has_cuda(arch: str) -> bool:
    """Whether there are a driver, a device that runs code for `arch` ("sm_80"), and the package `cuda-bindings`,
    through which they are reached."""
    try:
        from cuda.bindings import driver
    except ImportError:
        return False
    try:
        (error,) = driver.cuInit(0)
    except RuntimeError:  # there is no libcuda.so.1
        return False
    if error != driver.CUresult.CUDA_SUCCESS:
        return False
    error, count = driver.cuDeviceGetCount()
    if error != driver.CUresult.CUDA_SUCCESS:
        return False
    kinds = driver.CUdevice_attribute
    for number in range(count):
        error, device = driver.cuDeviceGet(number)
        found = [
            driver.cuDeviceGetAttribute(kind, device)[1]
            for kind in (kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                         kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
        ]  # fmt: skip
        if runs_code((found[0], found[1]), arch):
            return True
    return False


def cuda_device() -> str:
    """The first device, whose times stand for this machine: its name, compute capability and the driver's version."""
    from cuda.bindings import driver

    driver.cuInit(0)
    kinds = driver.CUdevice_attribute
    device = driver.cuDeviceGet(0)[1]
    facts = [
        driver.cuDeviceGetAttribute(kind, device)[1]
        for kind in (kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                     kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
    ]  # fmt: skip
    name: bytes = driver.cuDeviceGetName(200, device)[1]
    return f"{name.partition(bytes(1))[0].decode(errors='replace')} {facts} {driver.cuDriverGetVersion()[1]}"


def runs_code(capability: tuple[int, int], arch: str) -> bool:
    """Whether a device of a compute capability runs code for `arch` or its PTX: with a letter that of the very same
    capability, else of every one that is not older."""
    number = arch.removeprefix("sm_").rstrip("abcdefghijklmnopqrstuvwxyz")
    own = divmod(int(number), 10)
    return capability == own if arch[-1].isalpha() else capability >= own
