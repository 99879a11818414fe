"""Transposed convolutions on blocked maps: a convolution whose channels are the output's phases, then a shuffle."""

from __future__ import annotations

from dataclasses import dataclass

from transpiler.ir import Value, fixed_size
from transpiler.ops.blocked_conv import ConvBlocked
from transpiler.ops.conv import ConvTranspose
from transpiler.ops.packed import BLOCK, PackConv, blocks
from transpiler.ops.phases import PhaseFilters, window
from transpiler.ops.shape import Concat, Reshape, Slice, Transpose
from transpiler.passes.rewrite import Rewriter


@dataclass(frozen=True)
class Phases:
    """A transposed convolution as a convolution with `padding` zeros at (top, left, bottom, right) and a kernel of
    `window`, which gives `steps` outputs of each of the `stride` phases per dim."""

    stride: tuple[int, int]
    window: tuple[int, int]
    padding: tuple[int, int, int, int]
    steps: tuple[int, int]


def phases(op: ConvTranspose, x: Value, weight: Value, output: Value) -> Phases | None:
    """How to compute it; None if it is grouped or dilated, or the window does not start within the padded map."""
    if op.groups != 1 or len(op.stride) != 2 or op.dilation != (1, 1):
        return None
    before, after, windows, steps = [], [], [], []
    for axis in range(2):
        size, result = fixed_size(x.shape[2 + axis]), fixed_size(output.shape[2 + axis])
        found = window(fixed_size(weight.shape[2 + axis]), op.stride[axis], op.padding[axis])
        steps.append(-(-result // op.stride[axis]))
        before.append(-found.first)
        after.append(steps[-1] + found.last - size)
        windows.append(found.size)
    if min(*before, *after) < 0:
        return None
    return Phases(
        (op.stride[0], op.stride[1]), (windows[0], windows[1]), (before[0], before[1], after[0], after[1]),
        (steps[0], steps[1]),
    )  # fmt: skip


def emit_transposed(
    rewriter: Rewriter, op: ConvTranspose, how: Phases, x: Value, source: Value, weight: Value, bias: Value | None,
    output: Value,
) -> Value:  # fmt: skip
    """The blocked result from the blocked map `source` of `x`; `bias` has whole blocks of channels."""
    (sh, sw), (h, w) = how.stride, how.steps
    channels = fixed_size(output.shape[1])
    count = blocks(channels)
    inner = fixed_size(x.shape[1])
    filters = rewriter.emit(PhaseFilters(how.stride, (op.padding[0], op.padding[1])), weight, like=weight)
    packed = rewriter.emit(PackConv(), filters, like=weight)
    conv = ConvBlocked(sh * sw * count * BLOCK, inner, how.window, (1, 1), how.padding, (1, 1))
    inputs = [packed] if bias is None else [packed, _repeated(rewriter, bias, sh * sw)]
    result = rewriter.emit(conv, source, *inputs, like=output)
    n = x.shape[0]
    split = rewriter.emit(Reshape((n, sh, sw, count, h, w, BLOCK)), result, like=output)
    shuffled = rewriter.emit(Transpose((0, 3, 4, 1, 5, 2, 6)), split, like=output)
    result = rewriter.emit(Reshape((n, count, h * sh, w * sw, BLOCK)), shuffled, like=output)
    height, width = output.shape[2:]
    if (height, width) == (h * sh, w * sw):
        return result
    stops = (n, count, height, width, BLOCK)
    return rewriter.emit(Slice((0,) * 5, stops, (1,) * 5), result, like=output)


def _repeated(rewriter: Rewriter, bias: Value, times: int) -> Value:
    return rewriter.emit(Concat(0), *(bias,) * times, like=bias) if times > 1 else bias
