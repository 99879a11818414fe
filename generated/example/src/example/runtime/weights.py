"""The model's weights: PyTorch's names in, the layout of the kernels out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .arguments import as_array
from .errors import WeightsError
from .host import cast, overflows
from .manifest import check_files, for_target
from .safetensors import ALIGNMENT, File, FormatError, encode, storage_dtype

Array = npt.NDArray[Any]
Prepare = Callable[[Mapping[str, Array], Mapping[str, Array], Mapping[str, Array]], None]

FLOATS = ("float16", "bfloat16", "float32", "float64")
# How the metadata of a file begins that holds weights in their final layout; the rest is a target's.
PREPARED = "transpile.prepared"
PLACE = "TRANSPILE_WEIGHTS"


class Weights(Mapping[str, Array]):
    """The prepared tensors by name: `w.conv1_weight` or `w["conv1_weight"]`.

    `file_key` tells the file that they are mapped from, as it is now, from all others; None: they have none.
    """

    file_key: tuple[int, ...] | None

    def __init__(self, tensors: Mapping[str, Array], file_key: tuple[int, ...] | None = None) -> None:
        self._tensors, self.file_key = dict(tensors), file_key

    def __getattr__(self, name: str) -> Array:
        try:
            return self._tensors[name]
        except KeyError:
            raise AttributeError(f"there are no weights called {name!r}") from None

    def __getitem__(self, name: str) -> Array:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def views(data: Array, layout: Mapping[str, Any]) -> Weights:
    """The prepared tensors in the memory or the file that holds them."""
    tensors = {}
    for name, item in layout["prepared"].items():
        dtype, start = storage_dtype(item["dtype"]), item["offset"]
        size = int(np.prod(item["shape"], dtype=np.int64)) * dtype.itemsize
        tensors[name] = data[start : start + size].view(dtype).reshape(item["shape"])
    return Weights(tensors)


def own_weights(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """The file of the weights that the package was built with: its own, or the one beside its wheel.

    Raises:
        WeightsError: the wheel was made without weights, and the folder $TRANSPILE_WEIGHTS has none either.
    """
    weights = manifest["weights"]
    path = folder / str(weights["file"])
    if path.is_file() or weights["bundle"] == "embed":
        return path
    how = "Model(weights='model.safetensors') takes a state_dict with PyTorch's names, as a file or a mapping"
    name: str | None = weights["beside"].get(path.name)
    if name is None:
        raise WeightsError(f"{manifest['name']} was installed without weights; {how}")
    place = os.environ.get(PLACE)
    if place and (Path(place) / name).is_file():
        return Path(place) / name
    looked = f"${PLACE} names no folder that has them"
    if place:
        looked = f"the folder {PLACE}={place} has no {name}"
    raise WeightsError(
        f"{manifest['name']} was installed without its weights, and {looked}; "
        f"Model(weights='{name}') takes the file that was made with the wheel; {how}"
    )


def map_prepared(path: Path, layout: Mapping[str, Any]) -> tuple[Array, Weights]:
    """The data section of a prepared file, mapped, and its tensors; only header and size are checked.

    Raises:
        WeightsError: the file is missing, damaged, or was prepared for another model.
    """
    if not path.exists():
        raise WeightsError(f"{path} is missing; give the weights: Model(weights='weights.safetensors')")
    try:
        file = File(path)
    except (FormatError, OSError) as error:
        raise WeightsError(str(error)) from error
    for name, item in layout["prepared"].items():
        entry = file.entries.get(stored_name(name, item))  # a file may have more, for other targets
        expected = (item["dtype"], tuple(item["shape"]), item["offset"])
        if entry is None or (entry.dtype, entry.shape, entry.start) != expected:
            raise WeightsError(f"{path} does not hold the tensors that this model's kernels read")
    if file.data.nbytes < layout["bytes"] or file.data.ctypes.data % ALIGNMENT:
        raise WeightsError(f"{path} does not hold the tensors that this model's kernels read")
    # Tensors of the same shapes may have been made in another way, such as with another epsilon.
    if file.metadata.get(layout["mark"]) != layout["key"]:
        made = sorted(value for mark, value in file.metadata.items() if mark.startswith(PREPARED))
        raise WeightsError(f"{path} was prepared for {', '.join(made) or 'nothing'}, not for {layout['key']}")
    weights = views(file.data, layout)
    weights.file_key = file.key
    return file.data, weights


def stored_name(name: str, item: Mapping[str, Any]) -> str:
    """What a prepared tensor is called in a file, which other targets may share."""
    return str(item.get("stored", name))


def write_prepared(
    path: str | os.PathLike[str], parts: Iterable[tuple[Mapping[str, Any], Mapping[str, Array]]]
) -> None:
    """A file that `map_prepared` takes, of (layout, weights) for one target or several.

    It gets its name when it is whole. Raises OSError.
    """
    tensors: dict[str, Array] = {}
    dtypes, offsets, metadata = {}, {}, {}
    total = 0
    for layout, weights in parts:
        for name, item in layout["prepared"].items():
            stored = stored_name(name, item)
            tensors[stored] = weights[name]
            dtypes[stored], offsets[stored] = item["dtype"], item["offset"]
        metadata[layout["mark"]] = layout["key"]
        total = max(total, layout["bytes"])
    content = encode(tensors, dtypes=dtypes, offsets=offsets, total=total, metadata=metadata)
    target = Path(path)
    part = target.with_name(f".{target.name}.part")
    try:
        part.write_bytes(content)
        os.replace(part, target)  # models that have mapped an older one keep it
    finally:
        part.unlink(missing_ok=True)


def read_state(source: str | os.PathLike[str] | Mapping[str, Any]) -> Mapping[str, Any]:
    """A state_dict: a mapping as it is, or a safetensors file, mapped.

    Raises:
        TypeError: it is neither.
        FileNotFoundError: there is no such file.
        WeightsError: it cannot be read.
    """
    if isinstance(source, Mapping):
        return source
    if not isinstance(source, str | os.PathLike):
        kind = type(source).__name__
        raise TypeError(f"expected a mapping or the path of a safetensors file, got {kind}")
    path = Path(source)
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        raise WeightsError(
            f"{path}: pickled weights are not read here; in PyTorch, save them with "
            "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        )
    try:
        return File(path)
    except FileNotFoundError:
        raise
    except (FormatError, OSError) as error:
        raise WeightsError(str(error)) from error


def read_constants(folder: Path, manifest: Mapping[str, Any]) -> Mapping[str, Array]:
    """What `prepare` reads besides the state_dict. Raises PackageError: the file is damaged."""
    name = manifest["weights"]["constants"]
    if name is None:
        return {}
    path = folder / name
    check_files(folder, manifest, lambda file: file == path)
    return File(path)


def prepare_state(
    state: Mapping[str, Any],
    layout: Mapping[str, Any],
    prepare: Prepare,
    constants: Mapping[str, Array],
    current: Mapping[str, Array] | None,
) -> tuple[Array, Weights]:
    """A new buffer in the kernels' layout from a state_dict; with `current`, missing keys keep its values.

    Everything is checked first. Then the buffer is filled tensor by tensor: what is held besides it is one of
    them, whether its dtype is cast or not.

    Raises:
        WeightsError: lists every missing, unexpected and mismatched key.
    """
    given, missing = _given(state, layout, strict=current is None)
    memory = np.zeros(layout["bytes"] + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    data = memory[start : start + layout["bytes"]]
    weights = views(data, layout)
    prepare(given, constants, weights)
    _check_range(given, weights, layout)
    if current is not None:
        for name, item in layout["prepared"].items():
            if item["keys"] and missing.issuperset(item["keys"]):
                weights[name][...] = current[name]
    data.flags.writeable = False
    for name in weights:
        weights[name].flags.writeable = False
    return data, weights


def _check_range(given: _Given, weights: Weights, layout: Mapping[str, Any]) -> None:
    """Raises WeightsError for finite weights that are infinite as the half floats that they are stored as."""
    for name, item in layout["prepared"].items():
        # Constants were looked at when the package was made.
        finite = item["keys"] and all(given.is_finite(key) for key in item["keys"])
        if finite and overflows(weights[name], item["dtype"]):
            keys = ", ".join(item["keys"])
            raise WeightsError(f"{keys}: out of the range of {item['dtype']}, which the package keeps it in")


def prepare_file(
    folder: Path,
    package: Mapping[str, Any],
    plans: Mapping[str, Prepare],
    source: str | os.PathLike[str] | Mapping[str, Any],
    path: str | os.PathLike[str],
) -> None:
    """As `write_prepared`, from what `read_state` takes or from such a file.

    `plans` are targets of the package and how they `prepare`.

    Raises:
        WeightsError: as `prepare_state`.
        OSError: the file cannot be written.
    """
    prepared = None if isinstance(source, Mapping) or not is_prepared(Path(source)) else Path(source)
    state = {} if prepared is not None else read_state(source)
    parts = []
    for target, prepare in plans.items():
        manifest = for_target(package, target)
        layout = manifest["weights"]
        if prepared is not None:
            _, weights = map_prepared(prepared, layout)
        else:
            _, weights = prepare_state(state, layout, prepare, read_constants(folder, manifest), None)
        parts.append((layout, weights))
    write_prepared(path, parts)


def _on_host(value: Any) -> Any:
    """A tensor on a device as its library copies it to the host: PyTorch's `cpu`, CuPy's `get`, JAX's
    `__array__`; everything else as it is."""
    where = getattr(value, "__dlpack_device__", None)
    if where is None or where()[0] in (1, 3):  # kDLCPU, kDLCUDAHost
        return value
    copy = getattr(value, "cpu", None) or getattr(value, "get", None) or partial(np.asarray, value)
    return copy()


class _Tensor:
    """A tensor that was given: bfloat16 is `bits` (uint16), everything else is `array`, or both."""

    def __init__(self, key: str, state: Mapping[str, Any]) -> None:
        if isinstance(state, File):
            entry = state.entries[key]
            self.dtype, self.shape = entry.dtype, entry.shape
            self.array = state.bits(key)
        else:
            array = as_array(_on_host(state[key]), key)
            self.dtype, self.shape = array.dtype.name, array.shape
            self.array = array.view(np.uint16) if self.dtype == "bfloat16" else array

    def fault(self, wanted: Mapping[str, Any]) -> str:
        """How it does not fit; empty if it does."""
        castable = self.dtype in FLOATS and wanted["dtype"] in FLOATS  # as PyTorch's load_state_dict casts
        if list(self.shape) == list(wanted["shape"]) and (self.dtype == wanted["dtype"] or castable):
            return ""
        return f"expected {_type(wanted)}, got {_type({'dtype': self.dtype, 'shape': self.shape})}"

    def take(self, dtype: str) -> Array:
        return self.array if self.dtype == dtype else cast(self.array, dtype)

    def same(self, other: _Tensor) -> bool:
        """Whether two have the same content, without copies of it."""
        if self.dtype != other.dtype or self.shape != other.shape:
            return False
        mine, theirs = self.array, other.array
        if mine.ctypes.data == theirs.ctypes.data and mine.strides == theirs.strides:
            return True
        rows = zip(mine, theirs, strict=True) if mine.ndim else [(mine, theirs)]
        return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in rows)


class _Given(Mapping[str, Array]):
    """What `prepare` reads: a tensor is cast when it is asked for; one that is missing is zeros."""

    def __init__(self, tensors: Mapping[str, _Tensor], keys: Mapping[str, Any]) -> None:
        self._tensors, self._keys = tensors, keys

    def __getitem__(self, key: str) -> Array:
        wanted = self._keys[key]
        if key in self._tensors:
            return self._tensors[key].take(wanted["dtype"])
        return np.zeros(wanted["shape"], storage_dtype(wanted["dtype"]))

    def is_finite(self, key: str) -> bool:
        array = cast(self[key], "float32") if "float" in self._keys[key]["dtype"] else np.zeros(0)
        return bool(np.isfinite(array).all())

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def _given(state: Mapping[str, Any], layout: Mapping[str, Any], *, strict: bool) -> tuple[_Given, set[str]]:
    """The tensors of a state_dict by the keys that are stored, and the keys that are missing.

    Raises:
        WeightsError: as `prepare_state`.
    """
    keys: Mapping[str, Any] = layout["keys"]
    aliases: Mapping[str, str] = layout["aliases"]
    ignored = set(layout["unused"])
    tensors: dict[str, _Tensor] = {}
    origin: dict[str, str] = {}
    faults, unexpected = [], []
    for key in state:
        if not isinstance(key, str):
            unexpected.append(repr(key))
            continue
        stored = aliases.get(key, key)
        if stored not in keys:
            if not (key in aliases or key in ignored or key.endswith("num_batches_tracked")):
                unexpected.append(key)
            continue
        try:
            tensor = _Tensor(key, state)
        except TypeError as error:
            faults.append(f"  mismatched: {error}")
            origin.setdefault(stored, key)
            continue
        fault = tensor.fault(keys[stored])
        if fault:
            faults.append(f"  mismatched: {key}: {fault}")
        elif stored in tensors and not tensor.same(tensors[stored]):
            faults.append(f"  mismatched: {origin[stored]} and {key} are one tensor of the model, but differ")
        else:
            tensors.setdefault(stored, tensor)
        origin.setdefault(stored, key)
    missing = [key for key in keys if key not in origin]
    if strict:
        faults = [f"  missing: {key} {_type(keys[key])}" for key in missing] + faults
        faults += [f"  unexpected: {key}" for key in sorted(unexpected)]
    else:
        faults += _half_given(layout, set(missing))
    if faults:
        raise WeightsError("\n".join(["the weights do not fit the model:", *faults]))
    return _Given(tensors, keys), set(missing)


def _half_given(layout: Mapping[str, Any], missing: set[str]) -> list[str]:
    """A tensor made of several keys can only be replaced if all of them are given."""
    faults = []
    for item in layout["prepared"].values():
        absent = [key for key in item["keys"] if key in missing]
        if absent and len(absent) < len(item["keys"]):
            faults.append(f"  missing: {', '.join(absent)} (merged with {_others(item['keys'], absent)})")
    return list(dict.fromkeys(faults))


def _others(keys: list[str], absent: list[str]) -> str:
    return ", ".join(key for key in keys if key not in absent)


def _type(item: Mapping[str, Any]) -> str:
    return f"{item['dtype']}{list(item['shape'])}"


def is_prepared(path: Path) -> bool:
    """Whether the file has weights in the layout of the kernels."""
    try:
        return any(mark.startswith(PREPARED) for mark in File(path).metadata)
    except (FormatError, OSError):
        return False
