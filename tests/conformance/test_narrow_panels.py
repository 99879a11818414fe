"""1x1 and 3x3 convolutions to channels of which the last block has eight or fewer, which are added up apart."""

from __future__ import annotations

import os

import numpy as np
import pytest

from tests.conformance.kernels import KernelLibrary, op_group
from transpiler.ops.base import rng
from transpiler.ops.blocked_conv import ConvBlocked
from transpiler.ops.packed import PackChannels, PackConv
from transpiler.schedule import schedule
from transpiler.target import load_target


@pytest.mark.parametrize(("inputs", "channels", "kernel", "width"), [(48, 24, 1, 15), (20, 40, 1, 9), (32, 24, 3, 9)])
def test_every_tile_gives_the_sums(inputs: int, channels: int, kernel: int, width: int) -> None:
    g = rng(f"{inputs} {channels}")
    x = PackChannels().reference(g.standard_normal((2, inputs, 7, width), np.float32))
    weight = PackConv().reference(g.standard_normal((channels, inputs, kernel, kernel), np.float32))
    op = ConvBlocked(channels, inputs, (kernel, kernel), (1, 1), (kernel // 2,) * 4, (1, 1))
    target = load_target("cpu", os.environ.get("TRANSPILE_TEST_ISA"))
    group = op_group(op, (x, weight))
    (point,) = schedule(group, target, "default", {}).points
    assert len(point.candidates) > 1
    kernels = [schedule(group, target, f"tile_{tile}", {"tile": tile}) for tile in point.candidates]
    library = KernelLibrary(kernels, target)
    wide = x.astype(np.float64), weight.astype(np.float64)
    expected = op.reference(*wide)
    # Every rounding is at most half a unit of a partial sum, which is no larger than the sum of the sizes.
    bound = op.reference(*map(np.abs, wide)) * (inputs * kernel**2 + 1) * 2.0**-24
    for kernel_ in kernels:
        (found,) = library.run(kernel_.kernel.name, x, weight)
        assert (np.abs(found - expected) <= bound).all(), kernel_.kernel.name
