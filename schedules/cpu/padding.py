"""Zero-padded copies of maps into the workspace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..sizes import Extent, is_large
from ..tir import LANES, Buffer, loop, splat

Expr = Any


def pad_map(
    source: Buffer, target: Buffer, planes: Extent, size: tuple[int, int], padding: Sequence[int], lanes: int
) -> None:
    """Copy [planes, H, W, lanes] into [planes, top + H + bottom, left + W + right, lanes], zeros around; lanes is
    16 or 1, `padding` (top, left, bottom, right).

    One parallel loop over the target's rows.
    """
    height, width = size[0] + padding[0] + padding[2], size[1] + padding[1] + padding[3]
    rows = planes * height
    with loop(rows, parallel=is_large(rows * width * lanes)) as row:
        plane, y = tirx.floordiv(row, height), tirx.floormod(row, height)
        pad_row(source, target, row * (width * lanes), plane, y, size, padding, lanes)


def pad_row(
    source: Buffer,
    target: Buffer,
    base: Expr,
    plane: Expr,
    y: Expr,
    size: tuple[int, int],
    padding: Sequence[int],
    lanes: int,
    ahead: int = 0,
) -> None:
    """Row `y` of a padded plane, to `base` of the target: zeros, or zeros, the source row, zeros; asks for the source
    row that is `ahead` of it."""
    (h, w), (top, left, _, right) = size, padding
    width = w + left + right

    def fill(start: Expr, count: int) -> None:
        _run(count, lambda offset, n: _zero(target, start + offset, n))

    with T.If(tirx.And(y >= top, y < h + top)):
        with T.Then():
            fill(base, left * lanes)
            start = (plane * h + y - top) * (w * lanes)

            def copy(offset: Expr, count: int) -> None:
                if ahead and count == LANES:
                    source.fetch(start + offset + ahead * w * lanes)
                _copy(source, start + offset, target, base + left * lanes + offset, count)

            _run(w * lanes, copy)
            fill(base + (left + w) * lanes, right * lanes)
        with T.Else():
            fill(base, width * lanes)


def _run(count: int, body: Any) -> None:
    """body(offset, lanes) over `count` elements, 16 at a time, then one by one."""
    whole = count // LANES
    if whole == 1:
        body(0, LANES)
    elif whole:
        with T.serial(0, whole) as step:
            body(step * LANES, LANES)
    if count % LANES:
        with T.serial(0, count % LANES) as rest:
            body(whole * LANES + rest, 1)


def _zero(target: Buffer, offset: Expr, lanes: int) -> None:
    if lanes == 1:
        target.store(offset, tirx.const(0, target.dtype))
    else:
        target.store_vector(offset, splat(0.0, target.dtype), lanes)


def _copy(source: Buffer, start: Expr, target: Buffer, offset: Expr, lanes: int) -> None:
    if lanes == 1:
        target.store(offset, source[start])
    else:
        target.store_vector(offset, source.vector(start, lanes), lanes)
