"""Channels last: where maps are turned, and that the meaning stays."""

from dataclasses import replace

import pytest

from tests.passes.support import assert_same_meaning, graph
from transpiler.ir import Layout, Program, Tap, verify
from transpiler.passes import simplify
from transpiler.passes.channels_last import channels_last
from transpiler.passes.weights import split

SAME = "{stride = (1, 1), padding = (1, 1), dilation = (1, 1), groups = 1}"
POOL = "{kernel = (2, 2), stride = (2, 2), padding = (0, 0), dilation = (1, 1), ceil_mode = False}"
POINT = "{stride = (1, 1), padding = (0, 0), dilation = (1, 1), groups = 1}"


def names(program: Program) -> list[str]:
    """The ops of every call, views left out."""
    prepare, main = split(program.main)
    assert all(node.op.name in ("transpose", "pad", "reshape") for node in prepare.nodes)
    return [node.op.name for node in main.nodes if node.op.name != "reshape"]


def rewritten(before: Program) -> Program:
    after = before.with_main(simplify.dead_code(channels_last(before.main)))
    verify(after.main)
    assert_same_meaning(before, after)
    return after


def chain(body: str, result: str, inputs: str = "") -> Program:
    """A convolution of an image, `body` from its result %c[2, 8, 6, 7], one more of %m, and the result %y."""
    return Program(
        {
            "forward": graph(
                f"""
                func forward(
                  %x: float32[2, 3, 6, 7] user "x",
                  {inputs}
                  %v: float32[8, 3, 3, 3] parameter "v",
                  %b: float32[8] parameter "b",
                ) {{
                  %c: float32[2, 8, 6, 7] = conv(%x, %v, %b) {SAME}
                  {body}
                  return {result}
                }}
                """
            )
        }
    )


def test_nothing_is_turned_between_convolutions() -> None:
    before = chain(
        f"""
        %r: float32[2, 8, 6, 7] = relu(%c)
        %d: float32[2, 5, 6, 7] = conv(%r, %w) {SAME}
        %p: float32[2, 5, 3, 3] = max_pool(%d) {POOL}
        %e: float32[2, 8, 3, 3] = conv(%p, %u) {SAME}
        %s: float32[2, 8, 3, 3] = mul(%e, %g)
        """,
        "%s",
        """%w: float32[5, 8, 3, 3] parameter "w",
           %u: float32[8, 5, 3, 3] parameter "u",
           %g: float32[8, 1, 1] parameter "g",""",
    )
    after = rewritten(before)
    # The image is filled up to four channels, and so is the map of five.
    assert names(after) == [
        "transpose", "pad", "conv_last", "relu", "conv_last", "max_pool", "pad", "conv_last", "mul", "transpose"
    ]  # fmt: skip


@pytest.mark.parametrize(("keepdims", "result"), [(True, "[2, 8, 1, 1]"), (False, "[2, 8]")])
def test_a_global_mean_has_no_form(keepdims: bool, result: str) -> None:
    before = chain(f"%m: float32{result} = reduce_mean(%c) {{axes = (2, 3), keepdims = {keepdims}}}", "%m")
    assert names(rewritten(before)) == ["transpose", "pad", "conv_last", "reduce_mean"]


@pytest.mark.parametrize("operand", ["[2, 8, 6, 7]", "[8, 1, 1]", "[]", "[2, 1, 6, 7]", "[7]", "[1, 8, 1, 1]"])
def test_every_broadcast_operand_keeps_its_meaning(operand: str) -> None:
    before = chain("%m: float32[2, 8, 6, 7] = mul(%c, %o)", "%m", f'%o: float32{operand} user "o",')
    rewritten(before)


@pytest.mark.parametrize(
    "body",
    [
        "%m: float32[2, 8, 8, 9] = pad(%c) {low = (0, 0, 1, 2), high = (0, 0, 1, 0), mode = \"constant\", value = 1.5}",
        "%m: float32[2, 8, 2, 3] = adaptive_avg_pool(%c) {size = (2, 3)}",
        "%m: float32[2, 16, 6, 7] = concat(%c, %c) {axis = 1}",
        "%m: float32[2, 16, 6, 7] = concat(%c, %o) {axis = 1}",
        "%m: float32[2, 8, 6] = reduce_max(%c) {axes = (3,), keepdims = False}",
        "%m: float32[2, 1, 6, 7] = reduce_sum(%c) {axes = (1,), keepdims = True}",
        "%m: float32[2, 8, 12, 14] = resize(%c) {size = (12, 14), mode = \"nearest\", align_corners = False, "
        "scales = (2.0, 2.0)}",
        "%m: float32[2, 8, 12, 14] = resize(%c) {size = (12, 14), mode = \"bilinear\", align_corners = False, "
        "scales = (2.0, 2.0)}",
        "%m: float32[2, 8, 6, 7] = softmax(%c) {axis = 1}",
        "%m: float32[2, 42, 8] = transpose(%t) {perm = (0, 2, 1)}",
    ],
)  # fmt: skip
def test_what_follows_keeps_its_meaning(body: str) -> None:
    if "%t" in body:
        body = f"%t: float32[2, 8, 42] = reshape(%c) {{shape = (2, 8, 42)}}\n{body}"
    rewritten(chain(body, "%m", '%o: float32[2, 8, 6, 7] user "o",'))


@pytest.mark.parametrize(
    ("filters", "attributes"),
    [
        pytest.param('float32[5, 8, 1, 1] parameter "w"', POINT, id="one pixel of a window: the map is read as it is"),
        pytest.param('float32[5, 8, 3, 3] user "w"', SAME, id="a filter of a call"),
    ],
)
def test_what_stays(filters: str, attributes: str) -> None:
    before = graph(
        f"""
        func forward(%x: float32[2, 8, 6, 6] user "x", %w: {filters},) {{
          %y: float32[2, 5, 6, 6] = conv(%x, %w) {attributes}
          return %y
        }}
        """
    )
    assert names(rewritten(Program({"forward": before}))) == ["conv"]


def test_taps_know_the_form() -> None:
    before = chain("%m: float32[2, 8, 6, 7] = relu(%c)\n%n: float32[2, 8, 6, 7] = exp(%m)", "%n").main
    type_ = before.nodes[1].output.type
    after = channels_last(replace(before, taps={"act": Tap("m", type_), "out": Tap("n", type_)}))
    assert after.taps["act"] == Tap("m", type_, Layout(channels_last=True))
    assert after.taps["out"].layout == Layout()
    found = {value.name: value.shape for value in after.values()}
    assert found[after.taps["act"].value] == (2, 6, 7, 8)
    assert found[after.taps["out"].value] == (2, 8, 6, 7)
