"""Divisions before a rounding are exact, others are left alone."""

from __future__ import annotations

from tests.passes.support import assert_pass, assert_unchanged
from transpiler.ir import Program
from transpiler.passes import PIPELINES, run_passes
from transpiler.passes.quotients import nearest_quotients
from transpiler.text_parser import parse_graph

HEAD = """
func forward(
  %x: float32[2, 5] user "x",
  %s: float32[5] user "s",
) {
"""
DIVIDED = (
    HEAD
    + """
  %q: float32[2, 5] = div(%x, %s)NEAREST
  %a: float32[2, 5] = add(%q, %x)
  %i: int32[2, 5] = cast(%a) {dtype = "int32"}
  return %i
}
"""
)
RECIPROCAL = (
    HEAD
    + """
  %r: float32[5] = reciprocal(%s)
  %p: float32[2, 5] = mul(%x, %r)
  %y: float32[2, 5] = round(%p)
  return %y
}
"""
)
INVERTED = (
    HEAD
    + """
  %full: float32[] = full() {value = 1.0, shape = (), dtype = "float32"}
  %r: float32[5] = div(%full, %s) {nearest = True}
  %p: float32[2, 5] = mul(%x, %r)
  %y: float32[2, 5] = round(%p)
  return %y
}
"""
)
ELSEWHERE = (
    HEAD
    + """
  %f: float32[2, 5] = floor(%x)
  %q: float32[2, 5] = div(%f, %s)
  %e: float32[2, 5] = exp(%q)
  %y: float32[2, 5] = round(%e)
  return %y
}
"""
)


def test_quotients_that_become_ints() -> None:
    assert_pass(nearest_quotients, DIVIDED.replace("NEAREST", ""), DIVIDED.replace("NEAREST", " {nearest = True}"))


def test_reciprocals() -> None:
    assert_pass(nearest_quotients, RECIPROCAL, INVERTED)


def test_others_are_left_alone() -> None:
    assert_unchanged(nearest_quotients, ELSEWHERE)


def test_vulkan_has_them() -> None:
    program = Program({"forward": parse_graph(RECIPROCAL.strip() + "\n")})
    for target, wanted in {"vulkan": ["full", "div", "mul", "round"], "cpu": ["reciprocal", "mul", "round"]}.items():
        for passes in (PIPELINES[target].usual, PIPELINES[target].exact, PIPELINES[target].unfolded):
            assert [node.op.name for node in run_passes(program, passes).main.nodes] == wanted
