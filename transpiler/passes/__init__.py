"""The passes, in one visible tuple. A pass is a function of a program; the verifier runs after each."""

from __future__ import annotations

from collections.abc import Callable

from transpiler.ir import Graph, IRError, Program, verify
from transpiler.passes import decompose, fold, half, layout, simplify

Pass = Callable[[Program], Program]


def on_main(function: Callable[[Graph], Graph]) -> Pass:
    """A graph pass as a pass over the program's main function."""

    def run(program: Program) -> Program:
        return program.with_main(function(program.main))

    run.__name__ = function.__name__
    return run


CLEAN_UP: tuple[Pass, ...] = (
    on_main(simplify.views),
    fold.constants,
    on_main(simplify.common_subexpressions),
    on_main(simplify.dead_code),
)

PIPELINE: tuple[Pass, ...] = (
    *CLEAN_UP,
    on_main(half.half_floats),
    on_main(fold.batch_norm),
    on_main(decompose.conv1d),
    on_main(layout.blocked_channels),
    on_main(layout.packed_linear),
    *CLEAN_UP,
)

# Every module's output keeps a value of its own: nothing is folded into its neighbour.
UNFOLDED_PIPELINE: tuple[Pass, ...] = (
    *CLEAN_UP,
    on_main(half.half_floats),
    on_main(fold.batch_norm_alone),
    on_main(decompose.conv1d),
    on_main(layout.blocked_channels),
    on_main(layout.packed_linear),
    *CLEAN_UP,
)


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
