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
