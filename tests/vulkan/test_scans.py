"""Scans of a row by a workgroup, the form for graphics cards: rows of every length, and what is no number.

Inputs are drawn anew each time; bounds are roundings of what cannot cancel (see bounds.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.conformance.kernels import op_group
from tests.conformance.selection import size
from tests.conformance.test_ops_on_targets import FAMILIES, check_half_samples, check_samples
from tests.conformance.test_symbolic_sizes import REFUSED, cases_of
from tests.conformance.test_symbolic_sizes import run as vary
from tests.vulkan.barriers import barriers
from tests.vulkan.bounds import FEW
from tests.vulkan.device import Device
from tests.vulkan.library import VulkanLibrary
from tests.vulkan.test_schedules import DIRECT, STAGED
from transpiler.dims import Dim, symbol
from transpiler.gpu.vulkan import compile_kernel
from transpiler.group import Group, Lowered, make_group
from transpiler.ir import Array, Node, TensorType, Value
from transpiler.ops.base import Op, Sample
from transpiler.ops.running import Cummax, Cummin, LogCumsumExp
from transpiler.ops.scan import Cumprod, Cumsum
from transpiler.schedule import import_schedule, schedule
from transpiler.target import Target

FAMILIES_OF_SCANS = ("scan", "running")
# A tile has 64 x 4 elements for rows of up to 512, else 256 x 8, of log-sum-exps 256 x 4.
LENGTHS = (33, 255, 256, 257, 511, 512, 513, 1023, 1024, 1025, 2047, 2048, 2049, 4095, 4097, 10_000)


def drawn(shape: tuple[int, ...], dtype: str) -> Array:
    g = np.random.default_rng()
    if np.dtype(dtype).kind in "iu":
        info = np.iinfo(dtype)
        return g.integers(info.min, info.max, shape, dtype, endpoint=True)
    return g.standard_normal(shape).astype(dtype)


def several(op: Op, x: Array) -> tuple[Array, ...]:
    with np.errstate(all="ignore"):
        results: Any = op.reference(x)
    return results if isinstance(results, tuple) else (results,)


def check(op: Any, x: Array, results: Sequence[Array]) -> None:
    """Ints and extremes are exact; else within a rounding for every element that was joined."""
    if op.name in ("cummax", "cummin") or x.dtype.kind in "iu":
        for got, expected in zip(results, several(op, x), strict=True):
            assert got.tobytes() == np.ascontiguousarray(expected).tobytes(), f"{op.name} of {x.shape} {x.dtype}"
        return
    exact = several(op, x.astype(np.longdouble))[0]
    places = np.moveaxis(np.ones(x.shape), op.axis, -1).cumsum(-1)
    rounded = np.moveaxis(places, -1, op.axis)
    match op.name:
        case "cumsum":
            largest = np.cumsum(np.abs(x).astype(np.longdouble), op.axis)
        case "cumprod":
            largest = np.abs(exact)
        case _:
            # A log-add-exp hands the errors of both sides on as they are: as many of its own as there are joins on the
            # way to an element, of the largest number on the way.
            largest = np.abs(x).max() + np.log(x.shape[op.axis]) + 1
            rounded = np.minimum(rounded, 64 + x.shape[op.axis] / 1024) * FEW
    info = np.finfo(x.dtype)
    excess = np.abs(results[0] - exact) - (FEW + rounded) * (info.eps / 2) * largest - info.tiny
    assert excess.max(initial=0) <= 0, f"{op.name} of {x.shape} {x.dtype}: {excess.max()}"


def library_of(device: Device, kernels: Sequence[Lowered], target: Target = STAGED) -> VulkanLibrary:
    library = VulkanLibrary(kernels, target, device)
    assert not library.refused
    return library


def varying(op: Op, shape: tuple[Dim, ...], dtype: str) -> Group:
    x = Value("x", TensorType(dtype, shape))
    outputs = tuple(Value(f"y{i}", type_) for i, type_ in enumerate(op.infer_types([x.type])))
    return make_group((Node(op, (x,), outputs),), outputs)


@pytest.mark.parametrize(
    ("op", "dtype"),
    [(Cumsum(1), "float32"), (Cumprod(1), "float32"), (Cummax(1), "float32"), (Cummin(1), "int64"),
     (LogCumsumExp(1), "float64")],
)  # fmt: skip
def test_rows_of_any_length(op: Op, dtype: str, device: Device) -> None:
    """One kernel, whose size varies."""
    item = schedule(varying(op, (2, symbol("n")), dtype), STAGED, "kernel")
    assert barriers(item, STAGED) == [3]
    library = library_of(device, [item])
    for length in (1, 2, 7, 8, 9, *LENGTHS):
        x = drawn((2, length), dtype)
        first, again = (library.run("kernel", x, sizes={"n": length}) for _ in range(2))
        assert [one.tobytes() for one in first] == [one.tobytes() for one in again]
        check(op, x, first)
    library.close()


# Op, shape, dtype, threads of a row.
CASES: dict[str, tuple[Op, tuple[int, ...], str, int]] = {
    "sum_short": (Cumsum(1), (5, 257), "float32", 64),
    "sum_axis": (Cumsum(1), (3, 140, 5), "float32", 64),
    "product_double": (Cumprod(1), (2, 300), "float64", 64),
    "product_wraps": (Cumprod(1), (3, 100), "int32", 64),
    "max_bytes": (Cummax(1), (3, 513), "uint8", 256),
    "min_shorts": (Cummin(1), (3, 100), "int16", 64),
    "min_double": (Cummin(0), (500, 2), "float64", 64),
}


def test_rows_of_fixed_lengths(device: Device) -> None:
    inputs = {name: drawn(shape, dtype) for name, (_, shape, dtype, _) in CASES.items()}
    kernels = [schedule(op_group(CASES[name][0], [x]), STAGED, name) for name, x in inputs.items()]
    library = library_of(device, kernels)
    for name, x in inputs.items():
        op, *_, threads = CASES[name]
        (launch,) = library.launches[name]
        assert launch.workgroup == (threads, 1, 1)
        assert launch.shared_bytes <= STAGED.gpu.shared_bytes
        # Nothing of the device that the plain form does not need.
        (plain,), _ = compile_kernel(schedule(op_group(op, [x]), DIRECT, name), DIRECT)
        assert set(launch.features) <= set(plain.features)
        check(op, x, library.run(name, x))
    library.close()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint8", "int8", "int64"])
@pytest.mark.parametrize("kind", [Cumsum, Cumprod, Cummax, Cummin, LogCumsumExp])
def test_every_dtype_along_every_axis(kind: Any, dtype: str, device: Device) -> None:
    if kind is LogCumsumExp and not dtype.startswith("float"):
        return
    n = symbol("n")
    forms: dict[str, tuple[Op, tuple[Dim, ...]]] = {
        "rows": (kind(1), (3, n)), "middle": (kind(1), (2, n, 3)), "below": (kind(1), (3, 255)),
        "above": (kind(0), (257, 2)), "whole": (kind(1), (1, 512)),
    }  # fmt: skip
    kernels = [schedule(varying(op, shape, dtype), STAGED, name) for name, (op, shape) in forms.items()]
    library = library_of(device, kernels)
    for name, (op, shape) in forms.items():
        for length in LENGTHS if n in shape else (0,):
            x = drawn(tuple(length if dim == n else int(str(dim)) for dim in shape), dtype)
            check(op, x, library.run(name, x, sizes={"n": length}))
    library.close()


def test_corners_stay_where_they_are(device: Device) -> None:
    """NaN and infinities spoil what comes behind them and nothing else; of equal elements the last one counts."""
    x = drawn((9, 300), "float32")
    x[0, 40], x[1, 100:103], x[2], x[3, 0], x[4, 70], x[4, 120] = np.nan, np.inf, -0.0, -np.inf, np.inf, -np.inf
    x[5], x[6, 150], x[7, 7], x[7, 200], x[8, 299] = -np.inf, 0.0, 0.0, np.inf, np.nan
    ops: list[Op] = [Cumsum(1), Cumprod(1), Cummax(1), Cummin(1), LogCumsumExp(1)]
    library = library_of(device, [schedule(op_group(op, [x]), STAGED, op.name) for op in ops])
    for op in ops:
        results = library.run(op.name, x)
        if op.name.startswith("cumm"):
            check(op, x, results)
            continue
        exact, (got,) = several(op, x.astype(np.float64))[0], results
        rows = np.isfinite(x).all(1)
        check(op, x[rows], [got[rows]])
        with np.errstate(over="ignore"):
            expected = exact.astype(np.float32)
        lost = ~np.isfinite(exact)
        np.testing.assert_array_equal(got[lost], expected[lost])
        assert np.isfinite(got[~lost]).all()
        if op.name in ("cumsum", "cumprod"):
            # No sum is -0, as in PyTorch, which begins with 0.
            zeros = expected == 0
            signs = np.signbit(expected[zeros]) & (op.name == "cumprod")
            np.testing.assert_array_equal(np.signbit(got[zeros]), signs)
    library.close()


def test_parts_that_overflow_spoil_nothing(device: Device) -> None:
    """As in PyTorch, which adds up and multiplies in float64."""
    x = np.ones((3, 300), np.float32)
    x[0, 40:43] = 1e-30, 1e30, 1e30
    x[0, 50:53] = 1e-30, 1e30, 1e-30
    x[1, 100:140], x[1, 140:180] = 1e-3, 1e3
    x[2, 10:200], x[2, 200:220] = 2.0**-127, 2.0**127
    large = np.zeros((2, 300), np.float32)
    large[0, 40:43], large[1, 3], large[1, 17:23] = (-3e38, 3e38, 3e38), -3e38, 1e38
    library = library_of(
        device, [schedule(op_group(op, [x]), STAGED, op.name) for op in (Cumprod(1), Cumsum(1))]
    )  # fmt: skip
    with np.errstate(over="ignore"):
        products = np.cumprod(x.astype(np.longdouble), 1).astype(np.float32)
        sums = np.cumsum(large.astype(np.float64), 1)
    np.testing.assert_allclose(library.run("cumprod", x)[0], products, rtol=2e-5)
    padded = np.concatenate([large, np.zeros_like(large[:1])])
    largest = np.cumsum(np.abs(large).astype(np.float64), 1)
    assert (np.abs(library.run("cumsum", padded)[0][:2] - sums) <= 300 * 2.0**-24 * largest).all()
    library.close()


@pytest.mark.parametrize(
    ("op", "shape", "threads"),
    [
        (Cumsum(1), (70, 32), None),
        (Cumsum(1), (70, 33), 64),
        (Cumsum(1), (5000, 100), None),
        (Cumsum(1), (5000, 200), 64),
        (Cumsum(0), (400, 3000), None),
        (Cumsum(0), (400, 300), 64),
        (Cummax(0), (512,), 64),
        (Cummax(0), (513,), 256),
    ],
)
def test_which_rows_have_a_workgroup(op: Op, shape: tuple[int, ...], threads: int | None) -> None:
    group = varying(op, shape, "float32")
    plain, staged = (schedule(group, target, "kernel").function.script() for target in (DIRECT, STAGED))
    assert "shared" not in plain
    assert ("shared" in staged) == (threads is not None)
    assert threads is None or f'T.launch_thread("threadIdx.x", {threads})' in staged


def test_a_barrier_that_is_missing_is_found(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_schedule("vulkan.scan"), "barrier", lambda: None)
    x = drawn((1, 5000), "int32")
    library = library_of(device, [schedule(op_group(Cumsum(1), [x]), STAGED, "kernel")])
    with pytest.raises(AssertionError):
        check(Cumsum(1), x, library.run("kernel", x))
    library.close()


# --- the ops' samples


@pytest.fixture
def everywhere(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short rows have workgroups too."""
    monkeypatch.setattr(import_schedule("gpu.scan"), "ALONE", 0)


def samples() -> list[list[Sample]]:
    """By op."""
    every = [sample for family in FAMILIES_OF_SCANS for sample in FAMILIES[family]]
    return [[sample for sample in every if sample.op.name == name] for name in import_schedule("gpu.scan").NAMES]


@pytest.mark.usefixtures("everywhere")
def test_a_sample_of_each_op() -> None:
    problems = check_samples([min(of_op, key=size) for of_op in samples()], STAGED)
    assert not problems, "\n".join(problems)


@pytest.mark.slow
@pytest.mark.usefixtures("everywhere")
def test_samples() -> None:
    problems = check_samples([sample for of_op in samples() for sample in of_op], STAGED)
    assert not problems, "\n".join(problems)


@pytest.mark.slow
@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("family", FAMILIES_OF_SCANS)
def test_half_samples_and_sizes_that_vary(family: str) -> None:
    problems = check_half_samples(family, STAGED)
    found, refused, _ = vary(cases_of(family, every=True), STAGED)
    assert not problems + found, "\n".join(problems + found)
    assert refused <= REFUSED
