"""Whole models as launches: what TVM leaves to the host is read, and what is not understood is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.vulkan.kernels import code_errors
from transpiler.dims import Dim, evaluate, symbol
from transpiler.errors import TranspileErrors
from transpiler.frontend import read_model
from transpiler.gpu.host import read_launches
from transpiler.gpu.launches import Compiled, Launch
from transpiler.gpu.vulkan import compile_kernel, compile_kernels
from transpiler.group import Lowered, make_group
from transpiler.ir import Node, TensorType, Value
from transpiler.lower import LoweredProgram, lower
from transpiler.ops.activation import Relu
from transpiler.ops.elementwise import Add
from transpiler.ops.shape import Concat
from transpiler.passes import PIPELINES, run_passes
from transpiler.request import Request
from transpiler.schedule import import_schedule, schedule
from transpiler.spirv.opcodes import Decoration, Op
from transpiler.spirv.reflect import instructions
from transpiler.target import load_target

MODELS = Path(__file__).parent.parent / "models"
TARGET = load_target("vulkan")


def compiled(model: str) -> tuple[LoweredProgram, Compiled]:
    program = read_model(Request(MODELS / model, targets=("vulkan",))).program
    lowered = lower(run_passes(program, PIPELINES["vulkan"].usual), TARGET)
    return lowered, compile_kernels(lowered.kernels, TARGET)


@pytest.mark.parametrize("model", ["mnist.py", "lstm.py"])
def test_every_kernel_is_launches(model: str) -> None:
    lowered, found = compiled(model)
    assert set(found.launches) == {item.kernel.name for item in lowered.kernels}
    for item in lowered.kernels:
        launches = found.launches[item.kernel.name]
        outputs = range(len(item.kernel.inputs), len(item.kernel.inputs) + len(item.kernel.outputs))
        assert set(outputs) <= {place for launch in launches for place in launch.written}
        assert all(launch.file in found.files for launch in launches)
    # Matrices stay as they are; only convolutions' weights have a layout of the target's own.
    assert all("conv" in value.name for value in lowered.plan.weights if "packed" in value.name)


def test_offsets_suit_every_device() -> None:
    lowered, _ = compiled("lstm.py")
    places = [item.offset for item in lowered.plan.storage.values() if item.kind in ("arena", "weight")]
    assert places
    assert all(place % 256 == 0 for place in places)


def relu(shape: tuple[Dim, ...]) -> Node:
    type_ = TensorType("float32", shape)
    return Node(Relu(), (Value("x", type_),), (Value("y", type_),))


def test_sizes_that_vary_are_expressions() -> None:
    node = relu((symbol("batch"), 5))
    item = schedule(make_group((node,), node.outputs), TARGET, "relu")
    (launch,), _ = compile_kernel(item, TARGET)
    assert [evaluate(launch.grid[0], {"batch": n}) for n in (1, 13, 1000)] == [1, 2, 79]
    (scalar,) = launch.scalars
    assert (scalar.value, scalar.bits, launch.scalar_bytes) == (symbol("batch") * 5, 32, 4)


def decorations(code: bytes, launch: Launch) -> dict[int, set[Decoration]]:
    """What is said of each buffer, by its position among the arguments of the kernel."""
    found: dict[int, set[Decoration]] = {}
    binding: dict[int, int] = {}
    for op, operands in instructions(code):
        if op is Op.DECORATE:
            found.setdefault(operands[0], set()).add(Decoration(operands[1]))
            if operands[1] == Decoration.BINDING:
                binding[operands[0]] = operands[2]
    said = {Decoration.ALIASED, Decoration.RESTRICT, Decoration.NON_WRITABLE}
    return {launch.buffers[at]: found[variable] & said for variable, at in binding.items()}


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_what_may_be_overlaid_is_said_to_be(dtype: str, tmp_path: Path) -> None:
    """The result may be written over an input of its type, and over no other."""
    x, row, total, longer = (Value(f"v{i}", TensorType(dtype, (n, 5))) for i, n in enumerate((6, 1, 6, 7)))
    added, joined = Node(Add(), (x, row), (total,)), Node(Concat(0), (x, row), (longer,))
    read, restrict, aliased = Decoration.NON_WRITABLE, Decoration.RESTRICT, Decoration.ALIASED
    for node, overlaid in ((added, True), (joined, False)):
        item = schedule(make_group((node,), node.outputs), TARGET, node.op.name)
        (launch,), files = compile_kernel(item, TARGET)
        assert len(files) == (2 if dtype == "int8" else 1)
        for name, code in files.items():
            assert decorations(code, launch) == {
                0: {aliased} if overlaid else {restrict, read},
                1: {restrict, read},
                2: {aliased} if overlaid else {restrict},
            }
            assert code_errors(name, code, tmp_path) == ""


def reversed_halves() -> Lowered:
    """A workgroup that turns 64 halves around in shared memory."""
    x, y = (Value(name, TensorType("float16", (64,))) for name in "xy")
    workgroup = import_schedule("gpu.workgroup")
    builder = import_schedule("tir").KernelBuilder("turned", [x.type], [y.type])
    with builder, workgroup.workgroups(1, 64) as (_, thread):
        tile = workgroup.shared(64, "float16")
        tile.store(thread, builder.inputs[0][thread])
        workgroup.barrier()
        builder.outputs[0].store(thread, tile[63 - thread])
    lowered: Lowered = import_schedule("fuse").lowered(make_group((Node(Relu(), (x,), (y,)),), (y,)), builder, flops=0)
    return lowered


def test_shared_bytes_are_those_of_either_module() -> None:
    (launch,), files = compile_kernel(reversed_halves(), TARGET)
    assert len(files) == 2
    assert launch.shared_bytes == 64 * 4  # what the module without halves takes


@pytest.mark.parametrize(
    ("facts", "code", "message"),
    [
        ({"threads": 32}, "too-many-threads", "takes 64 threads of a workgroup; devices of the target have 32"),
        ({"workgroup": (63, 1, 1)}, "too-many-threads", "takes 64 threads on axis 0; devices of the target have 63"),
        ({"shared_bytes": 128}, "too-much-memory", "takes 256 bytes of shared memory; devices of the target have 128"),
        ({"buffers": 1}, "too-many-buffers", "takes 2 buffers; devices of the target have 1"),
    ],
)
def test_more_than_the_target_has_is_refused(facts: dict[str, Any], code: str, message: str) -> None:
    with pytest.raises(TranspileErrors, match=f"Kernel 'turned' {message}") as caught:
        compile_kernel(reversed_halves(), replace(TARGET, variant=replace(TARGET.gpu, **facts)))
    assert [problem.code for problem in caught.value.problems] == [code]


def test_work_for_the_host_is_refused() -> None:
    node = relu((8, 8))
    cpu = load_target("cpu", "baseline")
    item = schedule(make_group((node,), node.outputs), cpu, "relu")
    with pytest.raises(TranspileErrors, match="leaves work to the host that is no launch: For"):
        read_launches("relu", item.function)
    with pytest.raises(TranspileErrors):
        compile_kernel(item, TARGET)
