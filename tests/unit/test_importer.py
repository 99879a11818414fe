"""Capture and import of small real modules: names, roles, structure, taps, numbers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from transpiler.capture import Captured, capture_exported, capture_module, load_exported
from transpiler.dims import SymbolRange
from transpiler.errors import TranspileErrors
from transpiler.importer import Imported, import_program
from transpiler.interpreter import run_graph
from transpiler.ir import Role
from transpiler.reference import example_arrays, run_eager, run_reference
from transpiler.specs import parse_dynamic, parse_input
from transpiler.structure import Leaf, Literal, Mapping_, Sequence_
from transpiler.text import print_program
from transpiler.weights import check_weights, expected_weights, state_arrays


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.act = nn.ReLU()

    def forward(self, x):
        h = self.act(self.fc(x))
        return self.act(self.fc(h)) + h


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.seq = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.norm = nn.BatchNorm1d(4)
        self.tied = self.seq[0]
        self.register_buffer("shift", torch.arange(4.0), persistent=False)

    def forward(self, input, mask=None, *, scale=2):
        y = self.inner(input)
        z = self.seq(y)
        first, second = z.chunk(2, dim=-1)
        literal = torch.tensor([1.0, 2.0])
        return {
            "z": first * literal * scale + second,
            "w": self.tied(self.norm(y)) + self.shift,
            "n": None,
            "i": 3,
        }


def check(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None, shapes: Any = None
) -> tuple[Captured, Imported]:
    """Import, and compare the interpreter with PyTorch: outputs and every tap."""
    captured = capture_module(module, args, kwargs, shapes)
    imported = import_program(captured)
    weights = check_weights(
        expected_weights(imported.program),
        imported.program.aliases,
        state_arrays(captured.exported_program.state_dict),
    )
    inputs = example_arrays(captured)
    values: dict[str, np.ndarray] = {}
    ours = run_graph(imported.program, weights, inputs, values=values)
    names = [imported.fx_names[name] for name in imported.taps.values()]
    theirs, taps = run_reference(captured, inputs, capture_values=names)
    for a, b, c in zip(ours, theirs, run_eager(captured, inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(b, c)
    for name in imported.taps.values():
        np.testing.assert_allclose(values[name], taps[imported.fx_names[name]], rtol=1e-4, atol=1e-5)
    return captured, imported


@pytest.fixture(scope="module")
def net() -> tuple[Captured, Imported]:
    torch.manual_seed(0)
    module = Net()
    result = check(module, (torch.randn(3, 4),), {"scale": 3})
    assert module.training  # the user's module is left as it was
    return result


def test_values_have_the_users_names(net: tuple[Captured, Imported]) -> None:
    nodes = net[1].program.main.nodes
    names = [value.name for node in nodes for value in node.outputs]
    assert names[:5] == ["fc", "h", "fc_2", "act", "y"]
    assert {"z", "first", "second", "tied"} <= set(names)
    assert all(name.isidentifier() for name in names)


def test_names_are_deterministic(net: tuple[Captured, Imported]) -> None:
    assert print_program(import_program(net[0]).program) == print_program(net[1].program)


def test_locations(net: tuple[Captured, Imported]) -> None:
    location = net[1].program.main.nodes[0].output.location
    assert location is not None
    assert (location.file, location.function, location.module_path) == (
        "test_importer.py",
        "Inner.forward",
        "inner.fc",
    )
    assert location.text == "h = self.act(self.fc(x))"


def test_taps(net: tuple[Captured, Imported]) -> None:
    taps = net[1].taps
    assert {
        "inner",
        "inner.fc",
        "inner.fc#2",
        "inner.act",
        "inner.act#2",
        "seq",
        "seq.0",
        "seq.1",
        "norm",
    } <= set(taps)
    assert taps["seq"] == taps["seq.1"] == "z"
    assert taps["inner"] == "y"
    paths = {value.name: value.path for value in net[1].program.main.values()}
    assert paths["z"] == "seq.1"  # the innermost
    assert paths["fc_2"] == "inner.fc#2"


def test_roles_and_keys(net: tuple[Captured, Imported]) -> None:
    program = net[1].program
    inputs = [(item.value.name, item.role, item.key) for item in program.main.inputs]
    assert inputs[0] == ("input_", Role.USER, "input")  # a builtin's name stays free
    assert ("seq_0_weight", Role.PARAMETER, "seq.0.weight") in inputs
    assert ("norm_running_mean", Role.BUFFER, "norm.running_mean") in inputs
    assert ("shift", Role.CONSTANT, "shift") in inputs
    np.testing.assert_array_equal(program.constants["shift"], np.arange(4, dtype=np.float32))
    assert program.aliases == {"tied.weight": "seq.0.weight", "tied.bias": "seq.0.bias"}


def test_structure(net: tuple[Captured, Imported]) -> None:
    graph = net[1].program.main
    assert graph.in_structure == Sequence_(
        "tuple", (Sequence_("tuple", (Leaf(0),)), Mapping_("dict", (("scale", Literal(3)),)))
    )
    assert graph.out_structure == Mapping_(
        "dict", (("z", Leaf(0)), ("w", Leaf(1)), ("n", Literal(None)), ("i", Literal(3)))
    )
    assert net[1].argument_names == ("input",)


def test_warns_of_training_mode(net: tuple[Captured, Imported]) -> None:
    assert "training mode" in net[1].warnings[0]
    assert capture_module(Net().eval(), (torch.ones(2, 4),)).warnings == ()


def test_double_reference(net: tuple[Captured, Imported]) -> None:
    captured, _ = net
    inputs = example_arrays(captured)
    single, _ = run_reference(captured, inputs)
    double, values = run_reference(captured, inputs, double=True, capture_values=["linear"])
    assert {item.dtype for item in double} == {np.dtype(np.float64)}
    assert values["linear"].dtype == np.float64
    for a, b in zip(single, double, strict=True):
        assert 0 < np.abs(a - b).max() < 1e-5


@pytest.mark.parametrize("key", ["seq.0.weight", "tied.weight"])
def test_other_weights(net: tuple[Captured, Imported], key: str) -> None:
    captured, imported = net
    weights = state_arrays(captured.exported_program.state_dict)
    weights[key] = weights.pop("seq.0.weight") * 2
    inputs = example_arrays(captured)
    ours = run_graph(
        imported.program,
        check_weights(expected_weights(imported.program), imported.program.aliases, weights),
        inputs,
    )
    eager = run_eager(captured, inputs, weights=weights)
    graph, _ = run_reference(captured, inputs, weights=weights)
    for a, b, c, old in zip(ours, eager, graph, run_eager(captured, inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(b, c)
        assert not np.allclose(b, old)


def test_other_weights_of_an_lstm() -> None:
    captured = capture_module(nn.LSTM(3, 4), (torch.randn(5, 1, 3),))
    inputs = example_arrays(captured)
    before = run_eager(captured, inputs)
    weights = {key: array * 2 for key, array in state_arrays(captured.exported_program.state_dict).items()}
    changed = run_eager(captured, inputs, weights=weights)
    np.testing.assert_array_equal(changed[0], run_reference(captured, inputs, weights=weights)[0][0])
    assert not np.allclose(changed[0], before[0])
    np.testing.assert_array_equal(run_eager(captured, inputs)[0], before[0])


class Point(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


class Nested(nn.Module):
    def forward(self, pair, table):
        a, (b, c) = pair
        return Point(a + b, c), [table["k"]], (table["k"] * 2,)


def test_nested_arguments() -> None:
    one = torch.ones(2)
    _, imported = check(Nested(), ((one, (one * 2, one * 3)), {"k": one * 4}))
    graph = imported.program.main
    assert [item.key for item in graph.user_inputs()] == ["pair_0", "pair_1_0", "pair_1_1", "table_k"]
    assert imported.argument_names == ("pair", "table")
    assert graph.out_structure == Sequence_(
        "tuple",
        (
            Mapping_("namedtuple", (("left", Leaf(0)), ("right", Leaf(1))), "Point"),
            Sequence_("list", (Leaf(2),)),
            Sequence_("tuple", (Leaf(3),)),
        ),
    )


class Flat(nn.Module):
    def forward(self, x):
        return (x * 2).reshape(x.shape[0] * x.shape[1], -1)[:, ::2]


def test_dynamic_dims() -> None:
    from transpiler.examples import dynamic_shapes

    module, x = Flat(), torch.randn(3, 4, 5)
    shapes = dynamic_shapes(module.forward, (x,), {}, [parse_dynamic("x.0=batch:2..64"), parse_dynamic("x.1=seq")])
    _, imported = check(module, (x,), None, shapes)
    graph = imported.program.main
    assert str(graph.user_inputs()[0].value.type) == "float32[batch, seq, 5]"
    assert str(graph.user_outputs()[0].type) == "float32[batch*seq, 3]"
    assert graph.symbols["batch"] == SymbolRange(2, 64)
    other = np.ones((7, 2, 5), np.float32)
    (result,) = run_graph(imported.program, {}, [other])
    assert result.shape == (14, 3)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x * 2


def test_a_buffer_that_forward_writes_is_state() -> None:
    module = Counter()
    _, imported = check(module, (torch.ones(2),))
    (state,) = imported.program.main.state_inputs()
    assert (state.key, imported.program.main.updates().keys()) == ("calls", {"calls"})
    assert module.calls == 0, "running the module to compare leaves it as it was"


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("whole", torch.zeros(4))
        self.part = self.whole[:2]

    def forward(self, x):
        self.whole += x.sum()
        return self.part + x


def test_a_written_buffer_that_shares_memory_is_refused() -> None:
    with pytest.raises(TranspileErrors, match="'whole' and 'part' share memory"):
        capture_module(Shared(), (torch.ones(2),))


class Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 4)

    def forward(self, ids):
        return self.words(ids.view(-1))


def test_integer_bounds() -> None:
    _, imported = check(Lookup(), (torch.zeros(2, 3, dtype=torch.int64),))
    assert imported.integer_bounds == {"ids": (0, 49)}


def test_pt2(tmp_path: Any) -> None:
    module = Net().eval()
    x = torch.randn(3, 4)
    exported = torch.export.export(module, (x,))
    torch.export.save(exported, tmp_path / "net.pt2")
    captured = load_exported(tmp_path / "net.pt2")
    assert captured.name == "net"
    imported = import_program(captured)
    direct = import_program(capture_exported(exported))
    assert imported.taps == direct.taps
    weights = state_arrays(captured.exported_program.state_dict)
    weights = check_weights(expected_weights(imported.program), imported.program.aliases, weights)
    ours = run_graph(imported.program, weights, [x.numpy()])
    for a, b in zip(ours, run_eager(captured, [x.numpy()]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_pt2_without_examples() -> None:
    exported = torch.export.export(Flat(), (torch.ones(3, 4, 5),))
    exported._example_inputs = None
    captured = capture_exported(exported)
    assert [item.shape for item in captured.args] == [(3, 4, 5)]
    assert "no example inputs" in captured.warnings[0]


def test_bound_inputs() -> None:
    from transpiler.examples import bind_inputs

    args, kwargs = bind_inputs(Net(), [parse_input("2x4"), parse_input("mask=2x4:bool")])
    assert [tuple(item.shape) for item in args] == [(2, 4)]
    assert kwargs["mask"].dtype == torch.bool
    args, kwargs = bind_inputs(Lookup(), [parse_input("ids=9x9:int64")])
    assert int(args[0].max()) <= 49
    assert not kwargs


def test_a_number_that_only_an_assertion_reads_is_a_warning() -> None:
    class Checked(nn.Module):
        def forward(self, x, lengths):
            torch._check(lengths.max().item() <= 4)
            return x * 2

    _, imported = check(Checked(), (torch.randn(2, 4), torch.tensor([3, 4])))
    assert any("assertion on the values" in warning for warning in imported.warnings)


def test_a_buffer_that_is_assigned_to_itself_is_not_changed() -> None:
    class Moved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.randn(4))

        def forward(self, x):
            self.table = self.table.to(x.device)
            return x + self.table

    _, imported = check(Moved(), (torch.randn(2, 4),))
    assert [item.role for item in imported.program.main.inputs] == [Role.USER, Role.BUFFER]
