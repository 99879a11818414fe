"""Binary search."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from transpiler.ir import Array, TensorType
from transpiler.ops.base import Opaque, OpError, Sample
from transpiler.ops.dtypes import draw


class SearchSorted(Opaque, name="search_sorted"):
    """Where each value would be inserted, as int64: before its equals, behind them if `right`.

    The sequence is (n,), or (…, n) for values (…, m). The steps are PyTorch's (aten/src/ATen/native/Bucketization.cpp):
    so are the results for a sequence that is not sorted or has NaN.
    """

    right: bool = False

    def infer(self, sequence: TensorType, values: TensorType) -> TensorType:
        if sequence.dtype != values.dtype or sequence.dtype == "bool" or not sequence.rank:
            raise OpError(f"search_sorted of {values} in {sequence}")
        if sequence.rank > 1 and sequence.shape[:-1] != values.shape[:-1]:
            raise OpError(f"search_sorted of {values} in {sequence}")
        return values.with_dtype("int64")

    def reference(self, sequence: Array, values: Array) -> Array:
        if not values.size or not sequence.size:
            return np.zeros(values.shape, np.int64)
        count = sequence.shape[-1]
        rows = sequence.reshape(-1, count)
        flat = values.reshape(len(rows), -1)
        low, high = np.zeros(flat.shape, np.int64), np.full(flat.shape, count, np.int64)
        while (low < high).any():
            middle = low + (high - low) // 2
            found = np.take_along_axis(rows, np.minimum(middle, count - 1), 1)
            beyond = ~(found > flat) if self.right else ~(found >= flat)
            open_ = low < high
            low, high = np.where(open_ & beyond, middle + 1, low), np.where(open_ & ~beyond, middle, high)
        return low.reshape(values.shape)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        row = np.sort(draw("search", "float32", 33))
        nan = np.array([0.5, np.nan, np.inf, -np.inf, -9.0, 9.0], np.float32)
        ties = np.sort(draw("search", "int64", 3, 40), 1)
        for label, right in (("left", False), ("right", True)):
            yield Sample(label, cls(right), (row, draw("search values", "float32", 4, 9)), exact=True)
            yield Sample(f"{label}_nan", cls(right), (np.append(row, np.float32(np.nan)), nan), exact=True)
            yield Sample(f"{label}_rows", cls(right), (ties, draw("search rows", "int64", 3, 17)), exact=True)
            yield Sample(f"{label}_rank0", cls(right), (row, row[7]), exact=True)
        yield Sample("nowhere", cls(), (np.zeros(0, np.float32), row), exact=True)
        yield Sample("nothing", cls(), (row, np.zeros((0, 3), np.float32)), exact=True)
