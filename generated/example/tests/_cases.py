"""PyTorch's recorded inputs and outputs, and how they nest in the arguments and results of the model's functions."""

from __future__ import annotations

import json
import struct
from collections import namedtuple
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from _checks import Expected, expected_from_json
from _draw import make, sample_positions, seed_of

Array = np.ndarray[Any, np.dtype[Any]]

DATA = Path(__file__).parent / "data"

_SAFETENSORS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32", "I16": "int16",
    "I8": "int8", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool",
}  # fmt: skip


def read_safetensors(path: Path) -> dict[str, Array]:
    """Every tensor of a safetensors file: an 8-byte header length, a JSON header, the data."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    arrays: dict[str, Array] = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            raw = np.frombuffer(data[8 + length + begin : 8 + length + end], _SAFETENSORS[entry["dtype"]])
            arrays[name] = raw.reshape(entry["shape"])
    return arrays


def write_safetensors(path: Path, arrays: Mapping[str, Array]) -> None:
    """The inverse of `read_safetensors`."""
    codes = {value: key for key, value in _SAFETENSORS.items()}
    header: dict[str, Any] = {}
    body = b""
    for name, array in arrays.items():
        raw = array.tobytes()
        offsets = [len(body), len(body) + len(raw)]
        header[name] = {"dtype": codes[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        body += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


@dataclass(frozen=True)
class Argument:
    """A flat input of the model; sizes that vary are texts."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def shape_text(self) -> str:
        """The shape as messages spell it."""
        inside = ", ".join(map(str, self.shape))
        return f"({inside},)" if len(self.shape) == 1 else f"({inside})"


@dataclass(frozen=True)
class Case:
    """One set of inputs of a function, as recipes, and PyTorch's outputs for them: of a call from the initial state."""

    function: Function
    name: str
    recipes: tuple[Mapping[str, Any], ...]
    shapes: tuple[tuple[int, ...], ...]
    output_entries: tuple[Mapping[str, Any], ...]
    state_entries: tuple[Mapping[str, Any], ...]

    def __str__(self) -> str:
        return self.name if self.function is CASES else f"{self.function}-{self.name}"

    def inputs(self) -> list[Array]:
        """Fresh arrays, one per flat input."""
        given = zip(self.recipes, self.function.arguments, self.shapes, strict=True)
        stored = self.function.stored_inputs
        return [make(recipe, item.dtype, shape, stored) for recipe, item, shape in given]

    def outputs(self) -> list[Expected]:
        return [expected(entry, self.function.stored_outputs) for entry in self.output_entries]

    def states(self) -> list[Expected]:
        """What the call leaves in the state, in the order of `Function.state`."""
        return [expected(entry, self.function.stored_outputs) for entry in self.state_entries]

    def run(self, model: Any) -> list[Any]:
        """The flat outputs of the model, from its initial state."""
        return self.function.run(model, self.inputs())


def expected(entry: Mapping[str, Any], arrays: Mapping[str, Array]) -> Expected:
    """The recorded tensor of an entry of cases.json."""
    positions = None
    if entry["sample"] is not None:
        size = int(np.prod(entry["shape"], dtype=np.int64))
        positions = sample_positions(seed_of(entry["name"]), size, entry["sample"])
    return expected_from_json(entry, arrays, positions)


class Function:
    """What was recorded of one function of the model, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.index["function"])

    @cached_property
    def index(self) -> Any:
        return json.loads((self.folder / "cases.json").read_text())

    @cached_property
    def stored_inputs(self) -> dict[str, Array]:
        return read_safetensors(self.folder / "inputs.safetensors")

    @cached_property
    def stored_outputs(self) -> dict[str, Array]:
        return read_safetensors(self.folder / "outputs.safetensors")

    @cached_property
    def state(self) -> list[str]:
        """The names of what the model keeps between calls, in order."""
        return list(self.index["state"])

    @cached_property
    def arguments(self) -> list[Argument]:
        return [Argument(item["name"], item["dtype"], tuple(item["shape"])) for item in self.index["inputs"]]

    @cached_property
    def all(self) -> list[Case]:
        return [
            Case(
                self,
                item["name"],
                tuple(item["inputs"]),
                tuple(map(tuple, item["shapes"])),
                tuple(item["outputs"]),
                tuple(item["state"]),
            )
            for item in self.index["cases"]
        ]

    def case(self, name: str) -> Case:
        return next(case for case in self.all if case.name == name)

    @cached_property
    def taps(self) -> dict[str, Any]:
        """Module path -> entry of its recorded value."""
        return dict(self.index["taps"]["values"]) if self.index["taps"] else {}

    @cached_property
    def tap_arrays(self) -> dict[str, Array]:
        return read_safetensors(self.folder / "taps.safetensors")

    @cached_property
    def weight_arrays(self) -> dict[str, Array]:
        return read_safetensors(self.folder / "weights.safetensors")

    def new_state(self) -> dict[str, Array]:
        """The redrawn state_dict that the recorded reload used."""
        entries = self.index["reload"]["weights"]
        return {
            key: make(item["recipe"], item["dtype"], item["shape"], self.weight_arrays)
            for key, item in entries.items()
        }

    def of(self, model: Any) -> Any:
        """The function of the model as it is called."""
        return model if str(self) == "forward" else getattr(model, str(self))

    def call(self, model: Any, flat: Sequence[Any]) -> Any:
        """The result for flat inputs, nested as the signature wants them; from the initial state."""
        return self.call_on(self.fresh(model), flat)

    def fresh(self, model: Any) -> Any:
        """The model in its initial state."""
        return model.session() if self.state else model

    def call_on(self, model: Any, flat: Sequence[Any]) -> Any:
        """As `call`, from the state that the model has; on the random numbers of the recorded results."""
        if CASES.index["random"]:
            model.seed(0)
        args, kwargs = nest(self.index["in_structure"], flat)
        return self.of(model)(*args, **kwargs)

    def run(self, model: Any, flat: Sequence[Any]) -> list[Any]:
        """The flat outputs from the initial state; asserts that they nest as PyTorch's do."""
        return list(flatten(self.index["out_structure"], self.call(model, flat), "result"))

    def run_on(self, model: Any, flat: Sequence[Any]) -> list[Any]:
        """As `run`, from the state that the model has."""
        return list(flatten(self.index["out_structure"], self.call_on(model, flat), "result"))

    def tap(self, model: Any, path: str, flat: Sequence[Any]) -> Any:
        """The value at a module path in a call of the function."""
        if CASES.index["random"]:
            model.seed(0)
        args, kwargs = nest(self.index["in_structure"], flat)
        chosen = model.tap(path) if self is CASES else model.tap(path, str(self))
        return chosen(*args, **kwargs)


# The main function, and all of them.
CASES = Function(DATA)
FUNCTIONS = [CASES, *(Function(DATA / name) for name in CASES.index["functions"])]
ALL = [case for function in FUNCTIONS for case in function.all]


def nest(structure: Any, flat: Sequence[Any]) -> Any:
    """Flat tensors as nested arguments."""
    match structure:
        case {"leaf": index}:
            return flat[index]
        case {"literal": value}:
            return value
        case {"tuple": items}:
            return tuple(nest(item, flat) for item in items)
        case {"list": items}:
            return [nest(item, flat) for item in items]
        case {"dict": items} | {"record": items}:
            return {key: nest(item, flat) for key, item in items}
        case {"namedtuple": items, "type": name}:
            return namedtuple(name, [key for key, _ in items])(*(nest(item, flat) for _, item in items))
    raise ValueError(f"not a structure: {structure!r}")


def flatten(structure: Any, value: Any, where: str) -> Iterator[Any]:
    """The tensors of a nested result in order; asserts that it nests as `structure` says."""
    match structure:
        case {"leaf": _}:
            yield value
        case {"literal": literal}:
            assert value == literal, f"{where}: expected {literal!r}, got {value!r}"
        case {"tuple": items} | {"list": items}:
            kind = tuple if "tuple" in structure else list
            assert isinstance(value, kind), f"{where}: expected a {kind.__name__}, got {type(value).__name__}"
            assert len(value) == len(items), f"{where}: expected {len(items)} items, got {len(value)}"
            for index, item in enumerate(items):
                yield from flatten(item, value[index], f"{where}[{index}]")
        case {"dict": items}:
            assert isinstance(value, dict), f"{where}: expected a dict, got {type(value).__name__}"
            keys = [key for key, _ in items]
            assert list(value) == keys, f"{where}: expected the keys {keys}, got {list(value)}"
            for key, item in items:
                yield from flatten(item, value[key], f"{where}[{key!r}]")
        case {"namedtuple": items, "type": name}:
            assert isinstance(value, tuple), f"{where}: expected a {name}, got {type(value).__name__}"
            assert type(value).__name__ == name, f"{where}: expected a {name}, got {type(value).__name__}"
            for (key, item), part in zip(items, value, strict=True):
                yield from flatten(item, part, f"{where}.{key}")
        case {"record": items, "type": name}:
            assert type(value).__name__ == name, f"{where}: expected a {name}, got {type(value).__name__}"
            for key, item in items:
                yield from flatten(item, value[key], f"{where}.{key}")
        case _:
            raise ValueError(f"not a structure: {structure!r}")


def same_bits(left: Sequence[Array], right: Sequence[Array]) -> bool:
    """Equal dtypes, shapes and bytes: NaN equals NaN, 0.0 does not equal -0.0."""
    return len(left) == len(right) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(left, right, strict=True)
    )
