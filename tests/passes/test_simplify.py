"""Clean-up passes, before and after."""

from tests.passes.support import assert_pass, assert_unchanged
from transpiler.passes import simplify


def test_dead_code_goes() -> None:
    assert_pass(
        simplify.dead_code,
        """
        func forward(
          %x: float32[2, 3] user "x",
        ) {
          %a: float32[2, 3] = relu(%x)
          %b: float32[2, 3] = exp(%x)
          return %a
        }
        """,
        """
        func forward(
          %x: float32[2, 3] user "x",
        ) {
          %a: float32[2, 3] = relu(%x)
          return %a
        }
        """,
    )


def test_equal_expressions_are_computed_once_and_outputs_follow() -> None:
    assert_pass(
        simplify.common_subexpressions,
        """
        func forward(
          %x: float32[2, 3] user "x",
        ) {
          %a: float32[2, 3] = relu(%x)
          %b: float32[2, 3] = relu(%x)
          %c: float32[2, 3] = add(%a, %b)
          return %b, %c
        }
        """,
        """
        func forward(
          %x: float32[2, 3] user "x",
        ) {
          %a: float32[2, 3] = relu(%x)
          %c: float32[2, 3] = add(%a, %a)
          return %a, %c
        }
        """,
    )


def test_constants_of_another_dtype_are_not_equal() -> None:
    assert_unchanged(
        simplify.common_subexpressions,
        """
        func forward(
          %x: float32[2] user "x",
        ) {
          %a: float32[2] = full() {value = 1.0, shape = (2,), dtype = "float32"}
          %b: int64[2] = full() {value = 1, shape = (2,), dtype = "int64"}
          %c: float32[2] = cast(%b) {dtype = "float32"}
          %d: float32[2] = add(%a, %c)
          %e: float32[2] = add(%d, %x)
          return %e
        }
        """,
    )


def test_two_transposes_that_cancel_disappear() -> None:
    assert_pass(
        simplify.views,
        """
        func forward(
          %x: float32[2, 3, 4] user "x",
        ) {
          %a: float32[2, 4, 3] = transpose(%x) {perm = (0, 2, 1)}
          %b: float32[2, 3, 4] = transpose(%a) {perm = (0, 2, 1)}
          %y: float32[2, 3, 4] = relu(%b)
          return %y
        }
        """,
        """
        func forward(
          %x: float32[2, 3, 4] user "x",
        ) {
          %y: float32[2, 3, 4] = relu(%x)
          return %y
        }
        """,
    )


def test_a_chain_of_reshapes_is_one() -> None:
    assert_pass(
        simplify.views,
        """
        func forward(
          %x: float32[2, 3, 4] user "x",
        ) {
          %a: float32[6, 4] = reshape(%x) {shape = (6, 4)}
          %b: float32[24] = reshape(%a) {shape = (24,)}
          %y: float32[24] = relu(%b)
          return %y
        }
        """,
        """
        func forward(
          %x: float32[2, 3, 4] user "x",
        ) {
          %b: float32[24] = reshape(%x) {shape = (24,)}
          %y: float32[24] = relu(%b)
          return %y
        }
        """,
    )


def test_a_transpose_that_moves_no_data_is_a_reshape() -> None:
    assert_pass(
        simplify.views,
        """
        func forward(
          %x: float32[2, 1, 4] user "x",
        ) {
          %a: float32[1, 2, 4] = transpose(%x) {perm = (1, 0, 2)}
          return %a
        }
        """,
        """
        func forward(
          %x: float32[2, 1, 4] user "x",
        ) {
          %a: float32[1, 2, 4] = reshape(%x) {shape = (1, 2, 4)}
          return %a
        }
        """,
    )


def test_a_real_transpose_stays() -> None:
    assert_unchanged(
        simplify.views,
        """
        func forward(
          %x: float32[2, 2] user "x",
        ) {
          %a: float32[2, 2] = transpose(%x) {perm = (1, 0)}
          return %a
        }
        """,
    )


def test_a_slice_of_everything_goes_but_a_reversal_of_size_does_not() -> None:
    assert_pass(
        simplify.views,
        """
        func forward(
          %x: float32[4] user "x",
        ) {
          %a: float32[4] = slice(%x) {starts = (0,), stops = (4,), steps = (1,)}
          %b: float32[2] = slice(%a) {starts = (0,), stops = (4,), steps = (2,)}
          return %b
        }
        """,
        """
        func forward(
          %x: float32[4] user "x",
        ) {
          %b: float32[2] = slice(%x) {starts = (0,), stops = (4,), steps = (2,)}
          return %b
        }
        """,
    )
