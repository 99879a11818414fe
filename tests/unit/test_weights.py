import json
import pickle
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from transpiler.errors import TranspileError, TranspileErrors, UsageError
from transpiler.ir import TensorType
from transpiler.weights import check_weights, given_arrays, load_weights, storage_aliases, to_numpy, to_torch

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array(7, np.int64),
    "half": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "flags": np.array([True, False]),
}


def test_safetensors(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "w.safetensors")
    loaded = load_weights(tmp_path / "w.safetensors")
    for key, array in ARRAYS.items():
        assert loaded[key].dtype == array.dtype
        np.testing.assert_array_equal(loaded[key], array)


@pytest.mark.parametrize("wrapped", [False, True])
def test_state_dict(tmp_path: Path, wrapped: bool) -> None:
    state = {key: to_torch(array) for key, array in ARRAYS.items()}
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, tmp_path / "w.pt")
    loaded = load_weights(tmp_path / "w.pt")
    for key, array in ARRAYS.items():
        np.testing.assert_array_equal(loaded[key], array)


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_torch_round_trip(array: np.ndarray) -> None:
    back = to_numpy(to_torch(array))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("cut", [0, 4, 20, -3])
def test_truncated(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "w.safetensors"
    save_file(ARRAYS, path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(TranspileError, match="not a readable safetensors file"):
        load_weights(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0]},
        {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [400, 404]},
        [],
    ],
)
def test_hostile_headers(tmp_path: Path, entry: object) -> None:
    header = json.dumps({"x": entry}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(TranspileError):
        load_weights(path)


class Evil:
    def __reduce__(self):
        return (print, ("owned",))


def test_unsafe_pickle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": Evil()}, tmp_path / "w.pt")
    with pytest.raises(TranspileError) as info:
        load_weights(tmp_path / "w.pt")
    assert info.value.code == "unsafe-weights"
    assert "safetensors.torch.save_file(model.state_dict()" in str(info.value)
    assert "owned" not in capsys.readouterr().out


@pytest.mark.parametrize("data", [b"", b"hello", pickle.dumps([1, 2])])
def test_unreadable_state_dict(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "w.pt").write_bytes(data)
    with pytest.raises(TranspileError):
        load_weights(tmp_path / "w.pt")


EXPECTED = {
    "a": TensorType("float32", (2, 3)),
    "b": TensorType("int64", ()),
    "c": TensorType("float32", (1,)),
}


def test_check_lists_everything() -> None:
    given = {"a": np.zeros((3, 2), np.float32), "b": np.zeros((), np.int32), "d": np.zeros(4, np.float32)}
    with pytest.raises(TranspileErrors) as info:
        check_weights(EXPECTED, {}, given)
    assert [problem.message for problem in info.value.problems] == [
        "Weight 'a' is float32[3, 2], the model has float32[2, 3]",
        "Weight 'b' is int32[], the model has int64[]",
        "Unexpected weight 'd' (float32[4])",
        "Missing weight 'c': float32[1]",
    ]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "net.body."])
def test_names_with_a_prefix_that_the_model_lacks(prefix: str) -> None:
    given = {f"{prefix}{key}": np.zeros(type_.shape, type_.dtype) for key, type_ in EXPECTED.items()}
    with pytest.raises(TranspileErrors) as info:
        check_weights(EXPECTED, {}, {**given, "optimizer": np.zeros(1)})
    problem = info.value.problems[-1]
    assert problem.hints == (f"without the {prefix!r} that their names begin with, they are the model's",)
    del given[f"{prefix}b"]
    with pytest.raises(TranspileErrors) as info:
        check_weights(EXPECTED, {}, given)
    assert not any(problem.hints for problem in info.value.problems)


def test_check_ties() -> None:
    aliases = {"tied": "c"}
    base = {"a": np.zeros((2, 3), np.float32), "b": np.zeros((), np.int64)}
    one = np.ones(1, np.float32)
    assert check_weights(EXPECTED, aliases, {**base, "tied": one})["c"] is one
    assert list(check_weights(EXPECTED, aliases, {**base, "c": one, "tied": one.copy()})) == ["a", "b", "c"]
    with pytest.raises(TranspileErrors, match="tied in the model, but differ"):
        check_weights(EXPECTED, aliases, {**base, "c": one, "tied": one * 2})
    with pytest.raises(TranspileErrors, match=r"Missing weight 'c': float32\[1\] \(tied: tied\)"):
        check_weights(EXPECTED, aliases, base)


def test_storage_aliases() -> None:
    weight = torch.zeros(4, 4)
    state = {"a": weight, "b": weight, "c": weight[:2], "d": torch.zeros(0), "e": torch.zeros(0)}
    assert storage_aliases(state) == {"b": "a"}


def test_a_mapping_of_what_is_no_array() -> None:
    ones = np.ones(2, np.float32)
    assert list(given_arrays({"a": ones, "b": torch.ones(2), "c": np.ma.masked_array(ones)})) == ["a", "c", "b"]
    masked, meta = np.ma.masked_less(ones, 2), torch.ones(2, device="meta")
    with pytest.raises(TranspileErrors) as caught:
        given_arrays({"a": [1.0], "b": masked, "c": torch.ones(2).to_sparse(), "d": meta})
    assert [problem.message for problem in caught.value.problems] == [
        "Weight 'a' is a list, expected a tensor or an array",
        "Weight 'b' has masked values: fill them",
        "Weight 'c' is a tensor without dense memory (cpu, torch.sparse_coo)",
        "Weight 'd' is a tensor without dense memory (meta, torch.strided)",
    ]
    with pytest.raises(UsageError, match="weights is a int, expected a path or a state_dict"):
        given_arrays(3)
