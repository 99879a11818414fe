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
    """The device code of a package's kernels, and the list of their launches."""

    target: str
    variants: tuple[str, ...]
    plans: Sequence[KernelPlan]
    compiled: Compiled
    requires: tuple[str, ...]
    compiler: str = "none"
    third_party: tuple[str, ...] = ()

    def files(self, name: str) -> Mapping[str, bytes]:
        folder = f"kernels/{self.target}"
        files = {f"{folder}/{file}": code for file, code in self.compiled.files.items()}
        return {**files, f"{folder}/launches.json": render_launches(self.plans, self.compiled)}

    def platform(self) -> Mapping[str, Any]:
        return {"tag": "any", "machine": "any", "glibc": None, "libraries": []}
