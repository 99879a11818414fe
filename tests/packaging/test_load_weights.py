"""Exchanging weights: while calls run, from every kind of source, with every fault named, and without a second copy."""

import json
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from tests.packaging.support import tagger
from transpiler import transpile
from transpiler.api import Package
from transpiler.weights import state_arrays

WIDTH, LAYERS = 192, 8
MATRIX = WIDTH * WIDTH * 4


class Stack(nn.Module):
    """Linear layers of one shape; each weight is 1/8 of all."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(torch.tanh(self.layers(x)))


def stack(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Stack().eval()


def state(module: nn.Module) -> dict[Any, np.ndarray]:
    return {key: array.copy() for key, array in state_arrays(module.state_dict()).items()}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    out = tmp_path_factory.mktemp("stack")
    return transpile(stack(0), (torch.zeros(2, WIDTH),), name="stack", out=out, isa="baseline")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Package:
    module, ids = tagger()
    return transpile(module, (ids,), name="tagger", out=tmp_path_factory.mktemp("tied"), isa="baseline")


@pytest.fixture
def model(package: Package) -> Iterator[Any]:
    with package.load(threads=1) as model:
        yield model


X = np.random.default_rng(0).standard_normal((2, WIDTH), np.float32)


def expected(module: nn.Module) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(X)).numpy()


def test_a_closed_model_takes_no_weights(package: Package) -> None:
    model = package.load(threads=1)
    model.close()
    with pytest.raises(RuntimeError, match="the model is closed"):
        model.load_weights(state(stack(1)))
    with pytest.raises(RuntimeError, match="the model is closed"):
        model(X)


def test_calls_run_on_while_weights_change(model: Any) -> None:
    """A call's result is that of the weights before or after a load that overlaps it, bit for bit; once a load has
    returned, no later call sees the old ones."""
    states = [state(stack(seed)) for seed in range(3)]
    results = []
    for weights in states:
        model.load_weights(weights)
        results.append(model(X).tobytes())
    assert len(set(results)) == 3
    model.load_weights(states[0])
    begun = done = 0  # how many loads have begun, and how many have returned
    stop = threading.Event()
    wrong: list[str] = []
    seen: set[bytes] = set()

    def caller() -> int:
        calls = 0
        while not stop.is_set():
            first = done
            got = model(X).tobytes()
            allowed = {results[number % 3] for number in range(first, begun + 1)}
            if got not in allowed:
                wrong.append(f"after {first} loads, before load {begun + 1}")
            seen.add(got)
            calls += 1
        return calls

    with ThreadPoolExecutor(3) as pool:
        callers = [pool.submit(caller) for _ in range(3)]
        try:
            while done < 30 or (len(seen) < 3 and done < 3000):  # a thread may get no turn between two loads
                begun = done + 1
                model.load_weights(states[begun % 3])
                done = begun
        finally:
            stop.set()
        assert all(item.result() > 0 for item in callers)
    assert wrong == []
    assert seen == set(results)


def test_partial_loads_at_once_lose_nothing(model: Any) -> None:
    """Each thread sets a layer of its own with strict=False: in the end all of them are set."""
    new = state(stack(7))

    def load(layer: int) -> None:
        prefix = f"layers.{layer}."
        model.load_weights({key: value for key, value in new.items() if key.startswith(prefix)}, strict=False)

    with ThreadPoolExecutor(LAYERS) as pool:
        list(pool.map(load, range(LAYERS)))
    model.load_weights({key: value for key, value in new.items() if key.startswith("norm.")}, strict=False)
    np.testing.assert_allclose(model(X), expected(stack(7)), atol=1e-5)


def test_every_source(model: Any, tmp_path: Path) -> None:
    module = stack(3)
    wanted = expected(module)
    save_file(state(module), tmp_path / "new.safetensors")
    for source in (state(module), module.state_dict(), tmp_path / "new.safetensors", str(tmp_path / "new.safetensors")):
        model.load_weights(state(stack(4)))
        model.load_weights(source)
        np.testing.assert_allclose(model(X), wanted, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("as_file", [False, True])
def test_floats_are_cast_as_in_pytorch(model: Any, dtype: Any, as_file: bool, tmp_path: Path) -> None:
    module = stack(5)
    other = {key: array.astype(dtype) if array.dtype == np.float32 else array for key, array in state(module).items()}
    source: Any = other
    if as_file:
        save_file(other, tmp_path / "other.safetensors")
        source = tmp_path / "other.safetensors"
    model.load_weights(source)
    module.load_state_dict(
        {key: torch.from_numpy(array.astype(np.float32)) for key, array in other.items()}, strict=False
    )
    np.testing.assert_allclose(model(X), expected(module), atol=1e-5)


def test_a_file_of_more_than_four_gigabytes(package: Package, tmp_path: Path) -> None:
    """A hole stands for the first tensor: what lies behind 32 bits is read, and nothing else is touched."""
    hole, tail = 5 << 30, np.arange(6, dtype=np.float32)
    entries = {
        "hole": {"dtype": "U8", "shape": [hole], "data_offsets": [0, hole]},
        "tail": {"dtype": "F32", "shape": [2, 3], "data_offsets": [hole, hole + 24]},
    }
    header = json.dumps(entries).encode()
    with (tmp_path / "large.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.seek(hole, 1)
        file.write(tail.tobytes())
    read_state = sys.modules[package.load().load_weights.__module__].read_state
    state = read_state(tmp_path / "large.safetensors")
    np.testing.assert_array_equal(state["tail"], tail.reshape(2, 3))
    assert state["hole"].shape == (hole,)
    assert state["hole"][-1] == 0


def test_the_prepared_file_of_another_build(package: Package, model: Any) -> None:
    before = model(X).tobytes()
    model.load_weights(state(stack(6)))
    assert model(X).tobytes() != before
    model.load_weights(package.path / "src/stack/weights.cpu.safetensors")
    assert model(X).tobytes() == before


def test_a_prepared_file_made_in_another_way(package: Package, model: Any, tmp_path: Path) -> None:
    """Its tensors have the names, types and places of this model's, but not its key."""
    before = model(X).tobytes()
    content = (package.path / "src/stack/weights.cpu.safetensors").read_bytes()
    key = model.manifest["weights"]["key"].encode()
    other = tmp_path / "other.safetensors"
    other.write_bytes(content.replace(key, key[:-4] + b"none"))
    with pytest.raises(ValueError, match="was prepared for stack cpu"):
        model.load_weights(other)
    assert model(X).tobytes() == before


def test_every_fault_is_named(model: Any) -> None:
    weights = state(stack(1))
    before = model(X).tobytes()
    del weights["layers.3.bias"], weights["norm.weight"]
    weights["layers.0.weight"] = np.zeros((WIDTH, 5), np.float64)
    weights["layers.1.bias"] = np.zeros(WIDTH, np.int64)
    weights["layers.2.bias"] = [0.0] * WIDTH
    weights["layers.9.weight"] = weights["head"] = weights[7] = np.zeros(1, np.float32)
    with pytest.raises(ValueError, match="do not fit") as caught:
        model.load_weights(weights)
    assert str(caught.value).splitlines() == [
        "the weights do not fit the model:",
        f"  missing: layers.3.bias float32[{WIDTH}]",
        f"  missing: norm.weight float32[{WIDTH}]",
        f"  mismatched: layers.0.weight: expected float32[{WIDTH}, {WIDTH}], got float64[{WIDTH}, 5]",
        f"  mismatched: layers.1.bias: expected float32[{WIDTH}], got int64[{WIDTH}]",
        "  mismatched: layers.2.bias: expected an array, got list",
        "  unexpected: 7",
        "  unexpected: head",
        "  unexpected: layers.9.weight",
    ]
    with pytest.raises(ValueError, match=r"missing: norm\.weight \(merged with norm\.running_var\)"):
        model.load_weights(weights, strict=False)
    weights["norm.weight"] = np.ones(WIDTH, np.float32)
    with pytest.raises(ValueError, match="do not fit") as caught:
        model.load_weights(weights, strict=False)
    assert [line.split()[1] for line in str(caught.value).splitlines()[1:]] == [
        "layers.0.weight:", "layers.1.bias:", "layers.2.bias:",
    ]  # fmt: skip
    assert model(X).tobytes() == before, "the old weights stay"


def test_without_strict_missing_keys_keep_their_values(model: Any) -> None:
    old, new = stack(8), stack(9)
    model.load_weights(state(old))
    model.load_weights({"layers.2.weight": state(new)["layers.2.weight"], "unknown": np.zeros(3)}, strict=False)
    old.layers[2].weight = new.layers[2].weight
    np.testing.assert_allclose(model(X), expected(old), atol=1e-5)


def test_tied_weights_that_differ_are_refused(tied: Package) -> None:
    module, ids = tagger(seed=2)
    with tied.load() as model, torch.no_grad():
        weights = {key: tensor.numpy() for key, tensor in module.state_dict().items()}
        assert {"embed.weight", "score.weight"} < set(weights)
        model.load_weights(weights)
        np.testing.assert_allclose(model(ids.numpy()), module(ids).numpy(), atol=1e-5)
        weights["score.weight"] = weights["score.weight"].copy()
        model.load_weights(weights)
        weights["score.weight"][7, 7] += 1
        with pytest.raises(
            ValueError, match=r"embed\.weight and score\.weight are one tensor of the model, but differ"
        ):
            model.load_weights(weights)


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=lambda dtype: dtype.__name__)
def test_memory_holds_the_old_the_new_and_one_tensor(model: Any, dtype: Any) -> None:
    """What numpy allocates for a load: the new weights, and no more than the packing of one of the matrices."""
    first, second = state(stack(1)), state(stack(2))
    second = {key: array.astype(dtype) if array.dtype == np.float32 else array for key, array in second.items()}
    total = model.manifest["weights"]["bytes"]
    tracemalloc.start()
    try:
        model.load_weights(first)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        model.load_weights(second)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total > LAYERS * MATRIX
    assert peak - before < total + 3.5 * MATRIX
    assert abs(after - before) < MATRIX / 2, "the old weights are given back"
