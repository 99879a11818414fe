"""Buffers that a model writes, and models of several functions, end to end in generated packages."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from transpiler import Package, transpile
from transpiler.errors import TranspileError, TranspileErrors

pytestmark = pytest.mark.usefixtures("_single_thread")


@pytest.fixture
def _single_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Counters(nn.Module):
    """A counter, a ring buffer, a moving average, and two buffers that change places."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("ring", torch.randn(4, 3))
        self.register_buffer("average", torch.zeros(3), persistent=False)
        self.register_buffer("left", torch.ones(2))
        self.register_buffer("right", torch.zeros(2))
        self.lin = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        before = self.calls.clone()
        self.calls += 1
        self.ring = torch.cat([self.ring[1:], self.lin(x)[None]])
        self.average.copy_(self.average * 0.9 + x * 0.1)
        left = self.left.clone()
        self.left.copy_(self.right)
        self.right.copy_(left + 1)
        return self.ring.sum(0) * self.calls, before, self.average * 2


class StreamingConv(nn.Module):
    """A causal convolution over pieces of a signal: the end of one piece is the padding of the next."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 3, kernel_size=4)
        self.register_buffer("tail", torch.zeros(1, 2, 3))

    def forward(self, piece: torch.Tensor) -> torch.Tensor:
        signal = torch.cat([self.tail, piece], dim=2)
        self.tail.copy_(signal[:, :, -3:])
        return torch.relu(self.conv(signal))


class RunningLstm(nn.Module):
    """An LSTM whose hidden state stays between calls."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5)
        self.register_buffer("hidden", torch.zeros(1, 2, 5))
        self.register_buffer("cell", torch.zeros(1, 2, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, (hidden, cell) = self.lstm(x, (self.hidden, self.cell))
        self.hidden.copy_(hidden)
        self.cell.copy_(cell)
        return y


class Cache(nn.Module):
    """Keys that `prefill` and `decode` write and read, a length, and a table that checks its indices."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 4)
        self.register_buffer("keys", torch.zeros(1, 8, 4), persistent=False)
        self.register_buffer("log", torch.zeros(3, dtype=torch.int64))

    def prefill(self, ids: torch.Tensor) -> torch.Tensor:
        self.keys[:, : ids.shape[1]] = self.words(ids)
        return self.keys.sum(1)

    def decode(self, token: torch.Tensor, position: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
        self.keys.index_copy_(1, position, self.words(token))
        self.log[slot] = token[0]
        return self.keys.cumsum(1)


def build(tmp_path: Path, module: nn.Module, name: str, **options: Any) -> Package:
    package = transpile(module.eval(), name=name, out=tmp_path, test=True, **options)
    tests = package.report.tests
    assert tests is not None
    assert tests.ok
    assert "tests/test_state.py" in {f"tests/{path.name}" for path in (package.path / "tests").iterdir()}
    return package


MODELS = {
    "counters": (Counters, lambda: (torch.randn(3),)),
    "streaming_conv": (StreamingConv, lambda: (torch.randn(1, 2, 6),)),
    "running_lstm": (RunningLstm, lambda: (torch.randn(4, 2, 3),)),
}


@pytest.mark.parametrize("name", MODELS)
def test_fresh_inputs_one_after_the_other(tmp_path: Path, name: str) -> None:
    torch.manual_seed(3)
    make, draw = MODELS[name]
    module = make().eval()
    pristine = copy.deepcopy(module)
    package = build(tmp_path, module, name, args=draw())
    for key, value in pristine.state_dict().items():
        torch.testing.assert_close(module.state_dict()[key], value, rtol=0, atol=0)  # transpiling changes nothing
    for native in (True, False):
        single, double = copy.deepcopy(pristine), copy.deepcopy(pristine).double()
        model = package.load(native=native)
        for _ in range(6):
            inputs = draw()
            got = model(*(item.numpy() for item in inputs))
            with torch.no_grad():
                want, exact = single(*inputs), double(*(item.double() for item in inputs))
            results = zip(*(item if isinstance(item, tuple) else (item,) for item in (want, exact, got)), strict=True)
            buffers = [(dict(single.named_buffers())[key], dict(double.named_buffers())[key], model.state[key])
                       for key in model.state]  # fmt: skip
            for one, two, ours in [*results, *buffers]:
                bound = 4 * (one.double() - two.double()).abs().max() + 128 * 2**-23 * two.double().abs().max()
                assert (torch.from_numpy(np.array(ours)).double() - two.double()).abs().max() <= bound


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Package:
    torch.manual_seed(0)
    example = {
        "prefill": (torch.randint(0, 11, (1, 5)),),
        "decode": (torch.randint(0, 11, (1, 1)), torch.tensor([5]), torch.tensor([1])),
    }
    return build(tmp_path_factory.mktemp("cache"), Cache(), "cache", functions=example)


def test_a_cache_is_written_in_place(cache: Package) -> None:
    text = (cache.path / "src" / "cache" / "model.py").read_text()
    assert text.count(', s["keys"])  #') == 2, "both functions write the keys themselves"
    assert text.count("_in_place_8x4(") == 2
    assert 's["keys"][...] =' not in text


def test_functions_share_weights_and_state(cache: Package) -> None:
    manifest = json.loads((cache.path / "src" / "cache" / "manifest.json").read_text())
    built = manifest["built"]["cpu"]
    assert [manifest["function"], *manifest["functions"]] == ["prefill", "decode"]
    assert sorted(built["weights"]["prepared"]) == ["log_initial", "words_weight"], "stored once, and no zeros"
    assert [item["name"] for item in built["state"]["buffers"]] == ["keys", "log"]
    model = cache.load()
    assert model.functions == ["prefill", "decode"]
    model.prefill(np.array([[1, 2, 3, 4, 5]]))
    before = model.state["keys"]
    model.decode(np.array([[7]]), np.array([5]), np.array([2]))
    assert (model.state["keys"][:, :5] == before[:, :5]).all()
    assert model.state["log"].tolist() == [0, 0, 7]
    with pytest.raises(TypeError, match="not callable"):
        model(np.array([[1]]))


def test_a_call_that_fails_early_leaves_the_state(cache: Package) -> None:
    for native in (True, False):
        model = cache.load(native=native)
        model.prefill(np.array([[1, 2, 3, 4, 5]]))
        before = dict(model.state)
        for token, position in ((11, 5), (3, 8), (3, -9)):
            with pytest.raises(IndexError):
                model.decode(np.array([[token]]), np.array([position]), np.array([0]))
            assert all((model.state[name] == before[name]).all() for name in before)


def test_a_call_that_fails_half_way_loses_the_state(cache: Package) -> None:
    """The keys are written, then the log's index is wrong: what is left is neither the old state nor the new one."""
    token, position, slot = np.array([[3]]), np.array([5]), np.array([0])
    for native in (True, False):
        model = cache.load(native=native)
        saved = dict(model.state)
        with pytest.raises(IndexError, match="out of bounds"):
            model.decode(token, position, np.array([3]))
        with pytest.raises(RuntimeError, match="a call failed after it had changed the state"):
            model.decode(token, position, slot)
        with pytest.raises(RuntimeError, match="a call failed after it had changed the state"):
            model.state["keys"]
        with pytest.raises(RuntimeError, match="a call failed after it had changed the state"):
            model.profile(token, position, slot, function="decode")
        model.reset()
        model.decode(token, position, slot)
        with pytest.raises(IndexError):
            model.decode(token, position, np.array([3]))
        model.load_state(saved)
        model.decode(token, position, slot)
        assert model.state["log"].tolist() == [3, 0, 0]


def test_the_command_line_knows_functions_and_state(cache: Package) -> None:
    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "cache", *arguments],
            env={"PYTHONPATH": str(cache.path / "src"), "PATH": ""}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    text = run("info")
    for line in ("prefill inputs:", "decode outputs:", "state: 192 bytes", "  keys: float32[1, 8, 4]"):
        assert line in text
    assert "cumsum" in run("profile", "--function", "decode", "-n", "2")


class Walk(nn.Module):
    """A random walk in half precision, and a second function that looks at it through noise of its own."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("place", torch.zeros(5, dtype=dtype))

    def step(self, x: torch.Tensor) -> torch.Tensor:
        self.place += (x + torch.randn_like(x)).to(self.place.dtype)
        return self.place * 2

    def look(self, scale: torch.Tensor) -> torch.Tensor:
        return self.place.float() * scale + torch.rand(5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_random_numbers_and_state_in_half_precision(tmp_path: Path, dtype: str) -> None:
    functions = {"step": (torch.randn(5),), "look": (torch.ones(5),)}
    module = Walk(getattr(torch, dtype))
    model = build(tmp_path, module, f"walk_{dtype}", functions=functions, rng=True).load(seed=7)
    x = np.zeros(5, np.float32)

    def walked(model: Any) -> list[np.ndarray]:
        return [np.asarray(item).copy() for item in (model.step(x), model.look(x), model.step(x), model.look(x + 1))]

    first = walked(model)
    assert not np.array_equal(first[1], first[3])
    model.reset()
    model.seed(7)
    for one, two in zip(first, walked(model), strict=True):
        assert one.tobytes() == two.tobytes()
    saved = dict(model.state)
    model.look(x)
    model.load_state(saved)
    assert np.array_equal(np.asarray(model.state["place"]), np.asarray(saved["place"]))
    assert np.abs(np.asarray(saved["place"], np.float32)).max() > 0


class Changes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x += 1
        return x * 2


def test_an_input_that_is_changed_in_place_is_refused() -> None:
    """PyTorch would change the caller's tensor."""
    with pytest.raises(TranspileErrors, match="forward changes its input 'x' in place") as caught:
        transpile(Changes(), (torch.ones(2),))
    assert "begin with x = x.clone()" in str(caught.value)
    assert "x += 1" in str(caught.value)


class Names(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("x", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.x += x
        return self.x


@pytest.mark.parametrize("name", ["state", "__class__", "plan_b", "a-b", "import", "load_weights"])
def test_a_function_name_that_a_model_cannot_have(name: str) -> None:
    with pytest.raises(TranspileError, match="cannot be called"):
        transpile(Names(), functions={name: (torch.ones(2),)})


def test_a_model_file_names_its_functions(tmp_path: Path) -> None:
    """A name that is no method is `forward` with those inputs; an input and a buffer may have one name."""
    (tmp_path / "summing.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Sum(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.register_buffer('x', torch.zeros(2))\n\n"
        "    def forward(self, x):\n        self.x += x.sum(0)\n        return self.x * 2\n\n"
        "    def peek(self, scale):\n        return self.x * scale\n\n\n"
        "def example_inputs():\n    return {'forward': (torch.ones(3, 2),), 'peek': (torch.ones(2),)}\n"
    )
    package = transpile(tmp_path / "summing.py", out=tmp_path, test=True)
    model = package.load()
    assert model(np.ones((3, 2), np.float32)).tolist() == [6, 6]
    assert model.peek(np.full(2, 5, np.float32)).tolist() == [15, 15]
    graph = package.path / "src" / "summing" / "graph.json"
    again = transpile(graph.rename(tmp_path / "again.graph.json"), weights={"x": np.ones(2, np.float32)},
                      name="again", out=tmp_path, test=True).load()  # fmt: skip
    assert again.state["x"].tolist() == [1, 1]
    assert again(np.ones((3, 2), np.float32)).tolist() == [8, 8]
    assert again.session().peek(np.ones(2, np.float32)).tolist() == [1, 1]


def test_the_documents_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "state.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, "docs/state.md", "exec"), names)
    model, ids = names["model"], names["ids"]
    assert not model.state["keys"].any()
    assert model.state["values"].shape == (1, 16, 8)
    assert model.prefill(ids.numpy()).shape == (1, 4, 8)
    assert names["saved"]["keys"][:, :4].any()
    assert (names["other"].state["keys"] == 0).all()
