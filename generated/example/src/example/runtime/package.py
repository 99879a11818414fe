"""The base of a generated `Model`: loading, checked calls, weights, taps."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from .arguments import TensorSpec, check_names, flatten
from .errors import PackageError, TapError, WeightsError
from .host import unblock
from .native import KernelLibrary, Library, Session, choose_isa, default_threads
from .safetensors import File, FormatError
from .sizes import Shape, Sizes, Symbols
from .weights import PREPARED, Weights, map_prepared, prepare_state, read_state

Array = npt.NDArray[Any]

FORMAT = 2


class Package:
    """A model: call it with arrays, get arrays.

    Args:
        weights: None for the package's own; a safetensors file or a mapping with PyTorch's state_dict names.
        threads: how many threads a call may use; by default all processors that this process may use.
        device: None or "cpu".
        native: False runs `forward` kernel by kernel instead of the native plan; the bits are the same.
        verify: also hash the weights, which reads the whole file.

    Raises:
        PackageError: the package is damaged or cannot run on this machine.
        WeightsError: the weights do not fit.
    """

    folder: ClassVar[Path]
    kernels: ClassVar[type[KernelLibrary]]

    @staticmethod
    def prepare(state: Mapping[str, Array], constants: Mapping[str, Array]) -> dict[str, Array]:
        """The tensors that the kernels read. The generated model sets it to its own `prepare.prepare`."""
        raise NotImplementedError

    def __init__(
        self,
        weights: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        *,
        threads: int | None = None,
        device: str | None = None,
        native: bool = True,
        verify: bool = False,
    ) -> None:
        if device not in (None, "cpu"):
            raise ValueError(f"device: this package has kernels for cpu only, got {device!r}")
        self._threads = _checked_threads(threads)
        self.native = native
        self.manifest = read_manifest(self.folder)
        self.isa = choose_isa(self.manifest["isas"], self.manifest["machine"])
        name = self.manifest["name"]
        library = self.folder / "kernels" / "cpu" / self.isa / f"{name}.so"
        check_files(self.folder, self.manifest, lambda file: file.suffix == ".py" or file == library)
        self._library = Library(library, f"{name}_{self.isa}_")
        self._inputs = tuple(
            TensorSpec(item["name"], item["dtype"], item["shape"]) for item in self.manifest["inputs"]
        )
        self._outputs = tuple(
            TensorSpec(item["name"], item["dtype"], item["shape"]) for item in self.manifest["outputs"]
        )
        self._symbols = Symbols(
            self.manifest["symbols"],
            [(spec.name, spec.varying or Shape(spec.shape)) for spec in self._inputs],
        )
        self._session: Session | None = None
        path = self.folder / "weights.cpu.safetensors"
        if isinstance(weights, str | os.PathLike) and _is_prepared(Path(weights)):
            path, weights = Path(weights), None
        if weights is None:
            if verify:
                check_files(self.folder, self.manifest, lambda file: True)
            self._open(*map_prepared(path, self.manifest["weights"]))
        else:
            self.load_weights(weights)

    # --- running ------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Array, ...]:
        """The flat outputs from kernels, weights and the flat inputs. The generated model overrides it."""
        raise NotImplementedError

    def infer(self, *inputs: Any) -> tuple[Array, ...]:
        """The flat outputs for the flat inputs.

        Raises:
            TypeError, ValueError: an input that does not fit the signature.
            IndexError: an index (of an embedding, a gather) is out of bounds.
        """
        session = self._running()
        arrays, sizes, symbols = self._take(inputs)
        if not self.native:
            kernels = self.kernels(session, None, sizes, symbols)
            outputs = self.forward(kernels, Weights(session.weights), *arrays)
        else:
            outputs = tuple([spec.allocate(sizes) for spec in self._outputs])
            session.run(arrays, outputs, symbols)
        if self._has_bfloat16:
            return tuple(spec.give(array) for spec, array in zip(self._outputs, outputs, strict=True))
        return outputs

    def _take(self, inputs: Iterable[Any]) -> tuple[list[Array], Sizes, bytes | None]:
        """The checked arrays of a call, and the sizes that vary, by name and for the library."""
        arrays = [spec.take(value) for spec, value in zip(self._inputs, inputs, strict=True)]
        if not self._symbols.all:
            return arrays, {}, None
        sizes = self._symbols.bind(arrays)
        return arrays, sizes, self._symbols.packed(sizes)

    @cached_property
    def _has_bfloat16(self) -> bool:
        return any(spec.dtype == "bfloat16" for spec in self._outputs)

    def flatten(self, arguments: Mapping[str, Any]) -> list[Any]:
        """The flat inputs of nested arguments, in order; wrong nesting is a TypeError or ValueError."""
        flat: list[Any] = [None] * len(self._inputs)
        structures: Mapping[str, Any] = self.manifest["arguments"]
        check_names("arguments", structures, arguments)
        for name, value in arguments.items():
            flatten(structures[name], value, name, flat.__setitem__)
        return flat

    def profile(self, *inputs: Any) -> list[tuple[str, float]]:
        """One native run on flat inputs: (kernel, seconds) of every call, in order."""
        session = self._running()
        arrays, sizes, symbols = self._take(inputs)
        seconds = session.run_timed(arrays, [spec.allocate(sizes) for spec in self._outputs], symbols)
        return list(zip(self._library.calls, seconds.tolist(), strict=True))

    # --- weights ------------------------------------------------------------------------------------------

    def load_weights(self, weights: str | os.PathLike[str] | Mapping[str, Any], strict: bool = True) -> None:
        """Use other weights, given by PyTorch's state_dict names. Running calls finish on the old ones.

        With `strict=False` unexpected keys are ignored and missing ones keep their values.

        Raises:
            WeightsError: lists every missing, unexpected and mismatched key; the old weights stay.
        """
        current = None
        if not strict:
            current = self._session.weights if self._session else None
            if current is None:
                raise WeightsError("strict=False keeps the values of missing keys, but there are none yet")
        state = read_state(weights)
        self._open(*prepare_state(state, self.manifest["weights"], self.prepare, self._constants, current))

    def _open(self, data: Array, weights: Weights) -> None:
        # One assignment swaps them: a running call holds the session that it started with.
        self._session = Session(self._library, data, weights, self._threads)

    @cached_property
    def _constants(self) -> Mapping[str, Array]:
        path = self.folder / "constants.safetensors"
        check_files(self.folder, self.manifest, lambda file: file == path)
        return File(path) if path.is_file() else {}

    # --- intermediate values ------------------------------------------------------------------------------

    @property
    def taps(self) -> list[str]:
        """The PyTorch module paths whose outputs exist as values of their own, sorted."""
        return sorted(self.manifest["taps"])

    def tap(self, path: str) -> Callable[..., Array]:
        """A function of the model's arguments that returns the output of the PyTorch module at `path`.

        Raises:
            TapError: there is no such value; the text names the nearest one that exists.
        """
        taps: Mapping[str, Any] = self.manifest["taps"]
        if path not in taps:
            nearest: str | None = self.manifest["fused"].get(path)
            if nearest is not None:
                raise TapError(f"{path!r} was fused with its neighbours; the nearest value is {nearest!r}")
            close = difflib.get_close_matches(path, [*taps, *self.manifest["fused"]], n=3)
            hint = f"; close: {', '.join(map(repr, close))}" if close else "; see model.taps"
            raise TapError(f"the model has no value {path!r}{hint}")

        def run(*args: Any, **kwargs: Any) -> Array:
            (value,) = self.tap_values([path], self._bind(*args, **kwargs))
            return value

        return run

    def _bind(self, *args: Any, **kwargs: Any) -> list[Any]:
        """The flat inputs of a call. The generated model overrides it with its own signature."""
        raise NotImplementedError

    def tap_values(self, paths: Sequence[str], inputs: Sequence[Any]) -> list[Array]:
        """The outputs of the modules at `paths` (members of `taps`) for flat inputs, from one run."""
        session = self._running()
        arrays, sizes, symbols = self._take(inputs)
        tape: list[tuple[Array, ...]] = []
        self.forward(self.kernels(session, tape, sizes, symbols), Weights(session.weights), *arrays)
        values = []
        for item in (self.manifest["taps"][path] for path in paths):
            match item["kind"]:
                case "input":
                    value = arrays[item["index"]]
                case "weight":
                    value = session.weights[item["value"]]
                case _:
                    value = tape[item["index"]][item["output"]]
            if item["blocked_channels"] is not None:
                value = unblock(value, item["blocked_channels"])
            shape = Shape(item["shape"]).at(sizes)
            values.append(
                np.array(TensorSpec(item["value"], item["dtype"], shape).give(value.reshape(shape)))
            )
        return values

    # --- resources ----------------------------------------------------------------------------------------

    @property
    def threads(self) -> int:
        """How many threads a call may use; may be set at any time."""
        return self._threads

    @threads.setter
    def threads(self, count: int | None) -> None:
        self._threads = _checked_threads(count)
        if self._session is not None:
            self._session.set_threads(self._threads)

    def close(self) -> None:
        """Give the memory back; later calls raise RuntimeError. Calls that are running finish."""
        self._session = None

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _running(self) -> Session:
        session = self._session
        if session is None:
            raise RuntimeError("the model is closed")
        return session


def _checked_threads(threads: int | None) -> int:
    if threads is None:
        return default_threads()
    if isinstance(threads, bool) or not isinstance(threads, int):
        raise TypeError(f"threads: expected an int, got {type(threads).__name__}")
    if threads < 1:
        raise ValueError(f"threads: expected at least 1, got {threads}")
    return threads


def _is_prepared(path: Path) -> bool:
    try:
        return PREPARED in File(path).metadata
    except (FormatError, OSError):
        return False


def read_manifest(folder: Path) -> dict[str, Any]:
    """The package's manifest. Raises PackageError if it is missing, damaged or of a newer format."""
    path = folder / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PackageError(f"{path} is missing or damaged: {error}") from error
    if version != FORMAT:
        raise PackageError(f"{path} has format {version}; this runtime reads format {FORMAT}")
    return manifest


def check_files(folder: Path, manifest: Mapping[str, Any], wanted: Callable[[Path], bool]) -> int:
    """Compare the files that `wanted` picks with the manifest's hashes; how many there were.

    Raises:
        PackageError: names every file that is missing or was changed.
    """
    faults, count = [], 0
    for name, expected in manifest["files"].items():
        file = folder / name
        if not wanted(file):
            continue
        count += 1
        try:
            actual = _sha256(file)
        except OSError:
            faults.append(f"{file} is missing")
            continue
        if actual != expected:
            faults.append(f"{file} was changed")
    if faults:
        raise PackageError("the package is damaged (its hashes are in manifest.json): " + "; ".join(faults))
    return count


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
