"""Error bounds of the float32 functions in schedules/vector_math.py, over the whole range of float32."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from tvm import tirx

from tests.conformance.kernels import KernelLibrary
from transpiler.group import Lowered
from transpiler.ir import Array, TensorType
from transpiler.plan import Kernel
from transpiler.schedule import import_schedule
from transpiler.target import load_target

BOUNDS: dict[str, int] = import_schedule("vector_math").ULPS
ABSOLUTE: dict[str, float] = import_schedule("vector_math").ABSOLUTE
CHUNK = 1 << 16


@cache
def library() -> KernelLibrary:
    """Each function over CHUNK values, as an explicit vector loop and as a vectorised scalar loop."""
    names = ("vectors", "tir", "scalar", "fuse", "cpu.rows")
    vectors, tir, scalar, fuse, rows = map(import_schedule, names)
    kernels = []
    type_ = TensorType("float32", (CHUNK,))
    for name in (*BOUNDS, *ABSOLUTE):
        for form in ("vector", "scalar"):
            builder = tir.KernelBuilder(f"{name}_{form}", [type_], [type_])
            with builder:
                x, y = builder.inputs[0], builder.outputs[0]
                if form == "vector":
                    v = vectors.Vectors("float32")
                    with tir.loop(CHUNK // v.lanes) as block:
                        v.store(y, block * v.lanes, v.s.call(name, v.load(x, block * v.lanes)))
                else:
                    needs = fuse.Probe()
                    needs.call(name, tirx.Var("x", "float32"))
                    rows.lane_loop(
                        CHUNK, lambda at, name=name, x=x, y=y: y.store(at, scalar.Tir().call(name, x[at])), needs
                    )
            kernels.append(Lowered(Kernel(builder.name, (type_,), (type_,), name), builder.function))
    return KernelLibrary(kernels, load_target("cpu"))


def values() -> Array:
    """Every exponent with 4096 mantissas (denormals among them) in both signs, and a dense sweep of [-12,
    12].
    """
    mantissas = np.linspace(0, (1 << 23) - 1, 4096).astype(np.uint32)
    bits = (np.arange(255, dtype=np.uint32)[:, None] << 23 | mantissas).ravel()
    positive = bits.view(np.float32)
    sweep = np.linspace(-12, 12, 1 << 19).astype(np.float32)
    return np.concatenate([positive, -positive, sweep, np.linspace(-110, 92, 1 << 18).astype(np.float32)])


def reference(name: str, x: Array) -> Array:
    wide = x.astype(np.float64)
    with np.errstate(over="ignore"):
        match name:
            case "exp":
                return np.exp(wide)
            case "tanh":
                return np.tanh(wide)
            case "sigmoid":
                return np.where(wide < 0, np.exp(wide) / (1 + np.exp(np.minimum(wide, 0))), 1 / (1 + np.exp(-wide)))
            case "normal_cdf":
                return np.fromiter(map(math.erfc, (wide * -math.sqrt(0.5)).tolist()), np.float64, len(wide)) / 2
            case _:
                return np.fromiter(map(math.erf, wide.tolist()), np.float64, len(wide))


def ulps(result: Array, exact: Array) -> Array:
    """Distance in units of the last place of float32 at `exact`."""
    rounded = np.abs(exact).astype(np.float32)
    spacing = np.spacing(np.minimum(rounded, np.finfo(np.float32).max)).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.abs(result.astype(np.float64) - exact) / spacing


def run(name: str, form: str, x: Array) -> Array:
    padded = np.concatenate([x, np.zeros(-len(x) % CHUNK, np.float32)])
    parts = [library().run(f"{name}_{form}", part)[0] for part in padded.reshape(-1, CHUNK)]
    return np.concatenate(parts)[: len(x)]


@pytest.mark.parametrize("form", ["vector", "scalar"])
@pytest.mark.parametrize("name", list(BOUNDS))
def test_error(name: str, form: str) -> None:
    x = values()
    assert len(x) >= 2_000_000
    with np.errstate(over="ignore"):
        exact = reference(name, x)
        limits = exact.astype(np.float32)
    result = run(name, form, x)
    finite = np.isfinite(limits)
    np.testing.assert_array_equal(result[~finite], limits[~finite])
    error = ulps(result[finite], exact[finite])
    worst = int(error.argmax())
    assert error[worst] <= BOUNDS[name], f"{name}({x[finite][worst]!r}) is {error[worst]:.2f} ulp off"


@pytest.mark.parametrize("form", ["vector", "scalar"])
@pytest.mark.parametrize("name", list(ABSOLUTE))
def test_absolute_error(name: str, form: str) -> None:
    x = values()
    error = np.abs(run(name, form, x).astype(np.float64) - reference(name, x))
    worst = int(error.argmax())
    assert error[worst] <= ABSOLUTE[name], f"{name}({x[worst]!r}) is {error[worst]:.2e} off"


LIMITS = {
    "exp": [(-math.inf, 0.0), (math.inf, math.inf), (0.0, 1.0), (-0.0, 1.0), (89.0, math.inf), (-104.0, 0.0)],
    "tanh": [(-math.inf, -1.0), (math.inf, 1.0), (0.0, 0.0), (-0.0, -0.0), (50.0, 1.0)],
    "sigmoid": [(-math.inf, 0.0), (math.inf, 1.0), (0.0, 0.5), (-0.0, 0.5)],
    "normal_cdf": [(-math.inf, 0.0), (math.inf, 1.0), (0.0, 0.5), (-0.0, 0.5), (-20.0, 0.0), (9.0, 1.0)],
    "erf": [(-math.inf, -1.0), (math.inf, 1.0), (0.0, 0.0), (-0.0, -0.0), (5.0, 1.0)],
}


@pytest.mark.parametrize("form", ["vector", "scalar"])
@pytest.mark.parametrize("name", [*BOUNDS, *ABSOLUTE])
def test_limits(name: str, form: str) -> None:
    inputs, expected = map(list, zip(*LIMITS[name], strict=True))
    result = run(name, form, np.array([*inputs, math.nan], np.float32))
    assert np.isnan(result[-1])
    np.testing.assert_array_equal(result[:-1], np.array(expected, np.float32))
    np.testing.assert_array_equal(np.signbit(result[:-1]), np.signbit(np.array(expected, np.float32)))
