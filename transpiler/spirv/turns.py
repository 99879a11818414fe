"""How often an invocation goes through loops.

Mesa's driver for processors leaves a loop, without a word, when all loops of a shader together have had 65535 turns
(LP_MAX_TGSI_LOOP_ITERATIONS of its source). Leaving a loop is a turn with no lane switched on, in which every loop
inside has such a turn as well, and so has each in a branch that is not taken. Several invocations run as the lanes of
a vector, whose turns are those of any of them.

So the turns of every kernel are bounded when it is written; loops with too many are unrolled, and where the bound is
still too high, or not known, the kernel counts, stops by itself and says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# A little below the driver's limit: what it adds of its own.
MAX_TURNS = 65000
# Where each lane may have turns of its own at another time than the others: for 16 of them.
MAX_DIVERGENT_TURNS = MAX_TURNS // 16


class Turns:
    """Of one kernel: `most` is a bound of the turns of all its loops, None if there is none. `counter` is the variable
    that counts them up to `limit`, if it does so."""

    def __init__(self) -> None:
        self.most: int | None = 0
        self.counter: int | None = None
        self.limit = MAX_TURNS
        self.inside = 0  # loops written within the current one
        self._depth = 0
        self._divergent = 0

    @contextmanager
    def loop(self, most: int | None, *, uniform: bool = False) -> Iterator[None]:
        """Around what is written for a loop of `most` turns at most; `uniform`: as many for all invocations."""
        if most is None and not uniform:
            self._divergent += 2 if self._depth else 1
        outside, self.most = self.most, 0
        before, self.inside = self.inside, 0
        self._depth += 1
        yield
        self._depth -= 1
        turn, end = self.most, 1 + self.inside
        self.inside += before + 1
        known = outside is not None and turn is not None and most is not None
        self.most = (outside or 0) + (most or 0) * (1 + (turn or 0)) + end if known else None

    @property
    def fits(self) -> bool:
        return self.most is not None and self.most <= MAX_TURNS

    @property
    def allowed(self) -> int:
        """The turns that an invocation may have: if one loop outside of all others varies, those of the longest count;
        of several, those of each lane at its time."""
        return MAX_TURNS if self._divergent <= 1 else MAX_DIVERGENT_TURNS
