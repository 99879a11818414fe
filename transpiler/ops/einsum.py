"""Contractions by index labels (einsum, tensordot, bilinear) as transpose, reshape and matmul."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transpiler.dims import Dim
from transpiler.ir import Value
from transpiler.ops import compose
from transpiler.ops.base import ImportContext, aten, normalize_axis
from transpiler.ops.dtypes import category
from transpiler.ops.linalg import Matmul
from transpiler.ops.shape_edges import Diagonal


@dataclass(frozen=True)
class _Term:
    """A tensor and the label of each of its axes, without repetition."""

    value: Value
    labels: str

    def size(self, label: str) -> Dim:
        return self.value.shape[self.labels.index(label)]


@aten("einsum.default")
def _einsum(
    context: ImportContext, equation: str, tensors: Sequence[Value], *, path: Sequence[int] | None = None
) -> Any:
    """`path` only reorders the contractions; ours go left to right."""
    left, arrow, output = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    if len(operands) != len(tensors):
        raise context.unsupported(f"equation {equation!r} has {len(operands)} operands, {len(tensors)} are given")
    # Labels that the equation does not use stand for the axes of an ellipsis, aligned at the right.
    free = [letter for letter in string.ascii_letters if letter not in equation]
    widths = [
        value.type.rank - len(labels.replace("...", "")) if "..." in labels else 0
        for labels, value in zip(operands, tensors, strict=True)
    ]
    ellipsis = "".join(free[: max(widths)])
    expanded = [
        labels.replace("...", ellipsis[len(ellipsis) - width :]) for labels, width in zip(operands, widths, strict=True)
    ]
    if arrow:
        output = output.replace("...", ellipsis)
    else:
        used = "".join(expanded)
        output = ellipsis + "".join(sorted(c for c in set(used) - set(ellipsis) if used.count(c) == 1))
    for labels, value in zip(expanded, tensors, strict=True):
        if len(labels) != value.type.rank:
            raise context.unsupported(f"equation {equation!r} does not fit an operand of rank {value.type.rank}")
    if category(tensors[0].dtype) != 2 and (out := context.out_types()[0].dtype) != tensors[0].dtype:
        if len(tensors) > 1:
            raise context.unsupported(f"a sum of {tensors[0].dtype} before it is multiplied")
        tensors = [context.cast(tensors[0], out)]  # the sum of small integers is an int64
    return contract(context, [_term(context, v, labels) for v, labels in zip(tensors, expanded, strict=True)], output)


def _term(context: ImportContext, value: Value, labels: str) -> _Term:
    """A repeated label is the diagonal of its axes."""
    for label in sorted(set(labels)):
        while labels.count(label) > 1:
            first = labels.index(label)
            second = labels.index(label, first + 1)
            value = compose.emit(context, Diagonal(0, first, second), value)
            labels = labels[:first] + labels[first + 1 : second] + labels[second + 1 :] + label
    return _Term(value, labels)


def contract(context: ImportContext, terms: Sequence[_Term], output: str) -> Value:
    """Multiply the terms from left to right and sum all labels but `output`, the result's axes."""
    result = terms[0]
    for index, term in enumerate(terms[1:], start=2):
        later = output + "".join(other.labels for other in terms[index:])
        result = _pair(context, result, term, later)
    return _arrange(context, _sum_out(context, result, output), output).value


def _pair(context: ImportContext, a: _Term, b: _Term, kept: str) -> _Term:
    """The product of two terms, summed over the labels that are not in `kept`."""
    a, b = _drop_ones(context, a, b), _drop_ones(context, b, a)
    a, b = _sum_out(context, a, kept + b.labels), _sum_out(context, b, kept + a.labels)
    batch = "".join(c for c in a.labels if c in b.labels and c in kept)
    summed = "".join(c for c in a.labels if c in b.labels and c not in kept)
    rows = "".join(c for c in a.labels if c not in b.labels)
    columns = "".join(c for c in b.labels if c not in a.labels)
    labels = batch + rows + columns
    if not summed:
        a, b = _arrange(context, a, batch + rows), _arrange(context, b, batch + columns)
        shape = (*b.value.shape[: len(batch)], *(1 for _ in rows), *b.value.shape[len(batch) :])
        wide = compose.reshape(context, a.value, (*a.value.shape, *(1 for _ in columns)))
        return _Term(compose.mul(context, wide, compose.reshape(context, b.value, shape)), labels)
    batch_shape = [a.size(c) for c in batch]
    row_shape, column_shape = [a.size(c) for c in rows], [b.size(c) for c in columns]
    depth = compose.product([a.size(c) for c in summed])
    transposed = b.labels == batch + columns + summed
    a = _arrange(context, a, batch + rows + summed)
    b = _arrange(context, b, batch + (columns + summed if transposed else summed + columns))
    m, n = compose.product(row_shape), compose.product(column_shape)
    left = compose.reshape(context, a.value, (*batch_shape, m, depth))
    right = compose.reshape(context, b.value, (*batch_shape, *((n, depth) if transposed else (depth, n))))
    product = context.emit(Matmul(transposed), left, right)
    return _Term(compose.reshape(context, product, (*batch_shape, *row_shape, *column_shape)), labels)


def _drop_ones(context: ImportContext, term: _Term, other: _Term) -> _Term:
    """Without the axes of size 1 that `other` has too: multiplication broadcasts over them."""
    kept = "".join(c for c in term.labels if term.size(c) != 1 or c not in other.labels or other.size(c) == 1)
    return _Term(compose.reshape(context, term.value, [term.size(c) for c in kept]), kept)


def _sum_out(context: ImportContext, term: _Term, kept: str) -> _Term:
    axes = tuple(axis for axis, label in enumerate(term.labels) if label not in kept)
    if not axes:
        return term
    return _Term(compose.reduce_sum(context, term.value, axes), "".join(c for c in term.labels if c in kept))


def _arrange(context: ImportContext, term: _Term, labels: str) -> _Term:
    return _Term(compose.transpose(context, term.value, [term.labels.index(c) for c in labels]), labels)


@aten("tensordot.default")
def _tensordot(context: ImportContext, a: Value, b: Value, dims_self: Sequence[int], dims_other: Sequence[int]) -> Any:
    letters = string.ascii_letters
    a_labels = list(letters[: a.type.rank])
    b_labels = list(letters[a.type.rank : a.type.rank + b.type.rank])
    for i, j in zip(dims_self, dims_other, strict=True):
        b_labels[normalize_axis(j, b.type.rank)] = a_labels[normalize_axis(i, a.type.rank)]
    output = [c for c in a_labels if c not in b_labels] + [c for c in b_labels if c not in a_labels]
    return contract(context, [_Term(a, "".join(a_labels)), _Term(b, "".join(b_labels))], "".join(output))


@aten("_trilinear.default")
def _trilinear(
    context: ImportContext, a: Value, b: Value, c: Value, expand_a: Any, expand_b: Any, expand_c: Any, sums: Any,
    unroll_dim: int = 1,
) -> Any:  # fmt: skip
    """The product of three tensors, each with axes of 1 inserted, summed over `sums`: what nn.Bilinear exports to."""
    rank = a.type.rank + len(expand_a)
    letters = string.ascii_lowercase[:rank]
    terms = [
        _Term(value, "".join(letter for axis, letter in enumerate(letters) if axis not in expand))
        for value, expand in ((a, expand_a), (b, expand_b), (c, expand_c))
    ]
    return contract(context, terms, "".join(letter for axis, letter in enumerate(letters) if axis not in sums))


@aten("bilinear.default")
def _bilinear(context: ImportContext, x1: Value, x2: Value, weight: Value, bias: Value | None = None) -> Any:
    """y[..., o] = sum_ij x1[..., i] weight[o, i, j] x2[..., j] + bias[o]."""
    batch = string.ascii_uppercase[: x1.type.rank - 1]
    terms = [_Term(x1, batch + "i"), _Term(weight, "oij"), _Term(x2, batch + "j")]
    y = contract(context, terms, batch + "o")
    return y if bias is None else compose.add(context, y, bias)
