"""`corner_cases.py` on the targets: equal to PyTorch bit for bit, or refused with a reason that is listed here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from tests.conformance import corner_cases
from tests.conformance.corner_cases import everything
from tests.conformance.corner_values import Case
from tests.conformance.databases.fast_export import fast_export
from tests.conformance.kernels import array_type
from tests.conformance.programs import Programs
from tests.conformance.refused_cases import out_of_bounds
from transpiler.capture import capture_module
from transpiler.checks import EPS
from transpiler.importer import import_program
from transpiler.ir import Array, Program
from transpiler.ops.dtypes import HALF
from transpiler.source import ModelSource, read_source
from transpiler.target import Target
from transpiler.weights import to_numpy

# Cases exported together: tracing has a cost of its own.
BUNDLE = 24


class Bundle(torch.nn.Module):
    """Some cases as one module: all of their inputs, all of their results."""

    def __init__(self, cases: Sequence[Case]) -> None:
        super().__init__()
        self.cases = cases

    def forward(self, *inputs: torch.Tensor) -> Any:
        given = iter(inputs)
        return [leaves(case.function(*(next(given) for _ in case.inputs))) for case in self.cases]


def leaves(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [leaf for item in value for leaf in leaves(item)]


@cache
def cases() -> dict[str, Case]:
    return {case.id: case for case in everything()}


@cache
def source() -> ModelSource:
    return read_source(corner_cases.__file__)


def program(bundle: Sequence[Case]) -> Program:
    inputs = tuple(item for case in bundle for item in case.inputs)
    with fast_export():
        captured = capture_module(Bundle(bundle), inputs, source=source())
    return import_program(captured).program


def programs(wanted: Sequence[Case], problems: list[str]) -> Iterator[tuple[list[Case], Program]]:
    """Bundles and their programs; a bundle that fails is taken apart."""
    for start in range(0, len(wanted), BUNDLE):
        pending = [list(wanted[start : start + BUNDLE])]
        while pending:
            bundle = pending.pop()
            try:
                yield bundle, program(bundle)
            except Exception as error:
                if len(bundle) == 1:
                    problems.append(f"{bundle[0].id}: {type(error).__name__}: {str(error)[:300]}")
                    continue
                pending += [bundle[: len(bundle) // 2], bundle[len(bundle) // 2 :]]


def expected(case: Case) -> list[Array]:
    with torch.no_grad():
        results = leaves(case.function(*(item.clone() for item in case.inputs)))
    return [to_numpy(item.contiguous()).copy() for item in results]


def difference(case: Case, got: Array, want: Array) -> str:
    """What differs, or nothing: bits, any NaN being equal to any other; `close` allows a few roundings."""
    if got.dtype != want.dtype or got.shape != want.shape:
        return f"{got.dtype}{got.shape}, PyTorch gives {want.dtype}{want.shape}"
    bits = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[got.dtype.itemsize]
    same = np.atleast_1d(np.ascontiguousarray(got)).view(bits) == np.atleast_1d(np.ascontiguousarray(want)).view(bits)
    if array_type(want).is_float:
        a, b = np.atleast_1d(got).astype(np.float64), np.atleast_1d(want).astype(np.float64)
        same |= np.isnan(a) & np.isnan(b)
        if case.close:
            dtype = str(want.dtype)
            scale = np.abs(b) if dtype not in HALF else np.maximum(np.abs(b), np.abs(b[np.isfinite(b)]).max(initial=0))
            with np.errstate(all="ignore"):
                same |= np.abs(a - b) <= 4 * EPS[dtype] * scale + 1e-44
    if same.all():
        return ""
    at = int(np.argmin(same.ravel()))
    return f"{np.count_nonzero(~same)} of {same.size} differ; at {at}: {got.ravel()[at]}, PyTorch {want.ravel()[at]}"


def test_corner_cases(target: Target) -> None:
    problems = corner_problems(list(cases().values()), target)
    assert not problems, f"{len(problems)} problems\n" + "\n".join(problems)


def corner_problems(wanted: Sequence[Case], target: Target, refused: str = "") -> list[str]:
    """What differs from PyTorch on a target, or is refused for another reason than one that fits `refused`."""
    problems: list[str] = []
    bundles = {f"b{number}": item for number, item in enumerate(programs(wanted, problems))}
    compiled = Programs({key: program for key, (_, program) in bundles.items()}, target)
    for key, (bundle, _) in bundles.items():
        if reason := compiled.refused.get(key):
            if len(bundle) > 1:
                problems += [text for case in bundle for text in corner_problems([case], target, refused)]
            elif not (refused and re.search(refused, reason)):
                problems.append(f"{bundle[0].id} is refused: {reason}")
            continue
        results = iter(compiled.run(key, *(to_numpy(item) for case in bundle for item in case.inputs)))
        for case in bundle:
            for number, want in enumerate(expected(case)):
                if text := difference(case, next(results), want):
                    problems.append(f"{case.id}, output {number}: {text}")
    return problems


def test_indices_out_of_bounds(target: Target) -> None:
    assert not silent_cases(target)


def silent_cases(target: Target) -> list[str]:
    """Indices out of bounds that are no error, where PyTorch raises one; no memory outside is read or written (the
    harness guards it)."""
    bad = {case.id: case for case in out_of_bounds()}
    compiled = Programs({id_: program([case]) for id_, case in bad.items()}, target)
    silent = []
    for id_, case in bad.items():
        *tensors, wrong = case.inputs
        kind = ZeroDivisionError if id_.startswith("zero_") else IndexError
        compiled.run(id_, *(to_numpy(item) for item in (*tensors, wrong.clamp(1, 2))))
        with pytest.raises((IndexError, RuntimeError)):
            case.function(*case.inputs)
        try:
            compiled.run(id_, *(to_numpy(item) for item in case.inputs))
        except kind:
            continue
        silent.append(id_)
    return silent
