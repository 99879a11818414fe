"""What is compiled of a package, whatever the target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

NUMPY = "numpy>=1.26"


class Artifacts(Protocol):
    """Compiled kernels. `compiler` is what the C compiler calls itself, "none" if there was none to do."""

    @property
    def compiler(self) -> str: ...

    @property
    def variants(self) -> tuple[str, ...]:
        """The instruction sets, or other variants, best first."""

    @property
    def third_party(self) -> tuple[str, ...]:
        """Whose code is in it besides ours (`transpiler.sbom`), sorted."""

    @property
    def requires(self) -> tuple[str, ...]:
        """What a package needs from PyPI where it runs."""

    def files(self, name: str) -> Mapping[str, bytes]:
        """The files of the package called `name`, by their paths in its folder."""

    def platform(self) -> Mapping[str, Any]:
        """What the manifest says of the systems that it runs on: "tag", "machine", "glibc", "libraries"."""
