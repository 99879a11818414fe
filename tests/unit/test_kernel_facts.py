"""What kernels say of the operations and bytes of the algorithm that was chosen."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conformance.kernels import op_group
from transpiler.ops.base import Op
from transpiler.ops.blocked_conv import ConvDepthwise
from transpiler.ops.rnn import LstmScan
from transpiler.ops.strassen import LinearStrassen
from transpiler.ops.strassen_conv import ConvStrassen
from transpiler.ops.winograd import ConvWinograd
from transpiler.plan import Kernel
from transpiler.schedule import schedule
from transpiler.target import load_target


def _kernel(op: Op, *shapes: tuple[int, ...]) -> Kernel:
    arrays = [np.zeros(shape, np.float32) for shape in shapes]
    return schedule(op_group(op, arrays), load_target("cpu", "avx512"), "kernel").kernel


def _winograd(tile: int, stride: int, inputs: int, outputs: int) -> int:
    """Operations of a convolution of a 16x16 map."""
    op = ConvWinograd(outputs, inputs, (3, 3), (stride, stride), (1, 1, 1, 1), (1, 1), tile)
    weight = (outputs // 16, (tile + 2) ** 2, inputs // 16, 16, 16)
    flops = _kernel(op, (1, inputs // 16, 16, 16, 16), weight).flops
    assert isinstance(flops, int)
    return flops


@pytest.mark.parametrize(("tile", "stride", "points"), [(2, 1, 16), (4, 1, 36), (2, 2, 25), (4, 2, 81)])
def test_winograd_counts_its_own_products(tile: int, stride: int, points: int) -> None:
    """2 P I O + a I + b O operations per tile: the products, and transforms that are little beside them."""
    tiles = (16 // stride // tile) ** 2
    small, large = _winograd(tile, stride, 32, 48), _winograd(tile, stride, 64, 96)
    assert large - 2 * small == tiles * 4 * points * 32 * 48
    assert 0 < large - tiles * 2 * points * 64 * 96 < 0.2 * large


def test_winograd_counts_its_transforms() -> None:
    """F(2x2) by hand, a multiply-add being two operations: 6 for a line of inputs (d2 - d0, d2 + d1, d2 - d1, d3 - d1,
    the first and last as multiply-adds), 4 lines each way; 4 for a line of products (two sums of pairs, one more
    term each), 4 lines and then 2."""
    assert _winograd(2, 1, 16, 32) == 64 * (2 * 16 * 16 * 32 + 8 * 6 * 16 + 6 * 4 * 32)


def test_strassen_counts_seven_products() -> None:
    """Seven products of half the size, five sums of x's parts and eight of products."""
    kernel = _kernel(LinearStrassen(128), (64, 96), (4, 7 * 48 + 2, 16))
    assert kernel.flops == 7 * 2 * 32 * 48 * 64 + 5 * 32 * 48 + 8 * 32 * 64


def test_strassen_of_a_map_counts_seven_products() -> None:
    """The same, but that six of the products are added up in registers: two sums of products are left."""
    op = ConvStrassen(64, 96, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1))
    kernel = _kernel(op, (1, 6, 8, 8, 16), (2, 7 * 48 + 2, 16))
    assert kernel.flops == 32 * (7 * 2 * 48 * 32 + 7 * 48 + 2 * 32)


def test_depthwise_counts_what_lies_in_the_map() -> None:
    """3x3 over 7x7 with padding: 2 of 3 rows meet the map at the edges."""
    op = ConvDepthwise(32, 32, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    kernel = _kernel(op, (1, 2, 7, 7, 16), (2, 3, 3, 1, 16))
    assert kernel.flops == 2 * 32 * (5 * 3 + 2 * 2) ** 2
    assert kernel.bytes == 4 * (2 * 2 * 49 * 16 + 2 * 9 * 16)
    strided = ConvDepthwise(32, 32, (3, 3), (2, 2), (0, 1, 1, 0), (1, 1))
    assert _kernel(strided, (1, 2, 8, 8, 16), (2, 3, 3, 1, 16)).flops == 2 * 32 * (3 * 4 - 1) ** 2


def test_recurrent_weights_are_read_in_every_step() -> None:
    kernel = _kernel(LstmScan(), (5, 2, 4 * 32), (2, 32), (2, 32), (4 * 32, 32))
    assert kernel.flops == 5 * 2 * 2 * 4 * 32 * 32
    assert kernel.reread_bytes == 4 * (4 * 4 * 32 * 32)
    assert _kernel(LstmScan(), (1, 2, 4 * 32), (2, 32), (2, 32), (4 * 32, 32)).reread_bytes == 0
