"""Ops with loops of their own by the CPU's schedules: every loop that the CPU splits over its threads is a kernel with
a thread for each turn, and what lies between such loops is a kernel of one thread.

Correct for whatever a CPU schedule computes, and slow where it has few turns. Vectors of the CPU's lanes become as many
scalars of one thread.
"""

from __future__ import annotations

from dataclasses import replace

from transpiler.group import Group, Lowered, Rule
from transpiler.target import Target, load_target

from ..cpu import (
    attention,
    factorize,
    matrix_exp,
    norm,
    orthogonal,
    random,
    rnn,
    running,
    scan,
    scatter,
    search,
    softmax,
    sort,
)
from ..gpu.threads import onto_threads

RULES: tuple[Rule, ...] = (
    attention, rnn, softmax, norm, scan, running, search, sort, scatter, factorize, orthogonal, matrix_exp, random,
)  # fmt: skip
# Its small tiles fit the registers of one thread.
TILES_OF = ("cpu", "baseline")


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    cpu = load_target(*TILES_OF)
    for rule in RULES:
        result = rule.apply(group, cpu, name)
        if result is not None:
            return replace(result, function=onto_threads(result.function))
    return None
