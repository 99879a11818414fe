"""Every way to give a model and its weights leads to the same package; nested arguments and results keep their
structure. Each case compares with PyTorch in float64."""

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from tests.models.redraw import redraw
from tests.models.support import assert_equal_to_pytorch
from transpiler import transpile
from transpiler.api import Package
from transpiler.model_file import load_model_file

SOURCE = '''
"""A model with a tied weight, integer and float inputs."""

import torch
from torch import nn


class TinyNet(nn.Module):
    def __init__(self, width=8, vocabulary=11):
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Embedding(vocabulary, width)
        self.fc = nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids, scale):
        return self.head(torch.tanh(self.fc(self.embed(ids) * scale)))
'''

EXAMPLE = """

def example_inputs():
    return torch.arange(10).reshape(2, 5), torch.ones(5, 1)
"""

FACTORY = """

def build_model(width=4, wide=False):
    return TinyNet(4 * width if wide else width).eval()
"""

INPUTS = (torch.arange(10).reshape(2, 5), torch.ones(5, 1))
TIED = "head.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny_net.py"
    path.write_text(SOURCE + EXAMPLE)
    return path


@pytest.fixture
def module(source: Path) -> nn.Module:
    return load_model_file(source).module.eval()


def check(package: Package, module: nn.Module, args: Any = INPUTS, kwargs: Any = None) -> Any:
    """The numbers, by an independent comparison; then the package's model."""
    model = package.load()
    assert_equal_to_pytorch(model, (module, tuple(args), dict(kwargs or {})), seed=7)
    return model


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


# --- the model ----------------------------------------------------------------------------------------------


def test_model_file(source: Path, module: nn.Module, tmp_path: Path) -> None:
    package = transpile(source, out=tmp_path, test=True)
    assert package.report.tests is not None
    assert package.report.tests.ok
    model = check(package, module)
    assert package.name == "tiny_net"
    assert [item["name"] for item in model.manifest["inputs"]] == ["ids", "scale"]


def test_module(module: nn.Module, tmp_path: Path) -> None:
    check(transpile(module, INPUTS, out=tmp_path), module)


def test_a_module_in_training_mode_is_transpiled_for_inference(module: nn.Module, tmp_path: Path) -> None:
    trained = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    redraw(trained).train()
    inputs = (torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),)
    package = transpile(trained, inputs, name="trained", out=tmp_path)
    assert trained.training, "the user's module keeps its mode"
    assert any("training" in warning for warning in package.report.warnings)
    check(package, trained.eval(), inputs)


def test_exported_program(module: nn.Module, tmp_path: Path) -> None:
    exported = torch.export.export(module, INPUTS)
    check(transpile(exported, name="tiny", out=tmp_path), module)


def test_pt2_file(module: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt2"
    torch.export.save(torch.export.export(module, INPUTS), path)
    package = transpile(path, out=tmp_path / "out")
    assert package.name == "tiny"
    check(package, module)


def test_graph_file_with_weights(module: nn.Module, tmp_path: Path) -> None:
    first = transpile(module, INPUTS, name="tiny", out=tmp_path / "first")
    graph = tmp_path / "again.graph.json"
    graph.write_bytes((first.path / "src/tiny/graph.json").read_bytes())
    state = state_of(module)
    del state[TIED]
    save_file(state, tmp_path / "tiny.safetensors")
    package = transpile(graph, weights=tmp_path / "tiny.safetensors", out=tmp_path / "second", test=True)
    assert package.name == "again"
    model, before = check(package, module), first.load()
    arrays = [item.numpy() for item in INPUTS]
    assert np.array_equal(model(*arrays), before(*arrays))


def test_factory_with_init(tmp_path: Path) -> None:
    path = tmp_path / "factory.py"
    path.write_text(SOURCE + FACTORY + EXAMPLE)
    for init, width in (({}, 4), ({"width": 3, "wide": True}, 12)):
        expected = load_model_file(path, init=init).module
        assert expected.fc.in_features == width
        check(transpile(path, init=init, out=tmp_path / str(width)), expected)


def test_entry_and_input_specifications(tmp_path: Path, module: nn.Module) -> None:
    """Names, a dtype, bounds; no `example_inputs` and several classes."""
    path = tmp_path / "two.py"
    path.write_text(SOURCE + "\n\nclass Other(nn.Linear):\n    pass\n")
    package = transpile(
        path,
        entry="TinyNet",
        inputs=["scale=4x1:float32", "ids=3x4:int32[2..5]"],
        out=tmp_path / "out",
    )
    model = check(package, module, (torch.arange(2, 6, dtype=torch.int32).repeat(3, 1), torch.ones(4, 1)))
    ids, scale = model.manifest["inputs"]
    assert (ids["name"], ids["dtype"], ids["shape"], ids["bounds"]) == ("ids", "int32", [3, 4], [2, 5])
    assert (scale["name"], scale["dtype"], scale["shape"]) == ("scale", "float32", [4, 1])


# --- its weights --------------------------------------------------------------------------------------------


def _safetensors(state: dict[str, torch.Tensor], path: Path) -> Path:
    save_file(state, path / "w.safetensors")
    return path / "w.safetensors"


def _safetensors_tied_once(state: dict[str, torch.Tensor], path: Path) -> Path:
    return _safetensors({key: value for key, value in state.items() if key != TIED}, path)


def _state_dict(state: dict[str, torch.Tensor], path: Path) -> Path:
    torch.save(state, path / "w.pt")
    return path / "w.pt"


def _arrays(state: dict[str, torch.Tensor], path: Path) -> dict[str, Any]:
    return {key: value.numpy() for key, value in state.items()}


@pytest.mark.parametrize(
    "give",
    [_safetensors, _safetensors_tied_once, _state_dict, _arrays, lambda state, path: state],
    ids=["safetensors", "tied_once", "state_dict", "arrays", "tensors"],
)
def test_other_weights(source: Path, module: nn.Module, give: Callable[..., Any], tmp_path: Path) -> None:
    redraw(module, seed=4)
    given = give(state_of(module), tmp_path)
    model = check(transpile(source, weights=given, out=tmp_path / "out"), module)
    # A package takes the same forms, but for PyTorch's own.
    redraw(module, seed=5)
    if give is not _state_dict:
        model.load_weights(give(state_of(module), tmp_path))
        assert_equal_to_pytorch(model, (module, INPUTS, {}), seed=8)


def test_a_tied_weight_is_stored_once(module: nn.Module, tmp_path: Path) -> None:
    package = transpile(module, INPUTS, name="tiny", out=tmp_path)
    manifest = package.load().manifest
    assert manifest["weights"]["aliases"] == {TIED: "embed.weight"}


# --- structure of arguments and results ---------------------------------------------------------------------


class OnlyKeywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, *, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return self.fc(x) + shift


def _draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_only_keywords(tmp_path: Path) -> None:
    module, kwargs = redraw(OnlyKeywords()), {"shift": _draw(3), "x": _draw(2, 4)}
    model = check(transpile(module, kwargs=kwargs, name="keywords", out=tmp_path, test=True), module, (), kwargs)
    with pytest.raises(TypeError):
        model(kwargs["x"].numpy(), kwargs["shift"].numpy())


class Nested(nn.Module):
    """Tuples, lists and dicts in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, pair: Any, extra: Any, *, more: Any = None) -> Any:
        (a, (b, c)), d = pair, extra["d"]
        e, f = extra["rest"]
        y = self.fc(a) + b * c
        return {"y": y, "inner": [y + d, (e - f, y.sum())], "given": {"more": more[0] * 2.0}}


def test_nested_tuples_lists_dicts(tmp_path: Path) -> None:
    module = redraw(Nested())
    args = ((_draw(2, 4), (_draw(2, 4), _draw(4))), {"d": _draw(1, 4), "rest": [_draw(3), _draw(3)]})
    kwargs = {"more": (_draw(5),)}
    package = transpile(module, args, kwargs, name="nested", out=tmp_path, test=True)
    model = check(package, module, args, kwargs)
    (pair, extra), (more,) = args, kwargs["more"]
    result = model(
        (pair[0].numpy(), tuple(item.numpy() for item in pair[1])),
        {"d": extra["d"].numpy(), "rest": [item.numpy() for item in extra["rest"]]},
        more=(more.numpy(),),
    )
    assert list(result) == ["y", "inner", "given"]
    assert type(result["inner"]) is list
    assert type(result["inner"][1]) is tuple
    assert result["inner"][1][1].shape == ()
    assert list(result["given"]) == ["more"]


Pair = namedtuple("Pair", ["first", "second"])


class Typed(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@dataclass
class Fields:
    first: torch.Tensor
    second: torch.Tensor


torch.export.register_dataclass(Fields, serialized_type_name="tests.Fields")


class Makes(nn.Module):
    """Two results in a container."""

    def __init__(self, container: Callable[..., Any]) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.container = container

    def forward(self, x: torch.Tensor) -> Any:
        return self.container(self.fc(x), x.sum(1))


class Takes(nn.Module):
    def forward(self, pair: Typed) -> torch.Tensor:
        return pair.first - 2.0 * pair.second


def test_a_namedtuple_as_argument(tmp_path: Path) -> None:
    """The user's own class, or any tuple of its length."""
    pair = Typed(_draw(2, 4), _draw(4))
    package = transpile(Takes().eval(), (pair,), name="takes", out=tmp_path, test=True)
    first, second = pair.first.numpy(), pair.second.numpy()
    for given in (Typed(first, second), (first, second)):
        assert np.array_equal(package.load()(given), first - 2 * second)


def _model_output(first: torch.Tensor, second: torch.Tensor) -> BaseModelOutput:
    return BaseModelOutput(last_hidden_state=first, hidden_states=(second,))


@pytest.mark.parametrize("container", [Pair, Typed, Fields], ids=["namedtuple", "NamedTuple", "dataclass"])
def test_results_with_named_fields(container: Callable[..., Any], tmp_path: Path) -> None:
    module, x = redraw(Makes(container)), _draw(2, 4)
    model = transpile(module, (x,), name="makes", out=tmp_path, test=True).load()
    result = model(x.numpy())
    assert type(result).__name__ == container.__name__
    exact = module.double()(x.double())
    for field in ("first", "second"):
        np.testing.assert_allclose(getattr(result, field), getattr(exact, field).detach().numpy(), atol=1e-6, rtol=1e-6)
    if issubclass(container, tuple):
        first, second = result
        assert first is result.first
        assert second is result[1]


def test_a_model_output(tmp_path: Path) -> None:
    module, x = redraw(Makes(_model_output)), _draw(2, 4)
    package = transpile(module, (x,), name="makes", out=tmp_path, test=True)
    model = check(package, module, (x,))
    result = model(x.numpy())
    assert type(result).__name__ == "BaseModelOutput"
    assert result["last_hidden_state"] is result.last_hidden_state
    assert result[0] is result.last_hidden_state
    assert type(result.hidden_states) is tuple
