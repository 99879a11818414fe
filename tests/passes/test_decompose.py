"""Compositions that stand for ops without a schedule of their own."""

import pytest

from tests.passes.support import assert_same_meaning, assert_unchanged, graph
from transpiler.ir import Program, verify
from transpiler.passes import decompose, layout
from transpiler.passes.weights import split

CONV = """
func forward(
  %x: float32[2, 5, {depth}, 7, 6] user "x",
  %w: float32[4, 5, {taps}, 3, 2] parameter "w",
  %b: float32[4] parameter "b",
) {{
  %y: float32[2, 4, {out}, {height}, {width}] = conv(%x, %w, %b) {{
    stride = {stride}, padding = {padding}, dilation = {dilation}, groups = 1}}
  return %y
}}
"""


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "depth", "taps", "sizes"),
    [
        ((1, 1, 1), (1, 1, 0), (1, 1, 1), 6, 3, (6, 7, 5)),
        ((2, 2, 1), (2, 1, 1), (1, 1, 2), 9, 5, (5, 4, 6)),
        ((3, 1, 2), (1, 0, 0), (2, 1, 1), 8, 3, (2, 5, 3)),
        ((1, 1, 1), (0, 0, 0), (1, 1, 1), 1, 1, (1, 5, 5)),
    ],
)
def test_a_3d_convolution_is_a_2d_one_per_plane(
    stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...], depth: int, taps: int,
    sizes: tuple[int, int, int],
) -> None:  # fmt: skip
    out, height, width = sizes
    text = " ".join(
        CONV.format(
            depth=depth, taps=taps, out=out, height=height, width=width, stride=stride, padding=padding,
            dilation=dilation,
        ).split("\n    ")
    )  # fmt: skip
    before = Program({"forward": graph(text)})
    after = before.with_main(decompose.conv3d(before.main))
    verify(after.main)
    assert_same_meaning(before, after)
    _, main = split(layout.blocked_channels(after.main))
    assert "conv_stem" in [node.op.name for node in main.nodes] or "conv_blocked" in [n.op.name for n in main.nodes]
    assert "conv" not in [node.op.name for node in main.nodes]


def test_weights_that_vary_keep_a_3d_convolution() -> None:
    text = CONV.format(
        depth=6, taps=3, out=6, height=7, width=5, stride=(1, 1, 1), padding=(1, 1, 0), dilation=(1, 1, 1)
    )
    assert_unchanged(decompose.conv3d, " ".join(text.replace('parameter "w"', 'user "w"').split("\n    ")))
