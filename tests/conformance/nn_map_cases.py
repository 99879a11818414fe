"""Calls of the ATen overloads on maps: convolutions, pools, resampling."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from tests.conformance.nn_cases import Case, case, draw


def convolutions() -> Iterator[Case]:
    w2 = draw(6, 4, 3, 2, scale=0.3)
    yield case("conv2d.default", draw(2, 4, 7, 9), w2)
    yield case("conv2d.default", draw(4, 7, 9), w2, draw(6))
    yield case("conv2d.default", draw(2, 4, 7, 9), w2, draw(6), [2, 1], [1, 2], [1, 2])
    yield case("conv2d.default", draw(2, 4, 7, 9), w2, draw(6), [2], [1], [2])
    yield case("conv2d.default", draw(2, 8, 7, 9), w2, None, [1, 1], [0, 0], [1, 1], 2)
    yield case("conv2d.default", draw(2, 4, 7, 9), draw(8, 1, 3, 3), draw(8), [1, 1], [1, 1], [1, 1], 4)
    yield case("conv2d.default", draw(0, 4, 7, 9), w2)
    yield case("conv2d.default", draw(2, 4, 7, 9).astype("float64"), w2.astype("float64"))
    yield case("conv1d.default", draw(2, 4, 9), draw(6, 4, 3), draw(6), [2], [1], [2])
    yield case("conv1d.default", draw(4, 9), draw(6, 4, 3))
    yield case(
        "conv3d.default",
        draw(2, 4, 5, 6, 7),
        draw(6, 2, 2, 3, 1),
        draw(6),
        [1, 2, 1],
        [1, 0, 1],
        [1, 1, 2],
        2,
    )
    yield case("conv3d.default", draw(4, 5, 6, 7), draw(6, 4, 2, 3, 1))
    for dims, name in ((1, "conv1d"), (2, "conv2d"), (3, "conv3d")):
        for padding, kernel, dilation in itertools.product(("same", "valid"), (2, 3, 4), (1, 2)):
            x, weight = draw(2, 3, *(9, 8, 9)[:dims]), draw(5, 3, *(kernel, 3, 2)[:dims])
            yield case(f"{name}.padding", x, weight, draw(5), [1] * dims, padding, [dilation] * dims)
    yield case("conv2d.padding", draw(3, 9, 8), draw(5, 3, 2, 3), None, [1, 1], "same")
    w = draw(4, 3, 3, 2, scale=0.3)
    yield case("conv_transpose2d.input", draw(2, 4, 5, 6), w)
    yield case("conv_transpose2d.input", draw(4, 5, 6), w, draw(3), [2, 3], [1, 0], [1, 2], 1, [2, 1])
    yield case("conv_transpose2d.input", draw(2, 4, 5, 6), w, draw(6), [2, 2], [1, 1], [1, 0], 2)
    yield case("conv_transpose2d.input", draw(2, 4, 5, 6), w, draw(3), [2], [1], [1])
    yield case("conv_transpose2d.input", draw(2, 4, 5, 6), w, draw(3), [3], [0], [2], 1, [3])
    yield case("conv_transpose1d.default", draw(2, 4, 5), draw(4, 3, 4), draw(3), [2], [1], [1])
    yield case(
        "conv_transpose3d.input",
        draw(1, 4, 3, 4, 2),
        draw(4, 3, 2, 3, 3),
        draw(3),
        [2, 1, 2],
        [0, 1, 1],
        [1, 0, 1],
    )
    for transposed, weight, bias in ((False, w2, draw(6)), (True, w, draw(3))):
        yield case(
            "convolution.default",
            draw(2, 4, 7, 9),
            weight,
            bias,
            [2, 1],
            [1, 0],
            [1, 2],
            transposed,
            [0, 0],
            1,
        )
    flags = (False, False, True)
    yield case("_convolution.deprecated", draw(2, 4, 7, 9), w2, None, [1], [0], [1], False, [0], 1, *flags)
    yield case(
        "_convolution.default", draw(2, 4, 7, 9), w2, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1,
        False, False, True, True,
    )  # fmt: skip


def pools() -> Iterator[Case]:
    nan = draw(2, 3, 7, 9)
    nan[0, 0, 2, 3] = nan[0, 1, 0, 0] = nan[0, 1, 0, 1] = math.nan
    ties = np.float32([[[1, 2, 2, 0, 2], [3, 3, 3, 3, 3], [-math.inf] * 5]])
    for dims in (1, 2, 3):
        shape = (2, 3, *(7, 9, 6)[-dims:])
        for x, ceil_mode in itertools.product((draw(*shape), draw(*shape[1:])), (False, True)):
            for kernel, stride, padding, dilation in [
                (2, [], 0, 1),
                (3, 2, 1, 1),
                (3, 2, 1, 2),
                (2, 3, 1, 1),
                (3, 1, 0, 1),
            ]:
                lists = [[item] if isinstance(item, int) else item for item in (kernel, stride, padding)]
                for suffix in ("", "_with_indices"):
                    yield case(f"max_pool{dims}d{suffix}.default", x, *lists, [dilation], ceil_mode)
                for include in (True, False):
                    yield case(f"avg_pool{dims}d.default", x, *lists, ceil_mode, include)
                if dims > 1:
                    yield case(f"avg_pool{dims}d.default", x, *lists, ceil_mode, True, 5)
        for size in ((1, 1, 1), (3, 2, 4), (7, 9, 6), (8, 10, 3)):
            for x in (draw(*shape), draw(*shape[1:])):
                yield case(f"adaptive_avg_pool{dims}d.default", x, list(size[-dims:]))
                yield case(f"adaptive_max_pool{dims}d.default", x, list(size[-dims:]))
    for x in (nan, np.full((1, 1, 4, 4), -math.inf, np.float32)):
        yield case("max_pool2d_with_indices.default", x, [3, 3], [2, 2], [1, 1])
        yield case("adaptive_max_pool2d.default", x, [3, 2])
    yield case("max_pool1d_with_indices.default", ties, [3], [1], [1])
    yield case("max_pool2d.default", draw(2, 3, 7, 9), [3, 2], [2, 1], [1, 0], [1, 2])
    yield case("max_pool2d.default", np.arange(-20, 20).reshape(1, 2, 4, 5), [2, 2])
    yield case("avg_pool2d.default", draw(2, 3, 7, 9), [3, 2], [2, 1], [1, 0])
    yield case("_adaptive_avg_pool2d.default", draw(2, 3, 7, 9), [3, 2])
    yield case("_adaptive_avg_pool3d.default", draw(2, 3, 5, 7, 9), [3, 2, 4])


def resizes() -> Iterator[Case]:
    x1, x2, x3 = draw(2, 3, 11), draw(2, 3, 7, 9), draw(1, 2, 3, 5, 4)
    sizes: list[tuple[int, ...]] = [(14, 18), (11, 5), (4, 3), (7, 9), (1, 1), (20, 31), (13, 23)]
    for name in ("upsample_nearest", "_upsample_nearest_exact"):
        for size in sizes:
            yield case(f"{name}1d.vec", x1, list(size[:1]), None)
            yield case(f"{name}2d.vec", x2, list(size), None)
            yield case(f"{name}3d.vec", x3, [5, *size], None)
        for factors in ((2.0, 2.0), (1.7, 0.6), (3.3, 1.1)):
            yield case(f"{name}1d.vec", x1, None, list(factors[:1]))
            yield case(f"{name}2d.vec", x2, None, list(factors))
            yield case(f"{name}3d.vec", x3, None, [1.5, *factors])
        for factors in ((1.1, 2.1), (2.1, 1.05), (1.05, 3.0)):
            # Sizes that stay or double under a scale that is not 1 or 2.
            yield case(f"{name}1d.vec", draw(1, 2, 9), None, list(factors[:1]))
            yield case(f"{name}2d.vec", draw(1, 2, 9, 7), None, list(factors))
            yield case(f"{name}3d.vec", draw(1, 2, 2, 9, 7), None, [1.0, *factors])
        yield case(f"{name}1d.default", x1, [17], 1.6)
        yield case(f"{name}2d.default", x2, [17, 5], 2.5, None)
        yield case(f"{name}2d.default", x2, [17, 5])
        yield case(f"{name}3d.default", x3, [4, 7, 5], None, 1.5, None)
        yield case(f"{name}2d.vec", np.arange(30, dtype="uint8").reshape(1, 1, 5, 6), [7, 4], None)
    for align in (False, True):
        for name in (
            "upsample_bilinear2d",
            "upsample_bicubic2d",
            "_upsample_bilinear2d_aa",
            "_upsample_bicubic2d_aa",
        ):
            for size in sizes:
                yield case(f"{name}.vec", x2, list(size), align, None, atol=1e-5)
            yield case(f"{name}.vec", x2, None, align, [1.7, 0.6], atol=1e-5)
            yield case(f"{name}.vec", draw(1, 2, 1, 1), [3, 4], align, None, atol=1e-5)
            yield case(f"{name}.default", x2, [12, 4], align, 1.75, None, atol=1e-5)
            yield case(f"{name}.default", x2, [12, 4], align, atol=1e-5)
            if name.endswith("_aa"):
                yield case(f"{name}.default", x2.astype("float64"), [3, 9], align)
        yield case("upsample_linear1d.vec", x1, [17], align, None)
        yield case("upsample_linear1d.vec", x1, None, align, [0.6])
        yield case("upsample_linear1d.default", x1, [17], align, 1.6)
        yield case("upsample_linear1d.default", x1.astype("float64"), [17], align)
        yield case("upsample_trilinear3d.vec", x3, [5, 7, 3], align, None)
        yield case("upsample_trilinear3d.default", x3, [5, 7, 3], align, None, 1.4, None)
    grid, grid3 = draw(2, 4, 6, 2, scale=0.9), draw(1, 2, 3, 4, 3, scale=0.9)
    grid[0, 0, 0] = (-1, 1)
    grid[0, 0, 1, 0] = math.nan
    for mode, padding, align in itertools.product((0, 1, 2), (0, 1, 2), (False, True)):
        for name in ("grid_sampler.default", "grid_sampler_2d.default"):
            clean = np.nan_to_num(grid) if padding or mode == 2 else grid
            yield case(name, x2, clean, mode, padding, align, atol=1e-5)
        yield case("grid_sampler_2d.default", draw(2, 3, 1, 1), np.nan_to_num(grid), mode, padding, align, atol=1e-5)
        if mode < 2:
            yield case("grid_sampler_3d.default", x3, grid3, mode, padding, align, atol=1e-5)
            yield case("grid_sampler.default", x3, grid3, mode, padding, align, atol=1e-5)
    yield case("pixel_shuffle.default", draw(2, 12, 3, 5), 2)
    yield case("pixel_shuffle.default", draw(9, 3, 5), 3)
    yield case("pixel_unshuffle.default", draw(2, 3, 4, 6), 2)
    yield case("channel_shuffle.default", draw(2, 6, 4, 5), 3)
    yield case("native_channel_shuffle.default", draw(2, 6, 4, 5), 2)
