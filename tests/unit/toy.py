"""A hand-made plan whose kernels are written in C, for tests of what is emitted: no torch, no TVM.

h = relu(x @ fc.weight.T + fc.bias)     fc_relu, parallel over rows, with workspace
rows = table[ids]                       take_rows, checks its indices
return Result(hidden=h, parts=(rows, x)), the second being an input that is passed through
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from transpiler.c_abi import c_files
from transpiler.c_compiler import c_compiler
from transpiler.emit import PackageView, SourceFacts, make_view
from transpiler.errors import Location
from transpiler.ir import Graph, Input, Node, Output, Program, Role, TensorType, Value
from transpiler.link import Binaries, Linked, link_library
from transpiler.ops.base import Op
from transpiler.parts import Part
from transpiler.plan import Call, Kernel, KernelPlan, Layout, Storage, Tap, View
from transpiler.prepared import run_prepare
from transpiler.structure import Leaf, Literal, Mapping_, Sequence_
from transpiler.target import load_target

Array = np.ndarray

KERNELS = r"""
#include <stdint.h>
#include <stddef.h>
typedef struct { void *sync; int32_t num_task; } env_t;
typedef int (*lambda_t)(int, env_t *, void *);
/* As in TVM's objects: weak, defined by the runtime. */
__attribute__((weak)) int (*__TVMBackendParallelLaunch)(lambda_t, void *, int);
__attribute__((weak)) float __extendhfsf2(uint16_t x) { return x; }
extern void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count);

struct fc { const float *x, *w, *b; float *y, *scratch; };

static int fc_rows(int task, env_t *env, void *data) {
  struct fc *f = data;
  int step = (6 + env->num_task - 1) / env->num_task, end = (task + 1) * step < 6 ? (task + 1) * step : 6;
  for (int row = task * step; row < end; ++row) {
    for (int n = 0; n < 4; ++n) {
      float sum = f->b[n];
      for (int k = 0; k < 3; ++k) sum += f->x[row * 3 + k] * f->w[k * 16 + n]; /* packed [1, 3, 16] */
      f->scratch[row * 4 + n] = sum;
      f->y[row * 4 + n] = sum < 0 ? 0 : sum;
    }
  }
  return 0;
}

int32_t fc_relu(const void *x, const void *w, const void *b, void *y, void *workspace) {
  struct fc f = {x, w, b, y, workspace};
  if (((uintptr_t)w | (uintptr_t)workspace) % 64 || ((uintptr_t)x | (uintptr_t)y) % 8) return 9;
  if (f.x[0] == 12345.0f) {
    const char *parts[] = {"the magic ", "number"};
    TVMFFIErrorSetRaisedFromCStrParts("ValueError", parts, 2);
    return -1;
  }
  return __TVMBackendParallelLaunch(fc_rows, &f, 0);
}

int32_t take_rows(const void *table, const void *ids, void *out, int32_t *status) {
  for (int i = 0; i < 2; ++i) {
    int64_t row = ((const int64_t *)ids)[i];
    if (row < 0 || row >= 5) *status = 1, row = 0;
    for (int k = 0; k < 2; ++k) ((float *)out)[i * 2 + k] = ((const float *)table)[row * 2 + k];
  }
  return 0;
}
"""
# A second object with the same weak symbols must link too.
SECOND = r"""
#include <stdint.h>
__attribute__((weak)) int (*__TVMBackendParallelLaunch)(void *, void *, int);
__attribute__((weak)) float __extendhfsf2(uint16_t x) { return x; }
int32_t unused_kernel(const void *a, void *b) { (void)a, (void)b; return 0; }
"""


class Pack(Op, name="toy_pack"):
    def infer(self, *types: TensorType) -> TensorType:
        n, k = types[0].static_shape()
        return TensorType(types[0].dtype, (-(-n // 16), k, 16))

    def host(self, *names: str) -> str:
        return f"pack_matmul({names[0]})"


class Add(Op, name="toy_add"):
    def infer(self, *types: TensorType) -> TensorType:
        return types[0]

    def host(self, *names: str) -> str:
        return f"({names[0]} + {names[1]})"


def tensor(name: str, dtype: str, *shape: int, hint: str | None = None, path: str | None = None) -> Value:
    return Value(name, TensorType(dtype, shape), path=path, hint=hint)


SOURCE_LINE = Location("/home/someone/toy.py", 12, "Toy.forward", 'h = F.relu(self.fc(x))  # */ quote " and \\ and ??/')
TAKE_LINE = Location("toy.py", 13, "Toy.forward", "rows = self.emb(ids)")

X = tensor("x", "float32", 2, 3, 3)
IDS = tensor("ids", "int64", 2)
FLAT = tensor("flat", "float32", 6, 3, hint="x")
HIDDEN = tensor("v1", "float32", 6, 4, hint="h", path="fc")
ROWS = tensor("v2", "float32", 2, 2, hint="rows", path="emb")
WEIGHT = tensor("fc_weight", "float32", 4, 3)
BIAS = tensor("fc_bias", "float32", 4)
SHIFT = tensor("shift", "float32", 4)
TABLE = tensor("table", "float32", 5, 2)
PACKED = tensor("fc_weight_packed", "float32", 1, 3, 16)
SHIFTED = tensor("fc_bias_shifted", "float32", 4)


@cache
def plan() -> KernelPlan:
    prepare = Graph(
        "prepare",
        inputs=(
            Input(WEIGHT, Role.PARAMETER, "fc.weight"),
            Input(BIAS, Role.PARAMETER, "fc.bias"),
            Input(TABLE, Role.PARAMETER, "emb.weight"),
            Input(SHIFT, Role.CONSTANT, "lifted.0"),
        ),
        nodes=(Node(Pack(), (WEIGHT,), (PACKED,)), Node(Add(), (BIAS, SHIFT), (SHIFTED,))),
        outputs=(Output(PACKED), Output(SHIFTED), Output(TABLE)),
    )
    return KernelPlan(
        function="forward",
        kernels=(
            Kernel(
                "fc_relu", (FLAT.type, PACKED.type, SHIFTED.type), (HIDDEN.type,),
                "relu(x @ weight.T + bias)",
                workspace=96, flops=144, bytes=300,
            ),
            Kernel("take_rows", (TABLE.type, IDS.type), (ROWS.type,), "table[ids]", checks_index=True),
        ),
        steps=(
            View(X, FLAT),
            Call("fc_relu", (FLAT, PACKED, SHIFTED), (HIDDEN,), (SOURCE_LINE,), workspace_offset=64),
            Call("take_rows", (TABLE, IDS), (ROWS,), (TAKE_LINE,)),
        ),
        inputs=(Input(X, Role.USER, "x"), Input(IDS, Role.USER, "ids")),
        outputs=(HIDDEN, ROWS, X),
        weights=(PACKED, SHIFTED, TABLE),
        prepare=prepare,
        storage={
            "x": Storage("input", 0), "flat": Storage("input", 0), "ids": Storage("input", 1),
            "v1": Storage("output", 0), "v2": Storage("output", 1),
            "fc_weight_packed": Storage("weight", offset=0), "fc_bias_shifted": Storage("weight", offset=192),
            "table": Storage("weight", offset=256),
        },
        arena_bytes=192,
        weight_bytes=320,
        taps={"fc": Tap("v1", HIDDEN.type), "emb": Tap("v2", ROWS.type, Layout())},
        fused={"relu": "fc"},
    )  # fmt: skip


@cache
def program() -> Program:
    weights = (*plan().prepare.inputs[:3], Input(tensor("n", "int64"), Role.BUFFER, "bn.num_batches_tracked"))
    graph = Graph(
        "forward",
        inputs=(*weights, *plan().inputs),
        nodes=(),
        outputs=tuple(map(Output, plan().outputs)),
        in_structure=Sequence_(
            "tuple",
            (
                Sequence_("tuple", (Sequence_("list", (Leaf(0),)), Literal(None))),
                Mapping_("dict", (("ids", Leaf(1)),)),
            ),
        ),
        out_structure=Mapping_(
            "record", (("hidden", Leaf(0)), ("parts", Sequence_("tuple", (Leaf(1), Leaf(2))))), "Result"
        ),
    )
    return Program({"forward": graph}, {"lifted.0": np.full(4, 0.5, np.float32)}, {"tied.weight": "emb.weight"})


@cache
def state() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    shapes = {"fc.weight": (4, 3), "fc.bias": (4,), "emb.weight": (5, 2)}
    return {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}


def expected(x: Array, ids: Array, state: dict[str, Array]) -> tuple[Array, Array]:
    hidden = x.reshape(6, 3) @ state["fc.weight"].T + state["fc.bias"] + np.float32(0.5)
    return np.maximum(hidden, 0), state["emb.weight"][ids]


@cache
def objects() -> tuple[bytes, ...]:
    result = []
    with TemporaryDirectory() as folder:
        for index, source in enumerate((KERNELS, SECOND)):
            path = Path(folder) / f"k{index}.c"
            path.write_text(source)
            command = [*c_compiler().command, "-c", "-O1", "-fPIC", str(path), "-o", str(path.with_suffix(".o"))]
            subprocess.run(command, check=True)
            result.append(path.with_suffix(".o").read_bytes())
    return tuple(result)


@cache
def linked() -> Linked:
    return link_library(objects(), [plan()], "toy", "baseline")


@cache
def binaries() -> Binaries:
    isas = [load_target("cpu", "baseline").isa]
    return Binaries({"baseline": linked()}, c_files("toy", [plan()], isas, "0.1.0", c_compiler()))


def inputs(seed: int = 1) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((2, 3, 3)).astype(np.float32), np.array([4, 1], np.int64)


ERRORS = [
    {"output": "h", "max_abs_error": 1e-7, "tolerance": 1e-5, "max_abs_reference": 2.0},
    {"output": "rows", "max_abs_error": 0.0, "tolerance": 0.0, "max_abs_reference": 2.0},
]


def part(*, verified: bool = False, errors: Sequence[Mapping[str, Any]] = ()) -> Part:
    """The toy for processors."""
    constants = program().constants
    prepared = run_prepare(plan(), constants, state())
    return Part([plan()], binaries(), prepared, constants, verified=verified, errors=errors)


@cache
def view() -> PackageView:
    x, ids = inputs()
    hidden, rows = expected(x, ids, state())
    return make_view(
        name="toy",
        program=program(),
        parts=[part(verified=True, errors=ERRORS)],
        source=SourceFacts("toy.py", "Toy", 'A toy.\n\nWith """quotes""" and a \\ in it."', {"forward": ("states",)}),
        verification={"sample_tolerance": {"h": 1e-5, "rows": 0.0}},
        sample={"input.0": x, "input.1": ids, "output.0": hidden, "output.1": rows, "output.2": x},
        tool_versions={"transpiler": "0.1.0"},
        bounds={"forward": {"ids": (0, 4)}},
    )
