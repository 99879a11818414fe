"""Constant folding and batch-norm folding."""

import numpy as np

from tests.passes.support import assert_same_meaning, graph
from transpiler.ir import Program, Role, verify
from transpiler.passes import fold, simplify

CONV_BN = """
func forward(
  %x: float32[1, 2, 5, 5] user "x",
  %w: float32[3, 2, 3, 3] parameter "conv.weight",
  %mean: float32[3] buffer "bn.running_mean",
  %var: float32[3] buffer "bn.running_var",
  %gamma: float32[3] parameter "bn.weight",
  %beta: float32[3] parameter "bn.bias",
) {
  %c: float32[1, 3, 3, 3] = conv(%x, %w) {stride = (1, 1), padding = (0, 0), dilation = (1, 1), groups = 1}
  %y: float32[1, 3, 3, 3] = batch_norm(%c, %mean, %var, %gamma, %beta) {eps = 1e-05}
  return RESULTS
}
"""


def ops(program: Program) -> list[str]:
    return [node.op.name for node in program.main.nodes]


def test_batch_norm_folds_into_the_convolution_before_it() -> None:
    before = Program({"forward": graph(CONV_BN.replace("RESULTS", "%y"))})
    after = before.with_main(simplify.dead_code(fold.batch_norm(before.main)))
    verify(after.main)
    assert "batch_norm" not in ops(after)
    assert ops(after)[-1] == "conv"
    assert after.main.nodes[-1].output.name == "y"
    assert_same_meaning(before, after)


def test_batch_norm_stays_apart_when_the_convolution_has_another_user() -> None:
    before = Program({"forward": graph(CONV_BN.replace("RESULTS", "%c, %y"))})
    after = before.with_main(simplify.dead_code(fold.batch_norm(before.main)))
    verify(after.main)
    assert ops(after).count("conv") == 1
    assert ops(after)[-1] == "add"
    assert_same_meaning(before, after)


def test_unfolded_keeps_the_convolutions_own_output() -> None:
    before = Program({"forward": graph(CONV_BN.replace("RESULTS", "%y"))})
    after = before.with_main(fold.batch_norm_alone(before.main))
    assert "c" in {value.name for value in after.main.values()}
    assert_same_meaning(before, after)


def test_what_depends_on_nothing_is_computed_now() -> None:
    before = Program(
        {
            "forward": graph(
                """
                func forward(
                  %x: float32[3] user "x",
                ) {
                  %i: int64[3] = arange() {start = 0, step = 1, size = 3, dtype = "int64"}
                  %f: float32[3] = cast(%i) {dtype = "float32"}
                  %y: float32[3] = add(%x, %f)
                  return %y
                }
                """
            )
        }
    )
    after = fold.constants(before)
    assert ops(after) == ["add"]
    (constant,) = [item for item in after.main.inputs if item.role is Role.CONSTANT]
    np.testing.assert_array_equal(after.constants[constant.key], np.arange(3, dtype=np.float32))
    assert_same_meaning(before, after)


def test_a_tensor_without_elements_is_known() -> None:
    before = Program(
        {
            "forward": graph(
                """
                func forward(
                  %x: float32[0, 3] user "x",
                  %d: float32[3] user "d",
                ) {
                  %s: float32[3] = reduce_sum(%x) {axes = (0,), keepdims = False}
                  %m: float32[3] = div(%s, %s)
                  %e: float32[0, 3] = exp(%x)
                  %y: float32[3] = add(%m, %d)
                  return %y, %e
                }
                """
            )
        }
    )
    after = fold.constants(before)
    assert ops(after) == ["exp", "add"]
    (constant,) = [item for item in after.main.inputs if item.role is Role.CONSTANT]
    np.testing.assert_array_equal(after.constants[constant.key], np.full(3, np.nan, np.float32))
    assert_same_meaning(before, after)


def test_a_weight_is_never_folded() -> None:
    before = Program(
        {
            "forward": graph(
                """
                func forward(
                  %x: float32[3] user "x",
                  %w: float32[3] parameter "w",
                ) {
                  %e: float32[3] = exp(%w)
                  %y: float32[3] = add(%x, %e)
                  return %y
                }
                """
            )
        }
    )
    assert fold.constants(before) == before
