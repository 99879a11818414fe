"""The kernels of a target, whichever it is: built, callable by name, with the reasons of those that it refuses."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Protocol

from tests.conformance.kernels import KernelLibrary
from tests.cuda.library import CudaLibrary
from tests.vulkan.device import device
from tests.vulkan.library import VulkanLibrary
from transpiler.group import Group, Lowered
from transpiler.ir import Array
from transpiler.plan import Kernel
from transpiler.schedule import schedule
from transpiler.target import Target


class Library(Protocol):
    """Kernels that can be called."""

    kernels: dict[str, Kernel]

    def run(self, name: str, *inputs: Array, sizes: Mapping[str, int] | None = None) -> tuple[Array, ...]: ...


def make_library(kernels: Iterable[Lowered], target: Target) -> tuple[Library, dict[str, str]]:
    """The kernels, and the reasons of those that have no code."""
    if not target.is_gpu:
        return KernelLibrary(list(kernels), target), {}
    if target.kind == "cuda":
        emulated = CudaLibrary(list(kernels), target=target)
        return emulated, emulated.refused
    found = device()
    assert found is not None, "no Vulkan driver"
    library = VulkanLibrary(list(kernels), target, found)
    return library, library.refused


def build(groups: Mapping[str, Group], target: Target) -> tuple[Library, dict[str, str]]:
    """A kernel for each group, and the reasons of those that the target has none for."""
    kernels, refused = [], {}
    for name, group in groups.items():
        try:
            kernels.append(schedule(group, target, name))
        except LookupError as error:
            refused[name] = str(error)
    library, without_code = make_library(kernels, target)
    return library, refused | without_code


@cache
def refusals(target: str) -> Mapping[str, str]:
    """What a target refuses, by what is tested: "op/sample" -> a part of the reason."""
    path = Path(__file__).with_name(f"refused_by_{target}.toml")
    return tomllib.loads(path.read_text()) if path.exists() else {}


def unexpected(refused: Mapping[str, str], tested: Iterable[str], target: Target) -> list[str]:
    """Refusals that are not listed or have another reason, and listed ones among `tested` that are none."""
    listed = {name: reason for name, reason in refusals(target.name).items() if name in set(tested)}
    problems = [
        f"{name} is refused: {reason}" for name, reason in refused.items() if listed.get(name, "\0") not in reason
    ]
    return problems + [f"{name} is listed as refused, and is not" for name in listed if name not in refused]


def refused_ops(target: Target) -> set[str]:
    """The ops that a target refuses for some of their samples."""
    return {name.partition("/")[0] for name in refusals(target.name)}
