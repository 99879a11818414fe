"""Lower precision: what becomes half floats, where that is said, and what stays."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.support import drawn, graph
from transpiler.interpreter import run_graph
from transpiler.ir import Graph, Program
from transpiler.lower import lower
from transpiler.ops.dtypes import HALF
from transpiler.ops.halves import Widen
from transpiler.passes.fusion import GroupStep, partition
from transpiler.passes.precision import lower_precision, rounded
from transpiler.passes.weights import split
from transpiler.precision import low_values
from transpiler.request import PRECISIONS
from transpiler.target import Target, load_target

CPU, VULKAN, CUDA = (load_target(name) for name in ("cpu", "vulkan", "cuda"))

LAYERS = """
func forward(
  %x: float32[4, 8] user "x",
  %w: float32[6, 8] parameter "w",
  %b: float32[6] parameter "b",
  %g: float32[6] parameter "g",
  %v: float32[3, 6] parameter "v",
) {
  %h: float32[4, 6] = linear(%x, %w, %b)
  %r: float32[4, 6] = relu(%h)
  %n: float32[4, 6] = layer_norm(%r, %g, %b) {rank = 1, eps = 1e-05}
  %y: float32[4, 3] = linear(%n, %v)
  return %y
}
"""


def lowered(text: str, target: Target, precision: str) -> Graph:
    program = Program({"forward": graph(text)})
    return lower_precision(program, target, precision).main


def kernels(text: str, target: Target, precision: str) -> list[str]:
    """Kernels by what they compute."""
    _, main = split(lowered(text, target, precision))
    steps = [step for step in partition(main, target) if isinstance(step, GroupStep)]
    return [" + ".join(node.op.name for node in step.group.nodes) for step in steps]


def weights_of(text: str, target: Target, precision: str) -> dict[str, str]:
    """dtypes of the prepared weights, by the state_dict keys that they come from."""
    prepare, _ = split(lowered(text, target, precision))
    return {output.value.name.removesuffix("_half"): output.value.dtype for output in prepare.outputs}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("target", [CPU, VULKAN, CUDA], ids=lambda target: target.name)
def test_matrices_are_half_floats_and_vectors_are_not(target: Target, dtype: str) -> None:
    assert weights_of(LAYERS, target, dtype) == {"w": dtype, "v": dtype, "b": "float32", "g": "float32"}
    assert set(weights_of(LAYERS, target, "float32").values()) == {"float32"}


def test_on_a_cpu_values_between_kernels_stay_float32() -> None:
    _, main = split(lowered(LAYERS, CPU, "bfloat16"))
    assert {value.dtype for node in main.nodes for value in node.outputs} == {"float32"}
    assert [node.op.name for node in main.nodes if isinstance(node.op, Widen)] == ["widen", "widen"]


def test_on_a_gpu_what_kernels_store_is_rounded_and_what_is_fused_is_not() -> None:
    found = kernels(LAYERS, VULKAN, "float16")
    assert found == ["widen + linear + relu + cast", "widen + layer_norm + cast", "widen + widen + linear"]


def test_on_a_gpu_the_arena_is_half_as_large() -> None:
    text = LAYERS.replace("[4, ", "[1024, ")
    sizes = [lower(Program({"forward": lowered(text, VULKAN, item)}), VULKAN).plan.arena_bytes for item in PRECISIONS]
    assert sizes[0] == 2 * 1024 * 6 * 4
    assert sizes == [sizes[0], sizes[0], sizes[0] // 2, sizes[0] // 2]


def test_tensor_cores_get_half_floats_of_the_users_input() -> None:
    found = kernels(LAYERS, CUDA, "float16")
    assert found[:2] == ["cast", "widen + widen + linear + relu + cast"]
    assert len(found) == 4


def test_tf32_is_said_of_products_where_there_are_units_for_it() -> None:
    precisions = [
        {
            getattr(node.op, "precision", None)
            for node in lowered(LAYERS, target, "tf32").nodes
            if "linear" in node.op.name
        }
        for target in (CPU, VULKAN, CUDA)
    ]
    assert precisions == [{""}, {""}, {"tf32"}]


def test_a_weight_that_something_else_reads_stays_float32() -> None:
    text = """
    func forward(%x: float32[4, 8] user "x", %w: float32[8, 8] parameter "w",) {
      %y: float32[4, 8] = linear(%x, %w)
      %z: float32[4, 8] = linear(%x, %w)
      %s: float32[8, 8] = cumsum(%w) {axis = 0}
      return %y, %z, %s
    }
    """
    prepare, _ = split(lowered(text, CPU, "float16"))
    assert [output.value.dtype for output in prepare.outputs] == ["float32"]


def test_an_embedding_that_is_the_output_layer_too_is_stored_once() -> None:
    text = """
    func forward(%i: int64[4] user "i", %w: float32[20, 8] parameter "w",) {
      %e: float32[4, 8] = take(%w, %i) {axis = 0, wraps = True}
      %y: float32[4, 20] = linear(%e, %w)
      return %y
    }
    """
    prepare, main = split(lowered(text, CPU, "bfloat16"))
    assert [str(output.value.type) for output in prepare.outputs] == ["bfloat16[20, 8]"]
    assert [node.op.name for node in main.nodes] == ["widen", "take", "linear"]


def test_float64_ints_and_bools_are_not_touched() -> None:
    text = """
    func forward(%x: float64[4, 8] user "x", %w: float64[6, 8] parameter "w",
                 %i: int64[4, 5] user "i", %j: int64[5, 3] parameter "j",) {
      %y: float64[4, 6] = linear(%x, %w)
      %k: int64[4, 3] = matmul(%i, %j) {transpose_b = False}
      return %y, %k
    }
    """
    for target in (CPU, VULKAN, CUDA):
        for precision in ("tf32", *HALF):
            assert lowered(text, target, precision) == graph(text)


def test_the_policy() -> None:
    text = """
    func forward(%x: float32[4, 8] user "x", %w: float32[8, 8] parameter "w", %g: float32[8] parameter "g",) {
      %user: float32[4, 8] = relu(%x)
      %product: float32[4, 8] = linear(%x, %w)
      %follows: float32[4, 8] = mul(%product, %product)
      %weighted: float32[4, 8] = mul(%product, %g)
      %mixed: float32[4, 8] = add(%product, %x)
      %exponential: float32[4, 8] = exp(%product)
      %total: float32[4] = reduce_sum(%product) {axes = (1,), keepdims = False}
      %running: float32[4, 8] = cumsum(%product) {axis = 0}
      %soft: float32[4, 8] = softmax(%exponential) {axis = 1}
      %logs: float32[4, 8] = log_softmax(%product) {axis = 1}
      %operand: float32[4, 8] = exp(%x)
      %last: float32[4, 8] = linear(%operand, %w)
      return %user, %follows, %weighted, %mixed, %exponential, %total, %running, %soft, %logs, %last
    }
    """
    assert low_values(graph(text)) == {"product", "follows", "weighted", "soft", "operand", "last"}


@pytest.mark.parametrize(("dtype", "eps"), [("float16", 2.0**-11), ("bfloat16", 2.0**-8)])
def test_meaning(dtype: str, eps: float) -> None:
    """The numpy reference on the rewritten graph is off by roundings of the smaller type, and by some."""
    before = Program({"forward": graph(LAYERS)})
    weights, inputs = drawn(before)
    (exact,) = run_graph(before, weights, inputs)
    for after in (*(lower_precision(before, target, dtype) for target in (CPU, VULKAN, CUDA)), rounded(before, dtype)):
        (got,) = run_graph(after, weights, inputs)
        assert got.dtype == np.float32
        error = np.abs(got - exact).max() / np.abs(exact).max()
        assert eps / 100 < error < 8 * eps
