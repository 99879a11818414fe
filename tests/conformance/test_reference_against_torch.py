"""What the ops mean: importers run through the numpy references, against PyTorch's own overloads.

A case is an overload and its arguments; its id is the overload and its position in the table.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.conformance.cases import (
    EMPTY,
    HALF,
    ROW,
    SCALAR_F,
    C,
    Case,
    F,
    G,
    J,
    N,
    Named,
    X,
    cases,
    check,
)
from tests.conformance.eager import EagerContext, run_import, type_of

SHAPES: list[Case] = [
    ("view.default", X, [12, -1]),
    ("view.default", X, [-1]),
    ("reshape.default", X, [2, 6, 5]),
    ("view.default", SCALAR_F, [1, 1]),
    ("_unsafe_view.default", X, [3, 20]),
    ("flatten.using_ints", X, 1),
    ("unflatten.int", X, 1, [2, -1]),
    ("unsqueeze.default", X, -1),
    ("unsqueeze.default", X, 0),
    ("squeeze.default", F),
    ("squeeze.dim", F, 1),
    ("squeeze.dim", F, 0),
    ("squeeze.dims", F, [0, 1]),
    ("permute.default", X, [2, 0, 1]),
    ("permute.default", X, [0, -1, 1]),
    ("permute.default", SCALAR_F, []),
    ("transpose.int", X, 0, -1),
    ("transpose.int", X, 1, 1),
    ("t.default", G),
    ("t.default", ROW),
    ("mT.default", X),
    ("numpy_T.default", X),
    ("movedim.int", X, 0, -1),
    ("movedim.intlist", X, [0, 1], [-1, 0]),
    ("expand.default", F, [2, 3, 4, 5]),
    ("expand.default", F, [-1, 7, -1]),
    ("expand.default", SCALAR_F, [3]),
    ("expand.default", F, [3, 0, 5]),
    ("select.int", X, 1, 2),
    ("select.int", X, -1, -2),
    ("select.int", ROW, 0, 0),
    ("slice.Tensor", X, 1, 1, 3),
    ("slice.Tensor", X, 1, -3, -1),
    ("slice.Tensor", X, 2, 0, 2**63 - 1, 2),
    ("slice.Tensor", X, -1, 4, 2),
    ("slice.Tensor", X),
    ("slice.Tensor", X, 0, 7, 9),
    ("slice.Tensor", X, 2, 1, 5, 3),
    ("slice.Tensor", X, 1, -100, 100),
    ("slice.Tensor", X, 1, None, None, 3),
    ("narrow.default", X, 1, 1, 2),
    ("narrow.default", X, 1, -2, 2),
    ("split.Tensor", X, 2, 1),
    ("split.Tensor", X, 2, -1),
    ("split_with_sizes.default", X, [1, 3], 1),
    ("split.sizes", X, [2, 0, 3], 2),
    ("chunk.default", X, 3, 1),
    ("chunk.default", X, 2, 2),
    ("unbind.int", X),
    ("unbind.int", X, -1),
    ("tensor_split.sections", X, 3, 2),
    ("tensor_split.indices", X, [1, 3], 2),
    ("stack.default", [X, X + 1]),
    ("stack.default", [G, G], -1),
    ("stack.default", [SCALAR_F, SCALAR_F]),
    ("cat.default", [X, X]),
    ("cat.default", [X, X[:, :1]], 1),
    ("cat.default", [X, N], -1),
    ("cat.default", [np.zeros(0, np.float32), X], 1),
    ("cat.default", [X[:, :0], X], 1),
    ("cat.default", [HALF, G]),
    ("cat.default", [X[:, :0], X[:, :0]], 1),
    ("cat.default", [X]),
    ("cat.default", [C, J]),
    ("clone.default", X),
    ("alias.default", X),
    ("detach.default", X),
    ("lift_fresh_copy.default", X),
    ("copy.default", X, N),
    ("copy.default", X, ROW),
    ("copy.default", J, G),
    ("slice_scatter.default", X, X[:, :2], 1, 1, 3),
    ("slice_scatter.default", X, X[:, :, ::2], 2, 0, None, 2),
    ("slice_scatter.default", X, X[:, :1], 1, -1),
    ("slice_scatter.default", X, X[:1] + 1, 0, 2, 2**63 - 1),
    ("slice_scatter.default", X, X[:0], 0, 2, 2),
    ("slice_scatter.default", X, X),
    ("select_scatter.default", X, X[:, 0], 1, 2),
    ("select_scatter.default", X, X[..., 0], -1, -1),
    ("repeat.default", X, [2, 1, 3]),
    ("repeat.default", X, [2, 1, 1, 1]),
    ("repeat.default", ROW, [3, 2]),
    ("repeat.default", SCALAR_F, [2]),
    ("repeat.default", X, [1, 1, 1]),
    ("tile.default", X, [2]),
    ("repeat_interleave.self_int", X, 3, 1),
    ("repeat_interleave.self_int", X, 2),
    ("roll.default", X, [1], [1]),
    ("roll.default", X, [-2, 3], [0, 2]),
    ("roll.default", X, [7]),
    ("roll.default", X, [8], [1]),
    ("roll.default", EMPTY, [1], [0]),
    ("flip.default", X, [0, -1]),
    ("flip.default", X, []),
    ("fliplr.default", X),
    ("flipud.default", X),
    *((f"{name}.default", x, *d) for name in ("tril", "triu") for x in (X, N, C) for d in ((), (1,), (-2,))),
    ("unfold.default", X, 1, 2, 1),
    ("unfold.default", X, -1, 3, 2),
    ("unfold.default", ROW, 0, 5, 1),
    ("diagonal.default", X),
    ("diagonal.default", X, 1, -2, -1),
    ("diagonal.default", X, -1, 0, 2),
    ("as_strided.default", X, [4, 3], [2, 1]),
    ("as_strided.default", X, [4, 3], [2, 1], 5),
    ("as_strided_copy.default", ROW, [3, 2], [0, 3], 1),
    ("as_strided_scatter.default", X, G[:, :3], [4, 3], [7, 2], 5),
    ("resize.default", X, [3, 7]),
    ("diagonal_scatter.default", X, X[:, 0, :4], 0, 1, 2),
    ("diagonal_scatter.default", X, X[:, 0, :3], -1, -2, -1),
    ("diagonal_scatter.default", G, G[0, :3], 2),
    ("constant_pad_nd.default", X, [1, 2]),
    ("constant_pad_nd.default", X, [1, 2, 0, 3], 1.5),
    ("constant_pad_nd.default", X, [-1, 2, 1, -2]),
    ("constant_pad_nd.default", N, [1, 0], 4),
    ("constant_pad_nd.default", C, [1, 0], True),
    ("constant_pad_nd.default", X, [0, 0]),
    ("constant_pad_nd.default", X, [1, 1], float("-inf")),
    ("constant_pad_nd.default", X, [-2, -1]),
    *(("pad.default", X, [2, 3], mode) for mode in ("constant", "reflect", "replicate", "circular")),
    *(("pad.default", X[None], [2, 3, 1, 0], mode) for mode in ("reflect", "replicate", "circular")),
    ("pad.default", X, [1, 1], "constant", 2.0),
    ("pad.default", X, [1, 1, 2, 2], "constant"),
    ("reflection_pad1d.default", X, [3, 4]),
    ("reflection_pad2d.default", X, [1, 2, 3, 0]),
    ("replication_pad1d.default", X, [3, 7]),
    ("replication_pad2d.default", X, [1, 2, 3, 0]),
]


@pytest.mark.parametrize("case", cases(SHAPES))
def test_shapes(case: Case) -> None:
    check(case)


CREATION: list[Case] = [
    ("full.default", [2, 3], 1.5),
    ("full.default", [2, 3], 2),
    ("full.default", [], True),
    ("full.default", [2], 3, Named(dtype="float16")),
    ("full.default", [2], float("-inf")),
    ("full_like.default", X, 7),
    ("full_like.default", J, 7.0, Named(dtype="float32")),
    ("full_like.default", C, 1),
    ("new_full.default", X, [2, 2], -1.0),
    ("fill.Scalar", X, 3),
    ("fill.Tensor", J, SCALAR_F),
    ("zeros.default", [2, 3]),
    ("zeros.default", [0], Named(dtype="int64")),
    ("zeros_like.default", J),
    ("new_zeros.default", X, [4]),
    ("ones.default", [3], Named(dtype="bool")),
    ("ones_like.default", X),
    ("new_ones.default", J, [2]),
    ("scalar_tensor.default", 2.5),
    ("scalar_tensor.default", 2, Named(dtype="int64")),
    ("arange.default", 7),
    ("arange.default", 2.5),
    ("arange.start", 2, 9),
    ("arange.start_step", 0, 10, 3),
    ("arange.start_step", 5, -4, -2),
    ("arange.start_step", 0, 1, 0.1),
    ("arange.start_step", 0, 5),
    ("arange.start_step", 1, 8, 2, Named(dtype="float32")),
    ("arange.default", 0),
    ("arange.default", 5.0, Named(dtype="int64")),
    ("eye.default", 4),
    ("eye.m", 3, 5, Named(dtype="int64")),
    ("linspace.default", -1.0, 1.0, 9),
    ("linspace.default", 0, 1, 1),
]


@pytest.mark.parametrize("case", cases(CREATION))
def test_creation(case: Case) -> None:
    check(case)


P = np.array([[2, 0], [1, 2]])
Q = np.array([3, -1])
INDEX: list[Case] = [
    ("index_select.default", X, 1, np.array([3, 0, 0])),
    ("index_select.default", X, -1, np.array([1], np.int32)),
    ("gather.default", X, 1, np.array([[[0, 3, 1, 1, 2]]])),
    ("gather.default", ROW, 0, np.array([4, 4, 0])),
    ("gather.default", ROW, 0, np.array(2)),
    ("gather.default", X, -1, np.zeros((2, 4, 7), np.int64)),
    ("index.Tensor", X, [P]),
    ("index.Tensor", X, [None, Q]),
    ("index.Tensor", X, [P, Q]),
    ("index.Tensor", X, [P, None, Q]),
    ("index.Tensor", X, [None, P, Q]),
    ("index.Tensor", X, [P, Q, Q]),
    ("index.Tensor", X, [np.array(1), None, P]),
    ("index.Tensor", X, [Q[:, None] - 1, None, P[:, :, None]]),
    ("index.Tensor", X, [P.astype(np.int32)]),
    ("index.Tensor", X, [np.zeros((0,), np.int64)]),
    ("index_put.default", X, [np.array([0, 2])], X[:2] + 1),
    ("index_put.default", X, [None, Q], ROW),
    ("index_put.default", X, [np.array([0, 2]), None, Q], SCALAR_F),
    ("index_put.default", X, [P, Q], X[0, :1]),
    ("index_put.default", X, [X > 0], SCALAR_F),
    ("index_put.default", X, [X[..., 0] > 0], ROW),
    ("index_put.default", X, [X[:, 0, 0] > 0], X[:1]),
    ("index_copy.default", X, 1, np.array([2, 0]), X[:, 2:]),
    ("index_fill.int_Scalar", X, 1, np.array([2, 0]), 1.5),
    ("index_add.default", X, 1, np.array([2, 2]), X[:, 2:]),
    ("index_add.default", X, 0, np.array([0]), X[:1], Named(alpha=2)),
    ("scatter.src", X, 1, np.array([[[2, 1, 0, 3, 2], [1, 0, 1, 0, 3]]]), X + 1),
    ("scatter.value", X, 2, P[None], 9),
    ("scatter.value", ROW, 0, np.array([1, 1]), 2.5),
    ("scatter_add.default", X, 1, np.zeros((3, 4, 5), np.int64), X),
    ("scatter_add.default", ROW, 0, np.array([1, 1, 3]), ROW),
    ("scatter_add.default", N, 2, P[None], N),
    *(
        ("scatter_reduce.two", x, 0, np.array([1, 1, 3]), x, reduce, Named(include_self=keep))
        for x in (ROW, N[0, 0])
        for reduce in ("sum", "prod", "mean", "amax", "amin")
        for keep in (True, False)
    ),
    ("scatter.reduce", ROW, 0, np.array([1, 1, 3]), ROW, Named(reduce="multiply")),
    ("scatter.value_reduce", ROW, 0, np.array([1, 1, 3]), 3, Named(reduce="add")),
    ("scatter_reduce.two", SCALAR_F, 0, np.array(0), SCALAR_F, "mean"),
    ("scatter_reduce.two", X, 1, np.zeros((3, 0, 5), np.int64), X, "amax", Named(include_self=False)),
    *(
        ("index_reduce.default", X, 1, np.array([2, 0, 2]), X[:, 1:], reduce, Named(include_self=keep))
        for reduce in ("prod", "mean", "amax", "amin")
        for keep in (True, False)
    ),
    ("index_add.default", SCALAR_F, 0, np.array([0]), SCALAR_F),
    ("index_copy.default", SCALAR_F, 0, np.array([0]), np.array(5, np.float32)),
    ("index_fill.int_Scalar", SCALAR_F, 0, np.array([0]), 7.0),
    ("index_put.default", X, [P], X[0], True),
    ("index_put.default", X, [None, np.array([1, 1, 2])], X[:, :3], True),
    ("index_put.default", X, [X > 0], SCALAR_F, True),
    ("masked_scatter.default", X, X > 0, X * 2),
    ("masked_scatter.default", X, X[0] > 0, X * 2),
    ("put.default", X, np.array([[3, -1], [0, 3]]), G[:2, :2]),
    ("put.default", X, np.array([[3, -1], [0, 3]]), G[:2, :2], True),
    ("take.default", X, np.array([[3, -1], [0, 3]])),
    ("take.default", EMPTY, np.zeros((2, 0), np.int64)),
    ("take.default", SCALAR_F, np.array(0)),
    *(
        ("segment_reduce.default", x, reduce, Named(initial=initial, **runs))
        for x, runs in (
            (G, {"lengths": np.array([2, 0, 2])}),
            (X[:, 0], {"offsets": np.array([0, 1, 1, 3])}),
        )
        for reduce in ("sum", "mean", "max", "min", "prod")
        for initial in (None, 2.0)
    ),
    ("segment_reduce.default", X, "mean", Named(lengths=np.array([[1, 3], [4, 0], [2, 2]]), axis=1)),
]


@pytest.mark.parametrize("case", cases(INDEX))
def test_index(case: Case) -> None:
    check(case)


def test_topk_of_nans_takes_the_first() -> None:
    """PyTorch leaves the order of ties open; ours is the first position."""
    x = np.array([np.nan, 1, np.nan, 3], np.float32)
    values, positions = run_import("topk.default", [], x, 3)
    np.testing.assert_array_equal(values, np.array([np.nan, np.nan, 3], np.float32))
    np.testing.assert_array_equal(positions, [0, 2, 3])


@pytest.mark.parametrize(
    "case",
    cases(
        [
            ("index.Tensor", X, [X > 0]),
            ("index_put.default", X, [X > 0], ROW[:3]),
            ("masked_select.default", X, X > 0),
            ("pow.Scalar", 3, J),
            ("pow.Tensor_Tensor", J, J),
            ("masked_scatter.default", X, X > 0, ROW[:0]),
            ("as_strided_scatter.default", ROW, ROW[:2], [2], [0]),
        ]
    ),
)
def test_refused(case: Case) -> None:
    overload, *arguments = case
    with pytest.raises(NotImplementedError):
        run_import(overload, [type_of(next(x for x in arguments if isinstance(x, np.ndarray)))], *arguments)


def test_growing_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="more elements"):
        run_import("resize.default", [type_of(np.zeros(6, np.float32))], ROW, [6])


def test_metadata_assertion_is_nothing() -> None:
    context = EagerContext()
    from transpiler.ops import ATEN

    assert ATEN["_assert_tensor_metadata.default"](context, context.value(X), None, None, "float32") is None
    assert context.ops == []
