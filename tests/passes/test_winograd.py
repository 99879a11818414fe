"""Winograd convolutions: where they are chosen, that the meaning stays, and how exact they are."""

import numpy as np
import pytest

from tests.conformance.kernels import KernelLibrary, op_group
from tests.passes.support import assert_same_meaning, graph
from transpiler.ir import Array, Program, verify
from transpiler.ops.blocked_conv import ConvBlocked
from transpiler.ops.packed import PackChannels, PackConv, UnpackChannels
from transpiler.ops.winograd import ConvWinograd, PackWinograd
from transpiler.passes import EXACT_PIPELINE, FAST_CONVOLUTIONS, PIPELINE, PIPELINES, run_passes
from transpiler.passes.weights import split
from transpiler.passes.winograd import best_tile
from transpiler.schedule import schedule
from transpiler.target import load_target


def conv(
    channels: int, size: int, kernel: int = 3, stride: int = 1, dilation: int = 1, after: str = "relu(%c)"
) -> Program:
    out = (size + 2 - dilation * (kernel - 1) - 1) // stride + 1
    return Program(
        {
            "forward": graph(
                f"""
                func forward(
                  %x: float32[1, {channels}, {size}, {size}] user "x",
                  %w: float32[{channels}, {channels}, {kernel}, {kernel}] parameter "w",
                  %b: float32[{channels}] parameter "b",
                ) {{
                  %c: float32[1, {channels}, {out}, {out}] = conv(%x, %w, %b) {{stride = ({stride}, {stride}),
                    padding = (1, 1), dilation = ({dilation}, {dilation}), groups = 1}}
                  %y: float32[1, {channels}, {out}, {out}] = {after}
                  return %y
                }}
                """
            )
        }
    )


def names(program: Program) -> list[str]:
    return [node.op.name for node in program.main.nodes]


@pytest.mark.parametrize("stride", [1, 2])
def test_large_maps_are_computed_by_winograd(stride: int) -> None:
    before = conv(32, 20, stride=stride)
    after = run_passes(before, PIPELINE)
    verify(after.main)
    assert "conv_winograd" in names(after)
    assert "pack_conv" not in names(after)
    assert_same_meaning(before, after)


@pytest.mark.parametrize(
    ("after", "packed"),
    [
        ("relu(%c)", {"w_packed": "pack_winograd"}),
        (
            "conv(%c, %w) {stride = (1, 1), padding = (2, 2), dilation = (2, 2), groups = 1}",
            {"w_packed": "pack_winograd", "w_packed_2": "pack_conv"},
        ),
    ],
    ids=["alone", "with a direct sum"],
)
def test_packed_filters_are_named_once(after: str, packed: dict[str, str]) -> None:
    nodes = run_passes(conv(32, 20, after=after), PIPELINE).main.nodes
    assert {node.output.name: node.op.name for node in nodes if node.op.name in packed.values()} == packed


def test_exact_leaves_direct_sums() -> None:
    assert "conv_winograd" not in names(run_passes(conv(32, 20), EXACT_PIPELINE))


@pytest.mark.parametrize("change", [{"kernel": 1}, {"kernel": 5}, {"stride": 3}, {"dilation": 2}], ids=str)
def test_other_convolutions_stay(change: dict[str, int]) -> None:
    assert "conv_blocked" in names(run_passes(conv(32, 20, **change), PIPELINE))


def test_pass_alone_changes_nothing_without_blocked_maps() -> None:
    program = conv(32, 20)
    assert FAST_CONVOLUTIONS(program).main == program.main


def test_filters_of_tiny_maps_are_not_blown_up() -> None:
    def op(channels: int) -> ConvBlocked:
        return ConvBlocked(channels, channels, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))

    assert best_tile(op(512), (1, 1)) is None
    assert best_tile(op(512), (2, 2)) is None
    assert best_tile(op(64), (56, 56)) == 4


@pytest.mark.parametrize(
    ("after", "tile"),
    [("relu(%c)", 4), ("add(%c, %x)", 4), ("clamp(%c) {min = 0.0}", 4),
     ("sigmoid(%c)", 2), ("clamp(%c) {min = 0.0, max = 6.0}", 2)],
)  # fmt: skip
def test_results_that_are_cut_off_take_the_exact_tile(after: str, tile: int) -> None:
    nodes = run_passes(conv(32, 20, after=after), PIPELINE).main.nodes
    assert [node.op.tile for node in nodes if isinstance(node.op, ConvWinograd)] == [tile]


def test_a_result_that_is_cut_off_behind_another_convolution_and_one_that_gates() -> None:
    def tiles(last: str) -> list[int]:
        program = Program(
            {
                "forward": graph(
                    f"""
                    func forward(
                      %x: float32[1, 32, 20, 20] user "x",
                      %w: float32[32, 32, 3, 3] parameter "w",
                    ) {{
                      %c: float32[1, 32, 20, 20] = conv(%x, %w) {{stride = (1, 1), padding = (1, 1),
                        dilation = (1, 1), groups = 1}}
                      %r: float32[1, 32, 20, 20] = relu(%c)
                      %d: float32[1, 32, 20, 20] = conv(%r, %w) {{stride = (1, 1), padding = (1, 1),
                        dilation = (1, 1), groups = 1}}
                      %s: float32[1, 32, 20, 20] = sigmoid(%d)
                      %y: float32[1, 32, 20, 20] = {last}
                      return %y
                    }}
                    """
                )
            }
        )
        nodes = run_passes(program, PIPELINE).main.nodes
        return [node.op.tile for node in nodes if isinstance(node.op, ConvWinograd)]

    assert tiles("neg(%s)") == [2, 2]
    assert tiles("mul(%s, %d)") == [4, 4]


@pytest.mark.parametrize("positive", [False, True], ids=["normal", "after_relu"])
@pytest.mark.parametrize(("tile", "stride"), [(2, 1), (4, 1), (4, 2)])
def test_error_is_near_that_of_a_direct_sum(tile: int, stride: int, positive: bool) -> None:
    """Against float64: within 4 times (F4) or the same (F2) as the direct kernel, and a tenth of the tolerance."""
    rng = np.random.default_rng(7)
    channels, size = 128, 18
    x = rng.standard_normal((1, channels, size, size), np.float32)
    x = np.maximum(x, 0) if positive else x
    w = rng.standard_normal((channels, channels, 3, 3), np.float32) * np.float32((9 * channels) ** -0.5)
    attributes = (channels, channels, (3, 3), (stride, stride), (0, 0, 0, 0), (1, 1))
    direct, fast = ConvBlocked(*attributes), ConvWinograd(*attributes, tile)
    blocked = PackChannels().reference(x)
    inputs: dict[str, tuple[Array, ...]] = {
        "direct": (blocked, PackConv().reference(w)),
        "fast": (blocked, PackWinograd(tile, stride).reference(w)),
    }
    target = load_target("cpu")
    kernels = [
        schedule(op_group(direct, inputs["direct"]), target, "direct"),
        schedule(op_group(fast, inputs["fast"]), target, "fast"),
    ]
    library = KernelLibrary(kernels, target)
    wide = (blocked.astype(np.float64), PackConv().reference(w.astype(np.float64)))
    exact = UnpackChannels(channels).reference(direct.reference(*wide))
    errors = {}
    for name in inputs:
        got = UnpackChannels(channels).reference(library.run(name, *inputs[name])[0])
        errors[name] = float(np.abs(got - exact).max() / np.abs(exact).max() / np.finfo(np.float32).eps)
    assert errors["fast"] <= (4 if tile == 4 else 1.5) * errors["direct"]
    assert errors["fast"] <= 64


@pytest.mark.parametrize("value", [1e2, 1e3])
def test_one_bright_pixel_stays_within_the_tolerance(value: float) -> None:
    """Before a sigmoid the smaller tile, else the larger: the error against 128 roundings of the largest output."""
    rng = np.random.default_rng(3)
    channels, size = 64, 24
    x = rng.standard_normal((1, channels, size, size), np.float32)
    x[0, 3, 10, 10] = value
    w = rng.standard_normal((channels, channels, 3, 3), np.float32) * np.float32((9 * channels) ** -0.5)
    attributes = (channels, channels, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    blocked = PackChannels().reference(x)
    wide = (blocked.astype(np.float64), PackConv().reference(w.astype(np.float64)))
    exact = UnpackChannels(channels).reference(ConvBlocked(*attributes).reference(*wide))
    target = load_target("cpu")
    packed = {tile: PackWinograd(tile).reference(w) for tile in (2, 4)}
    library = KernelLibrary(
        [
            schedule(op_group(ConvWinograd(*attributes, tile), (blocked, packed[tile])), target, f"f{tile}")
            for tile in packed
        ],
        target,
    )
    got = {
        tile: UnpackChannels(channels).reference(library.run(f"f{tile}", blocked, packed[tile])[0]) for tile in packed
    }
    eps = np.finfo(np.float32).eps
    assert np.abs(got[4] - exact).max() <= 128 * eps * np.abs(exact).max()
    bounded = [1 / (1 + np.exp(-values.astype(np.float64))) for values in (got[2], exact)]
    assert np.abs(bounded[0] - bounded[1]).max() <= 128 * eps


def test_maps_as_they_come() -> None:
    """On Vulkan: the same algorithm on plain maps, direct sums with packed filters where it does not pay or may not."""
    usual, exact = PIPELINES["vulkan"].usual, PIPELINES["vulkan"].exact
    before = conv(32, 20)
    after = run_passes(before, usual)
    assert [name for name in names(after) if name.endswith("_planes")] == ["winograd_planes"]
    assert_same_meaning(before, after)
    direct = run_passes(before, exact)
    assert [name for name in names(direct) if name.endswith("_planes")] == ["conv_planes"]
    assert_same_meaning(before, direct)
    assert "conv_planes" in names(run_passes(conv(32, 20, stride=2), usual))


def test_maps_with_channels_last() -> None:
    """On CUDA: filters are packed in `prepare`; direct sums where they are asked for, and where it does not pay."""
    usual, exact = PIPELINES["cuda"].usual, PIPELINES["cuda"].exact
    before = conv(128, 28)
    after = run_passes(before, usual)
    assert "winograd_last" in names(after)
    assert "pack_winograd" not in names(Program({"forward": split(after.main)[1]}))
    assert_same_meaning(before, after)
    for passes, program in ((exact, before), (usual, conv(32, 20)), (usual, conv(128, 28, stride=2))):
        direct = run_passes(program, passes)
        assert "winograd_last" not in names(direct)
        assert "conv_last" in names(direct)


def test_strided_reads_and_padding_of_planes() -> None:
    """A 1x1 filter of stride 2 reads a copy of what it needs; zeros around a map become the convolution's own."""
    before = Program(
        {
            "forward": graph(
                """
                func forward(
                  %x: float32[2, 3, 8, 8] user "x",
                  %w: float32[33, 3, 1, 1] parameter "w",
                  %v: float32[4, 33, 3, 3] parameter "v",
                ) {
                  %a: float32[2, 33, 4, 4] = conv(%x, %w) {stride = (2, 2), padding = (0, 0), dilation = (1, 1),
                    groups = 1}
                  %p: float32[2, 33, 6, 8] = pad(%a) {low = (0, 0, 1, 2), high = (0, 0, 1, 2), mode = "constant",
                    value = 0}
                  %y: float32[2, 4, 2, 3] = conv(%p, %v) {stride = (2, 2), padding = (0, 0), dilation = (1, 1),
                    groups = 1}
                  return %y
                }
                """
            )
        }
    )
    after = run_passes(before, PIPELINES["vulkan"].usual)
    assert [name for name in names(after) if not name.startswith("pack_")] == ["slice", "conv_planes", "conv_planes"]
    assert_same_meaning(before, after)
