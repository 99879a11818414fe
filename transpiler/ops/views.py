"""Importers of ATen's views, slices, joins and pads as `shape.py` and `shape_edges.py`.

Sizes that PyTorch has worked out (-1 in a view, the length of a slice) are taken from the node's output type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transpiler.dims import Dim, floordiv, product
from transpiler.ir import Value
from transpiler.ops.base import ImportContext, aten, normalize_axis
from transpiler.ops.dtypes import out_type, plain
from transpiler.ops.shape import BroadcastTo, Concat, Reshape, Slice, Transpose, as_tuple
from transpiler.ops.shape_edges import Diagonal, Flip, Pad, SliceUpdate, Unfold


def reshape(context: ImportContext, x: Value, shape: Sequence[Dim]) -> Any:
    """The value itself if it has the shape already."""
    return x if x.shape == tuple(shape) else context.emit(Reshape(tuple(shape)), x)


def transpose(context: ImportContext, x: Value, perm: Sequence[int]) -> Any:
    perm = tuple(perm)
    return x if perm == tuple(range(len(perm))) else context.emit(Transpose(perm), x)


def broadcast(context: ImportContext, x: Value, shape: Sequence[Dim]) -> Any:
    return x if x.shape == tuple(shape) else context.emit(BroadcastTo(tuple(shape)), x)


def slice_op(x: Value, axis: int, start: Dim, stop: Dim, step: int = 1) -> Slice:
    """A slice of one axis, whole in the others."""
    rank = len(x.shape)
    starts, stops, steps = [0] * rank, list(x.shape), [1] * rank
    return Slice(
        (*starts[:axis], start, *starts[axis + 1 :]),
        (*stops[:axis], stop, *stops[axis + 1 :]),
        (*steps[:axis], step, *steps[axis + 1 :]),
    )


def cut(context: ImportContext, x: Value, axis: int, start: Dim, stop: Dim, step: int = 1) -> Any:
    if start == 0 and stop == x.shape[axis] and step == 1:
        return x
    return context.emit(slice_op(x, axis, start, stop, step), x)


@aten(
    "view.default", "_unsafe_view.default", "reshape.default", "flatten.using_ints", "unflatten.int",
    "unsqueeze.default", "squeeze.default", "squeeze.dim", "squeeze.dims", "view_as.default",
    "reshape_as.default", "_reshape_alias.default", "view_copy.default", "unsqueeze_copy.default",
    "squeeze_copy.default", "squeeze_copy.dim", "squeeze_copy.dims", "ravel.default",
)  # fmt: skip
def _reshape(context: ImportContext, x: Value, *_: Any, **__: Any) -> Any:
    return reshape(context, x, out_type(context).shape)


@aten("expand.default", "expand_copy.default", "broadcast_to.default", "expand_as.default")
def _expand(context: ImportContext, x: Value, *_: Any, **__: Any) -> Any:
    return broadcast(context, x, out_type(context).shape)


@aten(
    "clone.default", "alias.default", "detach.default", "contiguous.default", "lift_fresh_copy.default",
    "lift_fresh.default", "detach_.default", "alias_copy.default", "positive.default", "resolve_conj.default",
    "resolve_neg.default",
)  # fmt: skip
def _identity(context: ImportContext, x: Value, *_: Any, **__: Any) -> Any:
    """Values are never written to: a copy is the value itself."""
    return x


@aten("_assert_tensor_metadata.default")
def _nothing(context: ImportContext, *_: Any, **__: Any) -> None:
    return None


@aten("copy.default")
def _copy(context: ImportContext, x: Value, source: Value, non_blocking: bool = False) -> Any:
    return broadcast(context, context.cast(source, x.dtype), x.shape)


@aten("permute.default", "permute_copy.default")
def _permute(context: ImportContext, x: Value, dims: Sequence[int]) -> Any:
    return transpose(context, x, [normalize_axis(axis, len(x.shape)) for axis in dims])


@aten("transpose.int", "transpose_copy.int", "swapaxes.default", "swapdims.default")
def _transpose(context: ImportContext, x: Value, dim0: int, dim1: int) -> Any:
    rank = len(x.shape)
    perm = list(range(rank))
    a, b = normalize_axis(dim0, rank), normalize_axis(dim1, rank)
    if rank:
        perm[a], perm[b] = b, a
    return transpose(context, x, perm)


@aten("t.default", "mT.default", "numpy_T.default", "adjoint.default", "t_copy.default")
def _matrix_transpose(context: ImportContext, x: Value) -> Any:
    rank = len(x.shape)
    if rank > 2 and out_type(context).shape == x.shape[::-1] != (*x.shape[:-2], x.shape[-1], x.shape[-2]):
        return transpose(context, x, range(rank)[::-1])
    return x if rank < 2 else _transpose(context, x, -2, -1)


@aten("movedim.int", "movedim.intlist", "moveaxis.int", "moveaxis.intlist")
def _movedim(context: ImportContext, x: Value, source: Any, destination: Any) -> Any:
    rank = len(x.shape)
    sources = [normalize_axis(axis, rank) for axis in as_tuple(source)]
    targets = [normalize_axis(axis, rank) for axis in as_tuple(destination)]
    moved = dict(zip(targets, sources, strict=True))
    rest = iter(axis for axis in range(rank) if axis not in sources)
    return transpose(context, x, [moved[axis] if axis in moved else next(rest) for axis in range(rank)])


@aten("select.int", "select_copy.int")
def _select(context: ImportContext, x: Value, dim: int, index: Dim) -> Any:
    axis = normalize_axis(dim, len(x.shape))
    start = _from_start(index, x.shape[axis])
    return reshape(context, cut(context, x, axis, start, start + 1), out_type(context).shape)


def _from_start(index: Dim, dim: Dim) -> Dim:
    return dim + index if isinstance(index, int) and index < 0 else index


def _range(x: Value, axis: int, start: Dim | None, length: Dim, step: int) -> tuple[Dim, Dim]:
    """Normalised start and stop of a slice that has `length` elements."""
    dim = x.shape[axis]
    begin = _from_start(0 if start is None else start, dim)
    if isinstance(begin, int) and isinstance(dim, int):
        begin = min(max(begin, 0), dim)
    if length == 0:
        return begin, begin
    return begin, begin + (length - 1) * step + 1


@aten("slice.Tensor", "slice_copy.Tensor")
def _slice(context: ImportContext, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    axis = normalize_axis(dim, len(x.shape))
    return cut(context, x, axis, *_range(x, axis, start, out_type(context).shape[axis], step), step)


@aten("narrow.default", "narrow_copy.default")
def _narrow(context: ImportContext, x: Value, dim: int, start: Any, length: Dim) -> Any:
    axis = normalize_axis(dim, len(x.shape))
    return cut(context, x, axis, *_range(x, axis, start, length, 1))


@aten("slice_scatter.default")
def _slice_scatter(
    context: ImportContext,
    x: Value,
    src: Value,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> Any:
    axis = normalize_axis(dim, len(x.shape))
    begin, stop = _range(x, axis, start, src.shape[axis], step)
    return _update(context, x, context.cast(src, x.dtype), slice_op(x, axis, begin, stop, step))


@aten("select_scatter.default")
def _select_scatter(context: ImportContext, x: Value, src: Value, dim: int, index: Dim) -> Any:
    axis = normalize_axis(dim, len(x.shape))
    start = _from_start(index, x.shape[axis])
    row = reshape(context, context.cast(src, x.dtype), (*x.shape[:axis], 1, *x.shape[axis + 1 :]))
    return _update(context, x, row, slice_op(x, axis, start, start + 1))


def _update(context: ImportContext, x: Value, update: Value, op: Slice) -> Any:
    return context.emit(SliceUpdate(op.starts, op.stops, op.steps), x, update)


@aten(
    "split.Tensor", "split.sizes", "split_with_sizes.default", "chunk.default", "tensor_split.sections",
    "tensor_split.indices", "unsafe_split.Tensor", "unsafe_chunk.default", "unsafe_split_with_sizes.default",
    "split_copy.Tensor", "split_with_sizes_copy.default",
)  # fmt: skip
def _split(context: ImportContext, x: Value, how: Any, dim: int = 0) -> tuple[Value, ...]:
    axis = normalize_axis(dim, len(x.shape))
    parts: list[Value] = []
    start: Dim = 0
    for part in context.out_types():
        stop = start + part.shape[axis]
        parts.append(cut(context, x, axis, start, stop))
        start = stop
    return tuple(parts)


@aten("unbind.int", "unbind_copy.int")
def _unbind(context: ImportContext, x: Value, dim: int = 0) -> tuple[Value, ...]:
    axis = normalize_axis(dim, len(x.shape))
    return tuple(
        reshape(context, cut(context, x, axis, start, start + 1), part.shape)
        for start, part in enumerate(context.out_types())
    )


@aten("cat.default", "concat.default", "concatenate.default")
def _cat(context: ImportContext, tensors: Sequence[Value], dim: int = 0) -> Any:
    """Empty tensors of rank 1 join anything (PyTorch's legacy rule); other empty ones are dropped too."""
    out = out_type(context)
    axis = normalize_axis(dim, out.rank)
    parts = [x for x in tensors if len(x.shape) == out.rank and x.shape[axis] != 0] or list(tensors[:1])
    parts = [context.cast(x, out.dtype) for x in parts]
    return parts[0] if len(parts) == 1 else context.emit(Concat(axis), *parts)


@aten("stack.default")
def _stack(context: ImportContext, tensors: Sequence[Value], dim: int = 0) -> Any:
    out = out_type(context)
    axis = normalize_axis(dim, out.rank)
    shape = (*out.shape[:axis], 1, *out.shape[axis + 1 :])
    parts = [reshape(context, context.cast(x, out.dtype), shape) for x in tensors]
    return parts[0] if len(parts) == 1 else context.emit(Concat(axis), *parts)


@aten("repeat.default", "tile.default")
def _repeat(context: ImportContext, x: Value, repeats: Sequence[Dim]) -> Any:
    """Each axis of size d becomes (repeat, d), broadcast, and flattened again."""
    out = out_type(context)
    counts = (*([1] * (out.rank - len(repeats))), *repeats)
    shape = (*([1] * (out.rank - len(x.shape))), *x.shape)
    thin = tuple(entry for dim in shape for entry in (1, dim))
    wide = tuple(entry for count, dim in zip(counts, shape, strict=True) for entry in (count, dim))
    if thin == wide:
        return reshape(context, x, out.shape)
    return reshape(context, broadcast(context, reshape(context, x, thin), wide), out.shape)


@aten("repeat_interleave.self_int")
def _repeat_interleave(
    context: ImportContext, x: Value, repeats: Dim, dim: int | None = None, output_size: Any = None
) -> Any:
    axis = normalize_axis(0 if dim is None else dim, len(x.shape))
    if dim is None:
        x = reshape(context, x, (floordiv(out_type(context).shape[0], repeats),))
    split = axis + 1
    thin = (*x.shape[:split], 1, *x.shape[split:])
    wide = (*x.shape[:split], repeats, *x.shape[split:])
    return reshape(context, broadcast(context, reshape(context, x, thin), wide), out_type(context).shape)


@aten("roll.default")
def _roll(context: ImportContext, x: Value, shifts: Any, dims: Any = ()) -> Any:
    """The last `shift` elements of an axis, then the others."""
    out = out_type(context)
    axes = as_tuple(dims)
    result = x
    if not axes:
        result = reshape(context, x, (product(out.shape),))
        axes = (0,)
    for shift, dim in zip(as_tuple(shifts), axes, strict=True):
        axis = normalize_axis(dim, len(result.shape))
        size = result.shape[axis]
        if size == 0:
            continue
        start = (size - shift) % size
        if start == 0:
            continue
        head = cut(context, result, axis, 0, start)
        result = context.emit(Concat(axis), cut(context, result, axis, start, size), head)
    return reshape(context, result, out.shape)


@aten("flip.default")
def _flip(context: ImportContext, x: Value, dims: Sequence[int]) -> Any:
    axes = tuple(sorted(normalize_axis(axis, len(x.shape)) for axis in dims))
    return context.emit(Flip(axes), x) if axes and x.shape else x


@aten("fliplr.default")
def _fliplr(context: ImportContext, x: Value) -> Any:
    return context.emit(Flip((1,)), x)


@aten("flipud.default")
def _flipud(context: ImportContext, x: Value) -> Any:
    return context.emit(Flip((0,)), x)


@aten("unfold.default", "unfold_copy.default")
def _unfold(context: ImportContext, x: Value, dimension: int, size: int, step: int) -> Any:
    if not x.shape:
        return reshape(context, x, out_type(context).shape)
    return context.emit(Unfold(normalize_axis(dimension, len(x.shape)), size, step), x)


@aten("diagonal.default", "diagonal_copy.default")
def _diagonal(context: ImportContext, x: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    rank = len(x.shape)
    return context.emit(Diagonal(offset, normalize_axis(dim1, rank), normalize_axis(dim2, rank)), x)


@aten("constant_pad_nd.default", "pad.default")
def _pad(context: ImportContext, x: Value, pad: Sequence[Dim], mode: Any = "constant", value: Any = None) -> Any:
    """`pad` counts from the last axis: (low, high) of it, then of the one before; negative pads cut."""
    if not isinstance(mode, str):
        mode, value = "constant", mode
    return padded(context, x, pad, mode, 0 if value is None else value)


@aten(
    "reflection_pad1d.default", "reflection_pad2d.default", "reflection_pad3d.default",
)  # fmt: skip
def _reflection_pad(context: ImportContext, x: Value, padding: Sequence[Dim]) -> Any:
    return padded(context, x, padding, "reflect", 0)


@aten("replication_pad1d.default", "replication_pad2d.default", "replication_pad3d.default")
def _replication_pad(context: ImportContext, x: Value, padding: Sequence[Dim]) -> Any:
    return padded(context, x, padding, "replicate", 0)


def padded(context: ImportContext, x: Value, pad: Sequence[Dim], mode: str, value: Any) -> Any:
    """Negative pads cut. What is wrapped around is what they leave; what is repeated or reflected is the whole."""
    rank = len(x.shape)
    low: list[Dim] = [0] * rank
    high: list[Dim] = [0] * rank
    for pair in range(len(pad) // 2):
        axis = rank - 1 - pair
        low[axis], high[axis] = pad[2 * pair], pad[2 * pair + 1]
    if mode == "circular":
        x = _cropped(context, x, low, high)
    before, after = (tuple(max(n, 0) if isinstance(n, int) else n for n in side) for side in (low, high))
    if any(before) or any(after):
        if isinstance(value, Value):
            raise context.unsupported("pad with a value that is a tensor")
        x = context.emit(Pad(before, after, mode, plain(value, x.dtype)), x)
    return x if mode == "circular" else _cropped(context, x, low, high)


def _cropped(context: ImportContext, x: Value, low: Sequence[Dim], high: Sequence[Dim]) -> Value:
    for axis, (before, after) in enumerate(zip(low, high, strict=True)):
        x = cut(context, x, axis, max(-_fixed(before), 0), x.shape[axis] - max(-_fixed(after), 0))
    return x


def _fixed(pad: Dim) -> int:
    """A symbolic pad is not negative."""
    return pad if isinstance(pad, int) else 0
