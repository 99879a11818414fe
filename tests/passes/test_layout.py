"""Layouts: where blocked maps begin and end, and that the meaning stays."""

import pytest

from tests.passes.support import assert_same_meaning, graph
from transpiler.ir import Program, verify
from transpiler.passes import layout, simplify
from transpiler.passes.weights import split

ATTRIBUTES = "{stride = (1, 1), padding = (1, 1), dilation = (1, 1), groups = 1}"


def chain(channels: int) -> Program:
    """conv, relu, residual add, channel vector, pool, conv: everything stays blocked between the convolutions."""
    shape = f"float32[1, {channels}, 6, 6]"
    return Program(
        {
            "forward": graph(
                f"""
                func forward(
                  %x: float32[1, 20, 6, 6] user "x",
                  %v: float32[{channels}, 20, 3, 3] parameter "v",
                  %s: float32[{channels}, 1, 1] parameter "s",
                  %w: float32[{channels}, {channels}, 3, 3] parameter "w",
                  %b: float32[{channels}] parameter "b",
                ) {{
                  %c: {shape} = conv(%x, %v) {ATTRIBUTES}
                  %r: {shape} = relu(%c)
                  %d: {shape} = conv(%r, %w, %b) {ATTRIBUTES}
                  %a: {shape} = add(%d, %r)
                  %m: {shape} = mul(%a, %s)
                  %y: {shape} = conv(%m, %w) {ATTRIBUTES}
                  return %y
                }}
                """
            )
        }
    )


@pytest.mark.parametrize("channels", [16, 17, 32, 40])
def test_nothing_is_repacked_between_convolutions(channels: int) -> None:
    before = chain(channels)
    after = before.with_main(layout.blocked_channels(before.main))
    verify(after.main)
    _, main = split(after.main)
    names = [node.op.name for node in main.nodes]
    assert names == [
        "pack_channels",
        "conv_blocked",
        "relu",
        "conv_blocked",
        "add",
        "mul",
        "conv_blocked",
        "unpack_channels",
    ]
    assert_same_meaning(before, after)


@pytest.mark.parametrize(
    ("operand", "shape"),
    [
        ("[1, 16, 1, 1]", "map"),
        ("[16, 1, 1]", "vector"),
        ("[]", "scalar"),
        ("[1, 1, 6, 6]", "mask"),
        ("[6]", "columns"),
    ],
)
def test_every_broadcast_operand_keeps_its_meaning(operand: str, shape: str) -> None:
    before = Program(
        {
            "forward": graph(
                f"""
                func forward(
                  %x: float32[1, 16, 6, 6] user "x",
                  %o: float32{operand} user "o",
                  %w: float32[16, 16, 3, 3] parameter "w",
                ) {{
                  %c: float32[1, 16, 6, 6] = conv(%x, %w) {ATTRIBUTES}
                  %y: float32[1, 16, 6, 6] = mul(%c, %o)
                  %z: float32[1, 16, 6, 6] = conv(%y, %w) {ATTRIBUTES}
                  return %z
                }}
                """
            )
        }
    )
    after = before.with_main(simplify.views(layout.blocked_channels(before.main)))
    verify(after.main)
    assert_same_meaning(before, after)


@pytest.mark.parametrize(("keepdims", "result"), [(True, "[1, 20, 1, 1]"), (False, "[1, 20]")])
def test_global_mean_of_a_blocked_map(keepdims: bool, result: str) -> None:
    before = Program(
        {
            "forward": graph(
                f"""
                func forward(
                  %x: float32[1, 16, 6, 6] user "x",
                  %w: float32[20, 16, 3, 3] parameter "w",
                ) {{
                  %c: float32[1, 20, 6, 6] = conv(%x, %w) {ATTRIBUTES}
                  %m: float32{result} = reduce_mean(%c) {{axes = (2, 3), keepdims = {keepdims}}}
                  %y: float32{result} = exp(%m)
                  return %y
                }}
                """
            )
        }
    )
    after = before.with_main(layout.blocked_channels(before.main))
    verify(after.main)
    assert_same_meaning(before, after)


def test_linear_weights_are_packed_once_for_two_users() -> None:
    before = Program(
        {
            "forward": graph(
                """
                func forward(
                  %x: float32[2, 5] user "x",
                  %w: float32[5, 5] parameter "w",
                ) {
                  %a: float32[2, 5] = linear(%x, %w)
                  %b: float32[2, 5] = linear(%a, %w)
                  return %b
                }
                """
            )
        }
    )
    after = before.with_main(simplify.common_subexpressions(layout.packed_linear(before.main)))
    verify(after.main)
    assert [node.op.name for node in after.main.nodes] == ["pack_matmul", "linear_packed", "linear_packed"]
    assert_same_meaning(before, after)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_zeros_around_a_map_become_padding(value: float) -> None:
    before = Program(
        {
            "forward": graph(
                f"""
                func forward(
                  %x: float32[1, 20, 6, 7] user "x",
                  %w: float32[16, 20, 3, 3] parameter "w",
                  %d: float32[16, 1, 3, 3] parameter "d",
                ) {{
                  %p: float32[1, 20, 7, 10] = pad(%x)
                    {{low = (0, 0, 0, 1), high = (0, 0, 1, 2), mode = "constant", value = {value}}}
                  %c: float32[1, 16, 4, 5] = conv(%p, %w)
                    {{stride = (2, 2), padding = (1, 1), dilation = (1, 1), groups = 1}}
                  %q: float32[1, 16, 6, 7] = pad(%c)
                    {{low = (0, 0, 1, 0), high = (0, 0, 1, 2), mode = "constant", value = {value}}}
                  %y: float32[1, 16, 4, 5] = conv(%q, %d)
                    {{stride = (1, 1), padding = (0, 0), dilation = (1, 1), groups = 16}}
                  return %y
                }}
                """
            )
        }
    )
    after = before.with_main(simplify.dead_code(layout.blocked_channels(before.main)))
    verify(after.main)
    assert ("pad" in [node.op.name for node in after.main.nodes]) is (value != 0)
    assert_same_meaning(before, after)


# (channels in and out, H, W, kernel, stride, padding, output padding)
TRANSPOSED = [
    (20, 40, 5, 4, (2, 2), (2, 2), (0, 0), (0, 0)),
    (16, 5, 4, 5, (4, 4), (2, 2), (1, 1), (0, 0)),
    (3, 17, 5, 5, (3, 3), (2, 2), (1, 1), (1, 1)),
    (16, 16, 4, 3, (3, 5), (1, 3), (1, 0), (0, 2)),
    (4, 4, 3, 3, (1, 2), (3, 2), (0, 0), (2, 1)),
    (8, 8, 4, 4, (2, 2), (2, 2), (1, 1), (0, 0)),
]


@pytest.mark.parametrize("case", TRANSPOSED, ids=str)
def test_transposed_convolutions_are_blocked(case: tuple[int, int, int, int, *tuple[tuple[int, int], ...]]) -> None:
    channels, result, height, width, kernel, stride, padding, extra = case
    sizes = [
        (size - 1) * s - 2 * p + k + e
        for size, k, s, p, e in zip((height, width), kernel, stride, padding, extra, strict=True)
    ]
    shape = f"float32[1, {result}, {sizes[0]}, {sizes[1]}]"
    before = Program(
        {
            "forward": graph(
                f"""
                func forward(
                  %x: float32[1, {channels}, {height}, {width}] user "x",
                  %w: float32[{channels}, {result}, {kernel[0]}, {kernel[1]}] parameter "w",
                  %b: float32[{result}] parameter "b",
                ) {{
                  %c: {shape} = conv_transpose(%x, %w, %b) {{stride = {stride}, padding = {padding},
                    output_padding = {extra}, dilation = (1, 1), groups = 1}}
                  %y: {shape} = relu(%c)
                  return %y
                }}
                """
            )
        }
    )
    after = before.with_main(layout.blocked_channels(before.main))
    verify(after.main)
    assert "conv_blocked" in [node.op.name for node in after.main.nodes]
    assert_same_meaning(before, after)


@pytest.mark.parametrize(("shape", "moves"), [((2, 3, 5), True), ((1, 6, 5), False), ((6, 5), False)])
def test_a_linear_layer_between_views_works_on_the_shape_around_it(shape: tuple[int, ...], moves: bool) -> None:
    text = ", ".join(map(str, shape))
    program = Program(
        {
            "forward": graph(
                f"""
                func forward(
                  %x: float32[2, 3, 4] user "x",
                  %w: float32[5, 4] parameter "w",
                ) {{
                  %m: float32[6, 4] = reshape(%x) {{shape = (6, 4)}}
                  %l: float32[6, 5] = linear(%m, %w)
                  %y: float32[{text}] = reshape(%l) {{shape = ({text})}}
                  %r: float32[{text}] = relu(%y)
                  return %r
                }}
                """
            )
        }
    )
    after = layout.linear_views(program.main)
    verify(after)
    assert_same_meaning(program, program.with_function(after))
    (linear,) = (node for node in simplify.views(after).nodes if node.op.name == "linear")
    assert linear.output.shape == ((2, 3, 5) if moves else (6, 5))


@pytest.mark.parametrize(
    ("groups", "inputs", "outputs", "op"),
    [
        (3, 48, 96, "conv_blocked"),
        (6, 24, 24, "conv_depthwise"),
        (2, 10, 34, "conv_blocked"),
        (5, 5, 15, "conv_depthwise"),
        (4, 48, 48, "conv_blocked"),
    ],
)
def test_groups(groups: int, inputs: int, outputs: int, op: str) -> None:
    """Groups of whole blocks and parts of blocks stay where they are; others begin a block each."""
    attributes = ATTRIBUTES.replace("groups = 1", f"groups = {groups}")
    text = f"""
        func forward(
          %x: float32[2, {inputs}, 6, 7] user "x",
          %w: float32[{outputs}, {inputs // groups}, 3, 3] parameter "w",
          %b: float32[{outputs}] parameter "b",
        ) {{
          %c: float32[2, {outputs}, 6, 7] = conv(%x, %w, %b) {attributes}
          %y: float32[2, {outputs}, 6, 7] = relu(%c)
          return %y
        }}
        """
    before = Program({"forward": graph(text)})
    after = before.with_main(layout.blocked_channels(before.main))
    verify(after.main)
    assert_same_meaning(before, after)
    _, main = split(after.main)
    assert op in [node.op.name for node in main.nodes]
