"""Errors that users of a package may want to catch. Wrong arguments are plain TypeError and ValueError."""

from __future__ import annotations


class PackageError(RuntimeError):
    """The package cannot run here: another platform or processor, or files that are damaged or missing."""


class DamagedError(PackageError):
    """Files of the package are missing or are not those that were built: no other device would help."""


class WeightsError(ValueError):
    """Weights that do not fit the model; the text lists every key at fault."""


class TapError(KeyError):
    """A module path that has no value of its own."""

    def __str__(self) -> str:
        return str(self.args[0])
