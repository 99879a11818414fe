"""Winograd convolutions: where they are chosen, that the meaning stays, and how exact they are."""

import numpy as np
import pytest

from tests.conformance.kernels import KernelLibrary, op_group
from tests.passes.support import assert_same_meaning, graph
from transpiler.ir import Array, Program, verify
from transpiler.ops.packed import ConvBlocked, PackChannels, PackConv, UnpackChannels
from transpiler.ops.winograd import ConvWinograd, PackWinograd
from transpiler.passes import EXACT_PIPELINE, FAST_CONVOLUTIONS, PIPELINE, run_passes
from transpiler.passes.winograd import best_tile
from transpiler.schedule import schedule
from transpiler.target import load_target


def conv(channels: int, size: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> Program:
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
                  %y: float32[1, {channels}, {out}, {out}] = relu(%c)
                  return %y
                }}
                """
            )
        }
    )


def names(program: Program) -> list[str]:
    return [node.op.name for node in program.main.nodes]


def test_large_maps_are_computed_by_winograd() -> None:
    before = conv(32, 20)
    after = run_passes(before, PIPELINE)
    verify(after.main)
    assert "conv_winograd" in names(after)
    assert "pack_conv" not in names(after)
    assert_same_meaning(before, after)


def test_exact_leaves_direct_sums() -> None:
    assert "conv_winograd" not in names(run_passes(conv(32, 20), EXACT_PIPELINE))


@pytest.mark.parametrize("change", [{"kernel": 1}, {"kernel": 5}, {"stride": 2}, {"dilation": 2}], ids=str)
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


@pytest.mark.parametrize("positive", [False, True], ids=["normal", "after_relu"])
@pytest.mark.parametrize("tile", [2, 4])
def test_error_is_near_that_of_a_direct_sum(tile: int, positive: bool) -> None:
    """Against float64: within 4 times (F4) or the same (F2) as the direct kernel, and a tenth of the tolerance."""
    rng = np.random.default_rng(7)
    channels, size = 128, 18
    x = rng.standard_normal((1, channels, size, size), np.float32)
    x = np.maximum(x, 0) if positive else x
    w = rng.standard_normal((channels, channels, 3, 3), np.float32) * np.float32((9 * channels) ** -0.5)
    attributes = (channels, channels, (3, 3), (1, 1), (0, 0, 0, 0), (1, 1))
    direct, fast = ConvBlocked(*attributes), ConvWinograd(*attributes, tile)
    blocked = PackChannels().reference(x)
    inputs: dict[str, tuple[Array, ...]] = {
        "direct": (blocked, PackConv().reference(w)),
        "fast": (blocked, PackWinograd(tile).reference(w)),
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
