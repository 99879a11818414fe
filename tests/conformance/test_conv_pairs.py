"""A convolution and the depthwise one behind it as one kernel: the same bits as of the two kernels."""

from __future__ import annotations

import os

import numpy as np
import pytest

from tests.conformance.kernels import KernelLibrary, array_type
from transpiler.group import Group, make_group
from transpiler.ir import Array, Node, Value
from transpiler.ops.activation import Silu
from transpiler.ops.base import Elementwise, rng
from transpiler.ops.blocked_conv import BlockedConv, ConvBlocked, ConvDepthwise, ConvStem
from transpiler.ops.elementwise_unary import Clamp
from transpiler.ops.packed import PackChannels, PackConv, PackConvStem, PackDepthwise, blocks
from transpiler.schedule import schedule
from transpiler.target import load_target

Pair = tuple[BlockedConv, tuple[int, ...], BlockedConv, Elementwise]


def _pair(
    first: type[BlockedConv], images: int, c: int, o: int, size: tuple[int, int], kernel: int, stride: int,
    depthwise: tuple[int, int, int], between: Elementwise,
) -> Pair:  # fmt: skip
    """`depthwise`: kernel, stride, padding."""
    pad = (kernel // 2,) * 4
    conv = first(o, c, (kernel, kernel), (stride, stride), pad, (1, 1))
    k, s, p = depthwise
    after = ConvDepthwise(o, o, (k, k), (s, s), (p, p, max(p - 1, 0), p), (1, 1))
    return conv, (images, c, *size), after, between


PAIRS = {
    "expand": _pair(ConvBlocked, 1, 16, 96, (9, 30), 1, 1, (3, 2, 1), Clamp(0.0, 6.0)),
    "images": _pair(ConvBlocked, 2, 24, 40, (11, 17), 1, 1, (3, 1, 1), Silu()),
    "five": _pair(ConvBlocked, 1, 32, 80, (8, 15), 1, 1, (5, 1, 2), Clamp(0.0, 6.0)),
    "stem": _pair(ConvStem, 2, 3, 32, (21, 30), 3, 2, (3, 1, 1), Silu()),
    "wide": _pair(ConvBlocked, 1, 16, 16, (7, 9), 3, 1, (2, 3, 0), Clamp(-1.0, 1.0)),
    "padded_groups": _pair(ConvStem, 2, 3, 80, (17, 21), 3, 2, (3, 2, 1), Clamp(0.0, 6.0)),
    "padded_gaps": _pair(ConvBlocked, 1, 16, 48, (11, 13), 3, 1, (1, 2, 0), Clamp(0.0, 6.0)),
    "padded_late": _pair(ConvBlocked, 1, 20, 40, (7, 12), 5, 2, (3, 1, 4), Clamp(0.0, 6.0)),
    "one_row": _pair(ConvBlocked, 1, 16, 17, (2, 31), 1, 1, (3, 1, 1), Clamp(0.0, 6.0)),
}


def _inputs(pair: Pair, label: str) -> list[Array]:
    conv, (n, c, h, w), after, _ = pair
    g = rng(label)

    def draw(*shape: int) -> Array:
        return g.standard_normal(shape, np.float32)

    def bias(channels: int) -> Array:
        values = np.zeros(blocks(channels) * 16, np.float32)
        values[:channels] = draw(channels)
        return values

    weight = draw(conv.channels, c, *conv.kernel) * np.float32((c * conv.kernel[0] ** 2) ** -0.5)
    x = draw(n, c, h, w)
    blocked = isinstance(conv, ConvBlocked)
    packed = PackConv().reference(weight) if blocked else PackConvStem().reference(weight)
    depthwise = PackDepthwise().reference(draw(after.channels, 1, *after.kernel) / np.float32(after.kernel[0]))
    x = PackChannels().reference(x) if blocked else x
    return [x, packed, bias(conv.channels), depthwise, bias(after.channels)]


def _groups(pair: Pair, arrays: list[Array]) -> tuple[Group, Group, Group]:
    """The pair as one kernel, and its halves."""
    conv, _, after, between = pair
    x, weight, bias, depthwise, last = (Value(f"x{i}", array_type(array)) for i, array in enumerate(arrays))
    sums = Value("sums", conv.infer(x.type, weight.type, bias.type))
    middle = Value("middle", sums.type)
    y = Value("y", after.infer(middle.type, depthwise.type, last.type))
    z = Value("z", y.type)
    first = (Node(conv, (x, weight, bias), (sums,)), Node(between, (sums,), (middle,)))
    second = (Node(after, (middle, depthwise, last), (y,)), Node(Silu(), (y,), (z,)))
    return make_group((*first, *second), (z,)), make_group(first, (middle,)), make_group(second, (z,))


@pytest.mark.parametrize("label", PAIRS)
def test_a_pair_is_its_two_kernels(label: str) -> None:
    pair = PAIRS[label]
    arrays = _inputs(pair, label)
    target = load_target("cpu", os.environ.get("TRANSPILE_TEST_ISA"))
    groups = _groups(pair, arrays)
    assert groups[0].is_pair
    kernels = [schedule(group, target, name) for group, name in zip(groups, ("pair", "first", "second"), strict=True)]
    library = KernelLibrary(kernels, target)
    (middle,) = library.run("first", *arrays[:3])
    (expected,) = library.run("second", middle, *arrays[3:])
    for threads in (1, 2, 3, 40):
        (found,) = library.run("pair", *arrays, threads=threads)
        np.testing.assert_array_equal(found, expected)
    conv, _, after, between = pair
    wide = [array.astype(np.float64) for array in arrays]
    reference = Silu().reference(after.reference(between.reference(conv.reference(*wide[:3])), *wide[3:]))
    np.testing.assert_allclose(found, reference, rtol=1e-4, atol=1e-5)
    assert kernels[0].kernel.flops == kernels[1].kernel.flops + kernels[2].kernel.flops
