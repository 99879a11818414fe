"""Operators whose loops the user writes: right numbers without TVM where they run, and clear errors at build time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from tvm import s_tir, tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as builder

from transpiler import transpile
from transpiler.errors import TranspileErrors
from transpiler.extension import register_op
from transpiler.ir import TensorType
from transpiler.ops.custom import CustomKernel

EXAMPLE = Path(__file__).parents[2] / "docs/examples/custom_kernel/model.py"
ALONE = """
import json, sys
for name in ("torch", "tvm", "transpiler"):
    sys.modules[name] = None
import numpy as np
from leaky import Model
print(json.dumps(Model()(np.asarray(json.loads(sys.argv[1]), np.float32)).tolist()))
"""


def test_the_example(tmp_path: Path) -> None:
    """The generated tests pass, and the package runs where there is neither torch nor TVM."""
    package = transpile(EXAMPLE, out=tmp_path, name="leaky", test=True)
    assert package.report.tests is not None
    assert package.report.tests.failed == 0
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    done = subprocess.run(
        [sys.executable, "-c", ALONE, json.dumps(x.tolist())],
        env={"PYTHONPATH": str(package.path / "src")}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    y = package.load().tap("fc")(x).astype(np.float64)
    for t in range(1, 40):
        y[:, t] += 0.9 * y[:, t - 1]
    np.testing.assert_allclose(json.loads(done.stdout), np.maximum(y, 0), rtol=1e-5, atol=1e-6)


@torch.library.custom_op("loops::sums", mutates_args=())
def sums(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return a + 2 * b, (a > b).sum(1)


sums.register_fake(lambda a, b: (torch.empty_like(a), a.new_empty(a.shape[:1], dtype=torch.int64)))


def scheduled(inputs: Sequence[TensorType]) -> Any:
    """Two outputs, a temporary, written as TVMScript and scheduled."""
    rows, columns = inputs[0].static_shape()

    @T.prim_func(s_tir=True)
    def kernel(
        a: T.Buffer((rows, columns)), b: T.Buffer((rows, columns)), y: T.Buffer((rows, columns)),
        count: T.Buffer((rows,), dtype="int64"),
    ) -> None:  # fmt: skip
        twice = T.sblock_alloc_buffer((rows, columns))
        for i, j in T.grid(rows, columns):
            with T.sblock("twice"):
                vi, vj = T.axis.remap("SS", [i, j])
                twice[vi, vj] = b[vi, vj] * T.float32(2)
        for i, j in T.grid(rows, columns):
            with T.sblock("sum"):
                vi, vj = T.axis.remap("SS", [i, j])
                y[vi, vj] = a[vi, vj] + twice[vi, vj]
        for i, j in T.grid(rows, columns):
            with T.sblock("count"):
                vi, vj = T.axis.remap("SR", [i, j])
                with T.init():
                    count[vi] = T.int64(0)
                count[vi] = count[vi] + T.Select(a[vi, vj] > b[vi, vj], T.int64(1), T.int64(0))

    schedule = s_tir.Schedule(kernel)
    schedule.compute_inline(schedule.get_sblock("twice"))
    row, column = schedule.get_loops(schedule.get_sblock("sum"))
    schedule.parallel(row)
    schedule.vectorize(schedule.split(column, [None, 4])[1])
    return schedule.mod["main"]


class Sums(CustomKernel, name="loops_sums"):
    def infer(self, a: TensorType, b: TensorType) -> tuple[TensorType, TensorType]:
        return a, TensorType("int64", a.shape[:1])

    def reference(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return a + 2 * b, np.sum(a > b, 1)

    def kernel(self, inputs: Sequence[TensorType], outputs: Sequence[TensorType], target: Any) -> Any:
        return scheduled(inputs)


register_op("loops::sums", Sums)


class Net(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> Any:
        return sums(a, b)


class Twice(nn.Module):
    def forward(self, a: torch.Tensor) -> Any:
        return sums(a, a)


def test_script_and_schedule(tmp_path: Path) -> None:
    a, b = torch.randn(2, 6, 12)
    total, count = transpile(Net(), (a, b), out=tmp_path, name="sums").load()(a.numpy(), b.numpy())
    np.testing.assert_allclose(total, (a + 2 * b).numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(count, (a > b).sum(1).numpy())


def test_one_value_as_two_operands(tmp_path: Path) -> None:
    a = torch.randn(6, 12)
    total, count = transpile(Twice(), (a,), out=tmp_path, name="twice").load()(a.numpy())
    np.testing.assert_allclose(total, 3 * a.numpy(), rtol=1e-6)
    assert not count.any()


def copies(shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str], body: Callable[..., None]) -> Callable[..., Any]:
    """A kernel with these parameters."""

    def kernel(*_: Any) -> Any:
        with IRBuilder() as frame, builder.prim_func(s_tir=True):
            builder.func_name("kernel")
            buffers = [builder.buffer(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
            body([builder.arg(f"p{number}", buffer) for number, buffer in enumerate(buffers)])
        return frame.get()

    return kernel


def nothing(parameters: list[Any]) -> None:
    builder.evaluate(0)


def undefined(parameters: list[Any]) -> None:
    builder.buffer_store(parameters[2], tirx.Var("nowhere", "float32"), [0, 0])


def fails(*_: Any) -> Any:
    raise ValueError("only for 8 columns")


FULL = [(6, 12), (6, 12), (6, 12), (6,)]
FLOATS = ["float32", "float32", "float32", "int64"]


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (fails, "The kernel of 'loops_sums' could not be built: ValueError: only for 8 columns"),
        (lambda *_: "code", "kernel() of 'loops_sums' returned str, expected a tvm.tirx.PrimFunc"),
        (
            copies(FULL[1:], FLOATS[1:], nothing),
            "The kernel of 'loops_sums' has 3 parameters, expected 4: one per input (2), then one per output (2)",
        ),
        (
            copies([*FULL[:2], (12, 6), (6,)], FLOATS, nothing),
            "Parameter 2 of the kernel of 'loops_sums' is float32[12, 6]; output 0 is float32[6, 12]",
        ),
        (
            copies(FULL, [*FLOATS[:3], "int32"], nothing),
            "Parameter 3 of the kernel of 'loops_sums' is int32[6]; output 1 is int64[6]",
        ),
        (copies(FULL, FLOATS, undefined), "The kernel of 'loops_sums' does not compile: "),
    ],
    ids=["raises", "no function", "arity", "shape", "dtype", "code generation"],
)
def test_errors_name_the_operator(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kernel: Callable[..., Any], message: str
) -> None:
    monkeypatch.setattr(Sums, "kernel", lambda self, *given: kernel(*given))
    with pytest.raises(TranspileErrors) as caught:
        transpile(Net(), (torch.ones(6, 12), torch.ones(6, 12)), out=tmp_path)
    (problem,) = caught.value.problems
    assert problem.code == "custom-kernel"
    assert problem.message.startswith(message)
    assert problem.locations[0].text == "return sums(a, b)"
    assert not list(tmp_path.iterdir())


def test_sizes_that_vary_are_refused(tmp_path: Path) -> None:
    sizes = {"a": {0: torch.export.Dim("n", min=2, max=9)}, "b": {0: torch.export.Dim("n", min=2, max=9)}}
    with pytest.raises(TranspileErrors, match="kernel of 'loops_sums' needs fixed sizes"):
        transpile(Net(), (torch.ones(6, 12), torch.ones(6, 12)), out=tmp_path, dynamic_shapes=sizes)
