"""Fusion and memory on whole models: an independent execution of the plan on an arena of names.

Every byte range of the arena remembers which value it holds. A step may read a value only while all of its bytes
still belong to it: a wrong lifetime, overlap, order or in-place decision shows as a foreign owner.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.models import hf
from tests.models.support import load
from tests.passes.support import graph
from transpiler.capture import capture_module
from transpiler.importer import import_program
from transpiler.ir import Program
from transpiler.lower import lower, with_taps
from transpiler.passes import PIPELINE, PIPELINES, UNFOLDED_PIPELINE, run_passes
from transpiler.passes.fusion import GroupStep, partition
from transpiler.passes.weights import split
from transpiler.plan import Call, KernelPlan, View
from transpiler.target import load_target


class Branches(nn.Module):
    """Values used twice, views of views, several outputs, an output that is another's view."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a = self.a(x)
        b = torch.relu(a) + a.reshape(4, 2, 4).transpose(0, 1).reshape(4, 8)
        c = (b * b).exp()
        return c, c.reshape(2, 16), self.b(b) - c, b.sum(0)


def captured(name: str):
    if name == "branches":
        return capture_module(Branches(), (torch.randn(4, 8),))
    module, args, kwargs = hf.bert_tiny() if name == "bert_tiny" else load(name)
    return capture_module(module, args, kwargs)


def plan_of(name: str, fuse: bool) -> KernelPlan:
    imported = import_program(captured(name))
    program = run_passes(with_taps(imported.program, imported.taps), PIPELINE if fuse else UNFOLDED_PIPELINE)
    return lower(program, load_target("cpu"), fuse=fuse).plan


def execute_on_names(plan: KernelPlan) -> None:
    """Raises AssertionError at the first step that reads bytes which belong to another value."""
    arena: list[str | None] = [None] * (int(plan.arena_bytes) // 64)
    outputs: dict[int, str] = {}
    alias: dict[str, str] = {}

    def cells(value) -> range:
        start = int(plan.storage[value.name].offset) // 64
        return range(start, start + -(-value.type.bytes // 64))

    def owner(name: str) -> str:
        return alias.get(name, name)

    for step in plan.steps:
        if isinstance(step, View):
            alias[step.output.name] = owner(step.input.name)
            assert plan.storage[step.output.name] == plan.storage[step.input.name]
            continue
        for value in step.inputs:
            place = plan.storage[value.name]
            if place.kind == "arena":
                assert {arena[cell] for cell in cells(value)} <= {owner(value.name)}, (
                    f"{step.kernel} reads %{value.name}"
                )
            elif place.kind == "output":
                assert outputs.get(place.index) == owner(value.name)
        workspace = int(plan.kernel(step.kernel).workspace)
        if workspace:
            start = int(step.workspace_offset) // 64
            for cell in range(start, start + -(-workspace // 64)):
                arena[cell] = f"workspace of {step.kernel}"
            for value in step.inputs:
                if plan.storage[value.name].kind == "arena":
                    assert {arena[cell] for cell in cells(value)} <= {owner(value.name)}, "workspace over an input"
        for value in step.outputs:
            place = plan.storage[value.name]
            if place.kind == "arena":
                assert not {f"workspace of {step.kernel}"} & {arena[cell] for cell in cells(value)}
                for cell in cells(value):
                    arena[cell] = value.name
            else:
                assert place.kind == "output"
                outputs[place.index] = value.name


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("name", ["branches", "mnist", "basic_block", "unet", "lstm", "bert_tiny"])
def test_no_step_reads_bytes_of_another_value(name: str, fuse: bool) -> None:
    plan = plan_of(name, fuse)
    execute_on_names(plan)
    for index, value in enumerate(plan.outputs):
        assert plan.storage[value.name].kind in ("output", "input", "weight", "arena"), index


def test_the_check_finds_an_overlap() -> None:
    """Two values moved to one place are noticed."""
    plan = plan_of("branches", True)
    arena = [name for name, place in plan.storage.items() if place.kind == "arena"]
    assert len(arena) > 1
    moved = {name: replace(place, offset=0) if place.kind == "arena" else place for name, place in plan.storage.items()}
    with pytest.raises(AssertionError):
        execute_on_names(replace(plan, storage=moved))


def test_every_node_is_computed_once_and_in_order() -> None:
    imported = import_program(captured("unet"))
    _, main = split(run_passes(imported.program).main)
    steps = partition(main, load_target("cpu"))
    known = {item.value.name for item in main.inputs}
    for step in steps:
        inputs = step.group.inputs if isinstance(step, GroupStep) else step.node.inputs
        outputs = step.group.outputs if isinstance(step, GroupStep) else step.node.outputs
        assert {value.name for value in inputs} <= known
        known |= {value.name for value in outputs}
    assert {item.value.name for item in main.outputs} <= known
    computed = [value.name for step in steps if isinstance(step, GroupStep) for value in step.group.outputs]
    assert len(computed) == len(set(computed))


def test_conv_batch_norm_relu_and_residual_are_one_kernel() -> None:
    plan = plan_of("basic_block", True)
    kernels = [step.kernel for step in plan.steps if isinstance(step, Call)]
    assert any("winograd4x4_bias_add_relu" in name for name in kernels), kernels
    assert not any(name.startswith(("add", "relu")) for name in kernels), kernels


def test_unpacking_joins_the_mapping_after_it_not_a_sum_on_blocked_maps() -> None:
    """A residual on blocked maps whose sum is read channels last, as at the end of ConvNeXt's stages."""
    program = Program(
        {
            "forward": graph(
                """
                func forward(
                  %x: float32[1, 32, 8, 8] user "x",
                  %r: float32[1, 8, 8, 32] user "r",
                  %w: float32[32, 1, 3, 3] parameter "w",
                ) {
                  %c: float32[1, 32, 8, 8] = conv(%x, %w) {stride = (1, 1), padding = (1, 1),
                    dilation = (1, 1), groups = 32}
                  %d: float32[1, 32, 8, 8] = conv(%c, %w) {stride = (1, 1), padding = (1, 1),
                    dilation = (1, 1), groups = 32}
                  %p: float32[1, 32, 8, 8] = transpose(%r) {perm = (0, 3, 1, 2)}
                  %s: float32[1, 32, 8, 8] = add(%p, %c)
                  %l: float32[1, 8, 8, 32] = transpose(%s) {perm = (0, 2, 3, 1)}
                  %y: float32[1, 8, 8, 32] = softmax(%l) {axis = 3}
                  return %y, %d
                }
                """
            )
        }
    )
    _, main = split(run_passes(program).main)
    groups = [step.group for step in partition(main, load_target("cpu")) if isinstance(step, GroupStep)]
    names = [[node.op.name for node in group.nodes] for group in groups]
    assert ["transpose", "pack_channels", "add"] in names
    assert ["unpack_channels", "transpose"] in names


class Heads(nn.Module):
    """Self-attention of two heads, as transformers write it."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.view(1, 6, 2, 4).transpose(1, 2) for part in (x, x + 1, x * 2))
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask.transpose(1, 2))
        return y.transpose(1, 2).reshape(1, 6, 8).tanh()


def test_transposes_of_heads_are_strides_of_the_attention() -> None:
    imported = import_program(capture_module(Heads(), (torch.randn(1, 6, 8), torch.randn(1, 6, 2, 6))))
    _, main = split(run_passes(imported.program).main)
    groups = [step.group for step in partition(main, load_target("cpu")) if isinstance(step, GroupStep)]
    names = [[node.op.name for node in group.nodes] for group in groups]
    assert ["reshape", "transpose"] * 3 + ["attention", "transpose"] in names, names
    assert ["transpose"] in names, "the mask is copied"


class OneProjection(nn.Module):
    """Queries, keys and values of one projection; `form` is how they are told apart, `shared` what reads it besides."""

    def __init__(self, form: str, shared: str = "") -> None:
        super().__init__()
        self.qkv, self.form, self.shared = nn.Linear(24, 72), form, shared

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        qkv = self.qkv(x)
        if self.form == "unbind":
            stacked = qkv.reshape(2, 5, 3, 3, 8).permute(2, 0, 3, 1, 4)
            q, k, v = stacked.unbind(0)
        elif self.form == "shifted":  # rows of 8 from an odd place on
            q, k, v = (qkv[..., i : i + 24].view(2, 5, 3, 8).transpose(1, 2) for i in (0, 1, 48))
        else:
            q, k, v = (part.view(2, 5, 3, 8).transpose(1, 2) for part in qkv.chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return (y, k) if self.shared == "output" else (y, k.exp()) if self.shared == "user" else (y,)


@pytest.mark.parametrize(
    ("form", "shared", "before"),
    [
        ("chunk", "", ["linear"]),
        ("unbind", "", ["linear"]),
        ("chunk", "output", ["linear", "slice", "transpose"]),
        ("unbind", "user", ["linear", "transpose", "slice"]),
        ("shifted", "", ["linear", "slice"]),
    ],
)
def test_attention_reads_parts_of_a_projection_where_they_are(form: str, shared: str, before: list[str]) -> None:
    """What something else reads is stored, as is what does not begin at multiples of 16 bytes; the rest is not."""
    program = import_program(capture_module(OneProjection(form, shared), (torch.randn(2, 5, 24),))).program
    _, main = split(run_passes(program, PIPELINES["cuda"].usual).main)
    groups = [step.group for step in partition(main, load_target("cuda", "sm_80")) if isinstance(step, GroupStep)]
    anchors = [group.anchor_node.op.name if group.anchor_node else "" for group in groups]
    attention = groups[anchors.index("attention")]
    assert [node.op.name for group in groups[: anchors.index("attention")] for node in group.nodes] == before
    assert attention.nodes[-1].op.name == "transpose"
    assert len(attention.inputs) == (1 if before == ["linear"] else 2)
