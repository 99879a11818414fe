"""Random numbers: one counter-based generator, and ATen's distributions as compositions on its bits.

`Philox` is Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC'11). The
key is the seed. The 128-bit counter holds the block's number (32 bits), the stream (one per random operation of the
model) and the call (64 bits), so that no two numbers of a seed come from one counter. See docs/random.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from transpiler.dims import Dim
from transpiler.ir import Array, TensorType, Value
from transpiler.ops import compose
from transpiler.ops.activation import LeakyRelu
from transpiler.ops.base import ImportContext, Opaque, OpError, Sample, aten
from transpiler.ops.compare import Ge, Le, Lt, Where
from transpiler.ops.dtypes import category, out_type, static
from transpiler.ops.elementwise import Add, Div, Mul, Remainder
from transpiler.ops.elementwise_unary import Cos, Exp, Log, Neg, Sqrt, Tan
from transpiler.ops.reduce import Argmax
from transpiler.ops.rounding import Ceil
from transpiler.ops.scan import Sort, Topk

# Multipliers and the Weyl sequence of the key.
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
STATE = TensorType("int64", (2,))
# Bits of a uniform number in (0, 1): with the half that is added, all of them fit the mantissa.
_OPEN_BITS = {"float32": 23, "float64": 52}
# Bits of a uniform number in [0, 1): every multiple of 2^-bits, as PyTorch draws them.
_BITS = {"float32": 24, "float64": 53, "float16": 11, "bfloat16": 8}


def philox4x32(counter: Sequence[Array], key: Sequence[int]) -> list[Array]:
    """Four words (uint64 arrays below 2^32) per counter of four words; `key` is two words."""
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    c = [np.asarray(word, np.uint64) for word in counter]
    k = [np.uint64(word) for word in key]
    for _ in range(ROUNDS):
        first, second = c[0] * np.uint64(MULTIPLIERS[0]), c[2] * np.uint64(MULTIPLIERS[1])
        c = [(second >> half) ^ c[1] ^ k[0], second & mask, (first >> half) ^ c[3] ^ k[1], first & mask]
        k = [(word + np.uint64(step)) & mask for word, step in zip(k, WEYL, strict=True)]
    return c


class Philox(Opaque, name="philox"):
    """Random integers in [0, 2^bits), as int64 of `shape`, from the state int64[2]: (seed, number of the call).

    Element i is word i % 4 of block i // 4, or if `bits` > 32 the words 2j (high) and 2j + 1 of block i // 2, j being
    i % 2; its upper `bits` bits are taken.
    """

    shape: tuple[Dim, ...]
    stream: int
    bits: int = 32

    def infer(self, state: TensorType) -> TensorType:
        if state != STATE or not 0 < self.bits < 64 or not 0 <= self.stream < 2**32:
            raise OpError(f"philox of {state}, stream {self.stream}, {self.bits} bits")
        return TensorType("int64", self.shape)

    @property
    def words(self) -> int:
        """Words of 32 bits per element."""
        return 1 if self.bits <= 32 else 2

    def reference(self, state: Array) -> Array:
        shape = static(self.shape)
        count = math.prod(shape)
        blocks = np.arange(-(-count * self.words // 4), dtype=np.uint64)
        seed, call = (int(word) & (2**64 - 1) for word in state)
        counter = [blocks, *(np.full_like(blocks, word) for word in (self.stream, call & 0xFFFFFFFF, call >> 32))]
        words = np.stack(philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)), -1).reshape(-1)
        if self.words == 2:
            words = words[0::2] << np.uint64(32) | words[1::2]
        return (words[:count] >> np.uint64(32 * self.words - self.bits)).astype(np.int64).reshape(shape)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for bits in (1, 24, 32, 33, 53, 63):
            state = np.array([-(2**62) + 12345678901 * bits, 2**40 + bits])
            yield Sample(f"{bits}_bits", cls((3, 7), bits, bits), (state,), exact=True)
        yield Sample("rank0", cls((), 0), (np.array([0, 0]),), exact=True)
        yield Sample("one_block", cls((4,), 2**32 - 1), (np.array([-1, -1]),), exact=True)
        yield Sample("many", cls((70001,), 3), (np.array([7, 2]),), exact=True)
        yield Sample("empty", cls((0, 3), 0), (np.array([0, 0]),), exact=True)


# --- building blocks ---------------------------------------------------------------------------------------------


def bits(context: ImportContext, shape: Sequence[Dim], count: int) -> Value:
    """int64 in [0, 2^count)."""
    if not all(isinstance(dim, int) for dim in shape):
        raise context.unsupported("draws random numbers of a size that varies")
    state, stream = context.random_source()
    return compose.emit(context, Philox(tuple(shape), stream, count), state)


def _fraction(context: ImportContext, shape: Sequence[Dim], dtype: str, count: int, shift: float) -> Value:
    """(n + shift) / 2^count for n of `count` random bits: exact in `dtype`."""
    drawn = context.cast(bits(context, shape, count), dtype)
    if shift:
        drawn = compose.add(context, drawn, context.scalar(shift, dtype))
    return compose.scale(context, drawn, 2.0**-count)


def uniform(context: ImportContext, shape: Sequence[Dim], dtype: str) -> Value:
    """In [0, 1): every multiple of 2^-24 (float64: 2^-53, float16: 2^-11, bfloat16: 2^-8) is as likely."""
    return _fraction(context, shape, dtype, _BITS[dtype], 0.0)


def uniform_open(context: ImportContext, shape: Sequence[Dim], dtype: str) -> Value:
    """In (0, 1), symmetric about 1/2; for float32 and float64."""
    return _fraction(context, shape, dtype, _OPEN_BITS[dtype], 0.5)


def _work(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


def normal(context: ImportContext, shape: Sequence[Dim], dtype: str) -> Value:
    """Standard normal by Box and Muller (1958): sqrt(-2 ln u) cos(2 pi v). float32: |z| < 5.8, float64: < 8.6."""
    work = _work(dtype)
    minus_two_log = compose.scale(context, compose.emit(context, Log(), uniform_open(context, shape, work)), -2.0)
    radius = compose.emit(context, Sqrt(), minus_two_log)
    angle = compose.scale(context, uniform(context, shape, work), 2 * math.pi)
    return context.cast(compose.mul(context, radius, compose.emit(context, Cos(), angle)), dtype)


def exponential(context: ImportContext, shape: Sequence[Dim], dtype: str) -> Value:
    """-ln u, above zero."""
    work = _work(dtype)
    log = compose.emit(context, Log(), uniform_open(context, shape, work))
    return context.cast(compose.emit(context, Neg(), log), dtype)


def _as_value(context: ImportContext, number: Any, dtype: str) -> Value:
    return context.cast(number, dtype) if isinstance(number, Value) else context.scalar(number, dtype)


def _scaled(context: ImportContext, x: Value, factor: Any, offset: Any) -> Value:
    """x * factor + offset."""
    product = compose.emit(context, Mul(), x, _as_value(context, factor, x.dtype))
    return compose.emit(context, Add(), product, _as_value(context, offset, x.dtype))


def keep_mask(context: ImportContext, shape: Sequence[Dim], drop: float) -> Value:
    """True with probability 1 - drop."""
    return compose.emit(context, Ge(), uniform(context, shape, "float32"), context.scalar(drop, "float32"))


# --- uniform and normal ------------------------------------------------------------------------------------------


def _float_type(context: ImportContext) -> TensorType:
    type_ = out_type(context)
    if category(type_.dtype) != 2:
        raise context.unsupported(f"random numbers of dtype {type_.dtype}")
    return type_


@aten("rand.default", "rand_like.default")
def _rand(context: ImportContext, *_: Any, **__: Any) -> Any:
    type_ = _float_type(context)
    return uniform(context, type_.shape, type_.dtype)


@aten("randn.default", "randn_like.default")
def _randn(context: ImportContext, *_: Any, **__: Any) -> Any:
    type_ = _float_type(context)
    return normal(context, type_.shape, type_.dtype)


@aten("uniform.default")
def _uniform(context: ImportContext, x: Value, low: float = 0.0, high: float = 1.0) -> Any:
    type_ = _float_type(context)
    return _scaled(context, uniform(context, type_.shape, type_.dtype), high - low, low)


@aten(
    "normal.Tensor_float", "normal.float_Tensor", "normal.Tensor_Tensor", "normal.float_float",
)  # fmt: skip
def _normal(context: ImportContext, mean: Any, std: Any = 1.0, *_: Any, **__: Any) -> Any:
    type_ = _float_type(context)
    return _scaled(context, normal(context, type_.shape, type_.dtype), std, mean)


@aten("normal_functional.default")
def _normal_in_place(context: ImportContext, x: Value, mean: float = 0.0, std: float = 1.0) -> Any:
    return _normal(context, mean, std)


@aten("log_normal.default")
def _log_normal(context: ImportContext, x: Value, mean: float = 1.0, std: float = 2.0) -> Any:
    return context.emit(Exp(), _normal(context, mean, std))


@aten("exponential.default")
def _exponential(context: ImportContext, x: Value, rate: float = 1.0) -> Any:
    type_ = _float_type(context)
    return compose.scale(context, exponential(context, type_.shape, type_.dtype), 1 / rate)


@aten("cauchy.default")
def _cauchy(context: ImportContext, x: Value, median: float = 0.0, sigma: float = 1.0) -> Any:
    """median + sigma * tan(pi * (u - 1/2))."""
    type_ = _float_type(context)
    work = _work(type_.dtype)
    centred = compose.add(context, uniform_open(context, type_.shape, work), context.scalar(-0.5, work))
    tangent = compose.emit(context, Tan(), compose.scale(context, centred, math.pi))
    return context.cast(_scaled(context, tangent, sigma, median), type_.dtype)


@aten("geometric.default")
def _geometric(context: ImportContext, x: Value, p: float) -> Any:
    """ceil(ln u / ln(1 - p)): how many trials until the first success."""
    type_ = out_type(context)
    log = compose.emit(context, Log(), uniform_open(context, type_.shape, "float32"))
    scaled = compose.emit(context, Ceil(), compose.scale(context, log, 1 / math.log1p(-p)))
    return context.cast(scaled, type_.dtype)


# --- integers ----------------------------------------------------------------------------------------------------


def _integers(context: ImportContext, low: Any, high: Any) -> Any:
    """Uniform in [low, high): the bits themselves for a power of two, else 63 of them modulo the range, which favours
    some by a factor of at most 1 + range / 2^63."""
    if not isinstance(low, int) or not isinstance(high, int):
        raise context.unsupported("random integers with bounds from data or from sizes")
    type_ = out_type(context)
    size = high - low
    if size <= 0 or (size > 2**53 and size & (size - 1)) or size > 2**63:
        raise context.unsupported(f"random integers from a range of {size}")
    if size & (size - 1):
        drawn = bits(context, type_.shape, 63)
        within = compose.emit(context, Remainder(), drawn, context.scalar(size, "int64"))
    else:
        within = bits(context, type_.shape, max(size.bit_length() - 1, 1))
        within = within if size > 1 else compose.scale(context, within, 0)
    return context.cast(compose.add(context, within, context.scalar(low, "int64")), type_.dtype)


@aten("randint.default")
def _randint(context: ImportContext, high: int, *_: Any, **__: Any) -> Any:
    return _integers(context, 0, high)


@aten("randint.low")
def _randint_low(context: ImportContext, low: int, high: int, *_: Any, **__: Any) -> Any:
    return _integers(context, low, high)


@aten("randint_like.default")
def _randint_like(context: ImportContext, x: Value, high: int, **_: Any) -> Any:
    return _integers(context, 0, high)


@aten("randint_like.low_dtype")
def _randint_like_low(context: ImportContext, x: Value, low: int, high: int, **_: Any) -> Any:
    return _integers(context, low, high)


@aten("randperm.default")
def _randperm(context: ImportContext, n: int, **_: Any) -> Any:
    """The order of n random numbers of 63 bits."""
    type_ = out_type(context)
    _, order = context.emit(Sort(0), bits(context, type_.shape, 63))
    return context.cast(order, type_.dtype)


# --- choices -----------------------------------------------------------------------------------------------------


def _bernoulli(context: ImportContext, p: Any) -> Any:
    """1 with probability p."""
    type_ = out_type(context)
    dtype = p.dtype if isinstance(p, Value) else "float32"
    work = dtype if dtype == "float64" else "float32"
    drawn = uniform(context, type_.shape, work)
    return context.cast(compose.emit(context, Lt(), drawn, _as_value(context, p, work)), type_.dtype)


@aten("bernoulli.default")
def _bernoulli_own(context: ImportContext, p: Value, **_: Any) -> Any:
    return _bernoulli(context, p)


@aten("bernoulli.p", "bernoulli.Tensor")
def _bernoulli_p(context: ImportContext, x: Value, p: Any = 0.5, **_: Any) -> Any:
    return _bernoulli(context, p)


@aten("multinomial.default")
def _multinomial(context: ImportContext, p: Value, count: int, replacement: bool = False, **_: Any) -> Any:
    """The largest of p_k / e_k with exponential e_k: k with probability p_k / sum(p); the n largest are n draws
    without replacement (Efraimidis and Spirakis, 2006)."""
    work = _work(p.dtype)
    p = context.cast(p, work)
    *rows, kinds = p.shape
    if not replacement or count == 1:
        ratios = compose.emit(context, Div(), p, exponential(context, p.shape, work))
        return context.emit(Topk(count, len(rows)), ratios)[1]
    shape = (*rows, count, kinds)
    wide = compose.broadcast_to(context, compose.reshape(context, p, (*rows, 1, kinds)), shape)
    return context.emit(
        Argmax(len(rows) + 1, False), compose.emit(context, Div(), wide, exponential(context, shape, work))
    )


# --- dropout -----------------------------------------------------------------------------------------------------


def _dropped(context: ImportContext, x: Value, p: float) -> tuple[Value, Value]:
    """(x / (1 - p) where kept and x * 0 elsewhere, the mask)."""
    kept = keep_mask(context, x.shape, p)
    scale = 0.0 if p == 1 else 1 / (1 - p)
    return compose.scale(context, compose.mul(context, x, context.cast(kept, x.dtype)), scale), kept


@aten("dropout.default")
def _dropout(context: ImportContext, x: Value, p: float, train: bool) -> Any:
    return _dropped(context, x, p)[0] if train and p else x


@aten("native_dropout.default")
def _native_dropout(context: ImportContext, x: Value, p: float, train: bool | None) -> Any:
    """(x, the mask of what was kept). `train` None means training."""
    if train is False or not p:
        return x, compose.full(context, True, x.shape, "bool")
    return _dropped(context, x, p)


@aten("feature_dropout.default", "alpha_dropout.default", "feature_alpha_dropout.default")
def _other_dropout(context: ImportContext, x: Value, p: float, train: bool) -> Any:
    """In training mode export writes them with bernoulli."""
    if train and p:
        raise context.unsupported("draws random numbers in training mode; call model.eval() first")
    return x


@aten("rrelu.default")
def _rrelu(context: ImportContext, x: Value, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> Any:
    """In training mode every negative element has a slope of its own, else all have the mean one."""
    if not training:
        return context.emit(LeakyRelu((lower + upper) / 2), x)
    slope = _scaled(context, uniform(context, x.shape, x.dtype), upper - lower, lower)
    below = compose.emit(context, Le(), x, context.scalar(0.0, x.dtype))
    return context.emit(Where(), below, compose.mul(context, x, slope), x)


@aten("poisson.default", "binomial.default", "random.default", "random.from", "random.to", "rrelu_with_noise.default")
def _refused(context: ImportContext, *_: Any, **__: Any) -> Any:
    raise context.unsupported("draws from a distribution that has no generator here; pass the numbers in as an input")
