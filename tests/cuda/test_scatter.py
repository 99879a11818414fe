"""Scatter and index_put by columns and by sorting: the bits of the references, whatever the order of the threads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.conformance.kernels import op_group
from tests.cuda.library import CudaLibrary, other
from transpiler.dims import evaluate
from transpiler.gpu.cubin import usage
from transpiler.gpu.nvrtc import compile_code
from transpiler.ir import Array
from transpiler.ops.base import Op
from transpiler.ops.index import IndexPut
from transpiler.ops.scatter import Scatter, ScatterAdd, ScatterMax, ScatterMin, ScatterMul
from transpiler.schedule import schedule
from transpiler.target import load_target

TARGET = load_target("cuda", "sm_80")
# x, indices, updates.
SCATTERS: dict[str, tuple[Op, tuple[int, ...], tuple[int, ...], str]] = {
    "few": (ScatterAdd(0), (7, 5), (9, 5), "float32"),
    "long": (ScatterAdd(0), (50,), (3000,), "float32"),
    "rows": (ScatterAdd(1), (6, 40), (5, 100), "float32"),
    "axis": (ScatterMul(1), (3, 4, 5), (3, 60, 4), "float64"),
    "columns": (ScatterAdd(0), (9, 1100), (40, 1100), "float32"),
    "last_one": (Scatter(0), (60,), (500,), "float32"),
    "last_column": (Scatter(0), (6, 9), (70, 9), "int64"),
    "largest": (ScatterMax(0), (30,), (300,), "float32"),
    "smallest": (ScatterMin(0), (30,), (300,), "int32"),
    "wraps": (ScatterMul(0), (5,), (300,), "int32"),
}
# Axes, x, indices, values.
PUTS: dict[str, tuple[IndexPut, tuple[int, ...], list[tuple[int, ...]], tuple[int, ...]]] = {
    "put_rows": (IndexPut((0,), True), (30, 5), [(200,)], (200, 5)),
    "put_apart": (IndexPut((0, 2)), (6, 4, 5), [(70,), (70,)], (70, 4)),
    "put_box": (IndexPut((1, 2), True), (3, 6, 5), [(9, 1), (1, 8)], (9, 8)),
    "put_long": (IndexPut((0,)), (40, 3), [(2500,)], (2500, 1)),
    "put_few": (IndexPut((1,), True, wraps=False), (3, 8), [(5,)], (3, 5)),
}


def numbers(shape: tuple[int, ...], dtype: str) -> Array:
    g = np.random.default_rng()
    if dtype.startswith("int"):
        return g.integers(-9, 9, shape).astype(dtype)
    values = g.standard_normal(shape).astype(dtype)
    values[g.random(shape) < 0.01] = np.nan
    return values


def drawn(name: str) -> tuple[Op, list[Array]]:
    g = np.random.default_rng()
    if name in SCATTERS:
        op, x, indices, dtype = SCATTERS[name]
        axis: Any = op.attributes()["axis"]
        return op, [numbers(x, dtype), g.integers(0, x[axis], indices), numbers(indices, dtype)]
    put, x, picks, values = PUTS[name]
    low = [-x[axis] if put.wraps else 0 for axis in put.axes]
    chosen = [g.integers(start, x[axis], pick) for axis, start, pick in zip(put.axes, low, picks, strict=True)]
    return put, [numbers(x, "float32"), numbers(values, "float32"), *chosen]


CALLS = {name: drawn(name) for name in (*SCATTERS, *PUTS)}


@pytest.fixture(scope="module")
def library() -> CudaLibrary:
    return CudaLibrary([schedule(op_group(op, inputs), TARGET, name) for name, (op, inputs) in CALLS.items()])


@pytest.mark.parametrize("name", CALLS)
def test_equal_to_the_reference(library: CudaLibrary, name: str) -> None:
    op, inputs = CALLS[name]
    with np.errstate(invalid="ignore"):
        expected = op.reference(*inputs)
    np.testing.assert_array_equal(library.run(name, *inputs)[0], expected)


def test_launches(library: CudaLibrary) -> None:
    """A copy and the columns; or a copy, a sort and the runs."""
    counts = {name: len(library.launches[name]) for name in CALLS}
    assert counts["few"] == counts["columns"] == counts["put_few"] == 2
    assert counts["rows"] == counts["last_one"] == counts["put_rows"] == 3
    assert counts["long"] == counts["put_long"] == 4
    assert all(item.stack == 0 for item in usage(compile_code(library.text, "sm_80").cubin).values())


@pytest.mark.parametrize("name", ["few", "long", "put_apart", "put_few"])
def test_an_index_out_of_bounds_is_reported(library: CudaLibrary, name: str) -> None:
    op, inputs = CALLS[name]
    place = 2 if isinstance(op, IndexPut) else 1
    wrong = inputs[place].copy()
    wrong[-1] = 1000
    with pytest.raises(IndexError):
        library.run(name, *(wrong if number == place else array for number, array in enumerate(inputs)))


@pytest.mark.parametrize("name", ["long", "put_rows", "put_few"])
def test_in_place(name: str) -> None:
    """The output holds x; with a wrong index it stays as it was."""
    op, (x, *rest) = CALLS[name]
    group = op_group(op, [x, *rest])
    library = CudaLibrary([schedule(replace(group, inputs=group.inputs[1:], in_place=True), TARGET, name)])
    place = 1 if isinstance(op, IndexPut) else 0
    wrong = [array.copy() for array in rest]
    wrong[place][-1] = 1000
    kernel = library.kernels[name]
    for given, expected, code in ((rest, op.reference(x, *rest), 0), (wrong, x, 1)):
        spare = [np.full(int(evaluate(kernel.workspace, {})), 0xFF, np.uint8)] if kernel.workspace else []
        arrays = [*given, x.copy(), *spare, np.zeros(1, np.int32)]
        memory = [array.reshape(-1).view(np.uint8) for array in arrays]
        for launch in library.launches[name]:
            library.launch(name, launch, memory, {})
        assert arrays[-1][0] == code
        np.testing.assert_array_equal(arrays[len(given)], expected)


@pytest.mark.parametrize(
    ("name", "pattern", "new"),
    [("rows", r"<< 32\)|\* \(int64_t\)4294967296\)", "* 0)"), ("last_one", r"== 499", "== 498")],
)
def test_errors_are_found(name: str, pattern: str, new: str) -> None:
    op, inputs = CALLS[name]
    library = CudaLibrary([schedule(op_group(op, inputs), TARGET, name)], other(pattern, new))
    with pytest.raises((AssertionError, IndexError)):
        np.testing.assert_array_equal(library.run(name, *inputs)[0], op.reference(*inputs))
