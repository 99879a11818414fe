"""Calls drawn from the signatures of the ATen overloads that the op registry imports.

Every overload is drawn whose arguments have types and names that are known here: a new operator is drawn as soon as
it is registered. Arguments are guesses; a call that PyTorch refuses is not taken in.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.properties.calls import FLOATS, Made, Ref, resolve
from tests.properties.grow import Grower
from transpiler.ops import ATEN

# Not functions of their inputs alone, or with results that PyTorch determines up to signs.
EXCLUDED = {
    "empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided", "resize", "resize_as",
    "embedding_renorm", "rrelu_with_noise", "as_strided", "as_strided_copy", "as_strided_scatter", "_reshape_alias",
    "_linalg_eigh", "linalg_eigh", "_linalg_svd", "_assert_tensor_metadata", "lift_fresh", "lift_fresh_copy", "detach_",
    "_fused_rms_norm", "dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "native_dropout",
    "_native_batch_norm_legit", "geqrf", "_pdist_forward", "_unsafe_index", "_unsafe_index_put",
}  # fmt: skip
_AXES = {"dim", "dim0", "dim1", "dim2", "axis", "axis0", "axis1", "start_dim", "end_dim", "source", "destination"}
_WORDS = {
    "reduce": ["sum", "prod", "mean", "amax", "amin"], "mode": ["constant", "reflect", "replicate", "circular"],
    "rounding_mode": [None, "trunc", "floor"], "approximate": ["none", "tanh"], "UPLO": ["L", "U"],
    "side": [None, "left", "right"], "padding": ["same", "valid"],
}  # fmt: skip
_PLACES = {"device", "layout", "pin_memory", "memory_format", "generator", "non_blocking", "implicit", "out",
           "sorter", "path", "driver"}  # fmt: skip
_FALSE = {"train", "training", "cudnn_enabled", "cudnn_enable", "benchmark", "deterministic", "allow_tf32", "sparse",
          "sparse_grad", "use_input_stats", "scale_grad_by_freq", "check_errors"}  # fmt: skip


@cache
def overloads() -> list[list[str]]:
    """The functions that can be drawn, as `aten.add.Tensor`; overloads of one function together."""
    found: dict[str, list[str]] = {}
    for name in sorted(ATEN):
        packet = name.partition(".")[0]
        try:
            op: Any = resolve(f"aten.{name}")
        except AttributeError:
            continue
        tags = {str(tag).rpartition(".")[2] for tag in op.tags}
        random_ = tags & {"nondeterministic_seeded", "dynamic_output_shape", "data_dependent_output"}
        if packet in EXCLUDED or random_ or not all(map(_known, op._schema.arguments)):
            continue
        if any(str(item.type) in ("Tensor", "List[Tensor]") for item in op._schema.arguments):
            found.setdefault(packet, []).append(f"aten.{name}")
    return list(found.values())


def _known(argument: Any) -> bool:
    kind = str(argument.type)
    if argument.name in _PLACES:
        return kind.startswith("Optional") or argument.has_default_value()
    return kind in _DRAWN and ("str" not in kind or argument.name in _WORDS)


class Drawer:
    """The arguments of one call that starts from value `x`."""

    def __init__(self, grower: Grower, choose: random.Random, x: Ref) -> None:
        self.grower, self.choose, self.ref = grower, choose, x
        self.x = grower.values[x.number]
        self.axis = 0
        self.first = True

    def call(self, function: str) -> list[Ref]:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        op: Any = resolve(function)
        for argument in op._schema.arguments:
            if argument.name in _PLACES:
                if not argument.kwarg_only and not argument.has_default_value():
                    args.append(None)
                continue
            if argument.has_default_value() and (argument.kwarg_only or kwargs) and self.choose.random() < 0.4:
                continue
            value = self.argument(argument)
            if argument.kwarg_only or kwargs or (argument.has_default_value() and len(args) < _position(op, argument)):
                kwargs[argument.name] = value
            else:
                args.append(value)
        return self.grower.call(function, *args, **kwargs)

    def argument(self, argument: Any) -> Any:
        kind, name = str(argument.type), argument.name
        if kind.startswith("Optional"):
            if self.choose.random() < 0.4 and name != "rounding_mode":
                return None
            kind = kind.removeprefix("Optional[").removesuffix("]") if kind not in ("Optional[str]",) else "str"
        if name == "dtype":
            return self.choose.choice([torch.float32, torch.float32, torch.float64, torch.int64, torch.int32,
                                       torch.float16, torch.bfloat16, torch.bool, torch.uint8])  # fmt: skip
        if kind == "bool":
            return name not in _FALSE and self.choose.random() < 0.5
        return getattr(self, _DRAWN[kind])(name)

    # --- tensors --------------------------------------------------------------------------------------------------

    def tensor(self, name: str) -> Any:
        if self.first:
            self.first = False
            return self.ref
        if name in ("index", "indices"):
            return self.index()
        if name in ("condition", "mask"):
            return self.mask()
        return self.operand()

    def index(self) -> Any:
        shape = list(self.x.shape)
        bound = shape[self.axis] if shape else 1
        if self.choose.random() < 0.5 or not shape:
            dims = [self.choose.choice([1, 2, 4])]
        else:
            dims = [
                self.choose.randint(1, max(extent, 1)) if n == self.axis else extent for n, extent in enumerate(shape)
            ]
        dtype = torch.int32 if self.choose.random() < 0.15 else torch.int64
        return self.grower.weight(Made(tuple(dims), dtype, "index", bound))

    def mask(self) -> Any:
        found = [Ref(n) for n, item in enumerate(self.grower.values) if item.dtype is torch.bool and self.fits(item)]
        if found and self.choose.random() < 0.6:
            return self.choose.choice(found)
        return self.grower.weight(Made(self.broadcastable(), torch.bool, "mask"))

    def operand(self) -> Any:
        values = self.grower.values
        picked = self.choose.random()
        if picked < 0.45:
            same = [Ref(n) for n, item in enumerate(values) if item.dtype == self.x.dtype and self.fits(item)]
            if same:
                return self.choose.choice(same)
        if picked < 0.6:
            near = [Ref(n) for n, item in enumerate(values) if self.fits(item)]
            if near:
                return self.choose.choice(near)
        dtype = self.x.dtype
        if picked > 0.93:
            dtype = self.choose.choice([*FLOATS, torch.int64, torch.int8, torch.bool])
        kind = "positive" if self.choose.random() < 0.3 and dtype in FLOATS else "normal"
        return self.grower.weight(Made(self.shape(), dtype, kind))

    def fits(self, item: Tensor) -> bool:
        try:
            return torch.broadcast_shapes(item.shape, self.x.shape).numel() <= 2048
        except RuntimeError:
            return False

    def broadcastable(self) -> tuple[int, ...]:
        dims = [1 if self.choose.random() < 0.3 else extent for extent in self.x.shape]
        if self.grower.varies and dims:
            dims[0] = 1
        return tuple(dims[self.choose.choice([0, 0, min(1, len(dims))]) :])

    def shape(self) -> tuple[int, ...]:
        shape = tuple(self.x.shape)
        last, channels = (shape[-1:] or (1,))[0], (shape[1:2] or (1,))[0]
        many: list[tuple[int, ...]] = [
            self.broadcastable(), self.broadcastable(), self.broadcastable(), (last,), (channels,), shape[1:], (),
            (last, 5), (5, last), (*shape[:-2], last, 4), (4, channels, 3, 3), (4, channels, 3), (channels, 1, 3, 3),
            (channels, 4, 2, 2), (5, last, last), shape[:-1],
        ]  # fmt: skip
        return self.choose.choice(many)

    def tensor_list(self, name: str) -> list[Any]:
        del name
        self.first = False
        many: list[Any] = [self.ref]
        for _ in range(self.choose.choice([0, 1, 1, 2])):
            close = [
                Ref(n) for n, item in enumerate(self.grower.values) if item.ndim == self.x.ndim and self.fits(item)
            ]
            many.append(self.choose.choice([self.ref, *close]))
        self.choose.shuffle(many)
        return many

    def index_list(self, name: str) -> list[Any]:
        del name
        shape = self.x.shape
        leading = self.choose.randint(0, max(len(shape) - 1, 0))
        entries: list[Any] = [None] * leading
        dims = self.choose.choice([(3,), (2, 2), (1,)])
        for extent in shape[leading : leading + self.choose.choice([1, 1, 2])]:
            entries.append(self.grower.weight(Made(dims, torch.int64, "index", extent)))
        return entries

    # --- numbers --------------------------------------------------------------------------------------------------

    def integer(self, name: str) -> int:
        rank = self.x.ndim
        if name in _AXES:
            axis = self.choose.randrange(max(rank, 1))
            self.axis = axis
            return axis if self.choose.random() < 0.6 else axis - max(rank, 1)
        if name in ("index", "start", "k", "length", "size"):
            return self.choose.choice([0, 1, 1, 2, 3, -1])
        if name == "end":
            return self.choose.choice([1, 2, 3, -1, 2**63 - 1])
        if name in ("groups", "group"):
            return self.choose.choice([1, 1, self.x.shape[1] if rank > 1 else 1, 2])
        if name in ("diagonal", "offset"):
            return self.choose.choice([0, 0, 1, -1, 2])
        if name == "num_classes":
            return 10
        if name == "padding_idx":
            return -1
        return self.choose.choice([1, 1, 2, 2, 3, 0, 5])

    def number(self, name: str) -> float | int:
        del name
        if self.x.dtype in FLOATS:
            return self.choose.choice([0.5, 2, 1.0, -1.5, 0.1, 3, 0, 0.25, -0.75])
        return self.choose.choice([2, 1, 3, -2, 0, 5, 0.5])

    def real(self, name: str) -> float:
        if name == "eps":
            return 1e-5
        if name in ("p", "ord", "norm_type"):
            return self.choose.choice([2.0, 1.0, 0.5, 3.0, float("inf"), 0.0])
        return self.choose.choice([0.5, 2.0, 1.0, 0.25])

    def integers(self, name: str) -> list[int]:
        shape, rank = list(self.x.shape), self.x.ndim
        axes = self.choose.sample(range(rank), self.choose.randint(0, rank))
        if name in ("dim", "dims", "dims_self", "dims_other", "source", "destination"):
            if self.choose.random() < 0.4:
                axes = self.choose.sample(range(rank), rank)
            return [axis if self.choose.random() < 0.7 else axis - rank for axis in axes]
        if name in ("size", "shape", "output_size", "sizes"):
            numel = self.x.numel()
            many = [
                shape, [numel], [-1], [*shape[:1], -1], [-1, *shape[-1:]], [2, *shape], [1, *shape, 1], shape[::-1],
                [3 if extent == 1 else extent for extent in shape], [2, 2], [4], [3, 3, 3], [5, 2], [-1] * rank,
            ]  # fmt: skip
            return list(self.choose.choice(many))
        if name == "normalized_shape":
            return shape[-self.choose.choice([1, 1, 2, 3]) :]
        if name in ("split_sizes", "split_size", "indices") and rank:
            extent = shape[self.axis]
            cut = self.choose.randint(0, max(extent, 0))
            return [cut, extent - cut]
        if name in ("repeats", "shifts"):
            return [self.choose.choice([1, 2, 1, 3, -1]) for _ in range(max(rank, 1))]
        count = self.choose.choice([max(rank - 2, 1), max(rank - 2, 1), 1, 2, 4])
        low = 0 if "padding" in name else (-1 if name == "pad" else 1)
        high = 3 if name == "kernel_size" else 2
        return [self.choose.randint(low, high) for _ in range(count)]

    def reals(self, name: str) -> list[float]:
        del name
        return [self.choose.choice([2.0, 1.5, 0.5]) for _ in range(max(self.x.ndim - 2, 1))]

    def word(self, name: str) -> str | None:
        return self.choose.choice(_WORDS[name])


def _position(op: Any, argument: Any) -> int:
    return [item.name for item in op._schema.arguments].index(argument.name)


# The type of an argument -> the method that draws it.
_DRAWN: dict[str, str] = {
    "Tensor": "tensor", "List[Tensor]": "tensor_list", "List[Optional[Tensor]]": "index_list", "int": "integer",
    "number": "number", "float": "real", "List[int]": "integers", "List[float]": "reals", "str": "word",
}  # fmt: skip
_DRAWN |= {f"Optional[{kind}]": method for kind, method in _DRAWN.items()} | {"bool": "", "Optional[bool]": ""}
