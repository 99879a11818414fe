"""Calls of ATen overloads on vectors and sequences: activations, products, norms, attention, recurrences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from transpiler.ops.base import rng

Case = tuple[str, tuple[Any, ...], dict[str, Any]]


def draw(*shape: int, seed: str = "", scale: float = 1.0, dtype: str = "float32") -> np.ndarray:
    return np.asarray(scale * rng(f"{seed}{shape}").standard_normal(shape)).astype(dtype)


def case(overload: str, *args: Any, **kwargs: Any) -> Case:
    return overload, args, kwargs


def positive(*shape: int) -> np.ndarray:
    return np.abs(draw(*shape, seed="positive")) + np.float32(0.5)


WAVE = np.concatenate([draw(41, scale=4), np.float32([0, -0.0, 0.5, -0.5, 1, -1, 3, -3, 6, 25, -25, math.nan])])
INTS = np.arange(-6, 7)


def activations() -> Iterator[Case]:
    for name in (
        "relu", "leaky_relu", "elu", "selu", "celu", "silu", "sigmoid", "tanh", "gelu", "hardswish",
        "hardsigmoid", "hardtanh", "relu6", "softplus", "mish", "log_sigmoid", "hardshrink", "softshrink",
        "rrelu",
    ):  # fmt: skip
        for dtype in ("float32", "float64"):
            yield case(f"{name}.default", WAVE.astype(dtype), atol=1e-6)
        for half, step in ((np.float16, 1e-3), (ml_dtypes.bfloat16, 8e-3)):
            # Rounded once: at most one step of the half float away.
            yield case(f"{name}.default", WAVE.astype(half), rtol=step, atol=1e-6)
    for name in ("relu", "sigmoid", "tanh", "hardtanh", "relu6"):
        yield case(f"{name}.default", INTS)
    yield case("sigmoid.default", np.array([True, False]))
    yield case("relu.default", np.array(-1.5, np.float32))
    yield case("leaky_relu.default", WAVE, 0.2)
    yield case("leaky_relu.default", WAVE, 2)
    yield case("elu.default", WAVE, 0.5, 2, 0.3)
    yield case("celu.default", WAVE, 0.7)
    yield case("gelu.default", WAVE, approximate="tanh")
    yield case("hardtanh.default", WAVE, -2, 3.5)
    yield case("softplus.default", WAVE, 2.0, 5)
    yield case("hardshrink.default", WAVE, 1.5)
    yield case("softshrink.default", WAVE, 1.5)
    yield case("threshold.default", WAVE, 0.3, -2)
    yield case("rrelu.default", WAVE, 0.1, 0.5)
    yield case("prelu.default", WAVE, np.float32([0.3]))
    yield case("prelu.default", draw(2, 5, 3), draw(5))
    yield case("prelu.default", draw(2, 5), draw(5))
    yield case("prelu.default", np.array(-2.0, np.float32), np.float32([0.3]))
    for dim in (0, 1, -1):
        yield case("glu.default", draw(4, 6, 8), dim)
    yield case("glu.default", draw(4, 6))


def products() -> Iterator[Case]:
    for x, n in [((3, 5), 7), ((5,), 7), ((2, 3, 5), 1), ((0, 5), 2)]:
        yield case("linear.default", draw(*x), draw(n, 5))
        yield case("linear.default", draw(*x), draw(n, 5), draw(n, seed="b"))
    yield case("linear.default", draw(3, 5), draw(5))
    pairs = [
        ((3, 5), (5, 7)), ((5,), (5,)), ((5,), (5, 7)), ((3, 5), (5,)), ((2, 3, 5), (5, 7)), ((2, 3, 5),
        (5,)), ((5,), (2, 5, 7)), ((2, 1, 3, 5), (4, 5, 7)), ((3, 5), (2, 5, 7)),
    ]  # fmt: skip
    for a, b in pairs:
        yield case("matmul.default", draw(*a, seed="a"), draw(*b, seed="b"))
    yield case("matmul.default", np.arange(6).reshape(2, 3), np.arange(12).reshape(3, 4))
    yield case("matmul.default", draw(3, 5, dtype="float64"), draw(5, 2, dtype="float64"))
    yield case("mm.default", draw(3, 5), draw(5, 7))
    yield case("bmm.default", draw(2, 3, 5), draw(2, 5, 7))
    yield case("mv.default", draw(3, 5), draw(5))
    yield case("dot.default", draw(5), draw(5, seed="b"))
    yield case("vdot.default", draw(5), draw(5, seed="b"))
    for a, b in [
        ((5,), (5,)),
        ((3, 5), (4, 5)),
        ((3, 5), (5,)),
        ((2, 3, 5), (4, 2, 5)),
        ((5,), (2, 3, 5)),
        ((), (3,)),
    ]:
        yield case("inner.default", draw(*a), draw(*b, seed="b"))
    yield case("outer.default", draw(3), draw(5))
    yield case("ger.default", draw(3), draw(5))
    factors = [{}, {"beta": 2, "alpha": 0.5}, {"beta": 0}]
    for options in factors:
        yield case("addmm.default", draw(7), draw(3, 5), draw(5, 7), **options)
        yield case("addmm.default", draw(3, 7), draw(3, 5), draw(5, 7), **options)
        yield case("addmm.default", draw(3, 1), draw(3, 5), draw(5, 7), **options)
        yield case("baddbmm.default", draw(2, 3, 7), draw(2, 3, 5), draw(2, 5, 7), **options)
        yield case("baddbmm.default", draw(7), draw(2, 3, 5), draw(2, 5, 7), **options)
        yield case("addbmm.default", draw(3, 7), draw(2, 3, 5), draw(2, 5, 7), **options)
        yield case("addmv.default", draw(3), draw(3, 5), draw(5), **options)
        yield case("addmv.default", draw(1), draw(3, 5), draw(5), **options)
        yield case("addr.default", draw(3, 5), draw(3), draw(5), **options)
    yield case("addmm.default", np.full((3, 7), math.nan, np.float32), draw(3, 5), draw(5, 7), beta=0)
    yield case("chain_matmul.default", [draw(3, 5), draw(5, 7), draw(7, 2)])
    yield case("linalg_multi_dot.default", [draw(3, 5), draw(5, 7), draw(7, 2)])
    yield case("tensordot.default", draw(2, 3, 5), draw(5, 3, 4), [1, 2], [1, 0])
    yield case("tensordot.default", draw(2, 3), draw(4, 5), [], [])
    yield case("tensordot.default", draw(2, 3, 5), draw(5, 7), [-1], [0])
    yield case("bilinear.default", draw(3, 4), draw(3, 5), draw(6, 4, 5), draw(6))
    yield case("bilinear.default", draw(2, 3, 4), draw(2, 3, 5), draw(6, 4, 5))
    yield case("_trilinear.default", draw(3, 4), draw(6, 4, 5), draw(3, 5), [1, 3], [0], [1, 2], [2, 3])
    equations: list[tuple[str, list[tuple[int, ...]]]] = [
        ("ij,jk->ik", [(3, 5), (5, 7)]), ("ij,jk", [(3, 5), (5, 7)]), ("i j, j k -> k i", [(3, 5), (5, 7)]),
        ("bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)]), ("bhij,bhjd->bhid", [(2, 3, 4, 6), (2, 3, 6, 5)]),
        ("bnd,hdk->bhnk", [(2, 3, 4), (5, 4, 6)]), ("bhwc,hkc->bhwk", [(2, 3, 4, 5), (3, 6, 5)]),
        ("i,j->ij", [(3,), (4,)]), ("i,i->", [(5,), (5,)]), ("bij,bij->b", [(2, 3, 4), (2, 3, 4)]),
        ("ij->ji", [(3, 4)]), ("ij->i", [(3, 4)]), ("ij->", [(3, 4)]), ("ji", [(3, 4)]),
        ("bc,bc->bc", [(2, 3), (2, 3)]), ("bi,bj->bij", [(1, 3), (2, 4)]), ("ik,jk->ij", [(3, 1), (4, 5)]),
        ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 5)]), ("...ij,jk->...ik", [(2, 6, 3, 4), (4, 5)]),
        ("...i,...i", [(2, 3, 4), (3, 4)]), ("...->...", [(2, 3)]), ("...a->a...", [(2, 3, 4)]),
        ("i,ij,j->", [(3,), (3, 4), (4,)]), ("ab,bc,cd->ad", [(2, 3), (3, 4), (4, 5)]),
        ("ijk,jl->il", [(2, 3, 4), (3, 5)]), ("nchw,cd->ndhw", [(2, 3, 4, 5), (3, 6)]),
        ("abcd,cd->ab", [(2, 3, 4, 5), (4, 5)]), ("ii->i", [(3, 3)]), ("iji->j", [(3, 4, 3)]), ("ii", [(3, 3)]),
        ("biib,bc->ci", [(2, 3, 3, 2), (2, 4)]), ("iii->i", [(3, 3, 3)]),
    ]  # fmt: skip
    for equation, shapes in equations:
        yield case("einsum.default", equation, [draw(*shape, seed=str(n)) for n, shape in enumerate(shapes)])
    yield case("einsum.default", "ij->i", [np.full((3, 4), 100, "uint8")])


def norms() -> Iterator[Case]:
    x, w, b, mean, var = draw(2, 6, 5, 7), draw(6), draw(6, seed="b"), draw(6, seed="m"), positive(6)
    for weight, bias in ((w, b), (None, None), (w, None), (None, b)):
        yield case("batch_norm.default", x, weight, bias, mean, var, False, 0.1, 1e-5, True)
        yield case("batch_norm.default", x, weight, bias, None, None, True, 0.1, 1e-5, True)
        yield case("_native_batch_norm_legit_no_training.default", x, weight, bias, mean, var, 0.1, 1e-3)
        yield case("native_batch_norm.default", x, weight, bias, mean, var, False, 0.1, 1e-3)
        yield case("_native_batch_norm_legit.default", x, weight, bias, mean, var, False, 0.1, 1e-3)
        yield case("_native_batch_norm_legit.no_stats", x, weight, bias, True, 0.1, 1e-3)
        yield case("instance_norm.default", x, weight, bias, None, None, True, 0.1, 1e-5, True)
        yield case("instance_norm.default", x, weight, bias, mean, var, False, 0.1, 1e-5, True)
        for groups in (1, 2, 6):
            yield case("group_norm.default", x, groups, weight, bias, 1e-4)
            yield case("native_group_norm.default", x, weight, bias, 2, 6, 35, groups, 1e-4)
    yield case("native_batch_norm.default", x, w, b, None, None, True, 0.1, 1e-3)
    yield case("_native_batch_norm_legit.no_stats", draw(1, 6, 9), None, None, True, 0.0, 1e-5)
    for shape in ((3, 6), (3, 6, 4), (2, 6, 3, 4, 5)):
        yield case("batch_norm.default", draw(*shape), w, b, mean, var, False, 0.1, 1e-5, False)
        yield case("group_norm.default", draw(*shape), 3, w, b)
    for shape in ((7,), (5, 7), (3, 5, 7)):
        weight, bias = draw(*shape), draw(*shape, seed="b")
        for pair in ((weight, bias), (None, None), (weight, None), (None, bias)):
            yield case("layer_norm.default", draw(2, 3, 5, 7), list(shape), *pair, 1e-5)
            yield case("native_layer_norm.default", draw(2, 3, 5, 7), list(shape), *pair, 1e-3)
        for item in (weight, None):
            yield case("rms_norm.default", draw(2, 3, 5, 7), list(shape), item)
            yield case("rms_norm.default", draw(2, 3, 5, 7), list(shape), item, 0.1)
            yield case("_fused_rms_norm.default", draw(2, 3, 5, 7), list(shape), item, 1e-3)
            yield case("_fused_rms_norm.default", draw(2, 3, 5, 7), list(shape), item, None)
    yield case("layer_norm.default", draw(3, 7, dtype="float16"), [7], rtol=2e-3, atol=2e-3)
    yield case("rms_norm.default", draw(3, 7, dtype="float16"), [7], None, rtol=2e-3, atol=2e-3)
    half = [item.astype("float16") for item in (x, w, b, mean, var)]
    yield case("batch_norm.default", *half, False, 0.1, 1e-5, True, rtol=2e-3, atol=4e-3)


def softmaxes() -> Iterator[Case]:
    x = draw(3, 5, 7, scale=3)
    rows = np.float32([[1, math.nan, 2], [-math.inf] * 3, [-math.inf, 0, 200], [math.inf, 0, 0]])
    for name, dtypes in (("softmax.int", True), ("log_softmax.int", True), ("_safe_softmax.default", True)):
        for dim in (0, 1, -1):
            yield case(name, x, dim)
        yield case(name, rows, 1)
        yield case(name, np.array(1.5, np.float32), 0)
        yield case(name, np.empty((3, 0), np.float32), 1)
        if dtypes:
            yield case(name, x, -1, "float64")
            yield case(name, x.astype("float16"), -1, "float32")
            yield case(name, x.astype("float16"), -1, rtol=2e-3, atol=2e-3)
    yield case("softmax.int", np.arange(6).reshape(2, 3), 1, "float32")
    for name in ("_softmax.default", "_log_softmax.default"):
        yield case(name, x, 1, False)
        yield case(name, rows, 1, False)


def attentions() -> Iterator[Case]:
    q, k, v = draw(2, 4, 5, 8, seed="q"), draw(2, 4, 7, 8, seed="k"), draw(2, 4, 7, 6, seed="v")
    name = "scaled_dot_product_attention.default"
    mask = rng("mask").random((2, 1, 5, 7)) < 0.6
    mask[0, 0, 2] = False
    for inputs in ((q, k, v), (q, k, k), (q[0], k[0], v[0]), (q[0, 0], k[0, 0], v[0, 0])):
        yield case(name, *inputs)
        yield case(name, *inputs, scale=0.3)
        yield case(name, *inputs, None, 0.0, True)
    yield case(name, k, q, q, None, 0.0, True)
    for value in (v, k):
        for item in (mask, np.where(mask, 0, -math.inf).astype("float32"), mask[0, 0], draw(2, 4, 5, 7)):
            yield case(name, q, k, value, item)
    for heads in (1, 2, 4):
        yield case(name, q, k[:, :heads], v[:, :heads], enable_gqa=True)
        yield case(name, q, k[:, :heads], v[:, :heads], mask, enable_gqa=True)
    yield case(name, q[:1], k, v)
    # A NaN in a query row is left out: PyTorch gives 0 or NaN for the row, depending on the kernel that it picks.
    nan = k.copy()
    nan[0, 0, 1, 2] = math.nan
    yield case(name, q, nan, v)
    half = [item.astype("float16") for item in (q, k, k)]
    yield case(name, *half, rtol=4e-3, atol=4e-3)


def recurrences() -> Iterator[Case]:
    t, n, i, h = 5, 3, 4, 6
    for gates, name in ((4, "lstm"), (3, "gru"), (1, "rnn_tanh"), (1, "rnn_relu")):
        for bias, layers, both, batch_first in itertools.product((True, False), (1, 2), (False, True), (False, True)):
            directions = 2 if both else 1
            params = []
            for layer, direction in itertools.product(range(layers), range(directions)):
                width = i if layer == 0 else h * directions
                seed = f"{layer}{direction}"
                params += [
                    draw(gates * h, width, seed=seed, scale=0.5),
                    draw(gates * h, h, seed=seed + "h", scale=0.4),
                ]
                params += [draw(gates * h, seed=seed + b) for b in "bc"] if bias else []
            state = [draw(layers * directions, n, h, seed=s) for s in "hc"]
            x = draw(n, t, i) if batch_first else draw(t, n, i)
            hx: Any = state if name == "lstm" else state[0]
            yield case(f"{name}.input", x, hx, params, bias, layers, 0.0, False, both, batch_first)
        weights = [draw(gates * h, i), draw(gates * h, h, scale=0.4)]
        if name == "lstm":
            yield from _projected_lstms(t, n, i, h)
        hx = [draw(n, h, seed="h"), draw(n, h, seed="c")] if name == "lstm" else draw(n, h, seed="h")
        yield case(f"{name}_cell.default", draw(n, i), hx, *weights, draw(gates * h), draw(gates * h, seed="c"))
        yield case(f"{name}_cell.default", draw(n, i), hx, *weights)


def _projected_lstms(t: int, n: int, i: int, h: int) -> Iterator[Case]:
    p = 2
    for bias, both, steps in itertools.product((True, False), (False, True), (1, t)):
        directions = 2 if both else 1
        params = []
        for direction in range(directions):
            seed = f"projected{direction}"
            params += [draw(4 * h, i, seed=seed, scale=0.5), draw(4 * h, p, seed=seed + "h", scale=0.4)]
            params += [draw(4 * h, seed=seed + b) for b in "bc"] if bias else []
            params.append(draw(p, h, seed=seed + "p", scale=0.5))
        state = [draw(directions, n, p, seed="h"), draw(directions, n, h, seed="c")]
        yield case("lstm.input", draw(steps, n, i), state, params, bias, 1, 0.0, False, both, False)


def bags() -> Iterator[Case]:
    """The first result only: the others serve the gradient. Bag 1 is empty, row 3 is the padding."""
    table, indices, weights = draw(11, 5), np.array([3, 0, 7, 7, 10, 3]), draw(6)
    for offsets, last in ((np.array([0, 2, 2, 5]), False), (np.array([0, 2, 2, 5, 6]), True)):
        for mode in (0, 1, 2):
            scale = weights if mode == 0 else None
            for name in ("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only"):
                yield case(f"{name}.default", table, indices, offsets, False, mode, False, scale, last, results=1)
            for padding in (3, -8):
                yield case(
                    "embedding_bag.padding_idx", table, indices, offsets, False, mode, False, scale, last, padding,
                    results=1,
                )  # fmt: skip


def lookups() -> Iterator[Case]:
    yield case("embedding.default", draw(11, 5), np.array([[0, 3], [10, 3]]))
    yield case("embedding.default", draw(11, 5), np.array([1, 2], np.int32), 3)
    yield case("embedding.default", draw(11, 5), np.empty((2, 0), np.int64), 3, False, False)
    yield case("embedding_renorm.default", draw(11, 5), np.array([0, 3, 3]), 0.5, 2.0)
    yield from bags()
    for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout"):
        yield case(f"{name}.default", draw(2, 3, 4), 0.5, False)
    yield case("dropout.default", draw(2, 3, 4), 0.0, True)
