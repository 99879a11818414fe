"""Complex numbers inside a model, as pairs of real values: importers of ATen overloads on them.

The op graph has no complex dtype. The importer keeps a complex FX value as a `Pair`; an overload that acts on the parts
alone (views, joins, sums) is imported once for each, the others are written here with real arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transpiler.dims import Dim
from transpiler.ir import Value
from transpiler.ops import compose
from transpiler.ops.base import ATEN, ImportContext
from transpiler.ops.dtypes import category, plain

# What complex dtypes are pairs of.
PART_DTYPES = {"complex32": "float16", "complex64": "float32", "complex128": "float64"}


@dataclass(frozen=True)
class Pair:
    """A complex value: two real ones of one type."""

    real: Value
    imag: Value

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.real.shape

    @property
    def dtype(self) -> str:
        """The dtype of the parts."""
        return self.real.dtype


COMPLEX: dict[str, Callable[..., Any]] = {}

# Overloads whose result's parts depend on the same part of the arguments only.
PARTWISE = frozenset(
    f"{name}.{overload}"
    for overload, names in {
        "default": (
            "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "expand", "clone", "alias", "detach",
            "contiguous", "lift_fresh_copy", "permute", "t", "mT", "numpy_T", "narrow", "slice_scatter",
            "select_scatter", "split_with_sizes", "chunk", "cat", "stack", "repeat", "tile", "roll", "flip", "fliplr",
            "flipud", "unfold", "diagonal", "sum", "mean", "neg", "index_select", "gather", "tril", "triu", "cumsum",
            "as_strided", "view_as", "positive", "resolve_neg", "broadcast_to", "expand_as", "ravel", "index_put",
            "_unsafe_index_put", "concat", "scatter_add", "index_add", "swapaxes", "view_copy", "alias_copy",
        ),
        "int": ("transpose", "select", "unbind", "movedim"),
        "Tensor": ("slice", "split", "index", "_unsafe_index"),
        "dim": ("squeeze", "mean"),
        "dims": ("squeeze",),
        "using_ints": ("flatten",),
        "intlist": ("movedim",),
        "self_int": ("repeat_interleave",),
        "dim_IntList": ("sum",),
    }.items()
    for name in names
)  # fmt: skip
# Of those, the ones whose integer arguments are indices, which go with both parts; elsewhere integers are data.
_INDEXED = frozenset({
    "index.Tensor", "_unsafe_index.Tensor", "index_select.default", "gather.default", "index_put.default",
    "_unsafe_index_put.default", "scatter_add.default", "index_add.default",
})  # fmt: skip


def complex_importer(overload: str) -> Callable[..., Any] | None:
    """The importer of an overload that takes or gives complex numbers."""
    if overload in COMPLEX:
        return COMPLEX[overload]
    if overload not in PARTWISE or overload not in ATEN:
        return None
    function = ATEN[overload]

    def partwise(context: ImportContext, *args: Any, **kwargs: Any) -> Any:
        results = []
        for name in ("real", "imag"):

            def part(item: Any, name: str = name) -> Any:
                return _part(context, item, name, overload in _INDEXED)

            given = {key: part(item) for key, item in kwargs.items()}
            results.append(function(context, *(part(item) for item in args), **given))
        if isinstance(results[0], Value):
            return Pair(*results)
        return tuple(Pair(real, imag) for real, imag in zip(*results, strict=True))

    return partwise


def _part(context: ImportContext, item: Any, name: str, indexed: bool) -> Any:
    """One part of an argument; numbers (sizes, axes) go with both."""
    match item:
        case Pair():
            return getattr(item, name)
        case Value() if category(item.dtype) == 2 or not indexed:
            return item if name == "real" else _zeros(context, item)
        case list() | tuple():
            return [_part(context, entry, name, indexed) for entry in item]
    return item


def _zeros(context: ImportContext, like: Value) -> Value:
    return compose.full(context, plain(0, like.dtype), like.shape, like.dtype)


def on_complex(*overloads: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register an importer for overloads that take or give a `Pair`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for overload in overloads:
            if overload in COMPLEX:
                raise ValueError(f"complex {overload!r} is registered twice")
            COMPLEX[overload] = function
        return function

    return register


def as_pair(context: ImportContext, item: Any, dtype: str) -> Pair:
    """A tensor or number as a complex one with parts of `dtype`."""
    if isinstance(item, Pair):
        return Pair(context.cast(item.real, dtype), context.cast(item.imag, dtype))
    if isinstance(item, Value):
        real = context.cast(item, dtype)
        return Pair(real, _zeros(context, real))
    number = complex(item)
    return Pair(context.scalar(number.real, dtype), context.scalar(number.imag, dtype))
