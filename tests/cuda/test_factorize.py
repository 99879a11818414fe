"""Factorisations by the threads of a block: residuals of matrices larger than a warp, and barriers that are missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.conformance.kernels import op_group
from tests.cuda.emulator import EmulationError
from tests.cuda.library import CudaLibrary, other
from transpiler.gpu.cubin import usage
from transpiler.gpu.nvrtc import compile_code
from transpiler.ir import Array
from transpiler.ops.base import Op
from transpiler.ops.factorize import Cholesky, LuFactor, TriangularSolve
from transpiler.ops.matrix_exp import MatrixExp
from transpiler.ops.orthogonal import ApplyReflectors, Eigh, HouseholderQr, SvdRows
from transpiler.schedule import schedule
from transpiler.target import load_target

TARGET = load_target("cuda", "sm_80")


def drawn(*shape: int) -> Array:
    return np.random.default_rng().standard_normal(shape)


def positive(n: int) -> Array:
    x = drawn(n, n)
    return x @ x.T + n * np.eye(n)


def lower(*shape: int) -> Array:
    return np.tril(drawn(*shape)) / shape[-1] + 2 * np.eye(shape[-1])


CASES: dict[str, tuple[Op, list[Array]]] = {
    "lu": (LuFactor(), [drawn(2, 50, 41)]),
    "lu_wide": (LuFactor(), [drawn(9, 70).astype(np.float32)]),
    "cholesky": (Cholesky(), [positive(45)]),
    "lower": (TriangularSolve(False), [lower(60, 60), drawn(60, 1)]),
    "upper": (TriangularSolve(True, unit=True), [lower(2, 40, 40).swapaxes(1, 2).copy(), drawn(2, 40, 37)]),
    "transposed": (TriangularSolve(False, transposed=True), [lower(33, 33), drawn(33, 40)]),
    "qr_tall": (HouseholderQr(), [drawn(70, 9)]),
    "qr_wide": (HouseholderQr(), [drawn(6, 140)]),
    "reflectors": (ApplyReflectors(), [*HouseholderQr().reference(drawn(40, 5)), drawn(40, 7)]),
    "reflectors_many": (ApplyReflectors(True), [*HouseholderQr().reference(drawn(12, 5)), drawn(12, 130)]),
    "eigh": (Eigh(), [drawn(2, 21, 21)]),
    "svd": (SvdRows(), [drawn(19, 40)]),
    "exp": (MatrixExp(), [drawn(35, 35)]),
}


@pytest.fixture(scope="module")
def library() -> CudaLibrary:
    return CudaLibrary([schedule(op_group(op, inputs), TARGET, name) for name, (op, inputs) in CASES.items()])


@pytest.mark.parametrize("name", CASES)
def test_close_to_the_reference(library: CudaLibrary, name: str) -> None:
    """Signs of reflections and rotations included: the order of the steps is the reference's."""
    op, inputs = CASES[name]
    expected: Any = op.reference(*inputs)
    results = library.run(name, *inputs)
    for got, wanted in zip(results, expected if isinstance(expected, tuple) else (expected,), strict=True):
        if got.dtype.kind == "i":
            np.testing.assert_array_equal(got, wanted)
        else:
            bound = 1e-7 if got.dtype == np.float64 else 1e-3
            np.testing.assert_allclose(got, wanted, rtol=0, atol=bound * (1 + np.abs(wanted).max()))


def test_one_block_for_a_matrix(library: CudaLibrary) -> None:
    assert all(len(launches) == 1 for launches in library.launches.values())
    assert [library.launches[name][0].grid[0] for name in ("lu", "cholesky", "upper")] == [2, 1, 2]
    used = usage(compile_code(library.text, "sm_80").cubin)
    # Square roots of float64 are functions, which keep a few registers on the stack.
    assert all(item.stack == 0 for name, item in used.items() if name != "svd_kernel")


def test_what_cannot_be_factorized_is_reported() -> None:
    indefinite, singular = np.diag([1.0, 4.0, -1.0, 2.0, -3.0]), np.ones((3, 3))
    cases: list[tuple[str, Op, Array]] = [
        ("info", Cholesky(), indefinite), ("checked", Cholesky(True), indefinite), ("zero", LuFactor(True), singular),
        ("eigh", Eigh(), np.full((1, 1), np.nan)), ("svd", SvdRows(), np.full((1, 1), np.inf)),
    ]  # fmt: skip
    library = CudaLibrary([schedule(op_group(op, [x]), TARGET, name) for name, op, x in cases])
    assert library.run("info", indefinite)[1] == 3
    for name, _, x in cases[1:]:
        with pytest.raises(RuntimeError, match="do not fit"):
            library.run(name, x)


def test_a_nan_is_no_pivot_but_the_first() -> None:
    x = drawn(2, 5, 5)
    x[0, 3, 0] = x[1, 0, 0] = np.nan
    (pivots,) = CudaLibrary([schedule(op_group(LuFactor(), [x]), TARGET, "k")]).run("k", x)[1:2]
    finite = np.abs(np.where(np.isnan(x[0, :, 0]), -1, x[0, :, 0]))
    assert pivots[0, 0] == np.argmax(finite * (np.arange(5) != 3)) + 1
    assert pivots[1, 0] == 1


@pytest.mark.parametrize("name", ["cholesky", "lower", "qr_tall", "eigh", "svd", "exp"])
def test_missing_barriers_are_found(name: str) -> None:
    op, inputs = CASES[name]
    library = CudaLibrary([schedule(op_group(op, inputs), TARGET, name)], other(r"__syncthreads\(\);", ""))
    with pytest.raises((AssertionError, EmulationError, RuntimeError)):
        library.run(name, *inputs)
