"""Casts and arithmetic of every dtype, on the device, against numpy and against PyTorch's rules."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tests.vulkan.device import Device
from tests.vulkan.kernels import build, elementwise, validation_errors
from transpiler.errors import TranspileError
from transpiler.ir import TensorType
from transpiler.schedule import import_schedule
from transpiler.spirv.kernel import Kernel, require_features

INTS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
FLOATS = ["float16", "float32", "float64"]
CASTS = [(a, b) for a in [*INTS, *FLOATS, "bool"] for b in [*INTS, *FLOATS, "bool"] if a != b]
COUNT = 256
Array = np.ndarray[Any, Any]


def integers(dtype: str, seed: int) -> Array:
    limits = np.iinfo(dtype)
    x = np.random.default_rng(seed).integers(limits.min, limits.max, COUNT, dtype, endpoint=True)
    x[:6] = [limits.min, limits.max, 0, 1, limits.min + 1, limits.max - 1]
    return x


def sample(dtype: str, seed: int = 0) -> Array:
    random = np.random.default_rng(seed)
    if dtype == "bool":
        return random.random(COUNT) < 0.5
    if dtype in INTS:
        return integers(dtype, seed)
    x = np.concatenate([random.uniform(-300, 300, COUNT // 2), random.standard_normal(COUNT // 2) * 1e10])
    edges = [2.0**31, -(2.0**31), -(2.0**31) - 0.5, 2.0**31 - 0.5, 2.0**32, 2.0**63, -(2.0**63), 2.0**64, 1e30, -1e30]
    special = [np.nan, np.inf, -np.inf, -0.0, 0.5, -0.5, 1.5, 2.5, 255.5, -128.5, 65504, 65519, 65520, 1 + 2.0**-11]
    x[: len(edges) + len(special)] = edges + special
    with np.errstate(all="ignore"):
        return x.astype(dtype)


def shifted(name: str, dtype: str) -> Callable[..., Any]:
    return lambda x, y: getattr(tirx, name)(x, tirx.bitwise_and(y, tirx.const(np.iinfo(dtype).bits - 1, dtype)))


def plain(node: Any) -> Callable[..., Any]:
    return lambda x, y: node(x, y)


def truncated(x: Array, y: Array) -> Array:
    """The quotient towards zero, in ints of any size."""
    x, y = x.astype(object), y.astype(object)
    return (abs(x) // abs(y)) * np.sign(x) * np.sign(y)


ARITHMETIC: dict[str, tuple[Callable[..., Any], Callable[..., Array]]] = {
    "add": (lambda x, y: x + y, np.add),
    "sub": (lambda x, y: x - y, np.subtract),
    "mul": (lambda x, y: x * y, np.multiply),
    "truncdiv": (tirx.truncdiv, truncated),
    "truncmod": (tirx.truncmod, lambda x, y: np.fmod(x, y)),
    "floordiv": (tirx.floordiv, lambda x, y: x.astype(object) // y.astype(object)),
    "floormod": (tirx.floormod, np.mod),
    "min": (tirx.min, np.minimum),
    "max": (tirx.max, np.maximum),
    "and": (tirx.bitwise_and, np.bitwise_and),
    "or": (tirx.bitwise_or, np.bitwise_or),
    "xor": (tirx.bitwise_xor, np.bitwise_xor),
}  # fmt: skip
COMPARISONS: dict[str, tuple[Callable[..., Any], Callable[..., Array]]] = {
    "lt": (plain(tirx.LT), np.less),
    "le": (plain(tirx.LE), np.less_equal),
    "gt": (plain(tirx.GT), np.greater),
    "ge": (plain(tirx.GE), np.greater_equal),
    "eq": (plain(tirx.EQ), np.equal),
    "ne": (plain(tirx.NE), np.not_equal),
}


@cache
def kernels() -> dict[str, Kernel]:
    functions = [elementwise(f"{a}_to_{b}", [a], b, lambda x: x, COUNT) for a, b in CASTS]
    for dtype in INTS:
        for name, (function, _) in ARITHMETIC.items():
            functions.append(elementwise(f"{name}_{dtype}", [dtype, dtype], dtype, function, COUNT))
        for name in ("shift_left", "shift_right"):
            functions.append(elementwise(f"{name}_{dtype}", [dtype, dtype], dtype, shifted(name, dtype), COUNT))
        functions.append(elementwise(f"not_{dtype}", [dtype], dtype, tirx.bitwise_not, COUNT))
    for dtype in FLOATS:
        for name in ("add", "sub", "mul", "min", "max"):
            functions.append(elementwise(f"{name}_{dtype}", [dtype, dtype], dtype, ARITHMETIC[name][0], COUNT))
        functions.append(elementwise(f"div_{dtype}", [dtype, dtype], dtype, lambda x, y: x / y, COUNT))
        for name in ("floor", "ceil", "trunc", "nearbyint", "sqrt"):
            functions.append(elementwise(f"{name}_{dtype}", [dtype], dtype, getattr(tirx, name), COUNT))
        functions.append(elementwise(f"round_{dtype}", [dtype], dtype, call("round", dtype), COUNT))
        functions.append(elementwise(f"nan_{dtype}", [dtype], "bool", call("isnan"), COUNT))
        functions.append(elementwise(f"inf_{dtype}", [dtype], "bool", call("isinf"), COUNT))
        bits = dtype.replace("float", "uint")
        functions.append(elementwise(f"bits_{dtype}", [dtype], bits, as_bits(bits), COUNT))
        functions.append(elementwise(f"float_{bits}", [bits], dtype, as_bits(dtype), COUNT))
    for dtype in [*INTS, *FLOATS]:
        for name, (function, _) in COMPARISONS.items():
            functions.append(elementwise(f"{name}_{dtype}", [dtype, dtype], "bool", function, COUNT))
    return build(functions)


def call(name: str, dtype: str = "bool") -> Callable[..., Any]:
    return lambda x: tirx.call_pure_extern(dtype, name, x)


def as_bits(dtype: str) -> Callable[..., Any]:
    return lambda x: tirx.reinterpret(dtype, x)


def run(device: Device, name: str, inputs: list[Array], dtype: str) -> Array:
    kernel, result = kernels()[name], np.zeros(COUNT, dtype)
    named = {f"in{i}": array for i, array in enumerate(inputs)} | {"out": result}
    device.run(kernel, [named[binding.name.removesuffix("_ptr")] for binding in kernel.buffers])
    return result


@pytest.mark.parametrize("source", [*INTS, *FLOATS, "bool"])
def test_casts(source: str, device: Device) -> None:
    """As PyTorch on a CPU, whose casts of floats to unsigned ints beyond 8 bits are not defined."""
    x = sample(source)
    for _, target in [pair for pair in CASTS if pair[0] == source]:
        got = run(device, f"{source}_to_{target}", [x], target)
        if source in FLOATS and target in ("uint16", "uint32", "uint64"):
            wide = x.astype(np.float64)
            inside = (wide > -1) & (wide < 2.0 ** int(target[4:]))
            np.testing.assert_array_equal(got[inside], x[inside].astype(target), err_msg=target)
            continue
        np.testing.assert_array_equal(got, torch.from_numpy(x).to(getattr(torch, target)).numpy(), err_msg=target)


@pytest.mark.parametrize("dtype", INTS)
def test_integers_wrap_around(dtype: str, device: Device) -> None:
    x, y = sample(dtype), np.random.default_rng(5).permutation(sample(dtype, 1))
    if dtype.startswith("int"):
        x[:2], y[:2] = np.iinfo(dtype).min, -1  # the quotient that does not fit
    for name, (_, reference) in ARITHMETIC.items():
        divisor = np.where(y == 0, np.array(3, dtype), y) if "div" in name or "mod" in name else y
        with np.errstate(all="ignore"):
            want = reference(x, divisor)
        if want.dtype == object:
            want = np.array([int(value) & (2 ** np.iinfo(dtype).bits - 1) for value in want], np.uint64).astype(dtype)
        np.testing.assert_array_equal(run(device, f"{name}_{dtype}", [x, divisor], dtype), want, err_msg=name)
    bits = y & np.array(np.iinfo(dtype).bits - 1, dtype)
    np.testing.assert_array_equal(run(device, f"shift_left_{dtype}", [x, y], dtype), x << bits)
    np.testing.assert_array_equal(run(device, f"shift_right_{dtype}", [x, y], dtype), x >> bits)
    np.testing.assert_array_equal(run(device, f"not_{dtype}", [x], dtype), ~x)


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats(dtype: str, device: Device) -> None:
    """Bit for bit; min and max give their second operand where one of them is NaN."""
    x, y = sample(dtype), np.random.default_rng(5).permutation(sample(dtype, 1))
    with np.errstate(all="ignore"):
        results = {
            "add": x + y, "sub": x - y, "mul": x * y, "div": x / y, "min": np.where(x < y, x, y),
            "max": np.where(x > y, x, y),
        }  # fmt: skip
        for name, want in results.items():
            np.testing.assert_array_equal(run(device, f"{name}_{dtype}", [x, y], dtype), want, err_msg=name)
        away = np.copysign(np.floor(np.abs(x) + np.array(0.5, dtype)), x)
        unary = {
            "floor": np.floor(x), "ceil": np.ceil(x), "trunc": np.trunc(x), "nearbyint": np.rint(x), "round": away,
            "sqrt": np.sqrt(x),
        }  # fmt: skip
        for name, want in unary.items():
            got = run(device, f"{name}_{dtype}", [x], dtype)
            np.testing.assert_array_equal(got, want, err_msg=name)
            if name != "sqrt":
                np.testing.assert_array_equal(np.signbit(got), np.signbit(want), err_msg=name)
    np.testing.assert_array_equal(run(device, f"nan_{dtype}", [x], "bool"), np.isnan(x))
    np.testing.assert_array_equal(run(device, f"inf_{dtype}", [x], "bool"), np.isinf(x))
    bits = dtype.replace("float", "uint")
    np.testing.assert_array_equal(run(device, f"bits_{dtype}", [x], bits), x.view(bits))
    np.testing.assert_array_equal(run(device, f"float_{bits}", [x.view(bits)], dtype).view(bits), x.view(bits))


@pytest.mark.parametrize("dtype", [*INTS, *FLOATS])
def test_comparisons(dtype: str, device: Device) -> None:
    """Ordered, but for `!=`, which NaN makes true."""
    x, y = sample(dtype), np.random.default_rng(5).permutation(sample(dtype, 1))
    y[::3] = x[::3]
    for name, (_, reference) in COMPARISONS.items():
        got = run(device, f"{name}_{dtype}", [x, y], "bool")
        np.testing.assert_array_equal(got, reference(x, y), err_msg=name)


def test_capabilities_are_those_that_are_used() -> None:
    """Arithmetic of small ints needs their storage only; nothing needs 8- or 16-bit ints."""
    wanted = {
        "add_int8": ("storageBuffer8BitAccess",),
        "mul_int16": ("storageBuffer16BitAccess",),
        "add_int32": (),
        "add_float32": (),
        "mul_int64": ("shaderInt64",),
        "div_float64": ("shaderFloat64",),
        "float16_to_float32": ("storageBuffer16BitAccess",),
        "mul_float16": ("shaderFloat16", "storageBuffer16BitAccess"),
        "bool_to_float32": ("storageBuffer8BitAccess",),
    }
    assert {name: kernels()[name].features for name in wanted} == wanted


def test_arithmetic_in_float16_has_no_other_form() -> None:
    """It would round twice; the ops compute in float32."""
    kernel = kernels()["mul_float16"]
    assert kernel.packed is None
    with pytest.raises(TranspileError, match=r"Kernel 'mul_float16\w*' needs shaderFloat16, which device 'D' does not"):
        require_features(kernel, "D", {"storageBuffer16BitAccess", *kernel.float_controls})


@pytest.mark.usefixtures("validator")
def test_every_module_is_valid(tmp_path: Path) -> None:
    """Of each family one; the modules differ in opcodes only."""
    chosen = [
        kernel for name, kernel in kernels().items() if name.startswith(("float16", "bits", "floordiv", "mul", "not"))
    ]
    assert [text for kernel in chosen if (text := validation_errors(kernel, tmp_path))] == []


@pytest.mark.usefixtures("validator")
def test_what_a_branch_chooses_is_valid(tmp_path: Path) -> None:
    """Of memory of 16 bits, too: a device that has the memory without the arithmetic takes the other module."""
    dtypes = ["float16", "float32", "float64", "int8", "int16", "int64"]
    chosen = build(
        [elementwise(f"choice_{dtype}", ["bool", dtype, dtype], dtype, T.if_then_else, COUNT) for dtype in dtypes]
    )
    assert [text for kernel in chosen.values() if (text := validation_errors(kernel, tmp_path))] == []
    needed = {"shaderFloat16", "storageBuffer8BitAccess", "storageBuffer16BitAccess"}
    assert set(chosen["choice_float16"].features) == needed
    packed = chosen["choice_float16"].packed
    assert packed is not None
    assert packed.features == ()
    assert validation_errors(packed, tmp_path) == ""


LIMITS = (6, 0, -6, 1 << 31)
COMPARED: tuple[Callable[[Any, Any], Any], ...] = (operator.lt, operator.le, operator.gt, operator.ge)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32"])
def test_widened_ints_compare_with_constants(dtype: str, device: Device) -> None:
    """Mesa takes OpSConvert's results for larger or smaller than any constant (see `conversion._extended`)."""
    tests = [(limit, compare) for limit in LIMITS for compare in COMPARED]

    facts = np.iinfo(dtype)
    x = np.array([5, 6, 0, 1, 100, facts.min, facts.max, facts.max - 1], np.int64).astype(dtype)
    tir, tt = import_schedule("tir"), TensorType
    builder = tir.KernelBuilder("flags", [tt(dtype, (x.size,))], [tt("int32", (x.size,))])
    with builder, T.launch_thread("threadIdx.x", x.size) as thread:
        # Through memory: TVM would compare in 32 bits.
        wide = tir.local(1, "int64")
        wide.store(0, T.Cast("int64", builder.inputs[0][thread]))
        bits: Any = tirx.const(0, "int32")
        for position, (limit, compare) in enumerate(tests):
            yes = tirx.const(1 << position, "int32")
            bits = bits + tirx.Select(compare(wide[0], tirx.const(limit, "int64")), yes, tirx.const(0, "int32"))
        builder.outputs[0].store(thread, bits)
    (kernel,) = build([builder.function]).values()
    result = np.zeros(x.size, np.int32)
    device.run(kernel, [x, result] if kernel.buffers[1].written else [result, x])
    expected = np.zeros(x.size, np.int32)
    for position, (limit, compare) in enumerate(tests):
        expected += compare(x.astype(np.int64), limit).astype(np.int32) << position
    np.testing.assert_array_equal(result, expected)
