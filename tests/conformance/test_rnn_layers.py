"""Recurrent layers of one row: the products of the inputs and the scan as one kernel, against the references."""

from functools import cache

import numpy as np
import pytest

from tests.conformance.kernels import KernelLibrary, array_type
from tests.conformance.test_cpu_schedules import check
from transpiler.dims import Dim
from transpiler.group import Group, make_group
from transpiler.ir import Array, Graph, Input, Node, Output, Role, Value
from transpiler.ops.base import Op
from transpiler.ops.packed import LinearPacked, PackMatmul
from transpiler.ops.rnn import GruScan, LstmScan, RnnScan
from transpiler.passes.fusion import GroupStep, partition
from transpiler.schedule import schedule
from transpiler.target import load_target

GATES = {LstmScan: 4, GruScan: 3, RnnScan: 1}
# (the scan, steps, inputs, units, whether the products have a bias)
CASES: dict[str, tuple[Op, int, int, int, bool]] = {
    "lstm": (LstmScan(packed=True), 64, 48, 32, True),
    "lstm_ragged_reverse": (LstmScan(True, packed=True), 37, 50, 48, False),
    "lstm_one_block": (LstmScan(packed=True), 16, 5, 16, True),
    "lstm_many_inputs": (LstmScan(packed=True), 25, 300, 16, True),
    "lstm_odd_units": (LstmScan(packed=True), 25, 20, 20, True),
    "lstm_threads": (LstmScan(packed=True), 24, 16, 144, True),
    "gru": (GruScan(packed=True), 26, 64, 64, True),
    "gru_reverse": (GruScan(True, packed=True), 24, 33, 16, True),
    "rnn": (RnnScan(packed=True), 33, 40, 48, True),
    "relu_reverse": (RnnScan(True, "relu", packed=True), 32, 64, 16, False),
}


def arrays(case: str) -> tuple[list[Array], list[Array]]:
    """What the products and what the scan takes besides."""
    op, steps, depth, units, bias = CASES[case]
    rng, gates = np.random.default_rng(len(case)), GATES[type(op)]

    def draw(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32)

    def packed(columns: int, rows: int) -> Array:
        return PackMatmul().reference(draw(columns, rows) / np.float32(rows**0.5))

    first = [draw(steps, 1, depth), packed(gates * units, depth)] + [draw(gates * units)] * bias
    states = [draw(1, units) for _ in range(2 if gates == 4 else 1)]
    recurrent = np.concatenate([packed(units, units) for _ in range(gates)])
    return first, [*states, recurrent, *([draw(3 * units)] if gates == 3 else [])]


def group(case: str) -> Group:
    op, _, _, units, _ = CASES[case]
    first, others = (
        [Value(f"{name}{number}", array_type(array)) for number, array in enumerate(part)]
        for name, part in zip(("a", "b"), arrays(case), strict=True)
    )
    linear = LinearPacked(GATES[type(op)] * units)
    middle = Value("gates", linear.infer(*(value.type for value in first)))
    types = op.infer_types([middle.type, *(value.type for value in others)])
    outputs = tuple(Value(f"y{number}", type_) for number, type_ in enumerate(types))
    nodes = Node(linear, tuple(first), (middle,)), Node(op, (middle, *others), outputs)
    return make_group(nodes, outputs)


@cache
def library(isa: str) -> KernelLibrary:
    target = load_target("cpu", isa)
    return KernelLibrary([schedule(group(case), target, case) for case in CASES], target)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("isa", ["avx512", "baseline"])
def test_layer_against_references(case: str, isa: str) -> None:
    (first, others), op = arrays(case), CASES[case][0]
    kernels = library(isa)
    alone = kernels.run(case, *first, *others, threads=1)
    linear = LinearPacked(GATES[type(op)] * CASES[case][3])
    expected = []
    for dtype in (np.float32, np.float64):
        gates = linear.reference(*(array.astype(dtype) for array in first))
        results = op.reference(gates, *(array.astype(dtype) for array in others))
        assert isinstance(results, tuple)
        expected.append(results)
    narrow, wide = expected
    check(alone, narrow, wide, exact=False)
    for threads in (2, 3):
        together = kernels.run(case, *first, *others, threads=threads)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(together, alone, strict=True)), threads


@pytest.mark.parametrize(
    ("steps", "rows", "kept", "joined"),
    [(24, 1, False, True), (23, 1, False, False), (24, 2, False, False), (24, 1, True, False)],
)
def test_which_products_join_the_scan(steps: Dim, rows: int, kept: bool, joined: bool) -> None:
    """Long scans of one row take them in, unless somebody else reads them."""
    nodes = group("lstm").nodes
    linear, scan = LinearPacked(128), LstmScan(packed=True)
    x, weight, bias = nodes[0].inputs
    h, c, recurrent = nodes[1].inputs[1:]
    x = Value("x", x.type.with_shape((steps, rows, 48)))
    h, c = (Value(name, h.type.with_shape((rows, 32))) for name in ("h", "c"))
    gates = Value("gates", linear.infer(x.type, weight.type, bias.type))
    outputs = tuple(
        Value(f"y{number}", type_)
        for number, type_ in enumerate(scan.infer(gates.type, h.type, c.type, recurrent.type))
    )
    graph = Graph(
        name="forward",
        inputs=tuple(Input(value, Role.USER, value.name) for value in (x, weight, bias, h, c, recurrent)),
        nodes=(Node(linear, (x, weight, bias), (gates,)), Node(scan, (gates, h, c, recurrent), outputs)),
        outputs=tuple(Output(value) for value in (*outputs, *([gates] if kept else []))),
    )
    steps_of_plan = partition(graph, load_target("cpu", "avx512"))
    assert [len(step.group.nodes) for step in steps_of_plan if isinstance(step, GroupStep)] == (
        [2] if joined else [1, 1]
    )
