"""Maps and weights of grouped convolutions on blocked channels."""

from __future__ import annotations

from transpiler.ir import Value, fixed_size
from transpiler.ops.packed import BLOCK, PackChannels, UnpackChannels, blocks
from transpiler.ops.shape import BroadcastTo, Reshape
from transpiler.ops.shape_edges import Pad
from transpiler.passes.rewrite import Rewriter

# Channels of a group of a convolution that has as many outputs: whole groups lie in each block.
WITHIN_BLOCK = (1, 2, 4, 8)


def repeated_channels(rewriter: Rewriter, x: Value, count: int) -> Value:
    """Every channel of a plain map `count` times, so that a depthwise convolution gives as many results of it."""
    images, channels, height, width = x.shape
    single = rewriter.emit(Reshape((images, channels, 1, height, width)), x, like=None)
    several = rewriter.emit(BroadcastTo((images, channels, count, height, width)), single, like=None)
    return rewriter.emit(Reshape((images, fixed_size(channels) * count, height, width)), several, like=None)


def blocks_of_groups(rewriter: Rewriter, x: Value, groups: int) -> Value:
    """A blocked map in which every group begins a block: [N, G * C, H, W] -> [N, G * ceil(C / 16), H, W, 16]."""
    images, channels, height, width = x.shape
    each = fixed_size(channels) // groups
    split = rewriter.emit(Reshape((images * groups, each, height, width)), x, like=x)
    packed = rewriter.emit(PackChannels(), split, like=x)
    return rewriter.emit(Reshape((images, groups * blocks(each), height, width, BLOCK)), packed, like=x)


def plain_groups(rewriter: Rewriter, blocked: Value, groups: int, output: Value) -> Value:
    """The inverse, as `output`."""
    images, channels, height, width = output.shape
    each = fixed_size(channels) // groups
    maps = rewriter.emit(Reshape((images * groups, blocks(each), height, width, BLOCK)), blocked, like=None)
    plain = rewriter.emit(UnpackChannels(each), maps, like=None)
    return rewriter.emit(Reshape(output.shape), plain, like=output)


def group_blocks(rewriter: Rewriter, weight: Value, groups: int) -> Value:
    """[O, ...] with zeros behind the channels of each group, up to whole blocks."""
    channels, *rest = weight.type.static_shape()
    size = channels // groups
    extra = -size % BLOCK
    if not extra:
        return weight
    split = rewriter.emit(Reshape((groups, size, *rest)), weight, like=weight)
    none = (0,) * len(rest)
    padded = rewriter.emit(Pad((0, 0, *none), (0, extra, *none)), split, like=weight)
    return rewriter.emit(Reshape((groups * (size + extra), *rest)), padded, like=weight)
