"""Statements, memory and control flow of kernels, on the device."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import te, tirx
from tvm.s_tir import dlight
from tvm.script import tirx as T

from tests.vulkan.device import Device
from tests.vulkan.kernels import TARGET, build, elementwise, validation_errors
from transpiler.errors import TranspileError, TranspileErrors
from transpiler.gpu.lowering import lower
from transpiler.spirv.arithmetic import Arithmetic
from transpiler.spirv.build import build_kernels, register
from transpiler.spirv.dtypes import UINT8, Capability
from transpiler.spirv.kernel import Kernel, require_features
from transpiler.spirv.memory import Memory
from transpiler.spirv.module import Module
from transpiler.spirv.opcodes import Op
from transpiler.spirv.reflect import reflect

Array = np.ndarray[Any, Any]


@T.prim_func(s_tir=True)
def reverse(x: T.Buffer((256,), "int8"), y: T.Buffer((256,), "int8")):
    """Through shared memory, within each workgroup of 64."""
    T.func_attr({"global_symbol": "reverse", "tirx.noalias": True})
    block = T.launch_thread("blockIdx.x", 4)
    thread = T.launch_thread("threadIdx.x", 64)
    shared = T.alloc_buffer((64,), "int8", scope="shared")
    shared[thread] = x[block * 64 + thread]
    T.evaluate(T.tvm_storage_sync("shared"))
    y[block * 64 + thread] = shared[63 - thread]


@T.prim_func(s_tir=True)
def collatz(x: T.Buffer((64,), "int32"), y: T.Buffer((64,), "int32")):
    """Steps until 1, by a while; a for with break and continue sums odd numbers until the sum is above 100."""
    T.func_attr({"global_symbol": "collatz", "tirx.noalias": True})
    block = T.launch_thread("blockIdx.x", 1)
    thread = T.launch_thread("threadIdx.x", 64)
    state = T.alloc_buffer((3,), "int32", scope="local")
    state[0] = x[block * 64 + thread]
    state[1] = 0
    state[2] = 0
    while state[0] > 1:
        if T.bitwise_and(state[0], 1) == 0:
            state[0] = T.shift_right(state[0], 1)
        else:
            state[0] = state[0] * 3 + 1
        state[1] = state[1] + 1
    for i in range(thread):
        if i % 2 == 0:
            continue
        state[2] = state[2] + i
        if state[2] > 100:
            break
    y[thread] = state[1] * 1000 + state[2]


@T.prim_func(s_tir=True)
def vectors(x: T.Buffer((960,), "float32"), y: T.Buffer((960,), "float32"), flag: T.Buffer((960,), "bool")):
    """Loads, sums, comparisons, choices and stores of 2, 3, 4 and 16 lanes."""
    T.func_attr({"global_symbol": "vectors", "tirx.noalias": True})
    thread = T.launch_thread("threadIdx.x", 10)
    for i in T.vectorized(2):
        y[thread * 2 + i] = x[thread * 2 + i] * T.float32(2) + T.Cast("float32", i)
    for i in T.vectorized(3):
        y[20 + thread * 3 + i] = x[20 + thread * 3 + i] - T.float32(1)
    for i in T.vectorized(4):
        y[50 + thread * 4 + i] = T.Select(x[50 + thread * 4 + i] > T.float32(0), x[50 + thread * 4 + i], T.float32(0))
    for i in T.vectorized(16):
        flag[thread * 16 + i] = x[thread * 16 + i] < x[thread * 16 + i + 16]
    for i in T.vectorized(4):
        y[100 + thread + i * 10] = x[100 + (3 - i) * 10 + thread]


@T.prim_func(s_tir=True)
def guarded(x: T.Buffer((64,), "float32"), y: T.Buffer((64,), "float32")):
    """The side that is not chosen would read outside."""
    T.func_attr({"global_symbol": "guarded", "tirx.noalias": True})
    thread = T.launch_thread("threadIdx.x", 64)
    y[thread] = T.if_then_else(thread > 0, x[thread - 1], T.float32(-1))


@T.prim_func(s_tir=True)
def many_groups(y: T.Buffer((70001,), "int32")):
    """More workgroups than an axis has."""
    T.func_attr({"global_symbol": "many_groups", "tirx.noalias": True})
    block = T.launch_thread("blockIdx.x", 70001)
    thread = T.launch_thread("threadIdx.x", 1)
    y[block + thread] = block * 3


@T.prim_func(s_tir=True)
def histogram(x: T.Buffer((640,), "int32"), y: T.Buffer((8,), "int32")):
    T.func_attr({"global_symbol": "histogram", "tirx.noalias": True})
    block = T.launch_thread("blockIdx.x", 10)
    thread = T.launch_thread("threadIdx.x", 64)
    T.evaluate(T.call_extern("int32", "atomic_add", T.address_of(y[T.bitwise_and(x[block * 64 + thread], 7)]), 1))


def symbolic() -> Any:
    """out[i, j] = in[j, i] of sizes that come with the call."""
    n, m = te.var("n", "int32"), te.var("m", "int32")
    x = te.placeholder((n, m), "int64", name="in0")
    result = te.compute((m, n), lambda i, j: x[j, i] + n, name="out")
    schedule = tvm.s_tir.Schedule(te.create_prim_func([x, result]).with_attr("global_symbol", "symbolic"))
    i, j = schedule.get_loops(schedule.get_sblock("out"))
    fused = schedule.fuse(i, j)
    outer, inner = schedule.split(fused, [None, 32])
    schedule.bind(outer, "blockIdx.x")
    schedule.bind(inner, "threadIdx.x")
    return schedule.mod["main"].with_attr("global_symbol", "symbolic")


def scheduled(name: str, function: Any) -> Any:
    """By TVM's own rules for GPUs: shared memory, barriers, unrolled and vectorised loops."""
    rules = dlight.gpu.Matmul(), dlight.gpu.GeneralReduction(), dlight.gpu.Reduction(), dlight.gpu.Fallback()
    module = tvm.IRModule({name: function.with_attr("global_symbol", name)})
    with tvm.target.Target(TARGET):
        return dlight.ApplyDefaultSchedule(*rules)(module)[name]


def matmul(dtype: str) -> Any:
    a, b = te.placeholder((65, 50), dtype, name="a"), te.placeholder((50, 70), dtype, name="b")
    k = te.reduce_axis((0, 50), "k")
    return te.create_prim_func([a, b, te.compute((65, 70), lambda i, j: te.sum(a[i, k] * b[k, j], k), name="out")])


def softmax() -> Any:
    x = te.placeholder((9, 100), "float32", name="in0")
    return te.create_prim_func([x, tvm.topi.nn.softmax(x, -1)])


@cache
def kernels() -> dict[str, Kernel]:
    functions = [reverse, collatz, vectors, guarded, many_groups, histogram, symbolic()]
    functions += [scheduled(f"matmul_{dtype}", matmul(dtype)) for dtype in ("float32", "float16")]
    functions.append(scheduled("softmax", softmax()))
    return build(functions)


def run(device: Device, name: str, *arrays: Array, **options: Any) -> None:
    """`arrays` are in the order of the function's parameters; a kernel's own order is another."""
    kernel = kernels()[name]
    names = options.pop("names")
    named = dict(zip(names, arrays, strict=True))
    device.run(kernel, [named[binding.name.removesuffix("_ptr")] for binding in kernel.buffers], **options)


def test_shared_memory_and_barriers(device: Device) -> None:
    x = np.random.default_rng(0).integers(-128, 128, 256).astype(np.int8)
    y = np.zeros_like(x)
    run(device, "reverse", x, y, names="xy")
    np.testing.assert_array_equal(y, x.reshape(4, 64)[:, ::-1].ravel())
    assert reflect(kernels()["reverse"].code).operations[Op.CONTROL_BARRIER] >= 1
    assert kernels()["reverse"].shared_bytes == 256  # in 32 bits each


def test_pieces_of_more_elements_than_indices_count_are_refused() -> None:
    memory = Memory(Arithmetic(Module()), window_bytes=1 << 27)
    assert len(memory.buffer("x", UINT8, windows=16).variables) == 16
    with pytest.raises(TranspileError, match=r"No SPIR-V for a buffer of more than 2\^31 elements \(y\)"):
        memory.buffer("y", UINT8, windows=17)


def test_loops_and_choices(device: Device) -> None:
    x = np.arange(1, 65, dtype=np.int32)
    y = np.zeros_like(x)
    run(device, "collatz", x, y, names="xy")

    def expected(value: int, limit: int) -> int:
        steps = 0
        while value > 1:
            value = value // 2 if value % 2 == 0 else 3 * value + 1
            steps += 1
        total = 0
        for i in range(1, limit, 2):
            total += i
            if total > 100:
                break
        return steps * 1000 + total

    assert y.tolist() == [expected(int(value), thread) for thread, value in enumerate(x)]


def test_vectors(device: Device) -> None:
    x = np.random.default_rng(0).standard_normal(960).astype(np.float32)
    y, flag = np.zeros(960, np.float32), np.zeros(960, bool)
    run(device, "vectors", x, y, flag, names=("x", "y", "flag"))
    np.testing.assert_array_equal(y[:20], x[:20] * 2 + np.tile([0, 1], 10).astype(np.float32))
    np.testing.assert_array_equal(y[20:50], x[20:50] - 1)
    np.testing.assert_array_equal(y[50:90], np.maximum(x[50:90], 0))
    np.testing.assert_array_equal(y[100:140], x[100:140].reshape(4, 10)[::-1].ravel())
    np.testing.assert_array_equal(flag[:160], x[:160] < x[16:176])


def test_what_is_not_chosen_is_not_read(device: Device) -> None:
    x = np.arange(64, dtype=np.float32)
    y = np.zeros_like(x)
    run(device, "guarded", x, y, names="xy")
    np.testing.assert_array_equal(y, np.concatenate([[-1], x[:-1]]))
    assert reflect(kernels()["guarded"].code).operations[Op.BRANCH_CONDITIONAL] == 1


def test_more_workgroups_than_an_axis_has(device: Device) -> None:
    y = np.full(70001, -1, np.int32)
    kernel = kernels()["many_groups"]
    assert (kernel.grid, kernel.folded) == ((70001, 1, 1), 2)
    run(device, "many_groups", y, names="y")
    np.testing.assert_array_equal(y, np.arange(70001) * 3)


def test_atomic_additions(device: Device) -> None:
    x = np.random.default_rng(0).integers(0, 1000, 640).astype(np.int32)
    y = np.zeros(8, np.int32)
    run(device, "histogram", x, y, names="xy")
    np.testing.assert_array_equal(y, np.bincount(x & 7))


@pytest.mark.parametrize(("n", "m"), [(3, 50), (1, 1), (17, 9)])
def test_sizes_that_come_with_the_call(n: int, m: int, device: Device) -> None:
    kernel = kernels()["symbolic"]
    x = np.random.default_rng(0).integers(-(2**62), 2**62, (n, m))
    y = np.zeros((m, n), np.int64)
    sizes = {"n": n, "m": m, "cse_v1": n * m}  # the product is computed on the host side, once
    groups = (-(-n * m // 32), 1, 1)
    scalars = [sizes[field.name] for field in kernel.push]
    run(device, "symbolic", x, y, names=("in0", "out"), scalars=scalars, groups=groups)
    np.testing.assert_array_equal(y, x.T + n)
    assert kernel.grid[0] is None


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_matmul_as_tvm_schedules_it(dtype: str, device: Device) -> None:
    random = np.random.default_rng(0)
    a, b = random.standard_normal((65, 50)).astype(dtype), random.standard_normal((50, 70)).astype(dtype)
    out = np.zeros((65, 70), dtype)
    run(device, f"matmul_{dtype}", a, b, out, names=("a", "b", "out"))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    # Sums of 50 terms that are rounded one by one: 50 halves of a unit at most, of the largest partial sum.
    assert (
        np.abs(out - exact).max() <= 25 * np.finfo(dtype).eps * np.abs(a.astype("f8")).dot(np.abs(b.astype("f8"))).max()
    )


@pytest.mark.usefixtures("validator")
def test_every_module_is_valid(tmp_path: Path) -> None:
    assert [text for kernel in kernels().values() if (text := validation_errors(kernel, tmp_path))] == []


def test_modules_are_the_same_each_time() -> None:
    first = {name: kernel.code for name, kernel in kernels().items()}
    kernels.cache_clear()
    assert {name: kernel.code for name, kernel in kernels().items()} == first


def test_what_a_module_says_of_itself() -> None:
    kernel = kernels()["reverse"]
    seen = reflect(kernel.code)
    assert seen.entry == kernel.name == "reverse_kernel"
    assert seen.workgroup == (64, 1, 1)
    assert seen.bindings == (0, 1)
    assert {"reverse_kernel", "x_ptr", "y_ptr", "shared"} <= set(seen.names)
    assert Capability.STORAGE_BUFFER_8BIT in seen.capabilities
    assert {binding.name: binding.written for binding in kernel.buffers} == {"x_ptr": False, "y_ptr": True}


def test_a_device_without_a_feature_is_told_the_kernel_and_the_feature() -> None:
    with pytest.raises(TranspileError, match=r"'reverse_kernel' needs storageBuffer8BitAccess, which device 'toy'"):
        require_features(kernels()["reverse"], "toy", kernels()["reverse"].float_controls)


def test_nodes_that_are_not_known_are_refused() -> None:
    call = tirx.call_intrin("float32", "tirx.tvm_warp_shuffle", 0, tirx.const(1.0), 0, 32, 32)
    with pytest.raises(TranspileErrors, match=r"Kernel 'warp_kernel': No SPIR-V for the call .*tvm_warp_shuffle"):
        build([elementwise("warp", ["float32"], "float32", lambda x: x + call, 64)])


def test_rounding_that_tvm_defines_in_two_ways_is_refused() -> None:
    with pytest.raises(TranspileErrors, match="round"):
        build([elementwise("rounding", ["float32"], "float32", tirx.round, 64)])


def test_types_that_are_not_known_are_refused() -> None:
    with pytest.raises(TranspileErrors, match="values of type float8_e4m3fn"):
        build([elementwise("tiny", ["float8_e4m3fn"], "float8_e4m3fn", lambda x: x, 64)])


def test_the_code_generator_is_registered_unless_tvm_has_one() -> None:
    before = tvm.get_global_func("target.build.vulkan", allow_missing=True)
    assert register() == (before is None)
    assert register() is False
    if before is None:
        target = tvm.target.Target(TARGET)
        _, device_side = lower(tvm.IRModule({"guarded": guarded}), target)
        codes = tvm.get_global_func("target.build.vulkan")(device_side, target)
        assert bytes(codes["guarded_kernel"]) == build_kernels(device_side)["guarded_kernel"].code


def test_a_block_takes_nothing_behind_its_end() -> None:
    module = Module()
    module.begin(module.new_id())
    module.leave()
    with pytest.raises(AssertionError, match="behind the end"):
        module.emit(Op.RETURN)
