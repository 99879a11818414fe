"""One module through the whole pipeline, its package loaded and compared with PyTorch in float32 and float64."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transpiler import capture
from transpiler.c_abi import c_files
from transpiler.c_compiler import c_compiler
from transpiler.checks import compare
from transpiler.compile import compile_kernels
from transpiler.emit import emit_package, make_view, run_prepare, write_package
from transpiler.importer import import_program
from transpiler.link import Binaries, link_library
from transpiler.loading import load_package
from transpiler.lower import lower, with_taps
from transpiler.parts import Part
from transpiler.passes import PIPELINE, UNFOLDED_PIPELINE, run_passes
from transpiler.target import load_target
from transpiler.verify import expect
from transpiler.weights import state_arrays

Tensors = Sequence[torch.Tensor]


def leaves(value: Any) -> list[torch.Tensor]:
    """The tensors of a nested result in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    return [leaf for item in value for leaf in leaves(item)]


@contextmanager
def built(module: nn.Module, inputs: Tensors, *, fold: bool = True, dynamic_shapes: Any = None) -> Iterator[Any]:
    """The loaded package module of `module`; without `fold` every node is a kernel of its own."""
    captured = capture.capture_module(module.eval(), tuple(item.clone() for item in inputs), None, dynamic_shapes)
    imported = import_program(captured)
    program = with_taps(imported.program, imported.taps)
    target = load_target("cpu", None)
    rewritten = run_passes(program, PIPELINE if fold else UNFOLDED_PIPELINE)
    lowered = lower(rewritten, target, fuse=fold)
    linked = link_library(compile_kernels(lowered.kernels, target, workers=1), lowered.plans, "drawn", target.isa.name)
    files = c_files("drawn", lowered.plans, [target.isa], "0", c_compiler())
    state = state_arrays(captured.exported_program.state_dict)
    view = make_view(
        name="drawn",
        program=rewritten,
        parts=[
            Part(
                lowered.plans,
                Binaries({target.isa.name: linked}, files),
                run_prepare(lowered.plan, rewritten.constants, state),
                rewritten.constants,
            )
        ],
    )
    with tempfile.TemporaryDirectory(prefix="transpile-") as folder:
        write_package(emit_package(view), Path(folder))
        yield load_package(Path(folder), "drawn")


def assert_equals_pytorch(module: nn.Module, draws: Sequence[Tensors], *, fold: bool = True) -> None:
    """Native and kernel by kernel, first and second call, on every draw."""
    module = module.eval()
    double = copy.deepcopy(module).double()
    with (
        built(module, draws[0], fold=fold) as package,
        package.Model() as native,
        package.Model(native=False) as python,
    ):
        for number, draw in enumerate(draws):
            with torch.no_grad():
                single = [item.numpy().copy() for item in leaves(module(*[item.clone() for item in draw]))]
                wide = [item.double() if item.dtype == torch.float32 else item.clone() for item in draw]
                exact = [item.numpy().copy() for item in leaves(double(*wide))]
            arrays = [item.numpy().copy() for item in draw]
            kept = [array.copy() for array in arrays]
            results = [array.copy() for array in native.infer(*arrays)]
            again = native.infer(*arrays)
            stepwise = python.infer(*arrays)
            for array, before in zip(arrays, kept, strict=True):
                assert array.tobytes() == before.tobytes(), "an input was written"
            assert len(results) == len(single)
            for index, (one, two, ours) in enumerate(zip(single, exact, results, strict=True)):
                where = f"draw {number}, output {index}"
                assert ours.dtype == one.dtype, where
                assert ours.shape == one.shape, where
                message = compare(
                    expect(f"output {index}", one.dtype.name, one, two, whole=1 << 30, sample=1, parts=1), ours, where
                ).message
                assert not message, message
                assert ours.tobytes() == again[index].tobytes(), f"{where}: the second call differs"
                assert ours.tobytes() == stepwise[index].tobytes(), f"{where}: kernel by kernel differs"
