"""What is compiled of a package for a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transpiler.gpu.launch_list import render_launches
from transpiler.gpu.launches import Compiled
from transpiler.plan import KernelPlan


@dataclass(frozen=True)
class GpuArtifacts:
    """The device code of a package's kernels, and per variant the list of their launches.

    `parts` are the plans and what was compiled of them, by variant, best first.
    """

    target: str
    parts: Mapping[str, tuple[Sequence[KernelPlan], Compiled]]
    requires: tuple[str, ...]
    compiler: str = "none"
    third_party: tuple[str, ...] = ()

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(self.parts)

    def files(self, name: str) -> Mapping[str, bytes]:
        folder = f"kernels/{self.target}"
        files: dict[str, bytes] = {}
        for plans, compiled in self.parts.values():
            files.update({f"{folder}/{file}": code for file, code in compiled.files.items()})
            files[f"{folder}/{compiled.list_file}"] = render_launches(plans, compiled)
        return files

    def platform(self) -> Mapping[str, Any]:
        return {"tag": "any", "machine": "any", "glibc": None, "libraries": []}
