"""A program with one of everything that the text and JSON forms have to keep."""

import numpy as np

from transpiler.dims import SymbolRange, floordiv, symbol
from transpiler.errors import Location
from transpiler.ir import Graph, Input, Node, Output, Program, Role, TensorType, Value, verify
from transpiler.ops import REGISTRY
from transpiler.structure import Leaf, Literal, Mapping_, Sequence_

_PAIR = Mapping_("namedtuple", (("text", Literal("s")), ("none", Literal(None))), "Pair")


def everything() -> Program:
    """y = relu(x) + shift, z = reshape(y): symbols, roles, ties, state, origins, structures."""
    batch = symbol("batch")
    shape = (batch * 2, 4)
    where = Location("m.py", 12, "Net.forward", 'y = self.act(x)  # "quoted" \\ ü', "block.0.act#2")
    x = Value("x", TensorType("float32", shape), hint="x")
    state = Value("state", TensorType("float32", (4,)))
    shift = Value("shift", TensorType("float32", (4,)))
    table = Value("table", TensorType("float32", (300,)))
    weight = Value("fc_weight", TensorType("bfloat16", (4, 4)))
    act = Value("act", TensorType("float32", shape), "block.0.act#2", where, "y")
    y = Value("y", TensorType("float32", shape))
    z = Value("z", TensorType("float32", (batch * 8,)), None, Location("m.py", 13))
    literals = Mapping_("dict", (("scale", Literal(1.5)), ("n", Literal(None)), ("flag", Literal(True))))
    graph = Graph(
        "forward",
        (
            Input(x, Role.USER, "x"),
            Input(weight, Role.PARAMETER, "fc.weight"),
            Input(state, Role.STATE, "cell.state"),
            Input(shift, Role.CONSTANT, "block.shift"),
            Input(table, Role.CONSTANT, "table"),
        ),
        (
            Node(REGISTRY["relu"](), (x,), (act,)),
            Node(REGISTRY["add"](), (act, shift), (y,)),
            Node(REGISTRY["reshape"](shape=(batch * 8,)), (y,), (z,)),
        ),
        (Output(z), Output(shift, "cell.state"), Output(act)),
        Sequence_("tuple", (Sequence_("tuple", (Leaf(0),)), literals)),
        Mapping_("record", (("z", Leaf(0)), ("rest", Sequence_("list", (Leaf(1), _PAIR)))), "Out"),
        {"batch": SymbolRange(1, 16), "seq": SymbolRange(2, None)},
    )  # fmt: skip
    assert floordiv(batch * 8, 2) == batch * 4
    verify(graph)
    constants = {
        "block.shift": np.array([0.1, -0.0, np.inf, np.nan], np.float32),
        "table": np.arange(300, dtype=np.float32),
    }
    return Program({"forward": graph}, constants, {"tied.weight": "fc.weight"})
