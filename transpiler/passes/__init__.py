"""The passes, in one visible tuple. A pass is a function of a program; the verifier runs after each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transpiler.ir import Graph, IRError, Program, verify
from transpiler.passes import (
    channels_last,
    decompose,
    fold,
    half,
    indices,
    large_weights,
    layout,
    planes,
    quotients,
    simplify,
    strassen,
    winograd,
    winograd_last,
)

Pass = Callable[[Program], Program]


def on_each(function: Callable[[Graph], Graph]) -> Pass:
    """A graph pass as a pass over all functions of a program."""

    def run(program: Program) -> Program:
        for graph in program.functions.values():
            program = program.with_function(function(graph))
        return program

    run.__name__ = function.__name__
    return run


CLEAN_UP: tuple[Pass, ...] = (
    on_each(simplify.views),
    fold.constants,
    on_each(simplify.common_subexpressions),
    on_each(simplify.dead_code),
)

FAST_CONVOLUTIONS = on_each(winograd.fast_convolutions)
FAST_POINTWISE = on_each(strassen.fast_pointwise)

PIPELINE: tuple[Pass, ...] = (
    *CLEAN_UP,
    on_each(half.half_floats),
    on_each(fold.batch_norm),
    on_each(decompose.conv1d),
    on_each(decompose.conv3d),
    on_each(layout.blocked_channels),
    FAST_CONVOLUTIONS,
    FAST_POINTWISE,
    on_each(layout.linear_views),
    on_each(layout.packed_linear),
    strassen.fast_products,
    on_each(layout.packed_recurrent),
    *CLEAN_UP,
)

# Sums in no other order than a direct one.
EXACT_PIPELINE: tuple[Pass, ...] = tuple(
    step for step in PIPELINE if step not in (FAST_CONVOLUTIONS, FAST_POINTWISE, strassen.fast_products)
)

# Every module's output keeps a value of its own: nothing is folded into its neighbour.
UNFOLDED_PIPELINE: tuple[Pass, ...] = (
    *CLEAN_UP,
    on_each(half.half_floats),
    on_each(fold.batch_norm_alone),
    on_each(decompose.conv1d),
    on_each(layout.blocked_channels),
    on_each(layout.packed_linear),
    on_each(layout.packed_recurrent),
    *CLEAN_UP,
)


FAST_PLANES = on_each(planes.fast_convolutions)

# Maps stay as PyTorch has them: schedules for GPUs bring tiles into registers or shared memory by themselves.
GPU_PIPELINE: tuple[Pass, ...] = (
    *CLEAN_UP,
    on_each(half.half_floats),
    on_each(quotients.nearest_quotients),
    on_each(fold.batch_norm),
    on_each(decompose.conv1d),
    on_each(large_weights.in_pieces),
    on_each(planes.folded_padding),
    FAST_PLANES,
    on_each(planes.packed_filters),
    indices.known_indices,
    *CLEAN_UP,
)

EXACT_GPU_PIPELINE: tuple[Pass, ...] = tuple(step for step in GPU_PIPELINE if step is not FAST_PLANES)

UNFOLDED_GPU_PIPELINE: tuple[Pass, ...] = (
    *CLEAN_UP,
    on_each(half.half_floats),
    on_each(quotients.nearest_quotients),
    on_each(fold.batch_norm_alone),
    on_each(decompose.conv1d),
    on_each(large_weights.in_pieces),
    indices.known_indices,
    *CLEAN_UP,
)

FAST_LAST = on_each(winograd_last.fast_convolutions)

# A kernel of CUDA sees any tensor as a whole.
CUDA_PIPELINE: tuple[Pass, ...] = (
    *CLEAN_UP,
    on_each(half.half_floats),
    on_each(fold.batch_norm),
    on_each(decompose.conv1d),
    on_each(planes.folded_padding),
    on_each(channels_last.channels_last),
    FAST_LAST,
    on_each(layout.packed_recurrent),
    *CLEAN_UP,
)

EXACT_CUDA_PIPELINE: tuple[Pass, ...] = tuple(step for step in CUDA_PIPELINE if step is not FAST_LAST)

UNFOLDED_CUDA_PIPELINE: tuple[Pass, ...] = (
    *CLEAN_UP,
    on_each(half.half_floats),
    on_each(fold.batch_norm_alone),
    on_each(decompose.conv1d),
    *CLEAN_UP,
)


@dataclass(frozen=True)
class Pipelines:
    """A target's passes: by default, with sums in no other order than a direct one, and with every module's output."""

    usual: tuple[Pass, ...]
    exact: tuple[Pass, ...]
    unfolded: tuple[Pass, ...]


PIPELINES = {
    "cpu": Pipelines(PIPELINE, EXACT_PIPELINE, UNFOLDED_PIPELINE),
    "vulkan": Pipelines(GPU_PIPELINE, EXACT_GPU_PIPELINE, UNFOLDED_GPU_PIPELINE),
    "cuda": Pipelines(CUDA_PIPELINE, EXACT_CUDA_PIPELINE, UNFOLDED_CUDA_PIPELINE),
}


def run_passes(program: Program, passes: tuple[Pass, ...] = PIPELINE) -> Program:
    """Run `passes` in order.

    Raises:
        IRError: a pass broke the graph; the message names the pass.
    """
    for step in passes:
        program = step(program)
        try:
            for graph in program.functions.values():
                verify(graph)
        except IRError as error:
            raise IRError(f"after pass {step.__name__!r}: {error}") from error
    return program
