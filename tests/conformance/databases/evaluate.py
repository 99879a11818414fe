"""Samples through the whole of the transpiler, a batch at a time: export, import, interpret, rewrite, schedule,
compile, run twice, compare."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from tests.conformance.databases import samples as samples_module
from tests.conformance.databases.fast_export import fast_export
from tests.conformance.databases.outcome import EQUAL, MISMATCH, NOT_EXPORTABLE, Result, crash, refusal
from tests.conformance.databases.plans import KernelPool, kernel_library, run_plan
from tests.conformance.databases.samples import Sample
from tests.conformance.databases.together import capture_together
from tests.conformance.databases.torch_side import differences, expected, exported_differs, input_arrays
from transpiler.capture import Captured, capture_module
from transpiler.checks import Expected
from transpiler.errors import TranspileErrors
from transpiler.importer import import_program
from transpiler.interpreter import run_graph
from transpiler.ir import Array, Program
from transpiler.lower import LoweredProgram, lower
from transpiler.passes import run_passes
from transpiler.prepared import run_prepare
from transpiler.source import ModelSource, read_source
from transpiler.target import Target
from transpiler.weights import check_weights, expected_weights, state_arrays

# Told before every step: the sample (None: the whole batch), the stage, how many samples or kernels it concerns.
Report = Callable[[str | None, str, int], None]
_EXPORT_CODES = frozenset({"export-failed", "data-dependent-control-flow", "dynamic-shape"})


@dataclass(frozen=True)
class Graph:
    """A sample's graph before and after the passes; samples that differ in their data only share it."""

    program: Program
    state: Mapping[str, Array]
    lowered: LoweredProgram | None
    symbols: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Ready:
    """A sample that waits for its kernels."""

    id: str
    graph: Graph
    inputs: Sequence[Array]
    wanted: Sequence[Expected]


@cache
def _source() -> ModelSource:
    """The file of the exported modules, read once."""
    return read_source(samples_module.__file__)


class Evaluator:
    """Evaluates samples on one target (None: the numpy references alone)."""

    def __init__(self, target: Target | None, report: Report) -> None:
        self.target, self.report = target, report
        self.graphs: dict[Any, Graph | Result] = {}
        self.captured: dict[str, Captured] = {}

    def run(self, batch: Sequence[Sample]) -> list[Result]:
        pool = KernelPool()
        self.graphs.clear()
        distinct = {sample.key(): sample for sample in reversed(batch)}
        self.report(batch[0].id if len(batch) == 1 else None, "export", len(distinct))
        self.captured = capture_together([*reversed(distinct.values())], _source())
        results: list[Result] = []
        ready: list[Ready] = []
        for sample in batch:
            outcome = self._prepare(sample, pool)
            if isinstance(outcome, Ready):
                ready.append(outcome)
            else:
                results.append(outcome)
        if self.target is None:
            return results + [Result(item.id, EQUAL, "reference") for item in ready]
        return results + self._execute(ready, pool)

    # --- one sample, up to its kernels ----------------------------------------------------------------------------

    def _prepare(self, sample: Sample, pool: KernelPool) -> Ready | Result:
        self.report(sample.id, "import", 0)
        key = sample.key()
        if key not in self.graphs:
            self.graphs[key] = self._import(sample, pool)
        graph = self.graphs[key]
        if isinstance(graph, Result):
            return Result(sample.id, graph.outcome, graph.stage, graph.reason, graph.codes,
                          graph.operators)  # fmt: skip
        self.report(sample.id, "PyTorch", 0)
        try:
            wanted = expected(sample)
        except Exception as error:
            return Result(sample.id, NOT_EXPORTABLE, "PyTorch", f"{type(error).__name__}: {error}"[:200])
        inputs = input_arrays(sample)
        self.report(sample.id, "reference", 0)
        try:
            got = run_graph(graph.program, graph.state, inputs)
        except Exception as error:
            return crash(sample.id, "reference", error)
        if problem := differences(wanted, got):
            if exported_differs(sample, wanted):
                return Result(sample.id, NOT_EXPORTABLE, "export", "torch.export changes the result")
            return Result(sample.id, MISMATCH, "reference", problem)
        return Ready(sample.id, graph, inputs, wanted)

    def _import(self, sample: Sample, pool: KernelPool) -> Graph | Result:
        id = sample.id
        captured = self.captured.get(id) or self._capture(sample)
        if isinstance(captured, Result):
            return captured
        try:
            program = import_program(captured).program
        except TranspileErrors as error:
            return refusal(id, "import", error)
        except Exception as error:
            return crash(id, "import", error)
        if not program.main.user_outputs():
            return Result(sample.id, NOT_EXPORTABLE, "import", "no result is a tensor")
        own = state_arrays(captured.exported_program.state_dict)
        state = check_weights(expected_weights(program), program.aliases, own)
        if self.target is None:
            return Graph(program, state, None)
        return self._lower(sample, program, state, pool, self.target)

    def _capture(self, sample: Sample) -> Captured | Result:
        id = sample.id
        try:
            with fast_export():
                return capture_module(sample.module, sample.inputs, source=_source())
        except TranspileErrors as error:
            found = refusal(id, "export", error)
            if not set(found.codes) <= _EXPORT_CODES:
                return found
            frames = traceback.extract_tb(error.__cause__.__traceback__ if error.__cause__ else None)
            if all(frame.name != "run_decompositions" for frame in frames):  # torch.export itself failed
                return replace(found, outcome=NOT_EXPORTABLE)
            return crash(id, "decompositions", error)
        except Exception as error:
            return crash(id, "export", error)

    def _lower(
        self, sample: Sample, program: Program, state: Mapping[str, Array], pool: KernelPool, target: Target
    ) -> Graph | Result:
        self.report(sample.id, "lower", 0)
        try:
            rewritten = run_passes(program)
            lowered = lower(rewritten, target, scheduler=pool.schedule)
            weights = run_prepare(lowered.plan, rewritten.constants, state)
        except TranspileErrors as error:
            return refusal(sample.id, "lower", error)
        except Exception as error:
            return crash(sample.id, "lower", error)
        return Graph(program, state, lowered, pool.symbols(lowered.kernels), weights)

    # --- the kernels of a batch -----------------------------------------------------------------------------------

    def _execute(self, ready: Sequence[Ready], pool: KernelPool) -> list[Result]:
        used = {name for item in ready for name in item.graph.symbols.values()}
        kernels = [item for item in pool.kernels.values() if item.kernel.name in used]
        alone = ready[0].id if len(ready) == 1 else None
        self.report(alone, "compile", len(kernels))
        assert self.target is not None
        try:
            library = kernel_library(kernels, self.target) if kernels else None
        except Exception as error:
            if len(ready) == 1:
                return [crash(ready[0].id, "compile", error)]
            return [result for item in ready for result in self._execute([item], pool)]
        return [self._run(item, library) for item in ready]

    def _run(self, item: Ready, library: Any) -> Result:
        self.report(item.id, "run", 0)
        graph = item.graph
        assert graph.lowered is not None
        for time in ("", "second call: "):
            try:
                got = run_plan(graph.lowered.plan, graph.symbols, library, graph.weights, item.inputs)
            except Exception as error:
                return crash(item.id, "run", error)
            if problem := differences(item.wanted, got):
                return Result(item.id, MISMATCH, "run", time + problem)
        return Result(item.id, EQUAL, "run")
