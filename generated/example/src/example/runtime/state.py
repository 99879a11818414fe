"""What a model keeps between calls: the buffers that PyTorch's forward writes, and key/value caches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from .arguments import TensorSpec, check_names
from .safetensors import ALIGNMENT
from .weights import Weights

Array = npt.NDArray[Any]


class Memory:
    """Where a state is kept: `array` are its bytes as the host sees them."""

    array: Array

    def fetch(self) -> None:
        """Make `array` what it is now: before the host reads it, and before it changes a part."""

    def store(self) -> None:
        """Let calls see `array`: after the host has changed it."""


class HostMemory(Memory):
    """Zeros in the memory of the host."""

    def __init__(self, nbytes: int) -> None:
        memory = np.zeros(nbytes + ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        self.array: Array = memory[start : start + nbytes]


class Cells(Weights):
    """The memory of a state by name, `s.k_cache`: calls read it and write into it."""


class State(MutableMapping[str, Array]):
    """The state by PyTorch's buffer names. Reading copies, assigning copies; one call at a time has it.

    `layout` lists the entries of the manifest. A call that fails leaves the state as it was, unless it had
    already written into it: then the state is lost, and every use raises RuntimeError until all of it is set
    again.
    """

    def __init__(
        self,
        layout: Sequence[Mapping[str, Any]],
        nbytes: int,
        weights: Mapping[str, Array],
        allocate: Callable[[int], Memory] = HostMemory,
    ) -> None:
        self._layout, self._allocate = layout, allocate
        self.memory = allocate(nbytes)
        self._data = self.memory.array
        self._specs = {
            item["name"]: TensorSpec(item["name"], item["dtype"], item["shape"]) for item in layout
        }
        self._arrays: dict[str, Array] = {}
        for item, spec in zip(layout, self._specs.values(), strict=True):
            part = self._data[item["offset"] : item["offset"] + spec.nbytes]
            self._arrays[item["name"]] = part.view(spec.storage).reshape(spec.shape)
        self.cells = Cells({item["cell"]: self._arrays[item["name"]] for item in layout})
        self.address = int(self._data.ctypes.data)
        self._lock = threading.RLock()
        self._lost = ""
        self.reset(weights)

    # --- for the model ------------------------------------------------------------------------------------

    @contextmanager
    def turn(self, *, lost: bool = False) -> Iterator[State]:
        """Have the state to oneself; RuntimeError if it is lost, unless that is no matter."""
        with self._lock:
            if not lost:
                self._check()
            yield self

    def lose(self, reason: str) -> None:
        """A call failed half-way: nobody may compute with what it left."""
        self._lost = reason

    def reset(self, weights: Mapping[str, Array]) -> None:
        """Back to the values that the weights file has."""
        with self._lock:
            for item in self._layout:
                self._arrays[item["name"]][...] = 0 if item["initial"] is None else weights[item["initial"]]
            self.memory.store()
            self._lost = ""

    def replace(self, values: Mapping[str, Any]) -> None:
        """Set everything at once.

        Raises:
            TypeError, ValueError: a name that is missing or unknown, or a value that does not fit; nothing
                changes then.
        """
        check_names("state", self._specs, values)
        taken = {name: spec.take(values[name]) for name, spec in self._specs.items()}
        with self._lock:
            for name, array in taken.items():
                self._arrays[name][...] = array
            self.memory.store()
            self._lost = ""

    def copy(self, weights: Mapping[str, Array]) -> State:
        """Another one with the same content."""
        other = State(self._layout, self._data.nbytes, weights, self._allocate)
        with self.turn():
            self.memory.fetch()
            other._data[...] = self._data
            other.memory.store()
        return other

    def _check(self) -> None:
        if self._lost:
            raise RuntimeError(
                f"a call failed after it had changed the state ({self._lost}); reset() or load_state() first"
            )

    # --- a mapping ----------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Array:
        spec = self._spec(name)
        with self.turn():
            self.memory.fetch()
            return np.array(spec.give(self._arrays[name]))

    def __setitem__(self, name: str, value: Any) -> None:
        array = self._spec(name).take(value)
        with self.turn():
            self.memory.fetch()
            self._arrays[name][...] = array
            self.memory.store()

    def __delitem__(self, name: str) -> None:
        raise TypeError("a model's state cannot lose a buffer")

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def __repr__(self) -> str:
        return f"State({', '.join(f'{name}: {spec}' for name, spec in self._specs.items())})"

    def _spec(self, name: str) -> TensorSpec:
        if name not in self._specs:
            raise KeyError(f"{name!r}; known: {', '.join(self._specs) or 'none'}")
        return self._specs[name]
