"""Linear layers by Strassen's algorithm: where it is chosen, that the meaning stays, and how exact it is."""

import numpy as np
import pytest

from tests.conformance.kernels import KernelLibrary, op_group
from tests.passes.support import assert_same_meaning, graph
from transpiler.ir import Array, Program, verify
from transpiler.ops.base import Op
from transpiler.ops.packed import LinearPacked, PackMatmul
from transpiler.ops.strassen import LinearStrassen, PackStrassen, RowScales
from transpiler.passes import EXACT_PIPELINE, PIPELINE, run_passes
from transpiler.passes.strassen import gains
from transpiler.prepared import runtime_module
from transpiler.schedule import schedule
from transpiler.target import load_target


def layer(rows: int = 128, depth: int = 512, columns: int = 512, more: str = "", result: str = "%y") -> Program:
    return Program(
        {
            "forward": graph(
                f"""
                func forward(
                  %x: float32[{rows}, {depth}] user "x",
                  %i: int64[3] user "i",
                  %w: float32[{columns}, {depth}] parameter "w",
                  %b: float32[{columns}] parameter "b",
                ) {{
                  %y: float32[{rows}, {columns}] = linear(%x, %w, %b)
                  {more}
                  return %y, {result}
                }}
                """
            )
        }
    )


def names(program: Program) -> list[str]:
    return [node.op.name for node in program.main.nodes]


def test_many_rows_are_seven_products() -> None:
    before = layer()
    after = run_passes(before, PIPELINE)
    verify(after.main)
    assert names(after) == ["row_scales", "pack_strassen", "linear_strassen"]
    assert_same_meaning(before, after)


def test_exact_leaves_direct_sums() -> None:
    assert names(run_passes(layer(), EXACT_PIPELINE)) == ["pack_matmul", "linear_packed"]


@pytest.mark.parametrize(
    "change", [{"rows": 32}, {"depth": 511}, {"depth": 64, "rows": 2048}, {"columns": 64}], ids=str
)
def test_other_layers_stay(change: dict[str, int]) -> None:
    assert "linear_packed" in names(run_passes(layer(**change), PIPELINE))


@pytest.mark.parametrize(("rows", "expected"), [(1, "linear_packed"), (2, "linear_strassen")])
def test_products_that_a_scan_of_one_row_computes_on_the_way_stay(rows: int, expected: str) -> None:
    text = f"""
        func forward(
          %x: float32[256, {rows}, 512] user "x",
          %h: float32[{rows}, 256] user "h",
          %w: float32[768, 512] parameter "w",
          %r: float32[768, 256] parameter "r",
          %b: float32[768] parameter "b",
        ) {{
          %gates: float32[256, {rows}, 768] = linear(%x, %w, %b)
          %y: float32[256, {rows}, 256], %last: float32[{rows}, 256] = gru_scan(%gates, %h, %r, %b)
          return %y, %last
        }}
        """
    assert expected in names(run_passes(Program({"forward": graph(text)}), PIPELINE))


def test_a_weight_that_is_an_embedding_too_is_stored_once() -> None:
    program = layer(more="%e: float32[3, 512] = take(%w, %i) {axis = 0}", result="%e")
    assert "linear_strassen" not in names(run_passes(program, PIPELINE))


def test_programs_of_several_functions_share_one_form() -> None:
    main = layer().main
    program = Program({"prefill": main, "decode": layer(rows=1).main})
    assert not {"linear_strassen", "pack_strassen"} & set(names(run_passes(program, PIPELINE)))
    assert gains(128, 512, 512)


def errors(x: Array, w: Array) -> dict[str, Array]:
    """The error of every result of the direct and of the fast kernel."""
    op = len(w)
    inputs: dict[str, tuple[Op, tuple[Array, Array]]] = {
        "direct": (LinearPacked(op), (x, PackMatmul().reference(w))),
        "fast": (LinearStrassen(op), (x, PackStrassen().reference(w, RowScales().reference(w)))),
    }
    target = load_target("cpu")
    kernels = [schedule(op_group(op, arrays), target, name) for name, (op, arrays) in inputs.items()]
    library = KernelLibrary(kernels, target)
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    return {name: np.abs(library.run(name, *arrays)[0] - exact) for name, (_, arrays) in inputs.items()}


@pytest.mark.parametrize("positive", [False, True], ids=["normal", "after_relu"])
def test_error_is_near_that_of_a_direct_sum(positive: bool) -> None:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((96, 768), np.float32)
    x = np.maximum(x, 0) if positive else x
    found = errors(x, rng.standard_normal((192, 768), np.float32))
    assert found["fast"].max() <= 3 * found["direct"].max()
    assert np.sqrt(np.mean(found["fast"] ** 2)) <= 2.5 * np.sqrt(np.mean(found["direct"] ** 2))


def test_each_row_and_column_is_as_exact_as_it_is_large() -> None:
    """Rows and columns of sizes from 1e-12 to 1e12: errors relative to the norms of the row and the column."""
    rng = np.random.default_rng(8)
    x = rng.standard_normal((96, 256), np.float32) * np.float32(10) ** rng.integers(-12, 13, (96, 1)).astype(np.float32)
    w = rng.standard_normal((96, 256), np.float32) * np.float32(10) ** rng.integers(-12, 13, (96, 1)).astype(np.float32)
    norms = np.outer(np.linalg.norm(x.astype(np.float64), axis=1), np.linalg.norm(w.astype(np.float64), axis=1))
    found = errors(x, w)
    assert (found["fast"] / norms).max() <= 2 * (found["direct"] / norms).max()


def test_what_is_not_finite_stays_in_its_row_and_column() -> None:
    rng = np.random.default_rng(9)
    x, w = rng.standard_normal((70, 96), np.float32), rng.standard_normal((80, 96), np.float32)
    x[3, 5], x[40, 0], x[69, 95], w[7, 9] = np.inf, np.nan, -np.inf, np.nan
    packed = PackStrassen().reference(w, RowScales().reference(w))
    target = load_target("cpu")
    library = KernelLibrary([schedule(op_group(LinearStrassen(80), (x, packed)), target, "fast")], target)
    (got,) = library.run("fast", x, packed)
    with np.errstate(invalid="ignore"):
        expected = x @ w.T
    assert np.array_equal(np.isnan(got), np.isnan(expected))
    rows = [3, 69]
    assert np.array_equal(got[rows], expected[rows], equal_nan=True)


def test_the_emitted_package_packs_the_same_bits() -> None:
    host = runtime_module("host")
    w = np.random.default_rng(10).standard_normal((83, 34), np.float32)
    w[4], w[9, 1] = w[4] * np.float32(1e-20), np.inf
    scales = RowScales().reference(w)
    assert np.array_equal(host.row_scales(w), scales, equal_nan=True)
    assert host.pack_strassen(w, scales).tobytes() == PackStrassen().reference(w, scales).tobytes()
