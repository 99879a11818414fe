"""Recordings of calls on a GPU that wait for the next call."""

from __future__ import annotations

import threading
import weakref
from collections import Counter, OrderedDict, deque
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from .launches import Program
from .state import State

# Of a state, and without one: for each of the sizes, functions, and callers at once, that come often.
IDLE = 8
# More than IDLE together, of many states, take no more than this.
KEPT_BYTES = 1 << 28


class Waiting(Protocol):
    """A program with memory of its own."""

    program: Program

    def free(self) -> None:
        """Give the memory back. Nobody may run it any more."""


W = TypeVar("W", bound=Waiting)
Place = tuple[int, object]


class Idle(Generic[W]):
    """Recordings that wait for the next call, by the state that they use and what they are for.

    At most IDLE of a state, and IDLE of none; more than IDLE together only if these take at most KEPT_BYTES.
    What was not used for longest makes room. Those of a state go when it goes, which they do not keep alive.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[Place, list[W]] = OrderedDict()
        self._counts: Counter[int] = Counter()
        self._nbytes = 0
        self._states: dict[int, weakref.ref[State]] = {}
        self._gone: deque[int] = deque()
        self._lock = threading.Lock()

    def take(self, key: object, state: State | None) -> W | None:
        """One that waits, for the caller alone."""
        with self._lock:
            owner, dropped = self._owner(state)
            place = owner, key
            found = self._remove(place, -1) if place in self._waiting else None
        _free(dropped)
        return found

    def give_back(self, key: object, recording: W, state: State | None) -> None:
        """Keep a recording for the next call."""
        with self._lock:
            owner, dropped = self._owner(state)
            self._waiting.setdefault((owner, key), []).append(recording)
            self._waiting.move_to_end((owner, key))
            self._counts[owner] += 1
            self._nbytes += _nbytes(recording)
            while self._counts[owner] > IDLE:
                dropped.append(self._remove(next(place for place in self._waiting if place[0] == owner), 0))
            while self._nbytes > KEPT_BYTES and self._counts.total() > IDLE:
                dropped.append(self._remove(next(iter(self._waiting)), 0))
        _free(dropped)

    def drop(self) -> bool:
        """Give up all of them; whether there were any."""
        with self._lock:
            dropped = [recording for waiting in self._waiting.values() for recording in waiting]
            self._waiting.clear()
            self._counts.clear()
            self._nbytes = 0
        _free(dropped)
        return bool(dropped)

    def _owner(self, state: State | None) -> tuple[int, list[W]]:
        """What tells a state from others that are alive, 0 without one; and what those that are gone left."""
        dropped = self._forget()
        if state is None or not state.memory.array.nbytes:
            return 0, dropped
        owner = id(state)
        known = self._states.get(owner)
        if known is None or known() is not state:
            dropped += self._forget_state(owner)
            self._states[owner] = weakref.ref(state, partial(_note, weakref.ref(self), owner))
        return owner, dropped

    def note(self, owner: int) -> None:
        """A state is gone. The collector may say so at any time, even to a thread that holds the lock: then
        the next one who takes or gives something back cleans up."""
        self._gone.append(owner)
        if self._lock.acquire(blocking=False):
            try:
                dropped = self._forget()
            finally:
                self._lock.release()
            _free(dropped)

    def _forget(self) -> list[W]:
        dropped: list[W] = []
        while self._gone:
            owner = self._gone.popleft()
            known = self._states.get(owner)
            if known is not None and known() is None:
                dropped += self._forget_state(owner)
        return dropped

    def _forget_state(self, owner: int) -> list[W]:
        self._states.pop(owner, None)
        places = [place for place in self._waiting if place[0] == owner]
        return [self._remove(place, 0) for place in places for _ in tuple(self._waiting[place])]

    def _remove(self, place: Place, index: int) -> W:
        waiting = self._waiting[place]
        recording = waiting.pop(index)
        if not waiting:
            del self._waiting[place]
        self._counts[place[0]] -= 1
        if not self._counts[place[0]]:
            del self._counts[place[0]]
        self._nbytes -= _nbytes(recording)
        return recording


def _note(idle: weakref.ref[Idle[Any]], owner: int, _: object) -> None:
    found = idle()
    if found is not None:
        found.note(owner)


def _nbytes(recording: Waiting) -> int:
    return recording.program.nbytes + recording.program.shared_bytes


def _free(recordings: list[W]) -> None:
    for recording in recordings:
        recording.free()
