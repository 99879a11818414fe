"""Scans by warps and blocks: numbers by the emulator, extremes bit for bit, and errors that are found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.conformance.kernels import op_group
from tests.cuda.library import CudaLibrary, other
from transpiler.gpu.cubin import usage
from transpiler.gpu.nvrtc import compile_code
from transpiler.ir import Array
from transpiler.ops.base import Op
from transpiler.ops.running import Cummax, Cummin, LogCumsumExp
from transpiler.ops.scan import Cumprod, Cumsum
from transpiler.schedule import schedule
from transpiler.target import load_target

TARGET = load_target("cuda", "sm_80")
# Rows of a warp, of a block, along an axis that is not the last, and of one thread.
WARP, BLOCK, COLUMN, SHORT = (5, 133), (2, 4500), (3, 40, 5), (70, 9)


def drawn(shape: tuple[int, ...], dtype: str) -> Array:
    g = np.random.default_rng()
    if dtype.startswith("int"):
        info = np.iinfo(dtype)
        return g.integers(info.min, info.max, shape, dtype, endpoint=True)
    if dtype == "uint8":
        return g.integers(0, 256, shape, dtype)
    return g.standard_normal(shape).astype(dtype)


CASES: dict[str, tuple[Any, tuple[int, ...], str]] = {
    "sum_warp": (Cumsum, WARP, "float32"),
    "sum_block": (Cumsum, BLOCK, "float32"),
    "sum_double": (Cumsum, BLOCK, "float64"),
    "sum_wraps": (Cumsum, BLOCK, "int64"),
    "sum_column": (Cumsum, COLUMN, "int32"),
    "sum_short": (Cumsum, SHORT, "float32"),
    "product_warp": (Cumprod, WARP, "float32"),
    "product_wraps": (Cumprod, BLOCK, "int32"),
    "product_double": (Cumprod, WARP, "float64"),
    "max_block": (Cummax, BLOCK, "float32"),
    "max_column": (Cummax, COLUMN, "float64"),
    "max_ints": (Cummax, WARP, "int64"),
    "max_bytes": (Cummax, WARP, "uint8"),
    "min_ints": (Cummin, WARP, "int8"),
    "min_halves": (Cummin, WARP, "float16"),
    "exp_warp": (LogCumsumExp, WARP, "float32"),
    "exp_block": (LogCumsumExp, BLOCK, "float64"),
}
INPUTS = {name: drawn(shape, dtype) for name, (_, shape, dtype) in CASES.items()}


def op_of(name: str) -> Op:
    kind, shape, _ = CASES[name]
    return kind(1 if len(shape) > 1 else 0)


@pytest.fixture(scope="module")
def library() -> CudaLibrary:
    return CudaLibrary([schedule(op_group(op_of(name), [x]), TARGET, name) for name, x in INPUTS.items()])


@pytest.mark.parametrize("name", CASES)
def test_scans(library: CudaLibrary, name: str) -> None:
    x, op = INPUTS[name], op_of(name)
    results = library.run(name, x)
    if name.startswith(("max", "min")) or x.dtype.kind in "iu":
        for got, expected in zip(results, _several(op.reference(x)), strict=True):
            np.testing.assert_array_equal(got, expected)
        return
    (expected,) = _several(op.reference(x.astype(np.longdouble)))
    # Sums of both signs: the error is that of the largest number on the way.
    scale = np.maximum.accumulate(np.abs(expected), 1) + (0 if name.startswith("product") else 1)
    rounded = {"product_double": x.shape[1], "exp_warp": 30, "exp_block": 30, "sum_double": 30}.get(name, 1)
    assert (np.abs(results[0] - expected) <= rounded * (np.finfo(x.dtype).eps * scale + np.finfo(x.dtype).tiny)).all()


def test_corners_stay_where_they_are() -> None:
    """NaN and infinities spoil what comes behind them and nothing else; of equal elements the last one counts."""
    x = drawn(WARP, "float32")
    x[0, 40], x[1, 100:103], x[2, :], x[3, 0], x[4, 70], x[4, 120] = np.nan, np.inf, -0.0, -np.inf, np.inf, -np.inf
    ops: dict[str, Op] = {"sum": Cumsum(1), "max": Cummax(1), "min": Cummin(1), "exp": LogCumsumExp(1)}
    library = CudaLibrary([schedule(op_group(op, [x]), TARGET, name) for name, op in ops.items()])
    with np.errstate(invalid="ignore"):
        for name, op in ops.items():
            for got, expected in zip(library.run(name, x), _several(op.reference(x)), strict=True):
                same = np.testing.assert_allclose if name in ("sum", "exp") else np.testing.assert_array_equal
                options: Any = {"rtol": 1e-5, "atol": 1e-5} if name in ("sum", "exp") else {}
                same(got, expected, **options)


def test_parts_that_overflow_spoil_nothing() -> None:
    x = np.ones((1, 100), np.float32)
    x[0, 40:43] = 1e-30, 1e30, 1e30
    x[0, 50:53] = 1e-30, 1e30, 1e-30
    large = np.zeros((1, 100), np.float32)
    large[0, 40:43] = -3e38, 3e38, 3e38
    library = CudaLibrary(
        [schedule(op_group(op, [x]), TARGET, name) for name, op in (("product", Cumprod(1)), ("sum", Cumsum(1)))]
    )
    np.testing.assert_allclose(library.run("product", x)[0], np.cumprod(x.astype(np.float64), 1), rtol=1e-6)
    np.testing.assert_allclose(library.run("sum", large)[0], np.cumsum(large.astype(np.float64), 1), rtol=1e-6)


def test_machine_code(library: CudaLibrary) -> None:
    assert "__shfl_up_sync" in library.text
    assert all(item.stack == 0 for item in usage(compile_code(library.text, "sm_80").cubin).values())


@pytest.mark.parametrize(
    ("name", "pattern", "new", "message"),
    [
        ("max_block", r"__syncthreads\(\);", "", "another order|NaN|not equal|Mismatch"),
        ("sum_wraps", r"(__shfl_up_sync\([^;]*), 8, 32\)", r"\1, 7, 32)", "Mismatch"),
    ],
)
def test_errors_are_found(name: str, pattern: str, new: str, message: str) -> None:
    x = INPUTS[name]
    library = CudaLibrary([schedule(op_group(op_of(name), [x]), TARGET, name)], other(pattern, new))
    with pytest.raises(AssertionError, match=message):
        np.testing.assert_array_equal(library.run(name, x)[0], _several(op_of(name).reference(x))[0])


def _several(results: Any) -> tuple[Array, ...]:
    return results if isinstance(results, tuple) else (results,)
