"""Layer by layer against PyTorch: the values of all taps, and the first one that is off."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checks import Expected, compare, expected_from_json
from .draw import make, sample_positions, seed_of
from .errors import PackageError
from .package import Array, Package
from .safetensors import File

# Paths that are listed by name after the table.
LISTED = 6


@dataclass(frozen=True)
class Layer:
    """The value at a module path and its largest distance from PyTorch in float64.

    `fault` says what is wrong, "" if nothing.
    """

    path: str
    type: str
    error: float
    tolerance: float
    fault: str


@dataclass(frozen=True)
class Recorded:
    """What tests/data holds about taps: flat inputs and, by module path, PyTorch's value."""

    case: str
    inputs: list[Array]
    values: dict[str, Expected]


def find_data(model: Package, folder: Path | None) -> Path:
    """`folder`, or tests/data of the project folder that the package lies in.

    Raises:
        PackageError: there is none; the text says where it comes from.
    """
    if folder is None:
        folder = model.folder.parent.parent / "tests" / "data"
        if (folder / "cases.json").is_file():
            return folder
        raise PackageError(
            "PyTorch's values of the layers are not part of an installed package: give --data FOLDER, "
            f"the folder tests/data of the project {model.folder.name} that transpile wrote"
        )
    if not (folder / "cases.json").is_file():
        raise PackageError(f"no {folder / 'cases.json'}: give the folder tests/data of the project")
    return folder


def read_recorded(model: Package, folder: Path) -> Recorded:
    """The taps recorded in `folder`. Raises PackageError if they are of another model, or missing."""
    try:
        index: dict[str, Any] = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
        arguments = [(item["name"], item["dtype"], list(item["shape"])) for item in index["inputs"]]
        taps: Mapping[str, Any] | None = index["taps"]
        if taps is None:
            raise PackageError(
                f"{folder} has no values of layers: no module of this model has one of its own"
            )
        case = next(item for item in index["cases"] if item["name"] == taps["case"])
        stored, arrays = File(folder / "inputs.safetensors"), File(folder / "taps.safetensors")
        inputs = [
            make(recipe, dtype, shape, stored)
            for recipe, (_, dtype, _), shape in zip(case["inputs"], arguments, case["shapes"], strict=True)
        ]
        values = {path: _expected(entry, arrays) for path, entry in taps["values"].items()}
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise PackageError(f"{folder} cannot be read: {type(error).__name__}: {error}") from error
    known = [(item["name"], item["dtype"], list(item["shape"])) for item in model.manifest["inputs"]]
    if known != arguments:
        raise PackageError(
            f"{folder} was recorded for another model: its inputs are {arguments}, not {known}"
        )
    return Recorded(taps["case"], inputs, values)


def _expected(entry: Mapping[str, Any], arrays: Mapping[str, Array]) -> Expected:
    positions = None
    if entry["sample"] is not None:
        size = 1
        for extent in entry["shape"]:
            size *= extent
        positions = sample_positions(seed_of(entry["name"]), size, entry["sample"])
    return expected_from_json(entry, arrays, positions)


def compare_layers(model: Package, recorded: Recorded) -> list[Layer]:
    """The layers that have a value here and a recorded one, in execution order, inner before outer ones."""
    taps: Mapping[str, Any] = model.manifest["taps"]
    order = {"input": 0, "weight": 1, "state": 1, "call": 2}

    def when(path: str) -> tuple[int, int, int, int, str]:
        item = taps[path]
        return order[item["kind"]], item["index"], item["output"], -path.count("."), path

    paths = sorted((path for path in taps if path in recorded.values), key=when)
    layers = []
    for path, value in zip(paths, model.tap_values(paths, recorded.inputs), strict=True):
        expected = recorded.values[path]
        found = compare(expected, value)
        kind = f"{expected.dtype}{list(expected.shape)}"
        layers.append(Layer(path, kind, found.max_error, expected.tolerance, found.message))
    return layers


def report(model: Package, recorded: Recorded, layers: list[Layer]) -> Iterator[str]:
    """The table, and what it says."""
    first = next((layer for layer in layers if layer.fault), None)
    rows = [("layer", "type", "error", "tolerance", "")]
    for layer in layers:
        numbers = f"{layer.error:.3g}", f"{layer.tolerance:.3g}"
        rows.append((layer.path, layer.type, *numbers, _mark(layer, first)))
    path, kind, error, tolerance, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    for row in rows:
        yield (
            f"{row[0]:{path}}  {row[1]:{kind}}  {row[2]:>{error}}  {row[3]:>{tolerance}}  {row[4]}".rstrip()
        )
    yield ""
    bad = sum(bool(layer.fault) for layer in layers)
    what = "1 layer" if len(layers) == 1 else f"{len(layers)} layers"
    verdict = "all within tolerance" if first is None else f"{bad} off, the first is {first.path!r}"
    yield f"{what} compared on case {recorded.case!r}, in execution order: {verdict}"
    if first is not None:
        yield f"  {first.fault}"
    compared = {layer.path for layer in layers}
    fused: Mapping[str, str] = model.manifest["fused"]
    if away := [path for path in fused if path not in compared]:
        yield f"{len(away)} more fused into the kernels of their neighbours: {_listed(away)}"
        yield "  transpile --taps all keeps every layer, --taps GLOB those that match"
    if missing := [path for path in recorded.values if path not in compared and path not in fused]:
        yield f"{len(missing)} recorded without a counterpart here: {_listed(missing)}"
    if new := [path for path in model.taps if path not in compared]:
        yield f"{len(new)} without a recorded value: {_listed(new)}"


def _mark(layer: Layer, first: Layer | None) -> str:
    if not layer.fault:
        return ""
    return "OFF  <- the first bad layer" if layer is first else "OFF"


def _listed(paths: list[str]) -> str:
    rest = len(paths) - LISTED
    return ", ".join(paths[:LISTED]) + (f" and {rest} more" if rest > 0 else "")
