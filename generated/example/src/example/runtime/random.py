"""The state of a model's random generator: a seed, and the number of the call."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt


class Random:
    """Hands every call a state of its own, in order; safe to use from several threads.

    The kernels draw with Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011):
    the seed is the key, the call is half of the counter. So the n-th call gives the same numbers for the same
    seed, whatever the threads and the instruction set.
    """

    def __init__(self, seed: int = 0) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
            raise TypeError(f"seed: expected an int, got {type(seed).__name__}")
        self._seed = (int(seed) + 2**63) % 2**64 - 2**63
        self._calls = itertools.count()

    def copy(self) -> Random:
        """The same seed, from its first call."""
        return Random(self._seed)

    def next(self) -> npt.NDArray[Any]:
        """int64[2]: the seed and the number of this call."""
        return np.array([self._seed, next(self._calls)], np.int64)
