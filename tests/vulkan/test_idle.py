"""Recordings that wait for the next call: how many, and for how long."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.vulkan.emitted import runtime

IDLE = runtime("idle").IDLE
KEPT_BYTES = runtime("idle").KEPT_BYTES


class Kept:
    """A recording of so many bytes."""

    def __init__(self, nbytes: int = 256) -> None:
        self.program = SimpleNamespace(nbytes=nbytes, shared_bytes=0)
        self.freed = 0

    def free(self) -> None:
        self.freed += 1


class Owner:
    """A state, which compares with others by its content and therefore has no hash."""

    def __eq__(self, other: object) -> bool:
        return True

    def __init__(self, nbytes: int = 8) -> None:
        self.memory = SimpleNamespace(array=np.zeros(nbytes, np.uint8))


def filled(idle: Any, state: Owner | None, count: int, nbytes: int = 256) -> list[Kept]:
    made = [Kept(nbytes) for _ in range(count)]
    for key, recording in enumerate(made):
        idle.give_back(key, recording, state)
    return made


def test_each_is_taken_once_and_by_its_own_state() -> None:
    idle, one, other = runtime("idle").Idle(), Owner(), Owner()
    mine, free = Kept(), Kept()
    idle.give_back("f", mine, one)
    idle.give_back("f", free, None)
    assert idle.take("f", other) is None
    assert idle.take("g", one) is None
    assert idle.take("f", one) is mine
    assert idle.take("f", one) is None
    # A model that keeps nothing has states without bytes, which are all the same.
    assert idle.take("f", Owner(0)) is free
    assert not idle._waiting


def test_so_many_are_kept_of_each_state() -> None:
    idle, states = runtime("idle").Idle(), [None, *(Owner() for _ in range(20))]
    made = [filled(idle, state, IDLE + 2) for state in states]
    for recordings in made:
        assert [item.freed for item in recordings] == [1, 1, *[0] * IDLE]
    assert idle.drop()
    assert all(item.freed == 1 for recordings in made for item in recordings)
    assert not idle.drop()


def test_many_that_are_large_make_room() -> None:
    """Of three states in turn; the first eight are kept whatever they take."""
    idle, states = runtime("idle").Idle(), [Owner() for _ in range(3)]
    some = filled(idle, states[0], IDLE, KEPT_BYTES)
    assert not any(item.freed for item in some)
    more = filled(idle, states[1], 2, KEPT_BYTES)
    assert [item.freed for item in some] == [1, 1, *[0] * (IDLE - 2)]
    assert idle.take(0, states[1]) is more[0]
    small = filled(idle, states[2], IDLE, 256)
    assert [item.freed for item in (*some, more[1], *small)] == [1] * (IDLE + 1) + [0] * IDLE


def test_those_of_a_state_go_with_it() -> None:
    idle = runtime("idle").Idle()
    states: list[Owner] = [Owner(), Owner()]
    kept, gone = filled(idle, states[0], 2), filled(idle, states[1], 3)
    states.pop()
    gc.collect()
    assert [item.freed for item in (*kept, *gone)] == [0, 0, 1, 1, 1]
    with idle._lock:  # somebody else is at it: the next one cleans up
        states.pop()
        gc.collect()
        assert not any(item.freed for item in kept)
    assert idle.take(0, Owner()) is None
    assert [item.freed for item in kept] == [1, 1]
    assert not idle._waiting
    assert not idle._counts
    assert not idle._nbytes
