"""1x1 convolutions by Strassen's algorithm: where it is chosen, that the meaning stays, and how exact it is."""

from typing import Any

import numpy as np
import pytest

from tests.conformance.kernels import KernelLibrary, op_group
from tests.passes.support import assert_same_meaning, graph
from transpiler.ir import Array, Program, verify
from transpiler.ops.base import Op
from transpiler.ops.blocked_conv import ConvBlocked
from transpiler.ops.packed import PackChannels, PackConv, UnpackChannels
from transpiler.ops.strassen import RowScales
from transpiler.ops.strassen_conv import ConvStrassen, PackConvStrassen
from transpiler.passes import EXACT_PIPELINE, PIPELINE, run_passes
from transpiler.passes.strassen import gains_pointwise
from transpiler.prepared import runtime_module
from transpiler.schedule import schedule
from transpiler.target import load_target


def layer(inputs: int = 512, outputs: int = 512, size: int = 14, stride: int = 1, after: str = "relu(%c)") -> Program:
    out = -(-size // stride)
    return Program(
        {
            "forward": graph(
                f"""
                func forward(
                  %x: float32[1, {inputs}, {size}, {size}] user "x",
                  %w: float32[{outputs}, {inputs}, 1, 1] parameter "w",
                  %b: float32[{outputs}] parameter "b",
                ) {{
                  %c: float32[1, {outputs}, {out}, {out}] = conv(%x, %w, %b) {{stride = ({stride}, {stride}),
                    padding = (0, 0), dilation = (1, 1), groups = 1}}
                  %y: float32[1, {outputs}, {out}, {out}] = {after}
                  return %y
                }}
                """
            )
        }
    )


def names(program: Program) -> list[str]:
    return [node.op.name for node in program.main.nodes]


@pytest.mark.parametrize(("size", "stride"), [(14, 1), (27, 2)])
def test_large_filters_are_seven_products(size: int, stride: int) -> None:
    before = layer(size=size, stride=stride)
    after = run_passes(before, PIPELINE)
    verify(after.main)
    assert {"row_scales", "pack_conv_strassen", "conv_strassen"} <= set(names(after))
    assert "pack_conv" not in names(after)
    assert_same_meaning(before, after)


def test_exact_leaves_direct_sums() -> None:
    assert "conv_blocked" in names(run_passes(layer(), EXACT_PIPELINE))


@pytest.mark.parametrize(
    "change",
    [
        {"size": 7, "inputs": 1024, "outputs": 2048}, {"inputs": 64, "outputs": 4096}, {"inputs": 4096, "outputs": 64},
        {"inputs": 520}, {"outputs": 520}, {"inputs": 256, "outputs": 256, "size": 12},
        {"after": "clamp(%c) {min = 0.0, max = 6.0}"},
    ],
    ids=str,
)  # fmt: skip
def test_other_layers_stay(change: dict[str, Any]) -> None:
    assert "conv_blocked" in names(run_passes(layer(**change), PIPELINE))


def test_layers_of_resnet() -> None:
    assert all(gains_pointwise(196, *size) for size in ((1024, 256), (256, 1024), (512, 1024)))
    assert not gains_pointwise(3136, 256, 64)


def arrays(x: Array, w: Array) -> dict[str, tuple[Op, tuple[Array, Array]]]:
    """Operands of the direct and of the fast convolution."""
    attributes = (len(w), w.shape[1], (1, 1), (1, 1), (0, 0, 0, 0), (1, 1))
    blocked = PackChannels().reference(x)
    return {
        "direct": (ConvBlocked(*attributes), (blocked, PackConv().reference(w[:, :, None, None]))),
        "fast": (ConvStrassen(*attributes), (blocked, PackConvStrassen().reference(w, RowScales().reference(w)))),
    }


def results(x: Array, w: Array, isa: str | None = None) -> dict[str, Array]:
    inputs, target = arrays(x, w), load_target("cpu", isa)
    kernels = [schedule(op_group(op, operands), target, name) for name, (op, operands) in inputs.items()]
    library = KernelLibrary(kernels, target)
    unpack = UnpackChannels(len(w))
    return {name: unpack.reference(library.run(name, *operands)[0]) for name, (_, operands) in inputs.items()}


@pytest.mark.parametrize("positive", [False, True], ids=["normal", "after_relu"])
def test_error_is_near_that_of_a_direct_sum(positive: bool) -> None:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((1, 256, 9, 11), np.float32)
    x = np.maximum(x, 0) if positive else x
    w = rng.standard_normal((96, 256), np.float32)
    exact = np.einsum("oc,nchw->nohw", w.astype(np.float64), x.astype(np.float64))
    errors = {name: np.abs(value - exact) for name, value in results(x, w).items()}
    assert errors["fast"].max() <= 4 * errors["direct"].max()
    assert np.sqrt(np.mean(errors["fast"] ** 2)) <= 3 * np.sqrt(np.mean(errors["direct"] ** 2))


def test_each_channel_is_as_exact_as_its_filter_is_large() -> None:
    rng = np.random.default_rng(8)
    x = rng.standard_normal((1, 64, 8, 8), np.float32)
    w = rng.standard_normal((64, 64), np.float32) * np.float32(10) ** rng.integers(-12, 13, (64, 1)).astype(np.float32)
    exact = np.einsum("oc,nchw->nohw", w.astype(np.float64), x.astype(np.float64))
    size = np.linalg.norm(w.astype(np.float64), axis=1)[:, None, None] * np.sqrt(64)
    # A sum of 64 terms is off by 64 units of the last place of the sum of their magnitudes at most, seven by more.
    bound = 64 * 8 * np.finfo(np.float32).eps
    assert (np.abs(results(x, w)["fast"] - exact) / size).max() <= bound


@pytest.mark.parametrize("isa", ["avx512", "baseline"])
def test_what_is_not_finite_stays_in_its_pixel_and_channel(isa: str) -> None:
    rng = np.random.default_rng(9)
    x, w = rng.standard_normal((2, 64, 7, 9), np.float32), rng.standard_normal((96, 64), np.float32)
    x[0, 3, 0, 0], x[1, 33, 6, 8], x[1, 5, 3, 3] = np.inf, np.nan, 3e38
    w[7, 9] = np.nan
    found = results(x, w, isa)
    assert np.array_equal(np.isnan(found["fast"]), np.isnan(found["direct"]))
    fine = np.isfinite(found["direct"])
    assert np.isinf(found["fast"][~fine & ~np.isnan(found["direct"])]).all()
    quiet = fine & (np.abs(found["direct"]) < 1e6)
    assert np.allclose(found["fast"][quiet], found["direct"][quiet], rtol=0, atol=1e-3)


def test_the_emitted_package_packs_the_same_bits() -> None:
    host = runtime_module("host")
    w = np.random.default_rng(10).standard_normal((96, 64), np.float32)
    w[4], w[9, 1] = w[4] * np.float32(1e-20), np.inf
    scales = RowScales().reference(w)
    assert host.pack_conv_strassen(w, scales).tobytes() == PackConvStrassen().reference(w, scales).tobytes()
