"""Error bounds of the mathematical functions, against float64, on the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tvm import tirx

from tests.conformance.kernels import op_group
from tests.conformance.test_special_functions import AGAINST_TORCH
from tests.vulkan.device import Device
from tests.vulkan.kernels import build, elementwise, validation_errors
from transpiler.errors import TranspileErrors
from transpiler.gpu.vulkan import compile_kernel
from transpiler.ops import REGISTRY as R
from transpiler.schedule import schedule
from transpiler.spirv import doubles, functions
from transpiler.spirv.c_functions import OF_FLOAT64
from transpiler.spirv.kernel import Kernel
from transpiler.spirv.opcodes import Op
from transpiler.spirv.reflect import reflect
from transpiler.target import load_target

COUNT = 1 << 16
SPECIAL = np.array(
    [0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 2, -2, 0.5, 3, -3, 2.0**-149, -1e-40, 3.4e38, -3.4e38], "f4"
)
TWO = frozenset({"pow", "atan2", "fmod", "hypot", "nextafter", "quotient"})
Array = np.ndarray[Any, Any]


def sigmoid(x: Array) -> Array:
    return np.where(x < 0, np.exp(x) / (1 + np.exp(x)), 1 / (1 + np.exp(-x)))


REFERENCE: dict[str, Callable[..., Array]] = {
    "exp": np.exp, "exp2": np.exp2, "exp10": lambda x: np.power(10.0, x), "expm1": np.expm1, "log": np.log,
    "log2": np.log2, "log10": np.log10, "log1p": np.log1p, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x),
    "sigmoid": sigmoid, "tanh": np.tanh, "erf": np.vectorize(math.erf), "sin": np.sin, "cos": np.cos, "tan": np.tan,
    "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh, "asinh": np.arcsinh,
    "acosh": np.arccosh, "atanh": np.arctanh, "pow": np.power, "atan2": np.arctan2, "fmod": np.fmod, "hypot": np.hypot,
    "quotient": np.divide,
    "logb": lambda x: np.where(np.isfinite(x) & (x != 0), np.frexp(x)[1] - 1.0, np.log(np.abs(x))),
}  # fmt: skip


def call(name: str, dtype: str) -> Callable[..., Any]:
    return lambda *x: tirx.call_pure_extern(dtype, name, *x)


@cache
def kernels() -> dict[str, Kernel]:
    items = [
        elementwise(f"{name}_float32", ["float32"] * (1 + (name in TWO)), "float32", call(name, "float32"), COUNT)
        for name in functions.ULPS
    ]
    items += [
        elementwise(f"{name}_float64", ["float64"], "float64", call(name, "float64"), COUNT) for name in doubles.ULPS
    ]
    items += [
        elementwise(f"{name}_float16", ["float16"], "float16", call(name, "float16"), COUNT) for name in ("exp", "erf")
    ]
    return build(items)


def run(device: Device, name: str, dtype: str, inputs: list[Array]) -> Array:
    kernel = kernels()[f"{name}_{dtype}"]
    result = np.zeros(COUNT, dtype)
    named = {f"in{i}": array for i, array in enumerate(inputs)} | {"out": result}
    device.run(kernel, [named[binding.name.removesuffix("_ptr")] for binding in kernel.buffers])
    return result


def values(seed: int) -> Array:
    """Any bits, small and common numbers."""
    random = np.random.default_rng(seed)
    bits = random.integers(0, 1 << 32, COUNT // 2, dtype=np.uint64).astype(np.uint32).view(np.float32)
    near = np.concatenate([random.uniform(-2, 2, COUNT // 4), random.uniform(-100, 100, COUNT // 4)])
    return np.concatenate([bits, near.astype(np.float32)])


def arguments(name: str) -> list[Array]:
    first, second = values(1), np.random.default_rng(3).permutation(values(2))
    count = len(SPECIAL)
    if name not in TWO:
        first[:count] = SPECIAL
        return [first]
    first[: count**2], second[: count**2] = np.tile(SPECIAL, count), np.repeat(SPECIAL, count)
    if name == "pow":
        first[COUNT // 2 :] = np.abs(first[COUNT // 2 :])
    return [first, second]


def units(got: Array, exact: Array) -> Array:
    """Errors in units of the last place; where the exact value is denormal, 0 counts as right."""
    rounded = exact.astype(got.dtype)
    tiny = np.finfo(got.dtype).tiny
    same = (got == rounded) | (np.isnan(got) & np.isnan(rounded)) | ((np.abs(exact) < tiny) & (got == 0))
    spacing = np.spacing(np.maximum(np.abs(rounded), tiny)).astype(np.float64)
    error = np.abs(got.astype(np.float64) - exact.astype(np.float64)) / spacing
    return np.where(same, 0, np.where(np.isnan(error), np.inf, error))


@pytest.mark.parametrize("name", functions.ULPS)
def test_float32_functions_keep_their_bounds(name: str, device: Device) -> None:
    inputs = arguments(name)
    got = run(device, name, "float32", inputs)
    with np.errstate(all="ignore"):
        exact = REFERENCE[name](*(x.astype(np.float64) for x in inputs))
        denormal = np.any([(x != 0) & (np.abs(x) < np.finfo(np.float32).tiny) for x in inputs], 0)
        error = units(got, exact)
    error[denormal & (error > functions.ULPS[name])] = 0 if not np.isnan(got[denormal]).any() else np.inf
    worst = int(error.argmax())
    assert error[worst] <= functions.ULPS[name], ([x[worst] for x in inputs], got[worst], exact[worst])


@pytest.mark.parametrize("name", doubles.ULPS)
def test_float64_functions_are_computed_in_float64(name: str, device: Device) -> None:
    random = np.random.default_rng(0)
    x = np.concatenate([random.uniform(-720, 720, COUNT // 2), random.lognormal(0, 3, COUNT // 2)])
    x[: len(SPECIAL)] = SPECIAL
    got = run(device, name, "float64", [x])
    with np.errstate(all="ignore"):
        exact = REFERENCE[name](x.astype(np.longdouble))
        rounded = exact.astype(np.float64)
        same = (
            (got == rounded)
            | (np.isnan(got) & np.isnan(rounded))
            | ((np.abs(rounded) < 1e-307) & (np.abs(got) < 1e-307))
        )
        error = np.abs(got - exact) / np.spacing(np.maximum(np.abs(rounded), 1e-307))
    error = np.where(same, 0, error)
    assert error.max() <= doubles.ULPS[name], x[error.argmax()]


@pytest.mark.parametrize("name", ["exp", "erf"])
def test_float16_functions_are_rounded_once(name: str, device: Device) -> None:
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    got = run(device, name, "float16", [x])
    with np.errstate(all="ignore"):
        exact = REFERENCE[name](x.astype(np.float64))
        error = units(got, exact)
    assert error.max() <= 0.502, x[error.argmax()]


@pytest.mark.usefixtures("validator")
def test_every_module_is_valid(tmp_path: Path) -> None:
    assert [text for kernel in kernels().values() if (text := validation_errors(kernel, tmp_path))] == []


@pytest.mark.parametrize("name", ["sin", "pow", "asin", "fmod"])
def test_float64_functions_that_are_missing_are_refused(name: str) -> None:
    count = 1 + (name in TWO)
    with pytest.raises(TranspileErrors, match=f"Kernel '{name}_kernel': No SPIR-V for {name} of float64"):
        build([elementwise(name, ["float64"] * count, "float64", call(name, "float64"), 64)])


def test_unknown_functions_are_refused() -> None:
    with pytest.raises(TranspileErrors, match="No SPIR-V for the call"):
        build([elementwise("riddle", ["float32"], "float32", call("lgammaf", "float32"), 64)])


def test_nextafter(device: Device) -> None:
    x, y = arguments("nextafter")
    (kernel,) = build(
        [elementwise("nextafter", ["float32"] * 2, "float32", call("nextafter", "float32"), COUNT)]
    ).values()
    got = np.zeros(COUNT, np.float32)
    named = {"in0": x, "in1": y, "out": got}
    device.run(kernel, [named[binding.name.removesuffix("_ptr")] for binding in kernel.buffers])
    expected = np.nextafter(x, y)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(np.signbit(got[got == 0]), np.signbit(expected[expected == 0]))


def integers(dtype: str) -> list[Array]:
    """Dividends and divisors: any bits, corners, quotients that are ints or next to one, results that are denormal."""
    random, bits = np.random.default_rng(5), {"float32": np.uint32, "float64": np.uint64}[dtype]
    quarter = COUNT // 4
    x, y = (random.integers(0, np.iinfo(bits).max, COUNT, bits, endpoint=True).view(dtype) for _ in range(2))
    whole = random.integers(1, 4000, quarter)
    y[:quarter] = random.standard_normal(quarter)
    product = y[:quarter] * whole.astype(dtype)
    x[:quarter] = np.nextafter(product, random.choice([-np.inf, np.inf], quarter), dtype=dtype)
    x[: quarter // 2] = product[: quarter // 2]
    tiny = np.finfo(dtype).tiny
    x[quarter : 2 * quarter] = random.standard_normal(quarter) * tiny
    y[quarter : 2 * quarter] = random.integers(1, 512, quarter)
    count = len(SPECIAL)
    x[-(count**2) :], y[-(count**2) :] = np.tile(SPECIAL, count), np.repeat(SPECIAL, count)
    return [x, y]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_quotient_is_the_nearest_float_without_a_division(dtype: str, device: Device) -> None:
    (kernel,) = build([elementwise("quotient", [dtype] * 2, dtype, call("quotient", dtype), COUNT)]).values()
    assert Op.F_DIV not in reflect(kernel.code).operations
    x, y = integers(dtype)
    got = np.zeros(COUNT, dtype)
    named = {"in0": x, "in1": y, "out": got}
    device.run(kernel, [named[binding.name.removesuffix("_ptr")] for binding in kernel.buffers])
    with np.errstate(all="ignore"):
        expected = x / y
    np.testing.assert_array_equal(got, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(got[numbers]), np.signbit(expected[numbers]))


JUMPING = {
    "trunc": (R["div_round"]("trunc"), "float32"), "floor": (R["div_round"]("floor"), "float32"),
    "nearest": (R["div"](True), "float32"), "float64": (R["div_round"]("trunc"), "float64"),
}  # fmt: skip


@pytest.mark.parametrize("name", JUMPING)
def test_what_jumps_at_integers_takes_the_nearest_quotient(name: str) -> None:
    op, dtype = JUMPING[name]
    inputs = [np.ones((3, 5), dtype)] * 2
    target = load_target("vulkan")
    _, files = compile_kernel(schedule(op_group(op, inputs), target, "kernel"), target)
    divisions = [reflect(code).operations[Op.F_DIV] for code in files.values()]
    # Of "floor" the quotient that is wanted where the divisor is 0, and the sign of a zero.
    assert divisions == [int(name == "floor")] * len(files)


C_FUNCTIONS = {
    f"{row[0]}_{number}": row for number, row in enumerate(AGAINST_TORCH) if row[0] not in ("igamma", "igammac")
}


@cache
def c_kernels() -> dict[str, Kernel]:
    return build(
        [
            elementwise(
                name, ["float64"] * len(row[2]), "float64", call(f"tp_math_{row[0]}", "float64"), row[2][0].size
            )
            for name, row in C_FUNCTIONS.items()
        ]
    )


@pytest.mark.parametrize("name", C_FUNCTIONS)
def test_functions_of_c_are_pytorch_s(name: str, device: Device) -> None:
    _, function, x = C_FUNCTIONS[name]
    theirs = function(*map(torch.tensor, x)).numpy()
    ours = np.zeros(x[0].size)
    named = {f"in{i}": np.asarray(array, np.float64) for i, array in enumerate(x)} | {"out": ours}
    kernel = c_kernels()[name]
    device.run(kernel, [named[binding.name.removesuffix("_ptr")] for binding in kernel.buffers])
    assert np.abs(ours - theirs).max() <= 1e-12 * np.abs(theirs).max()


@pytest.mark.parametrize("name", sorted(OF_FLOAT64))
def test_functions_of_libm_are_right(name: str, device: Device) -> None:
    x = np.concatenate([np.random.default_rng(7).uniform(-6, 6, COUNT // 2), np.logspace(-30, 2, COUNT // 2)])
    (kernel,) = build([elementwise(name, ["float64"], "float64", call(name, "float64"), COUNT)]).values()
    got = np.zeros(COUNT)
    named = {"in0": x, "out": got}
    device.run(kernel, [named[binding.name.removesuffix("_ptr")] for binding in kernel.buffers])
    with np.errstate(all="ignore"):
        exact = {**REFERENCE, "erfc": np.vectorize(math.erfc)}[name](x)
        error = np.where((got == exact) | (np.isnan(got) & np.isnan(exact)), 0, np.abs(got - exact) / np.abs(exact))
    assert error.max() <= 4e-15 if name != "erfc" else error[x < 20].max() <= 1e-13, x[error.argmax()]
