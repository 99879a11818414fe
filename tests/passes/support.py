"""Before and after: a pass on the text form, and a check that it kept the function's meaning."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import dedent

import numpy as np

from transpiler.interpreter import run_graph
from transpiler.ir import Array, Graph, Program, Role, verify
from transpiler.text import print_graph
from transpiler.text_parser import parse_graph


def graph(text: str) -> Graph:
    parsed = parse_graph(dedent(text).strip() + "\n")
    verify(parsed)
    return parsed


def drawn(program: Program, seed: int = 0) -> tuple[dict[str, Array], list[Array]]:
    """Random weights (variances positive) and user inputs."""
    generator = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...], dtype: str) -> Array:
        if dtype.startswith("float"):
            return np.abs(generator.standard_normal(shape)).astype(dtype) + np.dtype(dtype).type(0.1)
        return generator.integers(0, 2, shape).astype(dtype)

    weights, inputs = {}, []
    for item in program.main.inputs:
        array = draw(item.value.type.static_shape(), item.value.dtype)
        if item.role is Role.USER:
            inputs.append(array)
        elif item.role is not Role.CONSTANT:
            weights[item.key] = array
    return weights, inputs


def assert_same_meaning(before: Program, after: Program) -> None:
    """Both give the same results on random inputs, to rounding."""
    weights, inputs = drawn(before)
    for want, got in zip(run_graph(before, weights, inputs), run_graph(after, weights, inputs), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)


def assert_pass(function: Callable[[Graph], Graph], before: str, after: str) -> None:
    """`function` turns `before` into `after` exactly, and keeps the meaning."""
    start = graph(before)
    result = function(start)
    verify(result)
    assert print_graph(result) == print_graph(graph(after))
    assert_same_meaning(Program({"forward": start}), Program({"forward": result}))


def assert_unchanged(function: Callable[[Graph], Graph], text: str) -> None:
    assert_pass(function, text, text)
