"""Products and attention whose sizes are multiples of no tile, on inputs that are drawn anew for every turn, and how
far their results may be from float64. Nothing here needs TVM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from transpiler.ops.attention import Attention
from transpiler.ops.base import Product
from transpiler.ops.conv import Conv
from transpiler.ops.dtypes import HALF, numpy_dtype
from transpiler.ops.linalg import Linear, Matmul
from transpiler.precision import PRODUCTS

Array = npt.NDArray[Any]
KINDS = ("float16", "bfloat16", "tf32", "float32")
SINGLE = 2.0**-23  # of float32: sums on tensor cores are cut off, not rounded
TF32 = 2.0**-11


@dataclass(frozen=True)
class ProductCase:
    """A product, the shapes of its inputs, and in which kinds every tile that may compute it is tried. `inner` is which
    dim of an operand the numbers of a chunk fill: float32 has half as many."""

    op: Product
    shapes: tuple[tuple[int, ...], ...]
    tiles: tuple[str, ...] = ()
    bool_mask: bool = False

    def of(self, kind: str) -> KindCase:
        return KindCase(replace(self.op, precision="tf32") if kind == "tf32" else self.op, self, kind)


@dataclass(frozen=True)
class KindCase:
    """A product of half floats, TF32 or float32."""

    op: Product
    case: ProductCase
    kind: str

    @property
    def dtype(self) -> str:
        return "float32" if self.kind == "tf32" else self.kind

    @property
    def every_tile(self) -> bool:
        return self.kind in self.case.tiles

    @property
    def dtypes(self) -> list[str]:
        given = [self.dtype] * len(self.case.shapes)
        return [*given[:-1], "bool"] if self.case.bool_mask else given

    def draw(self, rng: np.random.Generator) -> list[Array]:
        """Normal floats; a mask leaves a third out, and the first key never."""
        drawn: list[Array] = []
        for shape, dtype in zip(self.case.shapes, self.dtypes, strict=True):
            if dtype == "bool":
                mask = rng.random(shape) > 0.3
                mask[..., 0] = True
                drawn.append(mask)
            else:
                drawn.append(rng.standard_normal(shape, np.float32).astype(numpy_dtype(dtype)))
        return drawn

    def expected(self, inputs: Sequence[Array]) -> Expected:
        return Expected(self, [array if array.dtype == bool else array.astype(np.float64) for array in inputs])


@dataclass(frozen=True)
class Expected:
    """What a product gives in float64, and for every element how far from it the result may be."""

    case: KindCase
    inputs: list[Array]

    @cached_property
    def exact(self) -> Array:
        return self._computed(*self.inputs)

    def _computed(self, *inputs: Array) -> Array:
        result = self.case.op.reference(*inputs)
        assert isinstance(result, np.ndarray)
        return result

    @cached_property
    def allowed(self) -> Array:
        """The rounding of the result, and those on the way: see `_sums` and `_attention`."""
        on_the_way = self._attention() if isinstance(self.case.op, Attention) else self._sums()
        unit = float(ml_dtypes.finfo(numpy_dtype(self.case.dtype)).eps) / 2
        smallest = float(ml_dtypes.finfo(numpy_dtype(self.case.dtype)).smallest_subnormal)
        return np.asarray(on_the_way + 1.01 * unit * (np.abs(self.exact) + on_the_way) + smallest)

    def _sums(self) -> Array:
        """n terms t are added in float32, in any order: each addition may be off by the unit of what is there, which is
        at most sum |t| (Higham, Accuracy and Stability of Numerical Algorithms, 3.1; units are those of numbers that
        are cut off, and tensor cores cut off every term of a step once more). TF32 rounds both operands before."""
        places = PRODUCTS[self.case.op.name]
        operands = [np.abs(array) for array in self.inputs]
        absolute = self._computed(*operands)
        terms = self._computed(*[np.ones_like(self.inputs[place]) for place in places]).max() + 1
        rounded = 2 * TF32 + TF32**2 if self.case.kind == "tf32" else 0.0
        return np.asarray((rounded + (1.1 * terms + 8) * SINGLE) * absolute * (1 + rounded))

    def _attention(self) -> Array:
        """Scores are products, off by d; a weight exp(s) / sum exp(s) is then off by a share of at most exp(2 d) - 1,
        of exp's own roundings and those of the sum of weights, and by half a unit where it is rounded to a half float
        (or, below its normal numbers, by half of the smallest of them, of a largest weight of 1); what is off is
        multiplied with |v| and summed."""
        query, key, value, *mask = self.inputs
        op = self.case.op
        assert isinstance(op, Attention)
        scale = 1 / math.sqrt(query.shape[-1]) if op.scale is None else op.scale
        lengths = [float(np.sqrt(np.square(array).sum(-1)).max()) for array in (query, key)]
        largest = scale * math.prod(lengths)  # Cauchy and Schwarz: of a score, and of the sum of its absolute terms
        added = max(
            (float(np.abs(array[np.isfinite(array)]).max()) for array in mask if array.dtype != bool), default=0
        )
        rounded = 2 * TF32 + TF32**2 if self.case.kind == "tf32" else 0.0
        off = (rounded + (1.1 * query.shape[-1] + 12) * SINGLE) * largest + 8 * SINGLE * (largest + added)
        keys = key.shape[-2]
        weights = math.expm1(2 * off) + 2 * (1.1 * keys + 24) * SINGLE
        small = 0.0
        if self.case.dtype in HALF:
            facts = ml_dtypes.finfo(numpy_dtype(self.case.dtype))
            weights += float(facts.eps)
            small = keys * float(facts.smallest_subnormal) * float(np.abs(value).max())
        weights += 2 * TF32 if self.case.kind == "tf32" else 0.0
        return np.asarray(weights * self._computed(query, key, np.abs(value), *mask) + small)

    def problems(self, got: Array) -> list[str]:
        """What is wrong with a result, in words."""
        if got.shape != self.exact.shape or got.dtype != numpy_dtype(self.case.dtype):
            return [f"{got.dtype}{got.shape}, expected {self.case.dtype}{self.exact.shape}"]
        wide = got.astype(np.float64)
        over = np.where(np.isfinite(wide), np.abs(wide - self.exact) / self.allowed, np.inf)
        if over.max() <= 1:
            return []
        place = np.unravel_index(int(over.argmax()), over.shape)
        return [
            f"{int((over > 1).sum())} of {over.size} elements are off; at {tuple(map(int, place))} by "
            f"{abs(wide[place] - self.exact[place]):.3g}, {self.allowed[place]:.3g} allowed"
        ]


def _conv(*sizes: int, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1, dims: int = 2) -> Conv:
    return Conv((stride,) * dims, (padding,) * dims, (dilation,) * dims, groups)


ALL, COARSE = KINDS, ("bfloat16", "tf32", "float32")
# "deep": a summed dim that is worth every number of slices and splits, and no multiple of a step; "many": more tiles
# than an H200 has multiprocessors, so that blocks go on from tile to tile.
CASES: dict[str, ProductCase] = {
    "tiny": ProductCase(Linear(), ((20, 40), (24, 40), (24,))),
    "linear_deep": ProductCase(Linear(), ((3, 50, 1544), (200, 1544), (200,)), COARSE),
    "matmul_deep": ProductCase(Matmul(), ((2, 70, 1544), (2, 1544, 200)), ALL),
    "conv_deep": ProductCase(_conv(padding=1), ((2, 192, 9, 11), (70, 192, 3, 3), (70,)), COARSE),
    "linear_many": ProductCase(Linear(), ((3000, 136), (2200, 136)), ("bfloat16", "tf32")),
    "linear_small": ProductCase(Linear(), ((9, 8), (5, 8), (5,))),
    "linear_odd": ProductCase(Linear(), ((33, 35), (21, 35), (21,))),
    "gemv": ProductCase(Linear(), ((1, 1, 808), (37, 808), (37,))),
    "gemv_odd": ProductCase(Linear(), ((3, 35), (2001, 35))),
    "gemv_deep": ProductCase(Linear(), ((2, 4104), (70, 4104), (70,))),
    "gemv_wide": ProductCase(Linear(), ((5, 520), (7001, 520))),
    "matmul_plain": ProductCase(Matmul(), ((70, 72), (72, 48))),
    "matmul_broadcast": ProductCase(Matmul(), ((2, 1, 20, 24), (3, 24, 40))),
    "matmul_odd": ProductCase(Matmul(), ((2, 3, 33, 35), (2, 3, 35, 37))),
    "matmul_transposed": ProductCase(Matmul(True), ((3, 33, 40), (3, 30, 40))),
    "conv_1x1": ProductCase(_conv(), ((3, 24, 4, 6), (70, 24, 1, 1), (70,))),
    "conv_1x1_stride": ProductCase(_conv(stride=2), ((1, 32, 8, 10), (17, 32, 1, 1))),
    "conv_stem": ProductCase(_conv(stride=2, padding=3), ((1, 3, 37, 37), (64, 3, 7, 7), (64,)), ("bfloat16",)),
    "conv_groups": ProductCase(_conv(padding=2, dilation=2, groups=2), ((2, 128, 9, 8), (34, 64, 3, 3), (34,))),
    "conv_depthwise": ProductCase(_conv(padding=1, groups=33), ((2, 33, 13, 11), (33, 1, 3, 3))),
    "conv_1d": ProductCase(_conv(stride=2, padding=3, dims=1), ((3, 128, 19), (24, 128, 4))),
    "conv_3d": ProductCase(_conv(padding=1, dims=3), ((1, 64, 3, 5, 4), (18, 64, 3, 3, 3))),
    "attention": ProductCase(Attention(), ((2, 3, 130, 64), (2, 3, 130, 64), (2, 3, 130, 64)), ALL),
    "attention_causal": ProductCase(Attention(causal=True), ((1, 2, 300, 128),) * 3, COARSE),
    "attention_cross": ProductCase(Attention(), ((1, 2, 17, 40), (1, 2, 70, 40), (1, 2, 70, 24))),
    "attention_ragged": ProductCase(
        Attention(), ((2, 2, 33, 64), (2, 2, 97, 64), (2, 2, 97, 64), (2, 1, 33, 97)), (), True
    ),
    "attention_added": ProductCase(Attention(), ((2, 2, 33, 64), (2, 2, 97, 64), (2, 2, 97, 64), (33, 97))),
    "attention_groups": ProductCase(
        Attention(causal=True, enable_gqa=True), ((2, 6, 65, 64), (2, 2, 65, 64), (2, 2, 65, 64))
    ),
    "attention_decode": ProductCase(Attention(), ((3, 4, 1, 128), (3, 4, 1030, 128), (3, 4, 1030, 128)), COARSE),
    "attention_large": ProductCase(Attention(), ((1, 2, 66, 192), (1, 2, 66, 192), (1, 2, 66, 192))),
}  # fmt: skip
