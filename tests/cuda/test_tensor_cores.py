"""Products on tensor cores: numbers by the emulator, what the machine code has, and errors that have to be found."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import ml_dtypes
import numpy as np
import pytest

from tests.conformance.kernels import op_group
from tests.cuda.emulator import EmulationError
from tests.cuda.library import CudaLibrary, other
from transpiler.dims import Dim, evaluate, symbol
from transpiler.gpu.cubin import operations, usage
from transpiler.gpu.nvrtc import compile_code
from transpiler.group import Group, Lowered, make_group
from transpiler.ir import Array, Node, TensorType, Value
from transpiler.ops.activation import Gelu
from transpiler.ops.base import Op, rng
from transpiler.ops.channels_last import ConvLast
from transpiler.ops.compare import Cast
from transpiler.ops.conv import Conv
from transpiler.ops.dtypes import numpy_dtype
from transpiler.ops.elementwise import Add
from transpiler.ops.linalg import Linear, Matmul
from transpiler.schedule import schedule
from transpiler.target import load_target

TARGET = load_target("cuda", "sm_80")
REGISTERS, SHARED = (
    65536,
    166912,
)  # of a multiprocessor of compute capability 8.0, and what a block may have of the latter
# (op, shapes of the inputs): sizes with and without rests, one step and many, chunks that have to be packed.
CASES: dict[str, tuple[Op, Sequence[tuple[int, ...]]]] = {
    "linear_bias": (Linear(), [(3, 50, 136), (200, 136), (200,)]),
    "linear_small": (Linear(), [(9, 8), (3, 8)]),
    "gemv": (Linear(), [(1, 1, 808), (37, 808), (37,)]),
    "gemv_odd": (Linear(), [(3, 35), (2001, 35)]),
    "linear_odd": (Linear(), [(33, 35), (21, 35), (21,)]),
    "linear_large_tile": (Linear(), [(300, 40), (1500, 40)]),
    "linear_deep": (Linear(), [(20, 400), (40, 400), (40,)]),
    "matmul_deep": (Matmul(), [(2, 18, 400), (2, 400, 72)]),
    "matmul_plain": (Matmul(), [(70, 72), (72, 48)]),
    "matmul_batch": (Matmul(), [(2, 1, 20, 24), (3, 24, 40)]),
    "matmul_odd": (Matmul(), [(2, 3, 33, 35), (2, 3, 35, 37)]),
    "matmul_transposed": (Matmul(True), [(4, 33, 40), (4, 30, 40)]),
    "conv_3x3": (Conv((1, 1), (1, 1), (1, 1)), [(2, 20, 7, 9), (24, 20, 3, 3), (24,)]),
    "conv_gemv": (Conv((1, 1), (1, 1), (1, 1)), [(2, 3, 11, 13), (5, 3, 3, 3), (5,)]),
    "conv_stem": (Conv((2, 2), (3, 3), (1, 1)), [(1, 3, 21, 21), (16, 3, 7, 7)]),
    "conv_1x1": (Conv((1, 1), (0, 0), (1, 1)), [(2, 24, 4, 6), (40, 24, 1, 1), (40,)]),
    "conv_1x1_odd": (Conv((1, 1), (0, 0), (1, 1)), [(3, 24, 7, 7), (40, 24, 1, 1)]),
    "conv_1x1_stride": (Conv((2, 2), (0, 0), (1, 1)), [(1, 32, 8, 10), (17, 32, 1, 1)]),
    "conv_groups": (Conv((1, 1), (2, 2), (2, 2), 2), [(1, 12, 8, 8), (34, 6, 3, 3), (34,)]),
    "conv_3d": (Conv((1, 2, 1), (1, 0, 1), (1, 1, 1)), [(1, 5, 4, 5, 6), (18, 5, 3, 3, 3)]),
    "conv_1d": (Conv((1,), (2,), (1,)), [(2, 10, 33), (20, 10, 5), (20,)]),
    "last_3x3": (ConvLast((1, 1), (1, 1), (1, 1)), [(2, 7, 9, 24), (40, 3, 3, 24), (40,)]),
    "last_filled": (ConvLast((2, 2), (3, 3), (1, 1)), [(1, 21, 21, 4), (16, 7, 7, 4)]),
    "last_1x1": (ConvLast((1, 1), (0, 0), (1, 1)), [(3, 7, 7, 24), (40, 1, 1, 24)]),
    "last_groups": (ConvLast((1, 1), (2, 2), (2, 2), 2), [(1, 8, 8, 16), (34, 3, 3, 8), (34,)]),
    "last_depthwise": (ConvLast((2, 1), (1, 1), (1, 1), 12), [(2, 9, 7, 12), (12, 3, 3, 1), (12,)]),
    "matmul_one_right": (Matmul(), [(4, 17, 24), (1, 24, 16)]),
}
KINDS = ("float16", "bfloat16", "tf32", "float32")


def drawn(label: str, shapes: Sequence[tuple[int, ...]], dtype: str) -> list[Array]:
    g = rng(label)
    return [g.standard_normal(shape, np.float32).astype(numpy_dtype(dtype)) for shape in shapes]


def to_tf32(x: Array) -> Array:
    """Rounded to 10 bits of mantissa, ties away from zero."""
    return ((x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def wrong(got: Array, exact: Array) -> float:
    """By how much the largest error is over half a unit of the result's dtype, plus what float32 sums may be off."""
    half_unit = float(ml_dtypes.finfo(got.dtype).eps) / 2
    allowed = 1.01 * half_unit * np.abs(exact) + 2e-6 * np.abs(exact).max() + 1e-30
    return float((np.abs(got.astype(np.float64) - exact) / allowed).max())


def exact_result(op: Op, inputs: Sequence[Array], kind: str) -> Array:
    operands = [to_tf32(x) if kind == "tf32" else x for x in inputs[:2]]
    result = op.reference(*(x.astype(np.float64) for x in (*operands, *inputs[2:])))
    assert isinstance(result, np.ndarray)
    return result


# All kinds share what is not about their fragments.
SOME = (
    "linear_bias", "linear_deep", "matmul_deep", "gemv", "matmul_batch", "matmul_odd", "matmul_transposed", "conv_3x3",
    "conv_1x1", "last_3x3",
)  # fmt: skip
WHICH = {"float16": tuple(CASES), "float32": tuple(CASES), "bfloat16": SOME[:5], "tf32": ("linear_small", *SOME)}


@cache
def kernels(kind: str) -> dict[str, tuple[Lowered, tuple[Array, ...]]]:
    found = {}
    for name in WHICH[kind]:
        op, shapes = CASES[name]
        inputs = drawn(name, shapes, "float32" if kind == "tf32" else kind)
        if kind == "tf32":
            op = type(op)(**{**op.attributes(), "precision": "tf32"})
        found[name] = schedule(op_group(op, inputs), TARGET, f"{name}_{kind}"), tuple(inputs)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_products(kind: str) -> None:
    library = CudaLibrary([item for item, _ in kernels(kind).values()])
    assert ("mma_" in library.text) == (kind != "float32")
    assert ("__shfl_xor_sync" in library.text) == ("gemv" in WHICH[kind])
    for name, (item, inputs) in kernels(kind).items():
        (got,) = library.run(item.kernel.name, *inputs)
        # Few rows are multiplied in float32: there is no need to round.
        rounding = "float32" if "gemv" in name or "depthwise" in name else kind
        assert wrong(got, exact_result(CASES[name][0], inputs, rounding)) < 1, name


def test_few_tiles_have_more_warps() -> None:
    """Four teams of two warps, whose sums meet behind barriers; the same without one is found."""
    for kind in ("float16", "float32"):
        item, inputs = kernels(kind)["linear_deep"]
        library = CudaLibrary([item])
        (launch,) = library.launches[item.kernel.name]
        assert launch.workgroup[0] >= 128
        cubin = compile_code(library.text, "sm_80").cubin
        assert operations(cubin)[launch.entry]["BAR"] == 4
        assert usage(cubin)[launch.entry].stack == 0
    broken = CudaLibrary([item], other(r"(store_shared[^;]*;\s*\}\s*\}\s*)__syncthreads\(\);", r"\1"))
    with pytest.raises(AssertionError, match="with its threads in another order"):
        broken.run(item.kernel.name, *inputs)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_machine_code(arch: str) -> None:
    """Matrix instructions, fragments and copies as promised; nothing in local memory; blocks that fit."""
    chosen = [
        ("float16", "linear_large_tile"), ("bfloat16", "matmul_batch"), ("tf32", "linear_bias"),
        ("float32", "linear_large_tile"), ("float32", "matmul_plain"), ("float16", "gemv"), ("float16", "conv_3x3"),
    ]  # fmt: skip
    items = [kernels(kind)[name][0] for kind, name in chosen]
    library = CudaLibrary(items)
    cubin = compile_code(library.text, arch).cubin
    used, found = usage(cubin), operations(cubin)
    for launches in library.launches.values():
        entry, threads = launches[-1].entry, launches[-1].workgroup[0]
        assert used[entry].stack == 0, entry
        assert used[entry].registers * threads <= REGISTERS / 2, entry
        if "gemv" in entry:
            assert found[entry]["SHFL"] == 5, entry
            continue
        assert 0 < launches[-1].shared_bytes <= SHARED / 2, entry
        if "float32" in entry:
            assert found[entry]["FFMA"] >= 6 * found[entry]["LDS"], entry
            assert found[entry]["HMMA"] == 0, entry
        else:
            # Every fragment serves several products.
            assert found[entry]["HMMA"] >= found[entry]["LDSM"] > 0, entry
        assert found[entry]["LDGSTS"] > 0, entry
        assert found[entry]["BAR"] == 2, entry


def test_sizes_that_vary() -> None:
    """Rows, the summed dim, images and the map."""
    n, k = symbol("n"), symbol("k")
    op = Conv((1, 1), (1, 1), (1, 1))
    shapes: dict[str, tuple[Op, list[tuple[Dim, ...]]]] = {
        "rows": (Linear(), [(n, 24), (40, 24)]),
        "products": (Matmul(), [(2, n, k), (2, k, 24)]),
        "convolution": (op, [(n, 10, k, 6), (12, 10, 3, 3)]),
    }
    groups = {}
    for name, (op, types) in shapes.items():
        values = tuple(Value(f"x{i}", TensorType("float16", shape)) for i, shape in enumerate(types))
        (type_,) = op.infer_types([value.type for value in values])
        result = Value("y", type_)
        groups[name] = make_group((Node(op, values, (result,)),), (result,))
    library = CudaLibrary([schedule(group, TARGET, name) for name, group in groups.items()])
    for sizes in ({"n": 3, "k": 5}, {"n": 37, "k": 16}):
        for name, (op, types) in shapes.items():
            inputs = drawn(name, [tuple(evaluate(dim, sizes) for dim in shape) for shape in types], "float16")
            own = {key: size for key, size in sizes.items() if key in library.kernels[name].symbols}
            (got,) = library.run(name, *inputs, sizes=own)
            assert wrong(got, exact_result(op, inputs, "float16")) < 1, (name, sizes)


def fused(dtype: str) -> tuple[Group, list[Array]]:
    """cast(gelu(linear(widen(x), widen(w), b)) + widen(residual)): what a layer in half floats is made of."""
    inputs = [*drawn("fused", [(37, 48), (40, 48)], dtype), *drawn("fused_bias", [(40,)], "float32")]
    inputs += drawn("fused_residual", [(37, 40)], dtype)
    values = [Value(f"x{i}", TensorType(str(array.dtype), array.shape)) for i, array in enumerate(inputs)]
    nodes: list[Node] = []

    def emit(op: Op, *operands: Value) -> Value:
        (type_,) = op.infer_types([value.type for value in operands])
        nodes.append(Node(op, operands, (Value(f"y{len(nodes)}", type_),)))
        return nodes[-1].output

    x, weight, residual = (emit(Cast("float32"), values[i]) for i in (0, 1, 3))
    y = emit(Gelu(), emit(Linear(), x, weight, values[2]))
    result = emit(Cast(dtype), emit(Add(), y, residual))
    group = make_group(tuple(nodes), (result,))
    return group, [inputs[values.index(value)] for value in group.inputs]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_epilogue(dtype: str) -> None:
    group, inputs = fused(dtype)
    library = CudaLibrary([schedule(group, TARGET, "fused")])
    assert "mma_" in library.text
    (got,) = library.run("fused", *inputs)
    x, weight, residual, bias = (array.astype(np.float64) for array in inputs)
    exact = np.asarray(Gelu().reference(x @ weight.T + bias)) + residual
    assert got.dtype == numpy_dtype(dtype)
    assert wrong(got, exact) < 1


def test_infinities_and_nan_pass_through_tf32() -> None:
    item, inputs = kernels("tf32")["linear_small"]
    x = inputs[0].copy()
    x.view(np.uint32)[0, 0] = 0x7FFFFFFF  # a NaN that rounding by an addition would make a zero of
    (got,) = CudaLibrary([item]).run(item.kernel.name, x, inputs[1])
    assert np.isnan(got[0]).all()
    assert np.isfinite(got[1:]).all()
    x[0, 0] = np.inf
    (got,) = CudaLibrary([item]).run(item.kernel.name, x, inputs[1])
    assert np.array_equal(got[0], np.sign(inputs[1][:, 0]) * np.inf)


ERRORS = {
    "no barrier": other(r"__syncthreads\(\);", ""),
    "no wait": other(r"copies_wait_[1-9]\(\);", ""),
    "waits for one less": other(r"copies_wait_3\(\);", "copies_wait<4>();"),
    "no end of a group": other(r"copies_end_group\(\);", ""),
    "other rows of a fragment": other(r"& 15\) \* 64", "& 7) * 64"),
    "transposed by mistake": other(r"load_matrices\(\(&", "load_transposed((&"),
    "no meeting of the lanes": other(r"sync_warp\(\);", ""),
    "no rest": other(r"< 136\)", "< 144)"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_planted_errors_are_found(name: str) -> None:
    item, inputs = kernels("float16")["linear_bias"]
    exact = exact_result(Linear(), inputs, "float16")
    try:
        (got,) = CudaLibrary([item], ERRORS[name]).run(item.kernel.name, *inputs)
    except (AssertionError, EmulationError):
        return
    assert not wrong(got, exact) < 1


def test_an_access_outside_of_shared_memory_is_found() -> None:
    item, inputs = kernels("float16")["linear_small"]
    library = CudaLibrary([item], other(r"copy_async\(\(", "copy_async((uint)200000 + ("))
    with pytest.raises(EmulationError, match=r"access outside of shared memory by thread \d+ of block \(0, 0, 0\)"):
        library.run(item.kernel.name, *inputs)
