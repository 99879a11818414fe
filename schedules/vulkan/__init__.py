"""Vulkan schedules: `apply(group, target, name) -> Lowered | None` in each; targets/vulkan.toml has their order."""
