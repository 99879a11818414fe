"""Random graphs over the op set equal PyTorch: native and kernel by kernel, fused and not, on several draws.

A fixed, small number here; `python -m tests.properties --graphs 1500 --seed 7` draws others.
"""

from __future__ import annotations

import torch

from tests.properties.calls import Call, Graph, Made, Ref
from tests.properties.generate import build, bundles, codes
from tests.properties.shrink import shrunk
from tests.properties.signatures import overloads
from tests.properties.verdicts import EQUAL, judge, judge_small

GRAPHS = 60


def test_random_graphs() -> None:
    verdicts = [(verdict, fold) for graphs, fold in bundles(GRAPHS) for verdict in judge(graphs, fold=fold)]
    failed = [judge_small(verdict.graph, fold=fold).text() for verdict, fold in verdicts if verdict.failed]
    assert not failed, f"{len(failed)} graphs differ from PyTorch\n\n" + "\n\n".join(failed)
    equal = sum(verdict.outcome == EQUAL for verdict, _ in verdicts)
    assert equal >= 0.8 * GRAPHS, [verdict.reason for verdict, _ in verdicts if verdict.outcome != EQUAL]


def test_graphs_are_drawn_from_the_registry() -> None:
    """A new overload is drawn if its signature permits; the same code gives the same graph."""
    functions = {name for several in overloads() for name in several}
    assert {
        "aten.add.Tensor",
        "aten.special_zeta.default",
        "aten.index_reduce.default",
        "aten.cummax.default",
    } <= functions
    assert not any("rand" in name or "empty" in name for name in functions)
    drawn = codes(40)
    graphs = [build(code) for code in drawn]
    assert graphs == [build(code) for code in drawn]
    assert len({call.function for graph in graphs for call in graph.calls}) > 40


def test_a_failure_is_made_small() -> None:
    calls = (
        Call("aten.relu.default", (Ref(0),)),
        Call("aten.exp.default", (Ref(1),)),
        Call("aten.add.Tensor", (Ref(2), Ref(0))),
        Call("aten.neg.default", (Ref(3),)),
    )
    graph = Graph((Made((3, 4)),), calls, (4, 1))
    small = shrunk(graph, lambda item: any(call.function == "aten.add.Tensor" for call in item.calls))
    assert [call.function for call in small.calls] == ["aten.add.Tensor"]
    assert len(small.outputs) == 1
    assert all(made.dtype is torch.float32 for made in small.inputs)
