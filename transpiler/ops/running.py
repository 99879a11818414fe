"""Running maxima, minima and log-sum-exps: chains along one axis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from transpiler.ir import Array, TensorType, Value
from transpiler.ops.base import ImportContext, Opaque, OpError, Sample, aten, normalize_axis
from transpiler.ops.dtypes import draw, out_type
from transpiler.ops.wide import narrow, widen


class _RunningExtreme(Opaque):
    """(the extreme of x[0] … x[i], its last position as int64) along `axis`; from the first NaN on, the latest NaN."""

    largest: ClassVar[bool]
    axis: int

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        if x.dtype == "bool" or not 0 <= self.axis < x.rank:
            raise OpError(f"{self.name} along axis {self.axis} of {x}")
        return x, x.with_dtype("int64")

    def reference(self, x: Array) -> tuple[Array, ...]:
        rows = np.moveaxis(widen(x), self.axis, 0)
        values, positions = rows.copy(), np.zeros(rows.shape, np.int64)
        for step in range(1, len(rows)):
            old, new = values[step - 1], rows[step]
            better = (new >= old if self.largest else new <= old) | (new != new)
            values[step] = np.where(better, new, old)
            positions[step] = np.where(better, step, positions[step - 1])
        return narrow(np.moveaxis(values, 0, self.axis), x), np.moveaxis(positions, 0, self.axis)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        nans = draw("running", "float32", 3, 17)
        nans[0, 2:5], nans[1, 0], nans[2, 16], nans[0, 9], nans[2, 3] = np.nan, np.nan, np.nan, np.inf, -np.inf
        yield Sample("last", cls(1), (draw("running", "float32", 5, 33),), exact=True)
        yield Sample("first", cls(0), (draw("running", "float64", 9, 3, 5),), exact=True)
        yield Sample("ties", cls(0), (draw("running", "int64", 33, 3),), exact=True)
        yield Sample("uint8", cls(1), (draw("running", "uint8", 2, 9),), exact=True)
        yield Sample("nan", cls(1), (nans,), exact=True)
        yield Sample("empty", cls(1), (draw("running", "float32", 3, 0),))


class Cummax(_RunningExtreme, name="cummax"):
    """The largest so far."""

    largest = True


class Cummin(_RunningExtreme, name="cummin"):
    """The smallest so far."""

    largest = False


class LogCumsumExp(Opaque, name="logcumsumexp"):
    """out[i] = log(exp(x[0]) + … + exp(x[i])) along `axis`, one log-add-exp per element."""

    axis: int

    def infer(self, x: TensorType) -> TensorType:
        if not x.is_float or not 0 <= self.axis < x.rank:
            raise OpError(f"{self.name} along axis {self.axis} of {x}")
        return x

    def reference(self, x: Array) -> Array:
        return narrow(np.asarray(np.logaddexp.accumulate(widen(x), self.axis)), x)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample("last", cls(1), (draw("lcse", "float32", 5, 33),))
        yield Sample("first", cls(0), (draw("lcse", "float64", 9, 3, 5, low=-90, high=90),))
        rows = np.array([[1, -np.inf, 2, 3], [-np.inf, -np.inf, 1, 0], [0, np.inf, 1, np.inf], [0, np.nan, 1, 2]])
        yield Sample("infinities", cls(1), (rows.astype(np.float32),))
        yield Sample("empty", cls(1), (draw("lcse", "float32", 3, 0),))


def _running_extreme(op: type[_RunningExtreme], overload: str) -> None:
    def convert(context: ImportContext, x: Value, dim: int) -> Any:
        dtype = x.dtype
        if not x.shape:
            return x, context.scalar(0, "int64")
        x = context.cast(x, "uint8" if dtype == "bool" else dtype)
        values, positions = context.emit(op(normalize_axis(dim, len(x.shape))), x)
        return context.cast(values, dtype), positions

    aten(overload)(convert)


_running_extreme(Cummax, "cummax.default")
_running_extreme(Cummin, "cummin.default")


@aten("logcumsumexp.default", "_logcumsumexp.default")
def _logcumsumexp(context: ImportContext, x: Value, dim: int) -> Any:
    """In float64, as PyTorch accumulates it."""
    dtype = out_type(context).dtype
    if not x.shape:
        return context.cast(x, dtype)
    return context.cast(
        context.emit(LogCumsumExp(normalize_axis(dim, len(x.shape))), context.cast(x, "float64")), dtype
    )
