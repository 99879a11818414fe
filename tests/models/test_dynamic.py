"""Packages whose sizes vary: one package equals PyTorch at every size, whichever way it came to be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.export import Dim

from tests.models.dynamic_nets import nets
from transpiler import transpile
from transpiler.api import Package
from transpiler.cli import main
from transpiler.errors import TranspileErrors, UsageError
from transpiler.loading import load_package

# Bounds, 1, tiles and vectors that are just full or not, from small to large and back.
SIZES = [(1, 1), (1, 2), (2, 1), (9, 40), (3, 7), (5, 17), (8, 16), (9, 15), (1, 33), (2, 6)]


def flat(result: Any) -> list[np.ndarray]:
    if isinstance(result, torch.Tensor):
        return [result.numpy()]
    if isinstance(result, np.ndarray):
        return [result]
    items = result.values() if hasattr(result, "values") else result
    return [array for item in items for array in flat(item)]


def check(module: nn.Module, model: Any, args: Sequence[torch.Tensor], what: str, **kwargs: Any) -> None:
    """Within the project's tolerance of PyTorch in float64."""
    with torch.no_grad():
        wanted = flat(module(*args, **kwargs))
        wide = [item.double() if item.is_floating_point() else item for item in args]
        exact = flat(module.double()(*wide, **kwargs))
        module.float()
    got = flat(model(*args, **kwargs))
    assert len(got) == len(wanted)
    for ours, theirs, double in zip(got, wanted, exact, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), what
        largest = np.abs(double).max(initial=0.0)
        tolerance = 4 * np.abs(theirs - double).max(initial=0.0) + 128 * np.finfo(np.float32).eps * largest
        assert np.abs(ours - double).max(initial=0.0) <= tolerance, what


@pytest.fixture(scope="module", params=["conv", "attend", "recurrent", "maps", "shared"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Any, Package]:
    torch.manual_seed(0)
    module, draw, dims = nets()[request.param]
    # A batch of one: the example is enlarged for tracing.
    package = transpile(
        module.eval(),
        args=draw(1, 6),
        dynamic_shapes=dims,
        name=f"any_{request.param}",
        out=tmp_path_factory.mktemp("d"),
    )
    return module, draw, package


def test_every_size_equals_pytorch(built: tuple[nn.Module, Any, Package]) -> None:
    module, draw, package = built
    model, stepwise = package.load(), package.load(native=False)
    for batch, seq in SIZES:
        args = draw(batch, min(seq, 30)) if package.name == "any_shared" else draw(batch, seq)
        what = f"batch {batch}, seq {seq}"
        check(module, model, args, what)
        for ours, theirs in zip(flat(model(*args)), flat(stepwise(*args)), strict=True):
            assert ours.tobytes() == theirs.tobytes(), what


def test_callers_with_different_sizes_at_once(built: tuple[nn.Module, Any, Package]) -> None:
    _, draw, package = built
    model = package.load(threads=2)
    inputs = [draw(batch, seq) for batch, seq in ((1, 2), (9, 30), (3, 7), (5, 17))]
    alone = [[array.tobytes() for array in flat(model(*args))] for args in inputs]

    def run(number: int) -> bool:
        return all([array.tobytes() for array in flat(model(*inputs[number]))] == alone[number] for _ in range(10))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(4)))


def test_guards(tmp_path: Path) -> None:
    module, draw, dims = nets()["shared"]
    model = transpile(module, args=draw(2, 3), dynamic_shapes=dims, name="guarded", out=tmp_path).load()

    def message(*shapes: tuple[int, ...]) -> str:
        with pytest.raises(ValueError, match=r"dimension|shape") as caught:
            model(*(np.zeros(shape, np.float32) for shape in shapes))
        return str(caught.value)

    assert message((10, 3), (3, 3), (6, 3)) == "x: dimension 0 (batch) is 10, allowed 1..9"
    assert message((0, 3), (3, 3), (6, 3)) == "x: dimension 0 (batch) is 0, allowed 1..9"
    assert message((2, 3), (3, 3), (7, 3)) == "z: dimension 0 (2*rows) is 7, expected 6: rows is 3 in y"
    assert message((2, 4), (3, 3), (6, 3)) == "x: expected shape (batch, 3), got (2, 4)"
    assert model.manifest["symbols"][1]["name"] == "rows"
    assert model.manifest["inputs"][2]["shape"] == ["2*rows", 3]


def test_a_multiple_alone(tmp_path: Path) -> None:
    """A size that only a multiple of it tells; the guard names what divides."""
    package = transpile(
        nn.Flatten(1), args=(torch.randn(2, 8),), dynamic_shapes=({1: 4 * Dim("quads", min=1, max=5)},),
        name="quads", out=tmp_path,
    )  # fmt: skip
    model = package.load()
    assert model(np.ones((2, 20), np.float32)).shape == (2, 20)
    with pytest.raises(ValueError, match=r"dimension 1 \(4\*quads\) is 6, allowed 4\.\.20 in multiples of 4"):
        model(np.ones((2, 6), np.float32))


MLP = """
import torch
from torch import nn

class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, 48), nn.GELU(), nn.Linear(48, 7), nn.Softmax(-1))

    def forward(self, x):
        return self.layers(x)

def example_inputs():
    return (torch.randn(1, 20),)
"""


def test_command_line_with_generated_tests(tmp_path: Path) -> None:
    (tmp_path / "mlp_any.py").write_text(MLP)
    arguments = [str(tmp_path / "mlp_any.py"), "--dynamic", "x.0=batch:1..300", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    folder = tmp_path / "out" / "mlp_any"
    readme = (folder / "README.md").read_text()
    assert "| `batch` | 1 to 300 | dimension 0 of `x` |" in readme
    assert "# [batch, 48]" in (folder / "src" / "mlp_any" / "model.py").read_text()
    cases = json.loads((folder / "tests" / "data" / "cases.json").read_text())
    batches = {case["shapes"][0][0] for case in cases["cases"]}
    assert {1, 300} <= batches
    assert len(batches) >= 4
    command = [sys.executable, "-m", "mlp_any", "profile", "-n", "1", "--size", "batch=64"]
    timed = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(folder / "src")}, capture_output=True, text=True
    )
    assert timed.returncode == 0, timed.stderr
    assert "linear_bias_gelu_48" in timed.stdout
    module = sys.modules["transpiler_user_mlp_any"].Mlp().eval()
    state = {key: value.numpy() for key, value in module.state_dict().items()}
    with load_package(folder, "mlp_any").Model(weights=state) as model:
        for batch in (1, 7, 8, 9, 300, 2):
            check(module, model, (torch.randn(batch, 20),), f"batch {batch}")


def test_saved_program_keeps_its_bounds_and_takes_names(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh()).eval()
    exported = torch.export.export(module, (torch.randn(3, 6),), dynamic_shapes=({0: Dim("b", min=1, max=12)},))
    torch.export.save(exported, tmp_path / "saved.pt2")
    package = transpile(tmp_path / "saved.pt2", dynamic=["input.0=batch:1..8"], out=tmp_path)
    assert [(s["name"], s["low"], s["high"]) for s in package.load().manifest["symbols"]] == [("batch", 1, 8)]
    for batch in (1, 8, 5):
        check(module, package.load(), (torch.randn(batch, 6),), f"batch {batch}")
    unnamed = transpile(tmp_path / "saved.pt2", out=tmp_path, name="unnamed").load()
    assert [(s["name"], s["high"]) for s in unnamed.manifest["symbols"]] == [("input_0", 12)]
    with pytest.raises(UsageError, match=r"this size is fixed in the saved program; those that vary: input\.0"):
        transpile(tmp_path / "saved.pt2", dynamic=["input.1=width"], out=tmp_path)
    with pytest.raises(UsageError, match=r"the saved program allows 1\.\.12, not 1\.\.20"):
        transpile(tmp_path / "saved.pt2", dynamic=["input.0=batch:1..20"], out=tmp_path)


def test_a_saved_program_whose_size_is_a_multiple(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(6, 5), nn.Unflatten(0, (-1, 2))).eval()
    rows = {0: 2 * Dim("pairs", min=1, max=8)}
    torch.export.save(torch.export.export(module, (torch.randn(6, 6),), dynamic_shapes=(rows,)), tmp_path / "rows.pt2")
    model = transpile(tmp_path / "rows.pt2", out=tmp_path).load()
    for count in (4, 6, 16):
        check(module, model, (torch.randn(count, 6),), f"{count} rows")
    with pytest.raises(ValueError, match="in multiples of 2"):
        model(np.zeros((5, 6), np.float32))


class Attend(nn.Module):
    """A step over past keys and values, as a language model has it."""

    def forward(self, query, cache):
        total = query
        for key, value in cache:
            total = total + nn.functional.scaled_dot_product_attention(total, key, value)
        return total, [(torch.cat([key, query], 2), value) for key, value in cache]


def test_sizes_that_a_saved_program_has_apart_are_named_alike(tmp_path: Path) -> None:
    """torch.export has a symbol for the length of each tensor; one name for all makes them one."""
    pairs = [(torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4)) for _ in range(2)]
    apart = [({2: Dim.AUTO}, {2: Dim.AUTO}) for _ in pairs]
    query = torch.randn(1, 2, 1, 4)
    exported = torch.export.export(Attend(), (query, pairs), dynamic_shapes=(None, apart))
    torch.export.save(exported, tmp_path / "attend.pt2")
    model = transpile(tmp_path / "attend.pt2", dynamic=["cache.2=past:2..40"], out=tmp_path).load()
    assert [(s["name"], s["low"], s["high"]) for s in model.manifest["symbols"]] == [("past", 2, 40)]
    for past in (2, 40, 13):
        cache = [(torch.randn(1, 2, past, 4), torch.randn(1, 2, past, 4)) for _ in pairs]
        exact, _ = Attend()(query.double(), [(key.double(), value.double()) for key, value in cache])
        _, grown = Attend()(query, cache)
        got, ours = model(query, cache)
        assert np.abs(got - exact.numpy()).max() <= 128 * np.finfo(np.float32).eps * np.abs(exact.numpy()).max()
        assert ours[1][0].tobytes() == grown[1][0].numpy().tobytes()
    cache[1] = (cache[1][0], cache[1][1][:, :, 1:])
    with pytest.raises(
        ValueError, match=r"cache_1_1: dimension 2 \(past\) is 12, expected 13: past is 13 in cache_0_0"
    ):
        model(query, cache)


def test_a_graph_file_keeps_its_sizes(tmp_path: Path) -> None:
    """`transpile x.graph.json` of a model whose sizes vary."""
    module = nn.Sequential(nn.Linear(6, 5), nn.Softmax(-1)).eval()
    first = transpile(module, (torch.randn(3, 6),), dynamic=["input.0=batch:1..70"], name="first", out=tmp_path)
    graph = first.path / "src" / "first" / "graph.json"
    weights = {key: value.numpy() for key, value in module.state_dict().items()}
    second = transpile(
        graph.rename(tmp_path / "second.graph.json"), weights=weights, name="second", out=tmp_path, test=True
    )
    model = second.load()
    assert [(s["name"], s["low"], s["high"]) for s in model.manifest["symbols"]] == [("batch", 1, 70)]
    for batch in (1, 70, 9):
        check(module, model, (torch.randn(batch, 6),), f"batch {batch}")
    with pytest.raises(ValueError, match=r"input: dimension 0 \(batch\) is 71, allowed 1\.\.70"):
        model(np.zeros((71, 6), np.float32))


class Twice(nn.Module):
    """Functions over one matrix; the sizes of each vary, and one name means a size in two of them."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(6, 6)

    def encode(self, x):
        return self.lin(x).relu().mean(1)

    def compare(self, a, b):
        return self.lin(a) @ b.transpose(0, 1)

    def apply(self, x):
        return self.lin(x)


def test_functions_with_sizes_of_their_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Twice().eval()
    functions = {
        "encode": (torch.randn(1, 4, 6),),
        "compare": (torch.randn(3, 6), torch.randn(5, 6)),
        "apply": (torch.randn(2, 6),),
    }
    dynamic = ["encode.x.0=batch:1..8", "encode.x.1=seq:1..33", "compare.a.0=rows:1..9", "b.0=seq:1..50"]
    dynamic.append("apply.x.0=alone:1..9")  # the first of the program's symbols, and the function's only one
    package = transpile(module, functions=functions, dynamic=dynamic, name="twice", out=tmp_path, test=True)
    model, stepwise = package.load(), package.load(native=False)
    for rows, seq in ((1, 1), (8, 33), (9, 50), (2, 7), (7, 2)):
        a, b = torch.randn(rows, 6), torch.randn(seq, 6)
        with torch.no_grad():
            np.testing.assert_allclose(model.compare(a, b), module.compare(a, b).numpy(), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(model.apply(a), module.apply(a).numpy(), rtol=1e-4, atol=1e-5)
        assert model.compare(a, b).tobytes() == stepwise.compare(a, b).tobytes()
        if rows <= 8 and seq <= 33:
            x = torch.randn(rows, seq, 6)
            with torch.no_grad():
                np.testing.assert_allclose(model.encode(x), module.encode(x).numpy(), rtol=1e-4, atol=1e-5)
            assert model.encode(x).tobytes() == stepwise.encode(x).tobytes()
    with pytest.raises(ValueError, match=r"x: dimension 1 \(seq\) is 34, allowed 1\.\.33"):
        model.encode(np.zeros((1, 34, 6), np.float32))
    text = (package.path / "src" / "twice" / "model.py").read_text()
    assert "return self.lin(a) @ b.transpose(0, 1)" in text, "lines of methods other than forward are shown"
    for wrong, message in (
        ("decode.x.0=n", "no such function; known: encode, compare, apply"),
        ("y.0=n", "no such input"),
    ):
        with pytest.raises(UsageError, match=message):
            transpile(module, functions=functions, dynamic=[wrong], out=tmp_path)


class Branches(nn.Module):
    def forward(self, x):
        return x * 2 if x.shape[0] > 5 else x


def test_what_a_model_does_not_allow() -> None:
    with pytest.raises(TranspileErrors) as caught:
        transpile(Branches(), args=(torch.randn(3, 4),), dynamic_shapes=({0: Dim("batch", min=1, max=64)},))
    text = str(caught.value)
    assert "The model does not allow a dimension to vary as asked" in text
    assert "not every batch that was asked for satisfies 2 <= x.size(0) and x.size(0) <= 5" in text
    assert "narrow its bounds: NAME.DIM=batch:1..5" in text
    lstm = nn.LSTM(3, 4)
    with pytest.raises(TranspileErrors, match="seq was fixed to 5: forward, or an operator in it, needs to know it"):
        transpile(lstm, args=(torch.randn(5, 2, 3),), dynamic_shapes=({0: Dim("seq", min=1)},))


class Inverse(nn.Module):
    def forward(self, x):
        return torch.linalg.inv(x)


def test_an_operator_that_needs_fixed_sizes_is_refused() -> None:
    with pytest.raises(TranspileErrors, match=r"Unsupported use of 'aten.linalg_inv.default': .*fixed sizes"):
        transpile(Inverse(), args=(torch.randn(3, 4, 4),), dynamic_shapes=({0: Dim("batch")},))


class OnlyTwo(nn.Module):
    def forward(self, x):
        return x.squeeze(0)


def test_a_graph_that_is_not_the_model_at_one(tmp_path: Path) -> None:
    """torch.export takes no size for 1: what `squeeze` does then is not in its graph."""
    with pytest.raises(TranspileErrors, match=r"The traced model is not the model at batch = 1"):
        transpile(OnlyTwo(), args=(torch.randn(3, 4),), dynamic_shapes=({0: Dim("batch", min=1, max=8)},), out=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
def test_transformers(name: str, tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    small = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "hidden_size": 64}
    batch, seq = Dim("batch", min=1, max=9), Dim("seq", min=1, max=40)
    tokens = {0: batch, 1: seq}
    if name == "bert":
        module = transformers.BertModel(transformers.BertConfig(vocab_size=99, max_position_embeddings=64, **small))
        shapes: dict[str, Any] = {"input_ids": tokens, "attention_mask": tokens}
    elif name == "gpt2":
        config = transformers.GPT2Config(vocab_size=99, n_embd=64, n_layer=2, n_head=4, n_positions=64, use_cache=False)
        module, shapes = transformers.GPT2LMHeadModel(config), {"input_ids": tokens}
    else:
        module = transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=8, **small))
        shapes = {"pixel_values": {0: batch}}
    module.eval()

    def draw(rows: int, length: int) -> dict[str, torch.Tensor]:
        if name == "vit":
            return {"pixel_values": torch.randn(rows, 3, 32, 32)}
        ids = torch.randint(0, 99, (rows, length))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} if name == "bert" else {"input_ids": ids}

    package = transpile(module, kwargs=draw(2, 6), dynamic_shapes=shapes, name=name, out=tmp_path, test=True)
    model = package.load()
    for rows, length in SIZES:
        given = draw(rows, length)
        with torch.no_grad():
            wanted = [item.numpy() for item in module(**given).values() if isinstance(item, torch.Tensor)]
        for ours, theirs in zip(flat(model(**given)), wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
