"""The CUDA text of several architectures, written once where it is the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_KERNEL = 'extern "C" __global__ '
_NAME = re.compile(r"(\w+)\(")
# Functions of one line with a machine instruction, which the kernels call.
MACHINE = "__forceinline__ __device__ "
# Descriptors of tensors, where kernels take any: the only type that just some architectures have.
TENSOR_MAP = "struct alignas(64) CUtensorMap { unsigned long long opaque[16]; };\n"


@dataclass(frozen=True)
class _Pieces:
    """Lines before the first kernel, those of all and those that some need; then prototypes and kernels by name."""

    head: tuple[str, ...]
    machine: tuple[str, ...]
    prototypes: Mapping[str, str]
    kernels: Mapping[str, str]

    def text(self, *, head: bool, without: _Pieces | None = None) -> str:
        """All of it, or what another one lacks."""
        machine = [line for line in self.machine if without is None or line not in without.machine]
        names = [name for name in self.kernels if without is None or name not in without.kernels]
        functions = [found[name] for found in (self.prototypes, self.kernels) for name in names]
        return "".join([*(self.head if head else ()), *machine, *functions])


def shared_text(texts: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """What all variants have, and by variant what comes behind it; "" where that is nothing.

    Texts that do not begin alike have nothing in common.
    """
    pieces = {variant: _pieces(text) for variant, text in texts.items()}
    first, *others = pieces.values()
    if any(item.head != first.head for item in others):
        return "", dict(texts)
    common = [
        name
        for name, kernel in first.kernels.items()
        if all(item.kernels.get(name) == kernel and item.prototypes[name] == first.prototypes[name] for item in others)
    ]
    shared = _Pieces(
        first.head,
        tuple(line for line in first.machine if all(line in item.machine for item in others)),
        {name: first.prototypes[name] for name in common},
        {name: first.kernels[name] for name in common},
    )
    return shared.text(head=True), {variant: item.text(head=False, without=shared) for variant, item in pieces.items()}


def _pieces(text: str) -> _Pieces:
    head, *functions = re.split(rf"^(?={re.escape(_KERNEL)})", text, flags=re.MULTILINE)
    lines = head.splitlines(keepends=True)
    prototypes: dict[str, str] = {}
    kernels: dict[str, str] = {}
    for function in functions:
        # The name is the word before the last list in brackets of its first line: what comes before may have one, too.
        name = _NAME.findall(function.partition("\n")[0])[-1]
        (kernels if name in prototypes else prototypes)[name] = function
    some = [line.startswith(MACHINE) or line == TENSOR_MAP for line in lines]
    machine, rest = (
        tuple(line for line, own in zip(lines, some, strict=True) if own is wanted) for wanted in (True, False)
    )
    return _Pieces(rest, machine, prototypes, kernels)
