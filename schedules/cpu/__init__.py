"""CPU schedules. Each module has `apply(group, target) -> Lowered | None`; targets/cpu.toml gives the order."""
