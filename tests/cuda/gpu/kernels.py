"""Whether kernels are right on the device: every kernel of a folder on several sets of inputs, against float64. Starts
without PyTorch, for NVIDIA's checkers, under which everything takes long."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tests.conformance.compare import check
from tests.cuda.gpu.calls import TOGETHER, Calls
from tests.cuda.gpu.products import CASES, Expected

Array = npt.NDArray[Any]
REPLAYS = 100
SETS = 3
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
KEPT = "cases.npz"  # beside the kernels whose inputs and references are kept, not drawn


@dataclass(frozen=True)
class Given:
    """Inputs of a kernel and what it gives for them: drawn here, or kept (in float32 and in float64)."""

    inputs: Sequence[Array]
    drawn: Expected | None
    kept: tuple[Sequence[Array], Sequence[Array]] | None

    @property
    def like(self) -> list[Array]:
        if self.kept is not None:
            return list(self.kept[0])
        assert self.drawn is not None
        return [self.drawn.exact.astype(self.inputs[0].dtype)]

    def problems(self, name: str, got: Sequence[Array]) -> list[str]:
        if self.drawn is not None:
            return [f"{name}: {text}" for text in self.drawn.problems(got[0])]
        assert self.kept is not None
        found = zip(got, *self.kept, strict=True)
        return [text for one, single, double in found for text in check(name, one, single, double)]


def folders(work: Path) -> list[Path]:
    """The folders of kernels, by name."""
    root = work / "kernels"
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def family(folder: Path, turns: int = REPLAYS, *, poisoned: bool = True, seed: int | None = None) -> list[str]:
    """What is wrong with the kernels of a folder: results against float64 in the first, the second and the last turn,
    each with inputs of its own; other bits in turns between and in two threads at once."""
    calls = Calls(folder)
    seed = time.time_ns() if seed is None else seed
    own = kept(folder / KEPT)
    problems = []
    for name, entry in calls.facts["calls"].items():
        sets = _drawn(entry, seed) if "case" in entry else own[name]
        problems += _kernel(calls, name, sets, turns, poisoned)
    return problems


def _kernel(calls: Calls, name: str, sets: Sequence[Given], turns: int, poisoned: bool) -> list[str]:
    known: dict[int, list[bytes]] = {}
    problems: list[str] = []
    like, inputs = sets[0].like, [item.inputs for item in sets]
    for turn, (number, got) in enumerate(calls.turns(name, inputs, like, max(turns, len(sets)), poisoned=poisoned)):
        data = [array.tobytes() for array in got]
        if number not in known:
            problems += sets[number].problems(f"{name}, turn {turn + 1}", got)
        elif known[number] != data:
            problems.append(f"{name}: turn {turn + 1} gives other bits than one before it with the same inputs")
        known[number] = data
        if problems:
            return problems
    pair = (0, min(1, len(sets) - 1))
    if turns > 1:
        found = calls.at_once(name, [inputs[number] for number in pair], like)
        if found != [[known[number]] * TOGETHER for number in pair]:
            problems.append(f"{name}: two threads at once give other bits than one")
    return problems


_last: dict[tuple[str, str, int], list[Given]] = {}


def _drawn(entry: Mapping[str, Any], seed: int) -> list[Given]:
    """Inputs that nobody has seen before; the same for all tiles of a case."""
    case = CASES[entry["case"]].of(entry["kind"])
    key = (entry["case"], entry["kind"], seed)
    if key not in _last:
        _last.clear()
        rng = np.random.default_rng([seed, zlib.crc32(entry["case"].encode())])
        drawn = [case.draw(rng) for _ in range(SETS)]
        _last[key] = [Given(inputs, case.expected(inputs), None) for inputs in drawn]
    return _last[key]


def keep(file: Path, kept: Mapping[str, Sequence[Mapping[str, Sequence[Array]]]]) -> None:
    """Write the sets of inputs of kernels, by name, with their results in float32 ("single") and float64 ("double").
    What is written of the latter is how far it is from the former: that takes half as much."""
    arrays = {
        f"{name}/{number}/{kind}/{place}/{array.dtype}": array.view(np.uint16) if array.dtype == BFLOAT16 else array
        for name, sets in kept.items()
        for number, one in enumerate(sets)
        for kind, found in {**one, "double": list(map(_off, one["single"], one["double"]))}.items()
        for place, array in enumerate(found)
    }
    np.savez_compressed(file, **arrays)


def _off(single: Array, double: Array) -> Array:
    with np.errstate(all="ignore"):
        wide = _is_single(single)
        return (double.astype(np.float64) - single.astype(np.float64)).astype(np.float32) if wide else double


def _double(single: Array, off: Array) -> Array:
    with np.errstate(all="ignore"):
        return single.astype(np.float64) + off if _is_single(single) else off


def _is_single(array: Array) -> bool:
    return array.dtype == BFLOAT16 or (array.dtype.kind == "f" and array.itemsize <= 4)


def kept(file: Path) -> dict[str, list[Given]]:
    """What `keep` wrote."""
    found: dict[str, dict[int, dict[str, list[Array]]]] = {}
    if file.exists():
        for key, array in np.load(file).items():
            name, number, kind, _place, dtype = key.split("/")
            by_kind = found.setdefault(name, {}).setdefault(int(number), {"input": [], "single": [], "double": []})
            by_kind[kind].append(array.view(BFLOAT16) if dtype == "bfloat16" else array)

    def given(one: Mapping[str, list[Array]]) -> Given:
        return Given(one["input"], None, (one["single"], list(map(_double, one["single"], one["double"]))))

    return {name: [given(one) for one in sets.values()] for name, sets in found.items()}


def families(work: Path, names: Sequence[str], *, poisoned: bool) -> Iterator[list[str]]:
    """Every folder of `names`, its kernels a few times; lines tell where it is, whatever happens next."""
    for name in names:
        print(json.dumps({"begins": name}), flush=True)
        problems = family(work / "kernels" / name, 1, poisoned=poisoned)
        print(json.dumps({"ends": name, "problems": problems}), flush=True)
        yield problems
