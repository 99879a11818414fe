"""What the threads of a subgroup do together, where the device has instructions for it (`machine().subgroups`).

A subgroup may have any number of threads, need not be full, and may be any of the workgroup's: nothing here takes more
for granted than that each thread is in one of the workgroup's `count()` subgroups. All threads of the workgroup must
call, in control flow that is the same for all of them.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from ..tir import local

Expr = Any


def _call(dtype: str, name: str, *arguments: Expr) -> Expr:
    """A call, made here and once: what it gives depends on who comes along, so that no pass may move it."""
    result = local(1, dtype)
    result.store(0, tirx.call_extern(dtype, f"subgroup_{name}", *arguments))
    return result[0]


def number() -> Expr:
    """Which of the workgroup's subgroups this thread is in."""
    return _call("int32", "number")


def count() -> Expr:
    """How many subgroups the workgroup has."""
    return _call("int32", "count")


def lanes() -> Expr:
    """How many threads the subgroup has."""
    return _call("int32", "lanes")


def lane() -> Expr:
    """How many of them stand before this one."""
    return _call("int32", "lane")


def is_first() -> Expr:
    """Whether this is the first one."""
    return _call("int32", "first") != 0


def together(how: str, value: Expr, dtype: str) -> Expr:
    """The "sum" (float32, int32) or the "max" (float32; any of them where some are NaN) of all threads' values."""
    return _call(dtype, how, value)
