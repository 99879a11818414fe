"""The emitted safetensors reader and writer against the safetensors package, and against damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load, save

from transpiler.prepared import runtime_module

st = runtime_module("safetensors")
TENSORS = {
    "a": np.arange(5, dtype=np.float32),
    "b.weight": np.arange(6, dtype=np.int64).reshape(2, 3),
    "scalar": np.array(True),
    "empty": np.zeros((0, 3), np.float16),
    'quote"\n': np.arange(3, dtype=np.uint8),
}


def write(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_what_it_writes_others_read() -> None:
    content = st.encode(TENSORS, metadata={"b": "2", "a": "1"})
    assert content == st.encode(TENSORS, metadata={"a": "1", "b": "2"})
    read = load(content)
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(read[name], array)
    assert (8 + int.from_bytes(content[:8], "little")) % 64 == 0


def test_it_reads_what_others_write(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(TENSORS, metadata={"who": "me"}))
    file = st.File(path)
    assert set(file) == set(TENSORS)
    assert file.metadata == {"who": "me"}
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(file[name], array)
        assert file[name].dtype == array.dtype
        assert not file[name].flags.writeable


def test_tensors_are_aligned_views_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(st.encode(TENSORS))
    file = st.File(path)
    for name in TENSORS:
        assert file[name].ctypes.data % 64 == 0
        assert file[name].size == 0 or np.shares_memory(file[name], file.data)


def test_given_offsets(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(st.encode({"b": TENSORS["a"], "a": TENSORS["a"]}, offsets={"a": 64, "b": 256}, total=512))
    file = st.File(path)
    assert (file.entries["a"].start, file.entries["b"].start, file.data.nbytes) == (64, 256, 512)
    with pytest.raises(ValueError, match="overlaps"):
        st.encode({"a": TENSORS["a"], "b": TENSORS["a"]}, offsets={"a": 0, "b": 16})


def test_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.array([1.5, -2.0, np.inf], ml_dtypes.bfloat16)
    path = tmp_path / "x.safetensors"
    path.write_bytes(st.encode({"x": values, "bits": values.view(np.uint16)}, dtypes={"bits": "bfloat16"}))
    assert st.File(path)["x"].dtype == ml_dtypes.bfloat16
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    for name in ("x", "bits"):
        assert st.File(path)[name].dtype == np.float32
        np.testing.assert_array_equal(st.File(path)[name], values.astype(np.float32))


def entry(start: int, end: int, shape: list[object] | None = None, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "data", "complaint"),
    [
        (b"{", b"", "not JSON"),
        (b"\xff", b"", "not JSON"),
        (b"[" * 100000, b"", "not JSON"),
        ([], b"", "not an object"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
        ({"a": 1}, b"", "needs dtype"),
        ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0]}}, b"1", "needs dtype"),
        ({"a": entry(0, 1, dtype="F8")}, b"1", "unknown dtype 'F8'"),
        ({"a": entry(0, 1, [-1])}, b"1", "has shape"),
        ({"a": entry(0, 1, [True])}, b"1", "has shape"),
        ({"a": entry(0, 1, [2**60])}, b"1", "has shape"),
        ({"a": entry(0, 3, dtype="F32", shape=[1])}, b"123", "needs 4"),
        ({"a": entry(0, 2), "b": entry(1, 3)}, b"123", "hole or overlap"),
        ({"a": entry(0, 1), "b": entry(2, 3)}, b"123", "hole or overlap"),
        ({"a": entry(0, 4)}, b"123", "the file has 3"),
        ({"a": entry(0, 2)}, b"123", "the file has 3"),
        ({"a": entry(-1, 0, [1])}, b"", "bytes"),
    ],
)
def test_damaged_headers(tmp_path: Path, header: object, data: bytes, complaint: str) -> None:
    with pytest.raises(st.FormatError, match=complaint):
        st.File(write(tmp_path / "x.safetensors", header, data))


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 8, (9).to_bytes(8, "little") + b"{}"])
def test_damaged_sizes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(st.FormatError):
        st.File(path)


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    content = st.encode(TENSORS)
    path = tmp_path / "x.safetensors"
    for end in range(0, len(content), 7):
        path.write_bytes(content[:end])
        with pytest.raises(st.FormatError):
            st.File(path)


# --- packing -----------------------------------------------------------------


def test_packing() -> None:
    host = runtime_module("host")
    rng = np.random.default_rng(0)
    w = rng.standard_normal((18, 5)).astype(np.float32)
    packed = host.pack_matmul(w)
    assert packed.shape == (2, 5, 16)
    for n in range(18):
        np.testing.assert_array_equal(packed[n // 16, :, n % 16], w[n])
    assert not packed[1, :, 2:].any()

    w = rng.standard_normal((18, 5, 3, 2)).astype(np.float32)
    packed = host.pack_conv(w)
    assert packed.shape == (2, 1, 3, 2, 16, 16)
    stem = host.pack_conv_stem(w)
    assert stem.shape == (2, 5, 3, 2, 16)
    for o in range(18):
        for i in range(5):
            np.testing.assert_array_equal(packed[o // 16, i // 16, :, :, i % 16, o % 16], w[o, i])
            np.testing.assert_array_equal(stem[o // 16, i, :, :, o % 16], w[o, i])
    assert np.count_nonzero(packed) == w.size

    for group in (1, 2):
        w = rng.standard_normal((18, group, 3, 2)).astype(np.float32)
        packed = host.pack_depthwise(w)
        assert packed.shape == (2, 3, 2, group, 16)
        for c, i in np.ndindex(18, group):
            np.testing.assert_array_equal(packed[c // 16, :, :, i, c % 16], w[c, i])

    x = rng.standard_normal((2, 18, 4, 3)).astype(np.float32)
    blocked = np.moveaxis(host.pad_to(x, 1, 16).reshape(2, 2, 16, 4, 3), 2, -1)
    np.testing.assert_array_equal(host.unblock(blocked, 18), x)
    assert host.pad_to(x, 1, 9) is x
