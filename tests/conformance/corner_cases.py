"""PyTorch's semantics in the corners, as a table: promotion, signs and zeros, NaN, ties, limits, empty tensors.

A case is a function of tensors that torch.export takes. `test_corner_cases.py` compares what it compiles to with
PyTorch, bit for bit (any NaN equals any NaN); `close` allows four roundings where the numbers come from libm.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, tensor

from tests.conformance.corner_values import (
    FLOATS,
    HALVES,
    INF,
    INTS,
    NAN,
    NUMBERS,
    Case,
    corners,
    pairs,
    short,
    spread,
)  # fmt: skip


def everything() -> Iterator[Case]:
    """The table."""
    for part in (
        promotion, integer_division, integer_limits, casts, zeros_and_signs, nan_and_infinity, powers, order_and_ties,
        reductions, shapes, slices, empty, half_rounding, shifts, sums_of_bools,
    ):  # fmt: skip
        for item in part():
            function, *inputs = item[1:]
            close = bool(inputs) and inputs[-1] is True
            yield Case(f"{part.__name__}/{item[0]}", function, tuple(inputs[:-1] if close else inputs), close)


# --- type promotion -----------------------------------------------------------------------------------------------


def promotion() -> Iterator[tuple[Any, ...]]:
    dtypes = (torch.bool, *NUMBERS)
    for position, a in enumerate(dtypes):
        for b in dtypes[position + 1 :]:
            yield f"{short(a)}_{short(b)}", mixed, spread(a, 3, 5), spread(b, 5), spread(a), spread(b)
    for dtype in dtypes:
        x = spread(dtype, 17)
        name = short(dtype)
        yield f"{name}_numbers", lambda x: (x + 3, x * 0.5, x / 4, x >= 0.5, torch.where(x > 1, x, 2)), x
        yield f"{name}_sums", lambda x: (x.sum(), x.reshape(1, 17).sum(-1, keepdim=True), x.cumsum(0)), x
        yield f"{name}_products", lambda x: (x[:3].prod(), x[2:6].cumprod(0), torch.sqrt(x * x)), x
        yield f"{name}_made", lambda x: (torch.cat([x, torch.ones(2)]), torch.full_like(x, 1), x.float().to(x.dtype)), x
        yield f"{name}_logic", lambda x: (x.any(), x.all(), x.logical_not(), torch.logical_xor(x, x.flip(0))), x
        if dtype is not torch.bool:
            yield f"{name}_clamp", lambda x: (x.clamp(-1.5, 2.5), x - 1, x.masked_fill(x > 2, 1), x**2), x
            yield f"{name}_signs", lambda x: (-x, x.abs(), x.sign()), x


def mixed(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    """Two tensors, and a tensor with one of rank 0, in both orders."""
    return [x + y, x * b, a * y, x < y.flip(0), torch.where(x > y, x, y), torch.maximum(x, b)]


# --- integers -----------------------------------------------------------------------------------------------------


def integer_division() -> Iterator[tuple[Any, ...]]:
    signed = [7, -7, 7, -7, 6, -6, 0, 0, 1, -1, 127, -127]
    divisor = [3, 3, -3, -3, 3, -3, 5, -5, -7, 7, 10, -10]
    for dtype in INTS:
        a, b = tensor(signed * 3, dtype=torch.int64).to(dtype), tensor(divisor * 3, dtype=torch.int64).to(dtype)
        name = short(dtype)
        yield f"{name}_floor", lambda x, y: x // y, a, b
        yield f"{name}_trunc", lambda x, y: torch.div(x, y, rounding_mode="trunc"), a, b
        yield f"{name}_true", lambda x, y: x / y, a, b
        yield f"{name}_remainder", lambda x, y: x % y, a, b
        yield f"{name}_fmod", lambda x, y: torch.fmod(x, y), a, b
        yield f"{name}_by_scalar", lambda x: (x // 4, x % 4, torch.fmod(x, 4)), a
        if dtype is not torch.uint8:
            yield f"{name}_by_negative_scalar", lambda x: (x // -4, x % -4, torch.fmod(x, -4)), a


def integer_limits() -> Iterator[tuple[Any, ...]]:
    for dtype in INTS:
        facts, name = torch.iinfo(dtype), short(dtype)
        low, high = facts.min, facts.max
        a = tensor([low, high, low, high, low + 1, high - 1, high // 2 + 1, 3, 100] * 5, dtype=dtype)
        b = tensor([high, high, low, low, 2, 2, 2, 3, 100] * 5, dtype=dtype)
        yield f"{name}_add", lambda x, y: x + y, a, b
        yield f"{name}_sub", lambda x, y: x - y, a, b
        yield f"{name}_mul", lambda x, y: x * y, a, b
        yield f"{name}_chain", lambda x, y: (x * 2) // 2 + (x + y) - y, a, b
        yield f"{name}_compare_sum", lambda x, y: (x + y < x, x * 2 > x, x - y <= x), a, b
        yield f"{name}_neg_abs", lambda x: (-x, x.abs()), a
        yield f"{name}_square", lambda x: (x * x, x**3), a
        yield f"{name}_sum_wraps", lambda x: x.sum(dtype=x.dtype), a
        yield f"{name}_cumsum_wraps", lambda x: x.cumsum(0, dtype=x.dtype), a
        yield f"{name}_prod_wraps", lambda x: x.prod(dtype=x.dtype), a
        yield f"{name}_cumprod_wraps", lambda x: x.cumprod(0, dtype=x.dtype), a
        yield f"{name}_extremes", lambda x: (x.max(), x.min(), x.argmax(), x.argmin()), a
        yield f"{name}_matmul_wraps", lambda x: x.reshape(5, 9) @ x.reshape(9, 5), a
        yield f"{name}_not", lambda x: ~x, a
        yield f"{name}_compare_bits", lambda x, y: (~x > y, (x << 3) > y, -x > y, x.abs() >= y), a, b
        yield f"{name}_scatter_add_wraps", lambda x: torch.zeros_like(x[:3]).scatter_add(0, x.long() % 3, x), a


def sums_of_bools() -> Iterator[tuple[Any, ...]]:
    some = tensor([True, True, False, True, False, False])
    into = tensor([0, 0, 1, 2, 2, 3])
    yield "bool_scatter_add", lambda x, i: torch.zeros(5, dtype=torch.bool).scatter_add(0, i, x), some, into
    yield "bool_index_add", lambda x, i: x.index_add(0, i[:3], x[3:]), some, into
    yield "bool_index_put", lambda x, i: x.index_put((i,), x, accumulate=True), some, into
    yield "bool_put", lambda x, i: x.put(i, x, accumulate=True), some, into
    yield "uint8_of_a_negative_number", lambda x: x + torch.scalar_tensor(-5, dtype=torch.uint8), tensor([7, 3]).byte()


def shifts() -> Iterator[tuple[Any, ...]]:
    for dtype in INTS:
        bits, name = torch.iinfo(dtype).bits, short(dtype)
        by = tensor([0, 1, bits - 2, bits - 1, bits, bits + 3, 2, 3] * 3, dtype=dtype)
        x = tensor([1, 3, 1, 1, 5, 7, 100, 120] * 3, dtype=dtype)
        yield f"{name}_left", lambda x, y: x << y, x, by
        yield f"{name}_right", lambda x, y: x >> y, x, by
        if dtype is not torch.uint8:
            yield f"{name}_right_negative", lambda x, y: (-x) >> y, x, by
            yield f"{name}_by_negative", lambda x, y: (x << -y, x >> -y), x, by
        yield f"{name}_by_scalar", lambda x: (x << 3, x >> 3), x


def casts() -> Iterator[tuple[Any, ...]]:
    values = [0.0, -0.0, 0.9, -0.9, 1.5, -1.5, 127.5, 128.0, 200.0, 255.9, 256.0, 300.0, -129.0, -300.0, 32768.0,
              40000.0, -40000.0, 65535.0, 65536.0, 1e9, 2147483647.0, 2147483648.0, -2147483649.0, 3e9, 4294967301.0,
              -4294967301.0, 1e10, 1e18, 1e20, -1e20, INF, -INF, NAN]  # fmt: skip
    for source in FLOATS:
        for count in (len(values), 1):  # whole vectors, and the scalar rest
            x = tensor(values[-count:] * (2 if count > 1 else 1), dtype=torch.float64).to(source)
            yield f"{short(source)}_{count}", to_all, x
    whole = [0, 1, -1, 127, 128, 255, 256, -129, 32767, 32768, 65535, -65537, 2**24 + 1, 2**31 - 1, 2**31, -(2**31) - 1,
             2**53 + 1, 2**63 - 1, -(2**63)]  # fmt: skip
    for source in INTS:
        x = tensor(whole * 2, dtype=torch.int64).to(source)
        yield short(source), to_all, x


def to_all(x: Tensor) -> list[Tensor]:
    return [x.to(dtype) for dtype in (torch.bool, *NUMBERS)]


# --- floats -------------------------------------------------------------------------------------------------------


def zeros_and_signs() -> Iterator[tuple[Any, ...]]:
    for dtype in FLOATS:
        x, name = corners(dtype), short(dtype)
        a, b = pairs(dtype)
        yield f"{name}_neg_abs_sign", lambda x: (-x, x.abs(), x.sign()), x
        yield f"{name}_round", lambda x: (x.round(), x.floor(), x.ceil(), x.trunc()), x
        yield f"{name}_relu", lambda x: (x.relu(), torch.nn.functional.relu6(x), x.clamp(min=0)), x
        yield f"{name}_max_min", lambda x, y: (torch.maximum(x, y), torch.minimum(x, y)), a, b
        yield f"{name}_fmax_fmin", lambda x, y: (torch.fmax(x, y), torch.fmin(x, y)), a, b
        yield f"{name}_add_sub", lambda x, y: (x + y, x - y), a, b
        yield f"{name}_mul_div", lambda x, y: (x * y, x / y), a, b
        yield f"{name}_compare", lambda x, y: (x < y, x <= y, x > y, x >= y, x == y, x != y), a, b
        yield f"{name}_copysign", lambda x, y: torch.copysign(x, y), a, b
        yield f"{name}_signbit", lambda x: x.signbit(), x
        yield f"{name}_sqrt", lambda x: x.sqrt(), x
        yield f"{name}_reciprocal", lambda x: x.reciprocal(), x
        yield f"{name}_clamp_scalar", lambda x: (x.clamp(-1, 1), x.clamp(max=-0.0), x.clamp(2.0, -2.0)), x
        yield f"{name}_clamp_tensor", lambda x, y: torch.clamp(x, min=y), a, b
        yield f"{name}_frac_fmod", lambda x: (x.frac(), torch.fmod(x, 1.5)), x
        yield f"{name}_zero_times", lambda x: x * 0.0, x
        yield f"{name}_minus_itself", lambda x: (x - x, x / x, x == x, x != x), x
        yield f"{name}_heaviside", lambda x: torch.heaviside(x, x.abs()), x
        yield f"{name}_nan_to_num", lambda x: (torch.nan_to_num(x), torch.nan_to_num(x, 1.0, 2.0, -3.0)), x
        yield f"{name}_remainder", lambda x: torch.remainder(x[2:4], 0.75), x
        yield f"{name}_threshold", lambda x: torch.nn.functional.threshold(x, 0.5, -1.0), x
        yield f"{name}_leaky", lambda x: torch.nn.functional.leaky_relu(x, 0.5), x
        yield f"{name}_hardshrink", lambda x: torch.nn.functional.hardshrink(x), x
        # PyTorch's vector and scalar code differ in the sign of a zero.
        yield f"{name}_softshrink", lambda x: torch.nn.functional.softshrink(x.abs()), x
        yield f"{name}_hardtanh", lambda x: torch.nn.functional.hardtanh(x), x


def nan_and_infinity() -> Iterator[tuple[Any, ...]]:
    for dtype in FLOATS:
        x, name = corners(dtype), short(dtype)
        yield f"{name}_questions", lambda x: (x.isnan(), x.isinf(), x.isfinite(), x.isposinf(), x.isneginf()), x
        yield f"{name}_logical", lambda x: (x.logical_not(), x.bool(), x.any(), x.all()), x
        yield f"{name}_where_nan", lambda x: torch.where(x.isnan(), x, 1.0), x
        yield f"{name}_exp_log", lambda x: (x.exp(), x.log(), x.log1p(), x.expm1()), x, True
        yield f"{name}_trig", lambda x: (x.tanh(), x.atan(), x.asin()), x, True
        yield f"{name}_sigmoid", lambda x: (x.sigmoid(), torch.nn.functional.silu(x)), x, True
        yield f"{name}_softmax", lambda x: torch.stack([x[:4], x[5:9]]).softmax(-1), x, True
        yield f"{name}_reduce_nan", lambda x: (x.max(), x.min(), x.sum(), x.mean(), x.argmax(), x.argmin()), x
        yield f"{name}_amax_rows", lambda x: (x[:36].reshape(4, 9).amax(1), x[:36].reshape(4, 9).amin(0)), x
        yield f"{name}_max_dim", lambda x: x[:36].reshape(4, 9).max(1), x
        yield f"{name}_min_dim", lambda x: x[:36].reshape(9, 4).min(0), x


def powers() -> Iterator[tuple[Any, ...]]:
    for dtype in FLOATS:
        name = short(dtype)
        x = corners(dtype)
        base, exponent = pairs(dtype)
        yield f"{name}_tensor", lambda x, y: torch.pow(x, y), base, exponent, True
        exponents = (0, 1, 2, 3, 0.5, -0.5, -1, -2, 2.5, 4, INF, NAN)
        yield f"{name}_to_number", lambda x, exponents=exponents: [x**power for power in exponents], x, True
        bases = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5)
        yield f"{name}_of_number", lambda x, bases=bases: [torch.pow(base, x) for base in bases], x, True
    for dtype in INTS:
        x = spread(dtype, 19)
        yield f"{short(dtype)}_to_number", lambda x: [x**power for power in (0, 1, 2, 3, 7)], x
        yield f"{short(dtype)}_to_half", lambda x: x.abs() ** 0.5, x


# --- order --------------------------------------------------------------------------------------------------------


def order_and_ties() -> Iterator[tuple[Any, ...]]:
    for dtype in (torch.bool, *NUMBERS):
        name = short(dtype)
        x = corners(dtype)[:36] if dtype in FLOATS else spread(dtype, 36)
        rows = x.reshape(4, 9)
        yield f"{name}_sort", lambda x: (x.sort(stable=True), x.sort(stable=True, descending=True)), x
        yield f"{name}_sort_columns", lambda x: x.sort(dim=0, stable=True), rows
        if dtype is torch.bool:
            continue
        distinct = tensor([3, 1, 4, 9, 5, 12, 2, 6, 8, 7, 11], dtype=torch.int64).to(dtype)
        yield f"{name}_topk", lambda x: (x.topk(4), x.topk(3, largest=False)), distinct
        yield f"{name}_topk_values", lambda x: (x.abs().topk(5).values, x.abs().topk(30, largest=False).values), x
        yield f"{name}_argmax", lambda x: (x.argmax(), x.argmin(), x.argmax(-1), x.argmin(0)), rows
        yield f"{name}_max_dim", lambda x: (x.max(0), x.min(1)), rows
        yield f"{name}_argsort", lambda x: x.argsort(stable=True), x


# --- reductions ---------------------------------------------------------------------------------------------------


def reductions() -> Iterator[tuple[Any, ...]]:
    for dtype in (torch.bool, *NUMBERS):
        name = short(dtype)
        x = spread(dtype, 3, 4, 5)
        yield f"{name}_sum_axes", lambda x: (x.sum((0, 2)), x.sum(1, keepdim=True), x.sum((-1, -2, -3))), x
        yield f"{name}_sum_float", lambda x: x.sum(dtype=torch.float32), x
        yield f"{name}_mean_float", lambda x: x.mean(dtype=torch.float32), x, True
        yield f"{name}_amax", lambda x: (x.amax(), x.amin((0, 2)), x.aminmax()), x
        yield f"{name}_count_nonzero", lambda x: (x.count_nonzero(), x.count_nonzero(1)), x
        yield f"{name}_any_all_dim", lambda x: (x.any(1), x.all(-1), x.any((0, 1)), x.all((0, 2))), x
        if dtype in FLOATS:
            yield f"{name}_mean", lambda x: (x.mean(), x.mean((0, 2)), x.mean(1, keepdim=True)), x, True
            yield f"{name}_var", lambda x: (x.var(), x.std(1), x.var(0, correction=0)), x, True
            yield f"{name}_norm", lambda x: (x.norm(), x.norm(1), x.norm(dim=1, p=INF)), x, True
            yield f"{name}_logsumexp", lambda x: (x.logsumexp(1), x.logsumexp((0, 2))), x, True
            yield f"{name}_nansum", lambda x: (corners_like(x).nansum(), corners_like(x).nanmean()), x, True
            yield f"{name}_var_of_one", lambda x: (x[:1].var(0), x[:1].std(0)), x


def corners_like(x: Tensor) -> Tensor:
    return torch.where(x > 3, NAN, x)


# --- shapes -------------------------------------------------------------------------------------------------------


def shapes() -> Iterator[tuple[Any, ...]]:
    for dtype in (torch.bool, torch.uint8, torch.int16, *HALVES, torch.float64):
        name = short(dtype)
        x = spread(dtype, 3, 4, 5)
        scalar = spread(dtype)
        yield f"{name}_flip_roll", lambda x: (x.flip(0, 2), x.roll(2, 1), x.roll((1, -2), (0, 2))), x
        yield f"{name}_permute", lambda x: (x.permute(2, 0, 1), x.mT, x.transpose(0, 2).reshape(-1)), x
        yield f"{name}_cat", lambda x: (torch.cat([x, x[:, :1]], 1), torch.stack([x, x], -1)), x
        yield f"{name}_pad", lambda x: torch.nn.functional.pad(x, (1, 2, 0, 1), value=1), x
        yield f"{name}_tril", lambda x: (x.tril(), x.triu(1), x.diagonal(1, 1, 2)), x
        yield f"{name}_expand", lambda x: (x[:, :1].expand(3, 6, 5), x.repeat(1, 2, 1)), x
        yield f"{name}_rank0", lambda x: (x.reshape(1, 1), x.expand(3), torch.stack([x, x]), x.flip([])), scalar
        yield f"{name}_gather", lambda x, i: (x.gather(1, i), x[:, i[0, 0]], x.index_select(2, i[0, :, 0])), x, (
            spread(torch.int64, 3, 2, 5).abs() % 4)  # fmt: skip
        yield f"{name}_take", lambda x: torch.take(x, tensor([0, -1, 7])), x
        yield f"{name}_scatter", lambda x, i: x.scatter(1, i, x.flip(0)[:, :2]), x, (
            tensor([[[0], [2]]]).expand(3, 2, 5).contiguous())  # fmt: skip
        yield f"{name}_index_put", lambda x: torch.index_put(x, (tensor([2, 0]),), x[1]), x
        yield f"{name}_embedding", lambda x: torch.nn.functional.embedding(tensor([1, 0, 3]), x[0]), x
        yield f"{name}_unfold", lambda x: x.unfold(1, 2, 1), x
        yield f"{name}_where_broadcast", lambda x: torch.where(x[:, :1] > 0, x, x[0, 0]), x


def slices() -> Iterator[tuple[Any, ...]]:
    x = torch.arange(60.0).reshape(3, 4, 5)
    yield "steps", lambda x: (x[::2, 1::2, ::3], x[..., -1], x[:, -3:-1]), x
    yield "beyond", lambda x: (x[:100], x[-100:2], x[:, 4:], x[5:]), x
    yield "crossed", lambda x: x[:, 3:1], x
    yield "negative_index", lambda x: x[-1, -2, -3], x
    yield "strided_input", lambda x: x + 1, x.permute(2, 0, 1)[::2].contiguous()
    yield "as_strided", lambda x: x.t().reshape(4, 3).flip(1), x[0, :3, :4].contiguous()
    yield "slice_scatter", lambda x: torch.slice_scatter(x, x[:, :2] * 2, 1, 0, 4, 2), x
    yield "select_scatter", lambda x: torch.select_scatter(x, x[0] * 2, 0, -1), x
    yield "narrow", lambda x: (x.narrow(1, 1, 2), x.narrow(2, 4, 0)), x
    yield "chunk", lambda x: (*x.chunk(3, 2), *x.split([1, 2], 0), *x.tensor_split(3, 1)), x
    yield "unbind", lambda x: x.unbind(1), x
    yield "movedim", lambda x: (x.movedim(0, -1), x.unsqueeze(1).squeeze(), x.flatten(1)), x


def empty() -> Iterator[tuple[Any, ...]]:
    for dtype in (torch.float32, torch.int64, torch.bool, torch.bfloat16):
        name = short(dtype)
        x = torch.zeros(0, 3, dtype=dtype)
        yield f"{name}_elementwise", lambda x: (x + x, x > 0, x.float()), x
        yield f"{name}_sum", lambda x: (x.sum(), x.sum(0), x.sum(1), x.prod()), x
        yield f"{name}_any_all", lambda x: (x.any(), x.all(), x.any(0), x.all(1)), x
        yield f"{name}_cat", lambda x: (torch.cat([x, x]), torch.cat([x, torch.ones_like(x)]), x.reshape(3, 0)), x
        yield f"{name}_shapes", lambda x: (x.t(), x.flip(0), x.expand(2, 0, 3), x[:0], x.unsqueeze(0)), x
        yield f"{name}_sort", lambda x: (x.sort(0), x.sort(1, descending=True)), x
        yield f"{name}_cumsum", lambda x: (x.cumsum(0), x.cumsum(1)), x
        yield f"{name}_gather", lambda x: (x.index_select(1, tensor([0, 2])), x[:, 1]), x
        yield f"{name}_pad", lambda x: torch.nn.functional.pad(x, (0, 0, 1, 1), value=1), x
        yield f"{name}_matmul", lambda x: x.t().float() @ x.float(), x
    x = torch.zeros(0, 3)
    yield "mean", lambda x: (x.mean(), x.mean(0), x.mean(1)), x
    yield "amax", lambda x: (x.amax(1), x.argmax(1), x.max(1)), x
    yield "softmax", lambda x: (x.softmax(0), x.softmax(1), x.log_softmax(1)), x
    yield "linear", lambda x: torch.nn.functional.linear(x, torch.ones(4, 3), torch.ones(4)), x
    yield "linear_no_features", lambda x: torch.nn.functional.linear(x.t(), torch.ones(4, 0), torch.ones(4)), x
    yield "bmm", lambda x: torch.bmm(x.reshape(2, 3, 0), x.reshape(2, 0, 3)), x
    yield "conv", lambda x: torch.nn.functional.conv1d(x.reshape(0, 3, 1), torch.ones(2, 3, 1)), x
    yield "layer_norm", lambda x: torch.nn.functional.layer_norm(x, (3,)), x
    yield "logsumexp", lambda x: (x.logsumexp(0), x.logsumexp(1)), x
    yield "var", lambda x: (x.var(0), x.std(1)), x
    yield "norm", lambda x: (x.norm(), x.norm(dim=0)), x
    yield "topk", lambda x: x.topk(2), x
    yield "scatter", lambda x: x.scatter(0, torch.zeros(0, 3, dtype=torch.int64), x), x
    yield (
        "embedding",
        lambda x: torch.nn.functional.embedding(torch.zeros(0, 2, dtype=torch.int64), x.new_ones(2, 3)),
        x,
    )
    yield "max_pool", lambda x: torch.nn.functional.max_pool1d(x.reshape(0, 3, 1).expand(0, 3, 4), 2), x
    yield "interpolate", lambda x: torch.nn.functional.interpolate(x.reshape(0, 3, 1), scale_factor=2.0), x
    yield "attention", lambda x: torch.nn.functional.scaled_dot_product_attention(*[x.reshape(1, 0, 3)] * 3), x


def half_rounding() -> Iterator[tuple[Any, ...]]:
    """Each operator rounds once; sums are accumulated in float32."""
    for dtype in HALVES:
        name = short(dtype)
        generator = torch.Generator().manual_seed(5)
        x, y = (torch.randn(3, 64, generator=generator).to(dtype) for _ in range(2))
        big = torch.full((5, 40), 3000.0).to(dtype)
        yield f"{name}_chain", lambda x, y: (x + y) * y - x / (y * y + 1), x, y
        yield f"{name}_scalars", lambda x: x * 0.1 + 0.3, x
        yield f"{name}_rank0", lambda x, y: x * y[0, 0] + y[1, 1], x, y
        yield f"{name}_overflow", lambda x: (x * 100, x * 100 - x * 100, (x * x) / x), big
        yield f"{name}_sum", lambda x: (x.sum(), x.sum(0), x.mean()), big
        yield f"{name}_mean_of_big", lambda x: (x.mean(1), x.mean()), big
        yield f"{name}_alpha", lambda x, y: (torch.add(x, y, alpha=3), torch.sub(x, y, alpha=0.7)), x, y
        yield f"{name}_addcmul", lambda x, y: (torch.addcmul(x, y, y, value=0.3), torch.addcdiv(x, x, y, value=2)), x, y
        yield f"{name}_lerp", lambda x, y: (torch.lerp(x, y, 0.3), torch.lerp(x, y, y)), x, y
        yield f"{name}_square_overflow", lambda x: (torch.addcmul(-x, x, x, value=1e-3), x.var(), x.norm()), big
        yield f"{name}_cumsum", lambda x: (x.cumsum(1), x[:, :8].cumprod(1)), x, True
        yield f"{name}_softmax", lambda x: (x.softmax(-1), x.log_softmax(0)), x, True
        yield f"{name}_gelu", lambda x: (torch.nn.functional.gelu(x), torch.nn.functional.silu(x)), x, True
        yield f"{name}_linear", lambda x, y: torch.nn.functional.linear(x, y, y[:, 0]), x, y, True
        yield f"{name}_matmul", lambda x, y: x @ y.t(), x, y, True
        yield f"{name}_norms", lambda x: torch.nn.functional.layer_norm(x, (64,)), x, True
        yield f"{name}_compare", lambda x, y: (x < y, x == x + 1e-6), x, y
        yield f"{name}_number_div", lambda x: (x / 0.3, x // 0.3, torch.div(x, 0.3, rounding_mode="trunc")), x
        yield f"{name}_div_trunc", lambda x, y: torch.div(x * 9, y, rounding_mode="trunc"), x, y
        yield f"{name}_div_floor", lambda x, y: (x * 9) // y, x, y
        yield f"{name}_number_rest", lambda x: (x % 0.3, torch.fmod(x, 0.3), 0.3 - x, 0.3 / x), x
        yield f"{name}_where", lambda x, y: torch.where(x > y, x, 0.1), x, y
        yield f"{name}_full", lambda x: (torch.full_like(x, 0.1), x.new_full((3,), 6e4), x.new_full((2,), NAN)), x
        yield f"{name}_arange", lambda x: torch.arange(0, 40, 0.3, dtype=x.dtype)[:64] + x, x, True
        yield f"{name}_linspace", lambda x: torch.linspace(0, 1, 64, dtype=x.dtype) + x, x, True
