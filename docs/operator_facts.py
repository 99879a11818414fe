"""Facts about ops and ATen overloads for docs/operators.md: dtypes, accuracy, conformance cases, ways of import."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from importer_survey import survey, trace

from transpiler.backends import backend
from transpiler.decomposed_here import own_decompositions
from transpiler.decompositions import automatic_decompositions, listed_decompositions
from transpiler.ir import TensorType
from transpiler.ops import ATEN, Op, OpError
from transpiler.ops.base import Elementwise, Injective, Sample
from transpiler.ops.dtypes import FLOATS, INTS, category
from transpiler.ops.special_numpy import FUNCTIONS
from transpiler.schedule import import_schedule
from transpiler.target import known_targets

DTYPES = (*FLOATS, *INTS, "bool")
ULPS: dict[str, int] = import_schedule("vector_math").ULPS
ABSOLUTE: dict[str, float] = import_schedule("vector_math").ABSOLUTE
CONFORMANCE = Path(__file__).parents[1] / "tests" / "conformance"
# What a function of one element does to its argument: nothing is rounded, or once.
EXACT = {"abs", "floor", "ceil", "trunc", "round", "isnan", "isinf", "copysign", "nextafter", "fmod", "logb"}
ROUNDED = {"sqrt": 1, "rsqrt": 2}
# Views and constants: beside one other op they are not worth the name of a composition.
GLUE = {"reshape", "transpose", "broadcast_to", "full"}


# --- facts about a neutral op -------------------------------------------------------------------------------------


@cache
def samples(op: type[Op]) -> tuple[Sample, ...]:
    return tuple(op.samples())


@cache
def dtypes(op: type[Op]) -> frozenset[str]:
    """Those that its type rule takes for its data, tried on its first sample; ints and bools only if samples have them.

    An op that moves data takes all that its rule takes.
    """
    sample = next(iter(samples(op)))
    types = [TensorType(str(array.dtype), array.shape) for array in sample.inputs]
    if not types:
        return frozenset(result.dtype for item in samples(op) for result in item.op.infer_types([]))
    data = next((item.dtype for item in types if item.is_float), types[0].dtype)
    moves = issubclass(op, Injective) and op.moves
    sampled = {category(str(array.dtype)) for item in samples(op) for array in item.inputs[:2]}
    return frozenset(
        dtype for dtype in DTYPES if (moves or category(dtype) in sampled) and _takes(sample.op, types, data, dtype)
    )


def _takes(op: Op, types: Sequence[TensorType], data: str, dtype: str) -> bool:
    try:
        op.infer_types([TensorType(dtype, item.shape) if item.dtype == data else item for item in types])
    except OpError:
        return False
    return True


@cache
def result(op: type[Op]) -> str:
    """How far the op is from the exact result, on floats."""
    all_samples = samples(op)
    if all(item.exact for item in all_samples) or (issubclass(op, Injective) and op.moves):
        return "exact"
    if not issubclass(op, Elementwise):
        return "exact" if _selects(all_samples) else "bounded"
    if not dtypes(op) & set(FLOATS):
        return "exact"
    sample = next(iter(all_samples))
    done = trace(sample.op, len(sample.inputs))
    inexact = [name for name in done.functions if name not in EXACT and name not in ROUNDED]
    roundings = done.arithmetic + sum(ROUNDED.get(name, 0) for name in done.functions)
    parts = [_bound(name) or _source(name) for name in inexact]
    if roundings:
        parts.append(f"{roundings} rounding{'s' * (roundings > 1)}")
    return ", ".join(dict.fromkeys(parts)).removeprefix(f"{op.name} ") or "exact"


def _bound(function: str) -> str:
    """The measured bound of one of our own functions, "" for others."""
    if function in ULPS:
        return f"{function} {ULPS[function]} ulp"
    return f"{function} {ABSOLUTE[function]:.1e}" if function in ABSOLUTE else ""


def _selects(all_samples: Sequence[Sample]) -> bool:
    """Whether results are no floats, or the same numbers in float32 and in float64: they were chosen, not computed."""
    on_floats = [item for item in all_samples if any(array.dtype == np.float32 for array in item.inputs)]
    for item in on_floats:
        wide = [array.astype(np.float64) if array.dtype == np.float32 else array for array in item.inputs]
        with np.errstate(all="ignore"):
            pair = item.op.reference(*item.inputs), item.op.reference(*wide)
        single, double = (result if isinstance(result, tuple) else (result,) for result in pair)
        if not all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(single, double, strict=True)):
            return False
    types = [[TensorType(str(array.dtype), array.shape) for array in item.inputs] for item in all_samples]
    results = [item.op.infer_types(given) for item, given in zip(all_samples, types, strict=True)]
    return bool(on_floats) or not any(type_.is_float for given in results for type_ in given)


def _source(function: str) -> str:
    return "special" if function in FUNCTIONS and function != "erfc" else f"libm {function}"


def brief(names: Iterable[str], also: Sequence[str] = ()) -> str:
    """float16, bfloat16, float32, float64 are `floats`, and so on."""
    left, words = set(names), []
    for word, group in (("floats", FLOATS), ("ints", INTS)):
        if left.issuperset(group):
            words.append(word)
            left -= set(group)
    words += [name for name in DTYPES if name in left]
    return "all" if words == ["floats", "ints", "bool"] and not also else ", ".join((*words, *also))


# --- facts about an ATen overload ---------------------------------------------------------------------------------


@cache
def overloads() -> tuple[str, ...]:
    """Those of the project itself: a process may hold operators of a user as well."""

    def ours(importer: Any) -> bool:
        home = "transpiler.ops."
        # In this order: the source of the others may be gone.
        return importer.__module__.startswith(home) and all(
            op.__module__.startswith(home) for op in survey(importer).ops
        )

    return tuple(overload for overload, importer in ATEN.items() if ours(importer))


@cache
def tables() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Decomposed overloads: by our functions, by PyTorch's where we say so, by PyTorch's for want of an importer."""
    own, listed, automatic = (
        frozenset(str(key).removeprefix("aten.") for key in table)
        for table in (own_decompositions(), listed_decompositions(), automatic_decompositions())
    )
    return own, listed - own, automatic - listed - own


@cache
def test_files() -> Mapping[str, tuple[re.Pattern[str], ...]]:
    """The overloads that each file of tests/conformance names: whole, or by f-strings.

    What `f"max_pool{n}d.default"` leaves open matches any word; of `f"{name}.default"` only words of the same file.
    """
    found = {}
    for path in sorted(CONFORMANCE.glob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        words = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        texts = {re.escape(word) for word in words if re.fullmatch(r"\w+\.\w+", word)}
        for node in nodes:
            if not isinstance(node, ast.JoinedStr) or not isinstance(node.values[-1], ast.Constant):
                continue
            parts = (re.escape(str(p.value)) if isinstance(p, ast.Constant) else r"\w*" for p in node.values)
            base, _, overload = "".join(parts).partition(r"\.")
            if base == r"\w*" and re.fullmatch(r"\w+", overload):
                texts |= {rf"{word}\.{overload}" for word in words if re.fullmatch(r"\w+", word)}
            elif re.fullmatch(r"\w+", overload):
                texts.add(rf"{base}\.{overload}")
        found[path.name] = tuple(re.compile(text) for text in sorted(texts))
    return found


def tests(names: Sequence[str], ops: Sequence[type[Op]]) -> str:
    named = [
        f"[{name.removeprefix('test_').removesuffix('.py')}](../tests/conformance/{name})"
        for name, patterns in test_files().items()
        if any(pattern.fullmatch(overload) for pattern in patterns for overload in names)
    ]
    count = sum(len(samples(op)) for op in ops)
    return " · ".join([str(count), *named]) if count else " · ".join(named)


# --- targets besides the CPU --------------------------------------------------------------------------------------


@cache
def suites() -> Mapping[str, str]:
    """The targets that run the conformance suites on a device, with their names."""
    found = [name for name in known_targets() if (CONFORMANCE.parent / name / "test_conformance.py").exists()]
    return {name: backend(name).title for name in found if name != "cpu"}


@cache
def refused_samples(target: str) -> frozenset[tuple[str, str]]:
    """Op and sample that a target refuses, as its suite says. All others are equal there, or the suite fails."""
    path = CONFORMANCE / f"refused_by_{target}.toml"
    names = tomllib.loads(path.read_text()) if path.exists() else {}
    return frozenset((name.partition("/")[0], name.partition("/")[2]) for name in names)


def coverage(target: str, ops: Iterable[type[Op]]) -> str:
    """How many of the ops' samples a target computes."""
    names = {(op.name, sample.id) for op in ops for sample in samples(op)}
    refused = len(names & refused_samples(target))
    return "" if not names else f"{len(names) - refused} of {len(names)}" if refused else "all"


def covered(target: str) -> tuple[int, int]:
    """Of the ops that ATen's overloads become: those of which a target computes every sample, and all."""
    ops = {op for overload in overloads() for op in survey(ATEN[overload]).ops if samples(op)}
    return sum(coverage(target, [op]) == "all" for op in ops), len(ops)


@dataclass(frozen=True)
class Way:
    """Where some overloads of one operator go."""

    ops: tuple[type[Op], ...]
    kind: str
    reasons: tuple[str, ...]
    core: type[Op] | None = None  # the op that does the work, if one does


def way(overload: str) -> Way:
    found = survey(ATEN[overload])
    own, listed, _ = tables()
    if overload in own:
        kind = "decomposed, ours"
    elif overload in listed:
        kind = "decomposed"
    elif found.always:
        kind = "refused"
    elif not found.ops:
        kind = "a cast" if found.casts else "nothing"
    else:
        kind = "composition"
    work = [op for op in found.ops if op.name not in GLUE] or list(found.ops)
    namesake = re.sub(r"\dd$", "", overload.rpartition(".")[0]).strip("_")
    core = work[0] if len(work) == 1 else next((op for op in work if op.name == namesake), None)
    if core and kind == "composition":
        kind = "one op" if len(work) == 1 else "one op or more"
    return Way(found.ops, kind, found.reasons, core)


def accuracy(item: Way) -> str:
    if item.core:
        return result(item.core)
    exact = item.kind not in ("refused", "a cast") and all(result(op) == "exact" for op in item.ops)
    return "exact" if exact else ""


def family(overload: str) -> str:
    """The module that says what the overload is; helpers register for the files of their ops."""
    module = ATEN[overload].__module__
    ops = survey(ATEN[overload]).ops
    return ops[0].__module__ if module.endswith((".base", ".promotion")) and ops else module
