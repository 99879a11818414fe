"""The timing sweep: kernel variants compiled, timed on this machine, the fastest kept in a cache and in a record.

What can vary are the choice points of the schedules (`transpiler.choices`). Points are settled one after the other:
all variants of a point of all kernels go into one library, their calls are interleaved, the minimum counts, and a
variant replaces the default only if it is clearly faster. Results are kept per machine in a cache addressed by what
they depend on, so that shapes met before cost nothing.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from transpiler.backends import backend
from transpiler.choices import Point
from transpiler.dims import Dim
from transpiler.errors import TranspileError, UsageError
from transpiler.group import Group, Lowered
from transpiler.ir import Graph, TensorType, Value
from transpiler.ops.dtypes import numpy_dtype
from transpiler.plan import Call, KernelPlan, Storage
from transpiler.resources import PACKAGE, tree
from transpiler.schedule import choice_key, schedule, shipped_answers
from transpiler.target import Target, runs_here

Mode = Literal["none", "fast", "full"]
Answers = Mapping[str, str]

# Kernels with less work than this (in operations) are not worth a sweep.
MIN_FLOPS = 2_000_000
# Variants of a point that `fast` tries, best first by the schedule's own model, and its limit in seconds of sweeping.
FAST_VARIANTS, FAST_SECONDS = 4, 25.0
# A variant replaces the default if it takes less than this share of its time: less is noise.
CLEARLY = 0.97
# Calls of a variant: for about so many seconds, within these numbers.
SECONDS, MIN_CALLS, MAX_CALLS = 0.02, 5, 60
# Weights are read from memory in a model, not from the cache that the last call left them in: calls take turns with
# copies of them, up to so many bytes.
COPIES, COPIED_BYTES = 8, 64 << 20
# Groups whose variants are compiled and linked at a time.
TOGETHER = 6
# Seconds that the variants of a point of a group may take on a device, in all.
DEVICE_SECONDS = 5.0
RECORD_FORMAT = 1


@dataclass
class Tuner:
    """Schedules groups with the choices of a record, of the cache or of the target's file, and measures new ones.

    `schedule` has the signature of a scheduler for `lower`. After a first lowering, `sweep` measures the choice points
    that came up; if it returns True the program is to be lowered again. `record` holds every choice that differs from
    what the schedules would do by themselves.
    """

    target: Target
    mode: Mode = "none"
    given: Mapping[str, Answers] = field(default_factory=dict)
    record: dict[str, Answers] = field(default_factory=dict)
    _met: dict[str, tuple[Group, Lowered]] = field(default_factory=dict)
    _built: dict[tuple[object, ...], Lowered] = field(default_factory=dict)

    def schedule(self, group: Group, target: Target, name: str) -> Lowered:
        """The kernel for a group. Raises LookupError where no rule takes it."""
        key = choice_key(group, target)
        answers = self._answers(key, group)
        place = (group.key(), name, tuple(sorted(answers.items())))
        if place not in self._built:
            self._built[place] = schedule(group, target, name, answers)
        lowered = self._built[place]
        if lowered.points:
            self._met.setdefault(key, (group, lowered))
            if answers:
                self.record[key] = dict(answers)
        return lowered

    def _answers(self, key: str, group: Group) -> Answers:
        if key in self.given:
            return self.given[key]
        if key in self.record:
            return self.record[key]
        cached = None if self.mode == "none" else _cached(key, self.mode, self.target)
        return shipped_answers(group, self.target) if cached is None else cached

    def sweep(self, progress: Callable[[int, int], None] | None = None) -> bool:
        """Measure what is worth it and not known yet; whether any choice changed.

        Raises:
            TranspileError: "link-failed".
        """
        if self.mode == "none" or not _runs_here(self.target):
            return False
        pending = [
            key
            for key, (group, lowered) in self._met.items()
            if key not in self.given and _worth_it(group, lowered) and _cached(key, self.mode, self.target) is None
        ]
        pending.sort(key=lambda key: -_fixed(self._met[key][1].kernel.flops))
        changed = False
        end = time.monotonic() + (FAST_SECONDS if self.mode == "fast" else math.inf)
        for start in range(0, len(pending), TOGETHER):
            if time.monotonic() > end:
                break
            keys = pending[start : start + TOGETHER]
            jobs = [_Job(*self._met[key], self._answers(key, self._met[key][0])) for key in keys]
            for key, job, best in zip(keys, jobs, _settle(jobs, self.target, self.mode), strict=True):
                _store(key, self.mode, self.target, best)
                if best != job.answers:
                    changed = True
                    self.record[key] = best
            if progress is not None:
                progress(start + len(keys), len(pending))
        return changed


@dataclass(frozen=True)
class _Job:
    """A group to settle, its kernel with the present answers, and these."""

    group: Group
    lowered: Lowered
    answers: Answers


def _runs_here(target: Target) -> bool:
    return backend(target.name).runs_here(target) if target.is_gpu else runs_here(target.isa)


def _worth_it(group: Group, lowered: Lowered) -> bool:
    return not lowered.kernel.symbols and not group.in_place and _fixed(lowered.kernel.flops) >= MIN_FLOPS


def _fixed(size: Dim) -> int:
    """A size of a kernel without symbols."""
    assert isinstance(size, int), size
    return size


def _settle(jobs: Sequence[_Job], target: Target, mode: Mode) -> list[Answers]:
    """The answers for the points of each group, one point after the other."""
    best = [dict(job.answers) for job in jobs]
    for number in range(max(len(job.lowered.points) for job in jobs)):
        tried: list[list[str]] = []
        for job, answers in zip(jobs, best, strict=True):
            texts: list[str] = []
            if number < len(job.lowered.points):
                point = job.lowered.points[number]
                current = answers.get(point.name, point.default)
                texts = [current, *(item for item in point.candidates if item != current)]
            tried.append(texts[:FAST_VARIANTS] if mode == "fast" else texts)
        open_jobs = [index for index, texts in enumerate(tried) if len(texts) > 1]
        variants = [
            [{**best[index], jobs[index].lowered.points[number].name: text} for text in tried[index]]
            for index in open_jobs
        ]
        measured = measure([jobs[index].group for index in open_jobs], variants, target)
        for index, seconds in zip(open_jobs, measured, strict=True):
            fastest = min(range(len(seconds)), key=seconds.__getitem__)
            if seconds[fastest] < CLEARLY * seconds[0]:
                best[index][jobs[index].lowered.points[number].name] = tried[index][fastest]
    return [
        {name: text for name, text in answers.items() if text != _default(job.lowered.points, name)}
        for job, answers in zip(jobs, best, strict=True)
    ]


def _default(points: Sequence[Point], name: str) -> str:
    return next((point.default for point in points if point.name == name), "")


# --- timing -------------------------------------------------------------------------------------------------


def measure(groups: Sequence[Group], variants: Sequence[Sequence[Answers]], target: Target) -> list[list[float]]:
    """Seconds of a call of each group's kernel with each of its answers, on one thread of the processor; or on the
    first CUDA device, infinite where a variant fails.

    Raises:
        TranspileError: "link-failed", "tuning-failed" (of a processor's kernels).
    """
    if target.is_gpu:
        return _measure_on_device(groups, variants, target)
    kernels = [
        [schedule(group, target, f"group{number}_variant{index}", item) for index, item in enumerate(answers)]
        for number, (group, answers) in enumerate(zip(groups, variants, strict=True))
    ]
    with _Variants(groups, kernels, target) as library:
        return [library.seconds(number) for number in range(len(groups))]


def _measure_on_device(
    groups: Sequence[Group], variants: Sequence[Sequence[Answers]], target: Target
) -> list[list[float]]:
    from transpiler.gpu import timing

    def scheduled(group: Group, name: str, answers: Answers) -> Lowered | None:
        try:
            return schedule(group, target, name, answers)
        except timing.ERRORS:
            return None

    kernels = [
        [scheduled(group, f"group{number}_variant{index}", item) for index, item in enumerate(answers)]
        for number, (group, answers) in enumerate(zip(groups, variants, strict=True))
    ]
    return timing.measure(groups, kernels, target, plan_of_calls, DEVICE_SECONDS * len(groups))


class _Variants:
    """A loaded library with several kernels for each of some groups."""

    def __init__(self, groups: Sequence[Group], kernels: Sequence[Sequence[Lowered]], target: Target) -> None:
        from transpiler.compile import compile_kernels
        from transpiler.link import link_library

        self._groups, self._kernels = groups, kernels
        every = [kernel for variants in kernels for kernel in variants]
        plan = plan_of_calls(
            [(group, item) for group, variants in zip(groups, kernels, strict=True) for item in variants]
        )
        linked = link_library(compile_kernels(every, target), [plan], "tune", target.isa.name)
        with tempfile.TemporaryDirectory(prefix="transpile-tune-") as folder:
            path = Path(folder) / "variants.so"
            path.write_bytes(linked.library)
            self._library = ctypes.CDLL(str(path))  # stays mapped when the file is gone
        self._prefix = f"tune_{target.isa.name}_"

    def __enter__(self) -> _Variants:
        self._model = ctypes.c_void_p()
        self._checked(self._function("create")(None, ctypes.c_uint64(0), 1, ctypes.byref(self._model)))
        return self

    def __exit__(self, *error: object) -> None:
        self._function("destroy")(self._model)

    def _function(self, name: str) -> Any:
        return getattr(self._library, self._prefix + name)

    def _checked(self, code: int) -> None:
        if code:
            last_error = self._function("last_error")
            last_error.restype = ctypes.c_char_p
            raise TranspileError("tuning-failed", f"A kernel variant failed: {last_error().decode()}.")

    def seconds(self, number: int) -> list[float]:
        """The least time of every variant of group `number`."""
        call = self._function("call")
        first_call = sum(map(len, self._kernels[:number]))
        count = len(self._kernels[number])
        sets = _argument_sets(self._groups[number])
        pointers = [(ctypes.c_void_p * len(arrays))(*[array.ctypes.data for array in arrays]) for arrays in sets]

        def once(variant: int, turn: int) -> float:
            arguments = pointers[turn % len(pointers)]
            start = time.perf_counter()
            code = call(self._model, 0, first_call + variant, arguments, None)
            taken = time.perf_counter() - start
            self._checked(code)
            return taken

        first = min(once(variant, turn) for variant in range(count) for turn in range(2))
        calls = max(MIN_CALLS, min(MAX_CALLS, int(SECONDS / max(first, 1e-9))))
        best = [math.inf] * count
        for turn in range(calls):
            for variant in range(count):
                best[variant] = min(best[variant], once(variant, turn))
        return best


def plan_of_calls(kernels: Sequence[tuple[Group, Lowered]]) -> KernelPlan:
    """A function that calls every kernel once; it is never run as a whole."""
    return KernelPlan(
        function="variants",
        kernels=tuple(item.kernel for _, item in kernels),
        steps=tuple(Call(item.kernel.name, group.inputs, group.outputs) for group, item in kernels),
        inputs=(),
        outputs=(),
        weights=(),
        prepare=Graph("prepare", (), (), ()),
        storage={value.name: Storage("arena") for group, _ in kernels for value in (*group.inputs, *group.outputs)},
        arena_bytes=max((_fixed(item.kernel.workspace) for _, item in kernels), default=0),
        weight_bytes=0,
    )


def _argument_sets(group: Group) -> list[list[np.ndarray[Any, Any]]]:
    """Arguments for a call: several sets that differ in where the second and later inputs (weights, mostly) lie."""
    rng = np.random.default_rng(0)
    first = [_array(value, rng) for value in group.inputs]
    outputs = [_array(value, rng) for value in group.outputs]
    copied = sum(array.nbytes for array in first[1:])
    copies = max(1, min(COPIES, COPIED_BYTES // max(copied, 1)))
    sets = [[*first, *outputs]]
    for _ in range(copies - 1):
        sets.append([first[0], *(_aligned_copy(array) for array in first[1:]), *outputs] if first else [*outputs])
    return sets


def _array(value: Value, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Normal floats; zeros of every other dtype, which are valid indices."""
    shape, dtype = _shape(value.type), numpy_dtype(value.dtype)
    floats = value.dtype in ("float32", "float64", "float16")
    return _aligned_copy(rng.standard_normal(shape, np.float32).astype(dtype) if floats else np.zeros(shape, dtype))


def _shape(type_: TensorType) -> tuple[int, ...]:
    return tuple(map(_fixed, type_.shape))


def _aligned_copy(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """At an address that is a multiple of 64, as kernels see it in a package."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    result: np.ndarray[Any, Any] = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    result[...] = array
    return result


# --- the cache ----------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """$TRANSPILE_CACHE_DIR, else `transpile` in $XDG_CACHE_HOME or ~/.cache."""
    chosen = os.environ.get("TRANSPILE_CACHE_DIR")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "transpile"


@cache
def _machine(target: str = "cpu") -> str:
    """What times depend on besides the kernel, as a digest: the processor or the device with its driver, TVM and the
    text of the schedules."""
    digest = hashlib.sha256()
    if target == "cuda":
        from transpiler.gpu.here import cuda_device

        digest.update(cuda_device().encode())
        digest.update((tree("targets") / "cuda_tiles.json").read_bytes())
        digest.update((PACKAGE / "gpu" / "cuda.py").read_bytes())
        digest.update((PACKAGE / "gpu" / "nvrtc.py").read_bytes())
        return _of_tools(digest)
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
        kept = ("vendor_id", "cpu family", "model", "cache size", "flags")
        digest.update("".join(line for line in lines if line.startswith(kept)).encode())
    return _of_tools(digest)


def _of_tools(digest: Any) -> str:
    digest.update(metadata.version("apache-tvm").encode())
    for path in sorted([*tree("schedules").rglob("*.py"), PACKAGE / "compile.py", *tree("targets").glob("*.toml")]):
        digest.update(path.read_bytes())
    text: str = digest.hexdigest()
    return text


def _cache_file(key: str, target: Target) -> Path:
    machine = _machine(target.name) if target.is_gpu else _machine()
    name = hashlib.sha256(f"{machine} {key}".encode()).hexdigest()
    return cache_folder() / "choices" / name[:2] / f"{name}.json"


def _cached(key: str, mode: Mode, target: Target) -> Answers | None:
    """What a sweep on this machine found for a key; one by `fast` does not stand in for `full`."""
    try:
        found = json.loads(_cache_file(key, target).read_text(encoding="utf-8"))
        if mode == "full" and found["mode"] != "full":
            return None
        return _checked_answers(found["answers"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _store(key: str, mode: Mode, target: Target, answers: Answers) -> None:
    """Keep a result; a cache that cannot be written only costs time."""
    path = _cache_file(key, target)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump({"mode": mode, "answers": dict(answers)}, file)
        Path(file.name).replace(path)


def _checked_answers(found: object) -> Answers:
    if not isinstance(found, dict) or not all(isinstance(item, str) for pair in found.items() for item in pair):
        raise ValueError("not a mapping of texts")
    return found


# --- the record ---------------------------------------------------------------------------------------------


def record_text(records: Mapping[str, Mapping[str, Answers]]) -> str:
    """A tuning record as JSON: by ISA and `choice_key`, the answers."""
    sections = {isa: {key: dict(answers) for key, answers in sorted(found.items())} for isa, found in records.items()}
    return json.dumps({"format": RECORD_FORMAT, "choices": dict(sorted(sections.items()))}, indent=1) + "\n"


def read_record(path: Path) -> Mapping[str, Mapping[str, Answers]]:
    """The choices of a tuning record by ISA.

    Raises:
        UsageError: it cannot be read, or is no tuning record of this format.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != RECORD_FORMAT:
            raise UsageError("tuning-record", f"{path} has the format {found['format']}; known: {RECORD_FORMAT}.")
        return {
            isa: {key: _checked_answers(answers) for key, answers in choices.items()}
            for isa, choices in found["choices"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError("tuning-record", f"{path} is no tuning record: {error}.") from error
