"""Kernels of the Vulkan schedules on fresh random inputs: odd sizes, fused ops, both forms of products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conformance.kernels import array_type, op_group
from tests.vulkan.bounds import SUMS, check, magnitude
from tests.vulkan.device import Device
from tests.vulkan.kernels import code_errors
from tests.vulkan.library import VulkanLibrary
from transpiler.gpu.vulkan import compile_kernel
from transpiler.group import Group, make_group
from transpiler.ir import Array, Node, Value
from transpiler.ops import REGISTRY
from transpiler.ops.activation import Gelu
from transpiler.ops.base import Op
from transpiler.ops.elementwise import Add
from transpiler.ops.packed import PackConvStem
from transpiler.ops.winograd import PackWinograd
from transpiler.schedule import import_schedule, schedule
from transpiler.spirv.reflect import reflect
from transpiler.target import Target, load_targets

# Roundings of an element in Winograd's transforms, two lines of up to six terms each, of the map, filter and result.
TRANSFORMS = 36
DIRECT, STAGED = load_targets("vulkan")
R = REGISTRY


def draw(*shape: int) -> Array:
    return np.random.default_rng().standard_normal(shape).astype(np.float32)


def eighths(*shape: int) -> Array:
    """Whole eighths up to 4: float32 adds up thousands of their products without a rounding, in any order."""
    return np.random.default_rng().integers(-32, 33, shape).astype(np.float32) / np.float32(8)


def run(device: Device, group: Group, target: Target, *draws: Sequence[Array]) -> list[Array]:
    """The first output for each of `draws`, which are the same bytes in a second call."""
    library = VulkanLibrary([schedule(group, target, "kernel")], target, device)
    assert not library.refused
    results = []
    for inputs in draws:
        first, *_ = library.run("kernel", *inputs)
        again, *_ = library.run("kernel", *inputs)
        assert first.tobytes() == again.tobytes()
        results.append(first)
    library.close()
    return results


def wide(inputs: Sequence[Array]) -> list[Array]:
    return [array.astype(np.float64) if array.dtype == np.float32 else array for array in inputs]


def check_op(device: Device, target: Target, op: Op, *inputs: Array, terms: int = 1) -> None:
    """Of random numbers within the roundings of their terms; sums of eighths without a rounding before the last."""
    draws = [inputs] + [[eighths(*array.shape) for array in inputs]] * (op.name in SUMS)
    results = run(device, op_group(op, inputs), target, *draws)
    exact: list[Any] = [op.reference(*wide(draw)) for draw in draws]
    check(results[0], exact[0], magnitude(op, *inputs), terms)
    for got, sums in zip(results[1:], exact[1:], strict=True):
        check(got, sums, np.abs(sums))


FORMS = pytest.mark.parametrize("target", [DIRECT, STAGED], ids=["direct", "staged"])


@FORMS
@pytest.mark.parametrize(("m", "k", "n"), [(1, 300, 77), (9, 31, 5), (70, 129, 131), (33, 1, 64)])
def test_linear(m: int, k: int, n: int, target: Target, device: Device) -> None:
    check_op(device, target, R["linear"](), draw(m, k), draw(n, k), draw(n), terms=k)


@FORMS
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("left", "right"), [((3, 1), (1, 2)), ((4,), ()), ((), ())])
def test_matmul(
    left: tuple[int, ...], right: tuple[int, ...], transposed: bool, target: Target, device: Device
) -> None:
    b = draw(*right, 23, 41) if transposed else draw(*right, 41, 23)
    check_op(device, target, R["matmul"](transposed), draw(*left, 19, 41), b, terms=41)


# x, weight, stride, padding, dilation, groups
CONVOLUTIONS: dict[str, tuple[Any, ...]] = {
    "3x3": ((2, 5, 9, 11), (19, 5, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    "1x1": ((1, 33, 7, 5), (17, 33, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    "strided": ((1, 3, 17, 15), (10, 3, 7, 5), (2, 3), (3, 2), (1, 1), 1),
    "dilated_groups": ((2, 6, 12, 9), (8, 3, 3, 2), (1, 2), (2, 1), (2, 1), 2),
    "1d": ((2, 4, 21), (6, 4, 5), (2,), (2,), (1,), 1),
    "3d": ((1, 2, 5, 6, 7), (3, 2, 3, 2, 3), (1, 2, 1), (1, 0, 1), (1, 1, 2), 1),
    "depthwise": ((2, 7, 13, 10), (7, 1, 3, 3), (1, 1), (1, 1), (1, 1), 7),
    "depthwise_strided": ((1, 5, 13, 10), (10, 1, 5, 3), (2, 1), (2, 0), (1, 2), 5),
}


@FORMS
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name: str, target: Target, device: Device) -> None:
    x, weight, *geometry = CONVOLUTIONS[name]
    terms = int(np.prod(weight[1:]))
    check_op(device, target, R["conv"](*geometry), draw(*x), draw(*weight), draw(weight[0]), terms=terms)


def test_winograd_of_many_images_in_parts(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A workspace that does not hold all images at once."""
    monkeypatch.setattr(import_schedule("vulkan.winograd"), "WORKSPACE", 1 << 17)
    x, filters = draw(5, 8, 12, 13), draw(20, 8, 3, 3)
    group = op_group(R["winograd_planes"](20, (1, 1), 4), [x, PackWinograd(4).reference(filters)])
    assert len(compile_kernel(schedule(group, DIRECT, "kernel"), DIRECT)[0]) > 3
    inputs = [x, PackWinograd(4).reference(filters)]
    exact = R["conv"]((1, 1), (1, 1), (1, 1)).reference(*wide([x, filters]))
    (got,) = run(device, group, DIRECT, inputs)
    check(got, exact, magnitude(R["winograd_planes"](20, (1, 1), 4), *inputs), terms=8 + TRANSFORMS)


def test_winograd_of_many_channels_stays_below_drivers_turns() -> None:
    """No kernel counts its loops' turns, which takes a status word, not even for tiles that are computed again."""
    group = op_group(R["winograd_planes"](16, (1, 1), 4), [draw(1, 2048, 4, 4), draw(1, 36, 128, 16, 16)])
    item = schedule(group, DIRECT, "kernel")
    assert item.kernel.workspace
    launches, _ = compile_kernel(item, DIRECT)
    assert {place for launch in launches for place in launch.buffers} == {0, 1, 2, 3}


def test_quads_are_read_at_once() -> None:
    """Both operands of a 1x1 convolution, by vectors of four elements."""
    group = op_group(R["conv_planes"](32, (1, 1), (0, 0), (1, 1)), [draw(1, 16, 8, 8), draw(2, 16, 1, 1, 16)])
    _, files = compile_kernel(schedule(group, DIRECT, "kernel"), DIRECT)
    (code,) = files.values()
    found = reflect(code)
    assert sum(name.endswith("_quads") for name in found.names) == 2, found.names
    assert found.bindings == (0, 0, 1, 1, 2)


def fused(op: Op, inputs: list[Array], residual: Array) -> Group:
    """op, then GELU, then a sum with a tensor of the result's shape."""
    (first,) = op_group(op, inputs).nodes
    y, other = first.output, Value("residual", array_type(residual))
    middle, last = Value("gelu", y.type), Value("sum", y.type)
    nodes = (first, Node(Gelu(), (y,), (middle,)), Node(Add(), (middle, other), (last,)))
    return make_group(nodes, (last,))


@FORMS
@pytest.mark.parametrize("name", ["linear", "conv", "conv_planes", "winograd_planes", "softmax"])
def test_what_stands_behind_is_fused(name: str, target: Target, device: Device) -> None:
    cases: dict[str, tuple[Op, list[Array], int]] = {
        "linear": (R["linear"](), [draw(21, 40), draw(30, 40), draw(30)], 40),
        "conv": (R["conv"]((1, 1), (1, 1), (1, 1), 1), [draw(1, 4, 9, 9), draw(18, 4, 3, 3), draw(18)], 36),
        "conv_planes": (
            R["conv_planes"](18, (1, 1), (0, 0), (1, 1)),
            [draw(2, 4, 6, 10), PackConvStem().reference(draw(18, 4, 1, 1)), draw(18)],
            4,
        ),
        "winograd_planes": (
            R["winograd_planes"](18, (1, 1), 4),
            [draw(2, 4, 9, 7), PackWinograd(4).reference(draw(18, 4, 3, 3)), draw(18)],
            4 + TRANSFORMS,
        ),
        "softmax": (R["softmax"](1), [draw(5, 70)], 70),
    }
    op, inputs, terms = cases[name]
    y: Any = op.reference(*wide(inputs))
    residual = draw(*y.shape)
    (got,) = run(device, fused(op, inputs, residual), target, [*inputs, residual])
    # GELU's slope is below 2.
    size = 2 * magnitude(op, *inputs) + np.abs(y) + np.abs(residual)
    check(got, Gelu().reference(y) + residual, size, terms)


# Op, shape, elements of a row.
ROWS: dict[str, tuple[Callable[[], Op], tuple[int, ...], int]] = {
    "softmax_long": (lambda: R["softmax"](1), (3, 3001), 3001),
    "softmax_axis": (lambda: R["softmax"](1), (2, 90, 7), 90),
    "log_softmax_many": (lambda: R["log_softmax"](1), (70, 33), 33),
    "softmax_many": (lambda: R["softmax"](2), (7, 37, 100), 100),
    "layer_norm_many": (lambda: R["layer_norm"](1, 1e-5), (301, 70), 70),
    "layer_norm_long": (lambda: R["layer_norm"](1, 1e-5), (2, 2500), 2500),
    "rms_norm": (lambda: R["rms_norm"](2, 1e-6), (40, 3, 50), 150),
    "group_norm": (lambda: R["group_norm"](2, 1e-5), (2, 6, 11, 13), 3 * 11 * 13),
    "sum_all": (lambda: R["reduce_sum"]((0, 1, 2)), (7, 30, 41), 7 * 30 * 41),
    "mean_middle": (lambda: R["reduce_mean"]((1,), True), (3, 700, 5), 700),
    "max_rows": (lambda: R["reduce_max"]((1,)), (9, 5000), 1),
    "cumsum": (lambda: R["cumsum"](1), (3, 400), 400),
}


@FORMS
@pytest.mark.parametrize("name", ROWS)
def test_rows_and_reductions(name: str, target: Target, device: Device) -> None:
    make, shape, terms = ROWS[name]
    check_op(device, target, make(), draw(*shape), terms=terms)


def test_argmax_takes_the_first_of_equals(device: Device) -> None:
    x = np.random.default_rng().integers(0, 5, (3, 4000)).astype(np.float32)
    x[1, 3000:3002] = np.nan
    op: Any = R["argmax"](1)
    np.testing.assert_array_equal(*run(device, op_group(op, [x]), DIRECT, [x]), op.reference(x))


@pytest.mark.parametrize(("queries", "masked"), [(1, False), (1, True), (37, True)])
def test_attention(queries: int, masked: bool, device: Device) -> None:
    inputs = [draw(1, 4, queries, 24), draw(1, 2, 45, 24), draw(1, 2, 45, 20)]
    if masked:
        mask = np.random.default_rng().random((queries, 45)) < 0.6
        mask[0] = False
        inputs.append(mask)
    check_op(device, DIRECT, R["attention"](enable_gqa=True), *inputs, terms=24 + 45)


@pytest.mark.parametrize(("dtype", "values"), [("float64", 256), ("float32", 1000)])
def test_threads_share_a_row_as_far_as_memory_goes(dtype: str, values: int, device: Device) -> None:
    """Sixteen of them would have more to exchange than a workgroup has memory."""
    inputs = [draw(2, size, width).astype(dtype) for size, width in ((1, 24), (45, 24), (45, values))]
    group = op_group(R["attention"](), inputs)
    launches, _ = compile_kernel(schedule(group, DIRECT, "kernel"), DIRECT)
    assert [launch.workgroup for launch in launches] == [(4, 1, 1)]
    (got,) = run(device, group, DIRECT, inputs)
    np.testing.assert_allclose(got, R["attention"]().reference(*wide(inputs)), rtol=1e-4, atol=1e-5)


def test_causal_attention(device: Device) -> None:
    check_op(
        device, DIRECT, R["attention"](causal=True), draw(3, 37, 24), draw(3, 45, 24), draw(3, 45, 20), terms=24 + 45
    )


@pytest.mark.parametrize(("name", "gates"), [("lstm_scan", 4), ("gru_scan", 3), ("rnn_scan", 1)])
@pytest.mark.parametrize("units", [20, 100])
def test_recurrent_scans(name: str, gates: int, units: int, device: Device) -> None:
    states = [draw(3, units) for _ in range(2 if gates == 4 else 1)]
    bias = [draw(gates * units)] if gates == 3 else []
    weight = draw(gates * units, units) / np.float32(units**0.5)
    inputs = [draw(6, 3, gates * units), *states, weight, *bias]
    (got,) = run(device, op_group(R[name](), inputs), DIRECT, inputs)
    x, first, *rest = wide(inputs)
    cell, rest = (rest[:1], rest[1:]) if gates == 4 else ([], rest)
    for step, h in enumerate([first, *got[:-1].astype(np.float64)]):
        # From the kernel's own last state: an error that a step hands on is no error of the next one.
        (y,), _, *cell = R[name]().reference(x[step : step + 1], h, *cell, *rest)
        # The slope of a step in its totals, which are a bias and `units` products, is at most that of three factors;
        # a cell keeps the errors of the steps before.
        totals = (
            np.abs(x[step]).max() + (np.abs(h) @ np.abs(rest[0]).T).max() + sum(np.abs(array).max() for array in bias)
        )
        slope = 1 + max(np.abs(array).max() for array in (h, totals, *cell))
        check(got[step], y, (1 + totals) * slope * (step + 1 if cell else 1), terms=units)


@pytest.mark.usefixtures("validator")
@pytest.mark.parametrize("target", [DIRECT, STAGED], ids=["direct", "staged"])
def test_every_module_is_valid(target: Target, tmp_path: Path) -> None:
    cases: list[tuple[Op, list[Array]]] = [
        (R["linear"](), [draw(9, 20), draw(7, 20), draw(7)]),
        (R["matmul"](), [draw(2, 9, 20), draw(2, 20, 7)]),
        (R["conv"]((1, 1), (1, 1), (1, 1), 1), [draw(1, 4, 9, 9), draw(18, 4, 3, 3)]),
        (R["conv_planes"](18, (1, 1), (0, 0), (1, 1)), [draw(1, 4, 8, 9), PackConvStem().reference(draw(18, 4, 1, 1))]),
        (R["winograd_planes"](18, (1, 1), 2), [draw(1, 4, 9, 9), PackWinograd(2).reference(draw(18, 4, 3, 3))]),
        (R["conv"]((1, 1), (1, 1), (1, 1), 4), [draw(1, 4, 9, 9), draw(4, 1, 3, 3)]),
        (R["softmax"](1), [draw(3, 2000)]),
        (R["layer_norm"](1, 1e-5), [draw(40, 60)]),
        (R["group_norm"](2, 1e-5), [draw(2, 6, 20, 13)]),
        (R["reduce_sum"]((1,)), [draw(3, 2000)]),
        (R["argmax"](1), [draw(3, 2000)]),
        (R["attention"](causal=True), [draw(2, 5, 8), draw(2, 9, 8), draw(2, 9, 8)]),
        (R["attention"](), [draw(2, 70, 8), draw(2, 9, 8), draw(2, 9, 8)]),
        (R["lstm_scan"](), [draw(5, 2, 40), draw(2, 10), draw(2, 10), draw(40, 10)]),
        (R["bessel_j0"](), [draw(5)]),
        (R["igamma"](), [abs(draw(5)), abs(draw(5))]),
    ]
    problems = []
    for number, (op, inputs) in enumerate(cases):
        _, files = compile_kernel(schedule(op_group(op, inputs), target, f"k{number}_{op.name}"), target)
        problems += [code_errors(name, code, tmp_path) for name, code in files.items()]
    assert [text for text in problems if text] == []


# perm, shape
TRANSPOSES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "plane": ((1, 0), (70, 33)),
    "whole_tiles": ((0, 2, 1), (2, 32, 64)),
    "channels_last": ((0, 2, 3, 1), (2, 40, 5, 9)),
    "apart": ((3, 1, 0, 2), (9, 3, 12, 11)),
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "bool", "int64"])
def test_transposes_through_shared_memory(dtype: str, device: Device) -> None:
    for perm, shape in TRANSPOSES.values():
        x = np.random.default_rng().integers(0, 100, shape)
        x = x > 50 if dtype == "bool" else x.astype(dtype)
        group = op_group(R["transpose"](perm), [x])
        launches, _ = compile_kernel(schedule(group, STAGED, "kernel"), STAGED)
        assert [launch.shared_bytes for launch in launches] == [-(-32 * 33 * (8 if dtype == "int64" else 4) // 16) * 16]
        assert "shaderFloat16" not in launches[0].features
        np.testing.assert_array_equal(run(device, group, STAGED, [x])[0], x.transpose(perm))
        launches, _ = compile_kernel(schedule(group, DIRECT, "kernel"), DIRECT)
        assert launches[0].shared_bytes == 0


@FORMS
@pytest.mark.parametrize("axis", [0, 1])
def test_concat_of_many(axis: int, target: Target, device: Device) -> None:
    """More tensors than a launch has buffers, some of them without elements."""
    shape = [3, 4]
    inputs = [draw(*(n % 4 if at == axis else size for at, size in enumerate(shape))) for n in range(41)]
    group = op_group(R["concat"](axis), inputs)
    launches, _ = compile_kernel(schedule(group, target, "kernel"), target)
    assert len(launches) == 3
    assert all(len(launch.buffers) <= target.gpu.buffers for launch in launches)
    (got,) = run(device, group, target, inputs)
    np.testing.assert_array_equal(got, np.concatenate(inputs, axis))
