"""The compiled library behind its C ABI, through ctypes (which releases the GIL during a call)."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arguments import TensorSpec
from ..errors import PackageError
from ..kernels import PlainCall
from ..profile import Rates
from ..state import HostMemory, State
from .direct import direct_call

Array = npt.NDArray[Any]

ABI_VERSION = 6
INDEX_OUT_OF_BOUNDS = 2
DIVISION_BY_ZERO = 8
STATE_CHANGED = 4  # added to the code of a failure


class Library:
    """The kernels of one instruction set."""

    def __init__(self, path: Path, prefix: str) -> None:
        try:
            dll = ctypes.CDLL(str(path))
            pointer, size, int32 = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int32

            def bind(name: str, result: Any, *arguments: Any) -> Any:
                function = getattr(dll, prefix + name)
                function.restype, function.argtypes = result, arguments
                return function

            version = bind("abi_version", int32)()
            if version != ABI_VERSION:
                raise PackageError(
                    f"{path} has ABI version {version}; this runtime knows version {ABI_VERSION}."
                )
            self.last_error = bind("last_error", ctypes.c_char_p)
            self.create = bind("create", int32, pointer, size, int32, ctypes.POINTER(pointer))
            self.destroy = bind("destroy", None, pointer)
            self.set_threads = bind("set_threads", None, pointer, int32)
            self.run_packed = bind("run_packed", int32, pointer)
            self.python_call = bind("python_call", pointer, pointer)
            self.run_traced = bind("run_traced", int32, pointer, int32, *(pointer,) * 6, int32)
            self.call = bind("call", int32, pointer, int32, int32, pointer, pointer)
            self.rates = bind("rates", int32, int32, pointer)
            self.call_source = bind("call_source", ctypes.c_char_p, int32, int32)
            name, call_name = (
                bind("function_name", ctypes.c_char_p, int32),
                bind("call_name", ctypes.c_char_p, int32, int32),
            )
            call_count = bind("call_count", int32, int32)
            self.functions = tuple(name(index).decode() for index in range(bind("function_count", int32)()))
            self.calls = tuple(
                tuple(call_name(function, index).decode() for index in range(call_count(function)))
                for function in range(len(self.functions))
            )
        except (OSError, AttributeError) as error:
            raise PackageError(f"{path} cannot be loaded: {error}") from error

    def raise_error(self, code: int, state: State | None = None) -> None:
        """Turn a result that is not 0 into an exception; a state that was half-written is lost."""
        text = self.last_error().decode("utf-8", "replace")
        if code & STATE_CHANGED and state is not None:
            state.lose(text)
        if code & DIVISION_BY_ZERO:
            raise ZeroDivisionError(text)
        raise IndexError(text) if code & INDEX_OUT_OF_BOUNDS else RuntimeError(text)

    def sources(self, function: int) -> list[str]:
        """The user's source line of every call."""
        count = len(self.calls[function])
        return [self.call_source(function, index).decode("utf-8", "replace") for index in range(count)]

    def session(self, data: Array, weights: Mapping[str, Array], threads: int) -> Session:
        """The model with these weights."""
        return Session(self, data, weights, threads)

    def allocate_state(self, nbytes: int) -> HostMemory:
        return HostMemory(nbytes)

    def measure_rates(self, threads: int) -> Rates:
        """What this machine can do with so many threads; takes some tenths of a second."""
        rates = np.zeros(9, np.float64)
        code = self.rates(threads, rates.ctypes.data)
        if code:
            raise MemoryError("no memory to measure the machine with")
        flops, *others = rates.tolist()
        return Rates(flops, tuple(zip(others[4:], others[:4], strict=True)))


class Session:
    """One native model over one set of weights. Whoever runs it holds a reference; the last one frees it."""

    has_streams = False

    def __init__(self, library: Library, data: Array, weights: Mapping[str, Array], threads: int) -> None:
        self.library = library
        self.weights = weights
        self._data = data  # keeps the memory that the native model points into
        self._handle = ctypes.c_void_p()
        code = library.create(data.ctypes.data, data.nbytes, threads, ctypes.byref(self._handle))
        if code:
            library.raise_error(code)
        self._run, self._address = library.run_packed, self._handle.value

    def __del__(self) -> None:
        if self._handle.value is not None:
            self.library.destroy(self._handle)

    def set_threads(self, threads: int) -> None:
        self.library.set_threads(self._handle, threads)

    def run(
        self,
        function: int,
        state: State | None,
        buffers: Sequence[Array],
        symbols: bytes | None = None,
    ) -> None:
        """A whole function on its inputs and then its outputs, which it fills; `state`, if it has one, moves
        on; `symbols` are the values of sizes that vary.

        Raises IndexError, ZeroDivisionError or RuntimeError.
        """
        place = 0 if state is None else state.address
        request = _words(3)(self._address, function, place) + (symbols or b"") + _pointers(buffers)
        code = self._run(request)
        if code:
            self.library.raise_error(code, state)

    def plain_call(
        self, function: int, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> PlainCall:
        """The shortest way from arrays to arrays, where small models spend half of their time: a function
        of the inputs of a function without state and without sizes that vary.

        It raises as `run` does, and TypeError or ValueError for an input that does not fit.
        """
        count, name = len(inputs), self.library.functions[function]
        take, allocate = TensorSpec.take, TensorSpec.allocate
        run, pack = self._run, struct.Struct(f"{3 + count + len(outputs)}P").pack
        address = self._address

        def converted(values: Sequence[Any]) -> tuple[Array, ...]:
            if len(values) != count:
                raise TypeError(f"{name}: expected {count} arrays, got {len(values)}")
            buffers = [*map(take, inputs, values)]
            results = (*map(allocate, outputs),)
            buffers += results
            try:
                request = pack(address, function, 0, *map(_address_of, map(_first_byte, buffers)))
            except (TypeError, ValueError):  # see _address
                request = pack(address, function, 0, *map(_address, buffers))
            code = run(request)
            if code:
                self.library.raise_error(code)
            return results

        direct = direct_call(self.library.python_call, address, function, inputs, outputs)
        if direct is None:
            return converted
        makers = [spec.maker() for spec in outputs]

        def call(values: Sequence[Any]) -> tuple[Array, ...]:
            results = (*[make() for make in makers],)
            code = direct(*values, *results)
            if code:
                if code < 0:
                    return converted(values)
                self.library.raise_error(code)
            return results

        return call

    def run_timed(
        self,
        function: int,
        state: State,
        inputs: Sequence[Array],
        outputs: Sequence[Array],
        symbols: bytes | None = None,
        threads: int = 1,
    ) -> tuple[Array, Array]:
        """As `run`; float64[calls, 2]: start and end of every call in seconds since the first one's start,
        and float64[calls, threads, 2], the same for the threads that helped, 0 for those that did not.
        """
        count = len(self.library.calls[function])
        seconds, lanes = np.zeros((count + 1, 2), np.float64), np.zeros((count + 1, threads, 2), np.float64)
        code = self.library.run_traced(
            self._handle,
            function,
            state.address,
            _pointers(inputs),
            _pointers(outputs),
            symbols,
            seconds.ctypes.data,
            lanes.ctypes.data,
            threads,
        )
        if code:
            self.library.raise_error(code, state)
        return seconds[:-1], lanes[:-1]

    def call(self, function: int, index: int, buffers: Sequence[Array], symbols: bytes | None = None) -> None:
        """One call of a function on arrays of the caller's. Raises as `run` does."""
        code = self.library.call(self._handle, function, index, _pointers(buffers), symbols)
        if code:
            self.library.raise_error(code)


def _pointers(arrays: Sequence[Array]) -> bytes:
    """A C array of the addresses of `arrays`; ctypes passes bytes as a pointer to them."""
    return _words(len(arrays))(*map(_address, arrays))


@cache
def _words(count: int) -> Callable[..., bytes]:
    """Packs `count` words."""
    return struct.Struct(f"{count}P").pack


_address_of = ctypes.addressof
_first_byte: Callable[[Any], ctypes.c_char] = ctypes.c_char.from_buffer


def _address(array: Array) -> int:
    try:
        return _address_of(_first_byte(array))  # a quarter of the time of array.ctypes.data
    except (TypeError, ValueError):  # read-only or empty
        return int(array.ctypes.data)
