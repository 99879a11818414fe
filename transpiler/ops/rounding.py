"""Rounding to whole numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from transpiler.ir import Value
from transpiler.ops.base import Elementwise, ImportContext, Sample, aten
from transpiler.ops.dtypes import category
from transpiler.ops.elementwise_unary import Function


class Rounding(Function):
    """Base of float functions that are one instruction; integers are whole already."""

    cost = 1

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield from super().samples()
        halves = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 8388609.0, -8388607.5], np.float32)
        yield Sample("halves", cls(), (halves,), exact=True)


class Ceil(Rounding, name="ceil"):
    """The next integer upwards."""

    numpy, target = "ceil", "ceil"


class Floor(Rounding, name="floor"):
    """The next integer downwards."""

    numpy, target = "floor", "floor"


class Round(Rounding, name="round"):
    """The nearest integer, halves to even."""

    numpy, target = "rint", "round"


class Trunc(Rounding, name="trunc"):
    """The next integer towards zero."""

    numpy, target = "trunc", "trunc"


def _rounding(op: type[Elementwise], overload: str) -> None:
    """Integers are whole already."""

    def convert(context: ImportContext, x: Value) -> Any:
        return context.emit(op(), x) if category(x.dtype) == 2 else x

    aten(overload)(convert)


_rounding(Ceil, "ceil.default")
_rounding(Floor, "floor.default")
_rounding(Trunc, "trunc.default")
_rounding(Trunc, "fix.default")
_rounding(Round, "round.default")
