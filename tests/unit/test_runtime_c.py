"""The C runtime under a hand-made plan: results, threads, errors, fork."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest

from tests.installed import missing
from tests.unit import toy
from transpiler.c_compiler import c_compiler
from transpiler.c_plan import render_plan
from transpiler.errors import TranspileError
from transpiler.link import RUNTIME_FILES, SPECIAL_FILES, link_library
from transpiler.resources import tree

PREFIX = "toy_baseline_"


class Native:
    """The library through bare ctypes."""

    def __init__(self, path: Path) -> None:
        self.dll = ctypes.CDLL(str(path))
        self["last_error"].restype = ctypes.c_char_p
        for name in ("input_name", "output_name", "call_name", "call_source", "function_name"):
            self[name].restype = ctypes.c_char_p
        for name in ("input_bytes", "output_bytes", "arena_bytes", "weight_bytes", "state_bytes"):
            self[name].restype = ctypes.c_uint64
        memory = np.zeros(320 + 64, np.uint8)
        start = -memory.ctypes.data % 64
        self.weights = memory[start : start + 320]
        prepared = toy.run_prepare(toy.plan(), toy.program().constants, toy.state())
        for name, offset in (("fc_weight_packed", 0), ("fc_bias_shifted", 192), ("table", 256)):
            content = prepared[name].reshape(-1).view(np.uint8)
            self.weights[offset : offset + content.size] = content

    def __getitem__(self, name: str) -> ctypes._CFuncPtr:
        return getattr(self.dll, PREFIX + name)

    def create(self, threads: int = 1) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        code = self["create"](
            ctypes.c_void_p(self.weights.ctypes.data), ctypes.c_uint64(320), threads, ctypes.byref(handle)
        )
        assert code == 0, self.error()
        return handle

    def error(self) -> str:
        return self["last_error"]().decode()

    def run(self, handle: ctypes.c_void_p, x: np.ndarray, ids: np.ndarray) -> tuple[int, list[np.ndarray]]:
        outputs = [
            np.empty((6, 4), np.float32),
            np.empty((2, 2), np.float32),
            np.empty((2, 3, 3), np.float32),
        ]
        return self["run"](handle, 0, None, pointers([x, ids]), pointers(outputs)), outputs


def pointers(arrays: list[np.ndarray]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(arrays))(*[array.ctypes.data for array in arrays])


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Native:
    path = tmp_path_factory.mktemp("lib") / "toy.so"
    path.write_bytes(toy.linked().library)
    return Native(path)


def check(outputs: list[np.ndarray], x: np.ndarray, ids: np.ndarray) -> None:
    hidden, rows = toy.expected(x, ids, toy.state())
    np.testing.assert_allclose(outputs[0], hidden, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(outputs[1], rows)
    np.testing.assert_array_equal(outputs[2], x)


def test_sizes_and_names(native: Native) -> None:
    assert native["abi_version"]() == 6
    assert [native[f"{what}_count"](0) for what in ("input", "output", "call")] == [2, 3, 2]
    assert [native["input_name"](0, i) for i in (0, 1, 2, -1)] == [b"x", b"ids", None, None]
    assert [native["output_name"](0, i) for i in range(3)] == [b"h", b"rows", b"output2"]
    assert [native["input_bytes"](0, i) for i in range(3)] == [72, 16, 0]
    assert [native["output_bytes"](0, i) for i in range(3)] == [96, 16, 72]
    assert [native["call_name"](0, i) for i in range(2)] == [b"fc_relu", b"take_rows"]
    assert (native["arena_bytes"](0), native["weight_bytes"](), native["state_bytes"]()) == (192, 320, 0)
    assert (native["function_count"](), native["function_name"](0), native["function_name"](1)) == (1, b"forward", None)
    assert (native["input_count"](1), native["call_name"](-1, 0), native["arena_bytes"](7)) == (0, None, 0)


def test_a_request_in_one_array(native: Native) -> None:
    handle = native.create(2)
    x, ids = toy.inputs(3)
    outputs = [np.empty((6, 4), np.float32), np.empty((2, 2), np.float32), np.empty((2, 3, 3), np.float32)]
    addresses = [array.ctypes.data for array in (x, ids, *outputs)]
    assert native["run_packed"]((ctypes.c_void_p * 8)(handle.value, 0, None, *addresses)) == 0, native.error()
    check(outputs, x, ids)
    assert native["run_packed"]((ctypes.c_void_p * 8)(handle.value, 1, None, *addresses)) == 1
    assert native.error() == "function 1 does not exist; there are 1"
    native["destroy"](handle)


@pytest.mark.parametrize("threads", [1, 2, 5, 64])
def test_run(native: Native, threads: int) -> None:
    handle = native.create(threads)
    for seed in range(20):
        x, ids = toy.inputs(seed)
        code, outputs = native.run(handle, x, ids)
        assert code == 0, native.error()
        check(outputs, x, ids)
    native["set_threads"](handle, 3)
    check(native.run(handle, *toy.inputs())[1], *toy.inputs())
    native["destroy"](handle)


def test_buffers_need_no_alignment(native: Native) -> None:
    handle = native.create()
    for shift in (1, 4, 8):  # less than an element, less than the runtime asks for, enough
        memory = np.zeros(72 + 8, np.uint8)
        x = memory[shift : shift + 72].view(np.float32).reshape(2, 3, 3)
        x[...] = toy.inputs()[0]
        code, outputs = native.run(handle, x, toy.inputs()[1])
        assert code == 0, native.error()
        check(outputs, x, toy.inputs()[1])
    native["destroy"](handle)


def test_one_kernel(native: Native) -> None:
    handle = native.create(2)
    table, ids = toy.state()["emb.weight"], np.array([2, 0], np.int64)
    out = np.empty((2, 2), np.float32)
    assert native["call"](handle, 0, 1, pointers([table, ids, out])) == 0
    np.testing.assert_array_equal(out, table[ids])
    assert native["call"](handle, 0, 2, pointers([table, ids, out])) == 1
    assert native.error() == "call 2 does not exist; forward has 2 calls"
    native["destroy"](handle)


def test_an_index_out_of_bounds_names_the_line(native: Native) -> None:
    handle = native.create()
    x, _ = toy.inputs()
    assert native.run(handle, x, np.array([0, 5], np.int64))[0] == 2
    assert native.error() == "index out of bounds in kernel take_rows (toy.py:13  rows = self.emb(ids))"
    assert native.run(handle, *toy.inputs())[0] == 0
    native["destroy"](handle)


def test_a_failing_kernel_names_itself(native: Native) -> None:
    handle = native.create()
    x, ids = toy.inputs()
    x[0, 0, 0] = 12345
    assert native.run(handle, x, ids)[0] == 1
    assert native.error().startswith("kernel fc_relu failed (toy.py:12")
    assert native.error().endswith("ValueError: the magic number")
    native["destroy"](handle)


def test_wrong_weights_are_refused(native: Native) -> None:
    handle = ctypes.c_void_p()
    address = native.weights.ctypes.data
    create = native["create"]
    assert create(ctypes.c_void_p(address), ctypes.c_uint64(319), 1, ctypes.byref(handle)) == 1
    assert native.error() == "319 bytes of weights given, 320 expected"
    assert create(ctypes.c_void_p(address + 4), ctypes.c_uint64(320), 1, ctypes.byref(handle)) == 1
    assert native.error() == "the weights must be aligned to 64 bytes"
    assert handle.value is None


@pytest.mark.parametrize("threads", [1, 2])
def test_time_of_every_call(native: Native, threads: int) -> None:
    handle = native.create(threads)
    x, ids = toy.inputs()
    outputs = [np.empty(24, np.float32), np.empty(4, np.float32), np.empty(18, np.float32)]
    seconds = np.full(4, -1.0)
    lanes = np.zeros((2, threads, 2))
    places = [ctypes.c_void_p(array.ctypes.data) for array in (seconds, lanes)]
    for _ in range(50):  # until a worker was in time to help
        lanes[...] = 0
        began = perf_counter()
        code = native["run_traced"](handle, 0, None, pointers([x, ids]), pointers(outputs), None, *places, threads)
        passed = perf_counter() - began
        assert code == 0
        if lanes.any():
            break
    assert not lanes[:, 0].any(), "the caller's lane is the call itself"
    for start, end in lanes[:, 1:].reshape(-1, 2)[lanes[:, 1:, 1].ravel() > 0]:
        assert 0 < start <= end <= seconds[-1]
    assert seconds[0] == 0, "counted from the first call's start"
    assert (np.diff(seconds) >= 0).all()
    assert 0 < seconds[-1] <= passed
    native["destroy"](handle)


@pytest.mark.parametrize("threads", [1, 2])
def test_rates_of_the_machine(native: Native, threads: int) -> None:
    rates = np.full(9, -1.0)
    assert native["rates"](threads, ctypes.c_void_p(rates.ctypes.data)) == 0
    flops, *others = rates.tolist()
    # Wide bounds: a machine that does less or more than this is none.
    assert 1e8 < flops < 1e14
    assert all(1e8 < read < 1e14 for read in others[:4])
    assert others[4:] == [*sorted(others[4:7]), 0]


def test_source_of_a_call(native: Native) -> None:
    assert b"fc" in native["call_source"](0, 0)
    assert native["call_source"](0, 2) is None


def test_callers_run_at_once(native: Native) -> None:
    """Several callers on one model and on others, all wanting the pool."""
    shared = native.create(3)

    def work(seed: int) -> None:
        own = native.create(2)
        x, ids = toy.inputs(seed)
        for _ in range(200):
            for handle in (shared, own):
                code, outputs = native.run(handle, x, ids)
                assert code == 0, native.error()
                check(outputs, x, ids)
        native["destroy"](own)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    native["destroy"](shared)


def test_error_texts_are_per_thread(native: Native) -> None:
    handle = native.create()
    assert native.run(handle, toy.inputs()[0], np.array([9, 9], np.int64))[0] == 2
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(native.error).result() == ""
    assert native.error().startswith("index out of bounds")
    native["destroy"](handle)


def test_a_forked_child_has_a_pool_of_its_own(native: Native) -> None:
    handle = native.create(4)
    check(native.run(handle, *toy.inputs())[1], *toy.inputs())
    child = os.fork()
    if child == 0:
        try:
            for seed in range(50):
                code, outputs = native.run(handle, *toy.inputs(seed))
                assert code == 0
                check(outputs, *toy.inputs(seed))
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    check(native.run(handle, *toy.inputs())[1], *toy.inputs())
    native["destroy"](handle)


def test_linking_is_deterministic() -> None:
    assert link_library(toy.objects(), [toy.plan()], "toy", "baseline").library == toy.linked().library


def test_only_the_abi_is_exported(tmp_path: Path) -> None:
    if not shutil.which("nm"):
        missing("no nm (binutils)")
    (tmp_path / "toy.so").write_bytes(toy.linked().library)
    done = subprocess.run(
        ["nm", "-D", "--defined-only", tmp_path / "toy.so"], capture_output=True, text=True, check=True
    )
    names = [line.split()[-1] for line in done.stdout.splitlines()]
    assert names
    assert all(name.startswith(PREFIX) for name in names), names


def test_the_c_text_compiles_without_warnings(tmp_path: Path) -> None:
    for file in RUNTIME_FILES:
        shutil.copy(tree("templates") / "runtime" / "cpu" / file, tmp_path)
    (tmp_path / "plan.c").write_text(render_plan([toy.plan()], "toy", "baseline"))
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers", "-Wstrict-prototypes"]
    defines = ["-DTRANSPILE_PREFIX=toy_", "-DTP_VECTOR_BYTES=16"]
    for file in ("plan.c", "exports.c", "runtime.c", "pool.c", "python.c", "rates.c", *SPECIAL_FILES):
        command = [*c_compiler().command, "-std=c11", *warnings, *defines, "-fsyntax-only", file]
        subprocess.run(command, cwd=tmp_path, check=True)


def test_a_missing_compiler_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O3")
    with pytest.raises(TranspileError, match="apt-get install gcc") as caught:
        c_compiler()
    assert caught.value.code == "no-c-compiler"


def test_objects_that_do_not_link_are_reported() -> None:
    with pytest.raises(TranspileError, match="fc_relu") as caught:
        link_library((), [toy.plan()], "toy", "baseline")
    assert caught.value.code == "link-failed"
