"""Generic reductions: sums, maxima, pools, and the plain form of products and convolutions for any dtype.

Three forms, by where the vector lanes can go:

* across outputs: the last output dim is the vector; accumulators are 16 lanes; the reduction loops run outside of the
  lanes. Column sums, pools and means on blocked maps. Limited by the bytes read.
* across the reduction: the reduced axis is contiguous; 16 partial results are combined at the end. Row sums.
* scalar: everything else (several states such as argmax, guards that differ between lanes, libm calls inside).

The output dims are one parallel loop. Cheap producers are evaluated where they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from tvm.tirx.script.builder import ir as T

from transpiler.dims import Dim
from transpiler.group import Group, Lowered
from transpiler.ops.base import Elementwise, Injective, Reduce, Reduction
from transpiler.target import Target

from ..fuse import Inline, Probe, lowered, needs_status, probe_index
from ..scalar import Tir
from ..sizes import Extent, count, extents, is_empty, is_fixed, is_large, is_several
from ..tir import LANES, KernelBuilder, local, loop, unflatten, vector_loop
from .epilogue import Epilogue, elementwise_epilogue
from .plain import plain_reduction

EPILOGUE = True

Expr = Any
# The reduction of one output element of the anchor, at an index.
Reducer = Callable[[Tir, Sequence[Expr]], Reduction]


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    node = group.anchor_node
    if node is None or len(node.outputs) != 1 or not elementwise_epilogue(group):
        return None
    if not all(isinstance(item.op, Elementwise | Injective) for item in group.prologue):
        return None
    plain = None if isinstance(node.op, Reduce) else plain_reduction(node.op)
    if plain is None and not isinstance(node.op, Reduce):
        return None
    result = node.output
    shape = result.type.shape
    builder = KernelBuilder(
        name,
        [value.type for value in group.inputs],
        [group.outputs[0].type],
        checks_index=needs_status(group),
    )
    types = [value.type for value in node.inputs]

    def reducer(s: Tir, index: Sequence[Expr]) -> Reduction:
        inline = Inline(group, builder, s)
        quiet = s if not s.statements else None
        loads = [inline.load(value, s=quiet) for value in node.inputs]
        if plain is not None:
            return plain(s, loads, types, index)
        assert isinstance(node.op, Reduce)
        return node.op.reduction(s, loads, types, index)

    with builder:
        index = probe_index(len(shape))
        across_outputs = Probe(index[-1] if index else None)
        reduction = _evaluate(reducer, across_outputs, index)
        reduced = reduction.extents
        inner = probe_index(len(reduced))
        across_reduction = Probe(inner[-1] if inner else None)
        _evaluate(reducer, across_reduction, index, inner)
        single = len(reduction.init) == 1
        last_reduced = bool(reduced) and _reduces_last(node.op, types[0].rank)
        states = [across_outputs.dtype(value) for value in reduction.init]
        form = _Loops(builder, Epilogue(group, builder), reducer, shape, reduced, across_outputs, states)
        if single and last_reduced and _is_long(reduced[-1], LANES) and not across_reduction.scalar_only:
            form.across_reduction()
        elif shape and _is_long(shape[-1], LANES // 2) and not across_outputs.scalar_only:
            form.across_outputs()
        else:
            form.scalar()
    work = count(shape) * count(reduced) * (1 + across_outputs.cost)
    return lowered(group, builder, flops=work)


def _is_long(size: Dim, least: int) -> bool:
    return not isinstance(size, int) or size >= least


def _reduces_last(op: object, rank: int) -> bool:
    return rank - 1 in (getattr(op, "axes", None) or (getattr(op, "axis", -2),))


def _evaluate(reducer: Reducer, probed: Probe, index: Sequence[Expr], inner: Sequence[Expr] | None = None) -> Reduction:
    """The reduction, with all of its expressions passed through the probe."""
    reduction = reducer(probed, index)
    element = reduction.body(inner or probe_index(len(reduction.extents)))
    reduction.finish(reduction.combine(reduction.init, element))
    return reduction


class _Loops:
    def __init__(
        self,
        builder: KernelBuilder,
        epilogue: Epilogue,
        reducer: Reducer,
        shape: Sequence[Dim],
        reduced: Sequence[Dim],
        probed: Probe,
        states: Sequence[str],
    ) -> None:
        self.builder, self.epilogue, self.reducer = builder, epilogue, reducer
        self.shape, self.extents = extents(shape), extents(reduced)
        self.parallel = is_large(count(shape) * count(reduced) * (1 + probed.cost))
        # `_step` binds an element and a combined value per state besides what the expressions bind.
        self.temporaries = [*probed.binds, *states, *states]

    def _outer(self, loops: Extent) -> Any:
        return loop(loops, parallel=self.parallel and is_several(loops))

    def _tir(self) -> Tir:
        return Tir(status=self.builder.status)

    def _states(self, reduction: Reduction, lanes: int) -> list[Any]:
        s = self._tir()
        return [local(lanes, s.dtype(value)) for value in reduction.init]

    def scalar(self) -> None:
        """One output element after the other."""
        if is_empty(self.shape):
            return
        with self._outer(count(self.shape)) as fused:
            index = unflatten(fused, self.shape)
            self._one(index)

    def _one(self, index: list[Expr]) -> None:
        s = self._tir()
        reduction = self.reducer(s, index)
        states = self._states(reduction, 1)
        for state, value in zip(states, reduction.init, strict=True):
            state.store(0, value)
        with ExitStack() as loops:
            inner = [loops.enter_context(T.serial(0, extent)) for extent in self.extents]
            self._step(reduction, states, inner, 0)
        self.epilogue.store(lambda _lane: index, lambda _lane: reduction.finish(tuple(x[0] for x in states)), 1)

    def _step(self, reduction: Reduction, states: list[Any], inner: Sequence[Expr], lane: Expr) -> None:
        s = self._tir()
        element = tuple(s.bind(value) for value in reduction.body(inner))
        combined = reduction.combine(tuple(state[lane] for state in states), element)
        combined = tuple(s.bind(value) for value in combined) if len(states) > 1 else combined
        for state, value in zip(states, combined, strict=True):
            state.store(lane, value)

    def across_outputs(self) -> None:
        """16 neighbouring outputs at once."""
        *outer, last = self.shape
        if is_empty(self.shape):
            return
        vectors, rest = last // LANES, last % LANES
        with self._outer(count(outer)) as fused:
            leading = unflatten(fused, outer)
            if not is_fixed(vectors) or vectors:
                with T.serial(0, vectors) as step:
                    self._lanes(leading, step * LANES, LANES)
            if not is_fixed(rest):
                with T.serial(0, rest) as column:
                    self._one([*leading, vectors * LANES + column])
            elif rest:
                self._lanes(leading, vectors * LANES, rest)

    def _lanes(self, leading: list[Expr], base: Expr, lanes: int) -> None:
        reduction = self.reducer(self._tir(), [*leading, base])
        states = self._states(reduction, lanes)
        for state, value in zip(states, reduction.init, strict=True):
            with vector_loop(lanes) as lane:
                state.store(lane, value)
        with ExitStack() as loops:
            inner = [loops.enter_context(T.serial(0, extent)) for extent in self.extents]
            lane = loops.enter_context(vector_loop(lanes, self.temporaries))
            self._step(self.reducer(self._tir(), [*leading, base + lane]), states, inner, lane)
        self.epilogue.store(
            lambda lane: [*leading, base + lane],
            # What `finish` reads (a bias, the size of a window) may depend on the lane.
            lambda lane: self.reducer(self._tir(), [*leading, base + lane]).finish(
                tuple(state[lane] for state in states)
            ),
            lanes,
        )

    def across_reduction(self) -> None:
        """16 partial results along the last reduced extent, combined at the end."""
        if is_empty(self.shape):
            return
        *outer, last = self.extents
        vectors, rest = last // LANES, last % LANES
        with self._outer(count(self.shape)) as fused:
            index = unflatten(fused, self.shape)
            reduction = self.reducer(self._tir(), index)
            partial, total = self._states(reduction, LANES), self._states(reduction, 1)
            with T.vectorized(0, LANES) as lane:
                partial[0].store(lane, reduction.init[0])
            total[0].store(0, reduction.init[0])
            with ExitStack() as loops:
                inner = [loops.enter_context(T.serial(0, extent)) for extent in outer]
                with T.serial(0, vectors) as step, vector_loop(LANES, self.temporaries) as lane:
                    self._step(reduction, partial, [*inner, step * LANES + lane], lane)
                if not is_fixed(rest) or rest:
                    with T.serial(0, rest) as step:
                        self._step(reduction, total, [*inner, vectors * LANES + step], 0)
            with T.serial(0, LANES) as lane:
                s = self._tir()
                element = (s.bind(partial[0][lane]),)
                total[0].store(0, reduction.combine((total[0][0],), element)[0])
            self.epilogue.store(lambda _lane: index, lambda _lane: reduction.finish((total[0][0],)), 1)
