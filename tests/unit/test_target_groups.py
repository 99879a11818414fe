"""Which variants are built for the targets that are named together."""

from typing import Any

import pytest

from transpiler.errors import UsageError
from transpiler.target import host_triple, load_groups, load_targets

ARM = "aarch64-unknown-linux-gnu"
VULKAN = [target.variant.name for target in load_targets("vulkan")]


def variants(*names: str, isas: tuple[str, ...] = (), archs: tuple[str, ...] = (), triple: str | None = None) -> object:
    found = load_groups(names, isas, archs, triple)
    return {name: [target.variant.name for target in group] for name, group in found.items()}


def test_options_go_to_the_targets_that_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRANSPILE_BUILD_ISA", raising=False)
    several = variants("vulkan", "cuda", "cpu", "vulkan", isas=("avx2",), archs=("sm_80",), triple=host_triple())
    assert several == {"vulkan": VULKAN, "cuda": ["sm_80"], "cpu": ["avx2"]}
    assert variants("vulkan", "cpu", triple=ARM) == {"vulkan": VULKAN, "cpu": ["neon"]}
    assert variants("vulkan") == {"vulkan": VULKAN}
    monkeypatch.setenv("TRANSPILE_BUILD_ISA", "baseline")
    assert variants("vulkan", "cpu") == {"vulkan": VULKAN, "cpu": ["baseline"]}


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (("cpu", "metal"), {}, "Unknown target 'metal'; known: cpu, cuda, vulkan."),
        (("vulkan",), {"isas": ("avx2",)}, "Target 'vulkan' has no instruction sets: --isa is for CPUs."),
        (("vulkan", "cuda"), {"triple": ARM}, "Target 'vulkan' has no instruction sets: --triple is for CPUs."),
        (("vulkan", "cpu"), {"archs": ("sm_80",)}, "--arch is for GPUs of NVIDIA, not for target 'vulkan'."),
        (("cpu", "vulkan"), {"isas": ("sse9",)}, "Unknown ISA 'sse9'; known: "),
        (("cpu", "cuda"), {"archs": ("sm_1",)}, "Unknown architecture 'sm_1'; known: "),
    ],
)
def test_refusals(names: tuple[str, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_groups(names, **options)
    assert str(caught.value).startswith(message)
