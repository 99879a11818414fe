"""Views as steps in memory, against numpy's own."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conformance.heads import Chain
from transpiler.dims import symbol
from transpiler.ir import Array
from transpiler.ops.base import Op, rng
from transpiler.ops.compare import Cast
from transpiler.ops.halves import Widen
from transpiler.ops.shape import BroadcastTo, Reshape, Slice, Transpose
from transpiler.strides import View, view_of

CHAINS: dict[str, tuple[tuple[int, ...], list[Op]]] = {
    "split": ((4, 30), [Reshape((2, 2, 3, 10)), Transpose((0, 2, 1, 3))]),
    "joined": ((2, 3, 4, 5), [Transpose((1, 0, 2, 3)), Reshape((3, 2, 20))]),
    "cut": (
        (5, 7, 6),
        [Slice((1, 2, 3), (5, 6, 5), (2, 1, 1)), Transpose((1, 0, 2)), Slice((1, 0, 0), (3, 2, 2), (1, 1, 1))],
    ),
    "of_ones": ((1, 6, 1, 4), [Reshape((6, 1, 4, 1, 1)), Transpose((1, 0, 3, 4, 2)), Reshape((3, 2, 1, 4))]),
    "repeated": ((3, 1, 4), [BroadcastTo((2, 3, 5, 4)), Transpose((2, 0, 1, 3))]),
}  # fmt: skip


def view(shape: tuple[int, ...], ops: list[Op]) -> tuple[View, Array, Array]:
    """What the ops are seen as; what they read and what they give."""
    chain, x = Chain("float32", shape), rng(str(ops)).standard_normal(shape, np.float32)
    result = x
    for op in ops:
        chain.emit(op)
        result = np.asarray(op.reference(result))
    return view_of(chain.value, chain.maker), x, result


@pytest.mark.parametrize("name", CHAINS)
def test_elements_are_where_the_steps_say(name: str) -> None:
    found, x, result = view(*CHAINS[name])
    assert found.source.name == "x"
    index = np.indices(result.shape)
    place = sum(int(str(step)) * axis for step, axis in zip(found.steps, index, strict=True)) + int(str(found.offset))
    assert np.array_equal(x.reshape(-1)[place], result)


@pytest.mark.parametrize(
    ("shape", "ops", "kept"),
    [
        ((4, 6), [Transpose((1, 0)), Reshape((24, 1))], 1),
        ((4, 6), [Transpose((1, 0))], 0),
        ((4, 6), [Slice((0, 0), (4, 6), (1, 2))], 0),
        ((4, 6), [Slice((0, 0), (4, 5), (1, 1)), Reshape((20,)), Reshape((5, 4))], 2),
        ((3, 1, 4), [BroadcastTo((3, 2, 4)), Reshape((6, 4)), Slice((1, 0), (3, 4), (1, 1))], 2),
    ],
)
def test_what_does_not_lie_evenly_is_stored(shape: tuple[int, ...], ops: list[Op], kept: int) -> None:
    assert len(view(shape, ops)[0].nodes) == kept


def test_sizes_that_vary() -> None:
    n = symbol("n")
    chain = Chain("float32", (2, n, 48))
    chain.emit(Slice((0, 0, 16), (2, n, 32), (1, 1, 1)))
    chain.emit(Reshape((2, n, 4, 4)))
    chain.emit(Transpose((0, 2, 1, 3)))
    found = view_of(chain.value, chain.maker)
    assert (found.offset, found.steps) == (16, (48 * n, 4, 48, 1))
    assert found.is_aligned(16)
    assert not found.is_aligned(32)


def test_conversions() -> None:
    """Half floats may be widened and narrowed again; a cast that rounds is a place to stop."""
    for dtype, kept in (("float16", 3), ("float32", 1), ("bfloat16", 1)):
        chain = Chain(dtype, (2, 8))
        chain.emit(Reshape((2, 2, 4)) if dtype == "float32" else Widen())
        chain.emit(Cast("float16"))
        chain.emit(Widen())
        assert len(view_of(chain.value, chain.maker).nodes) == kept, dtype
