"""Choice points: where a schedule could go several ways and only a measurement tells which is the fastest.

A schedule asks `choose("tile", candidates, default)`. Outside of a sweep, or where nothing is known, it gets the
default, which is the best by a model of the machine; a tuning record replaces it by what was measured. Choices change
how fast a kernel is and in which order it adds, never what it computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Point:
    """A question that a schedule asked: the candidates as texts, best first by its own model, and the default."""

    name: str
    candidates: tuple[str, ...]
    default: str


@dataclass
class Asked:
    """The answers a schedule is given, by point, and the points that it asked about."""

    answers: Mapping[str, str] = field(default_factory=dict)
    points: dict[str, Point] = field(default_factory=dict)


_current: ContextVar[Asked | None] = ContextVar("choices", default=None)


@contextmanager
def choosing(answers: Mapping[str, str]) -> Iterator[Asked]:
    """Within, `choose` takes these answers; the points that were asked about are collected."""
    asked = Asked(answers)
    token = _current.set(asked)
    try:
        yield asked
    finally:
        _current.reset(token)


def choose(name: str, candidates: Sequence[T], default: T) -> T:
    """One of `candidates`, which are told apart by their text, for the point `name` of the kernel being built.

    A kernel may ask the same question again and gets the same answer. An answer that is no candidate (a record of an
    older version) is ignored.

    Raises:
        ValueError: the default is no candidate, or the question differs from one of the same name.
    """
    by_text = {str(candidate): candidate for candidate in candidates}
    if str(default) not in by_text:
        raise ValueError(f"choice {name}: {default} is not among {', '.join(by_text)}")
    asked = _current.get()
    if asked is None:
        return default
    point = asked.points.setdefault(name, Point(name, tuple(by_text), str(default)))
    if point.candidates != tuple(by_text):
        raise ValueError(f"choice {name} has two sets of candidates in one kernel")
    return by_text.get(asked.answers.get(name, ""), default)
