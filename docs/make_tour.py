"""Writes docs/tour.md: one model through every stage, everything shown taken from a real run.

`python docs/make_tour.py` writes it anew; tests/golden/test_tour.py checks that it is fresh.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
MODEL = ROOT / "tests" / "models" / "mnist.py"
# Any x86-64 machine of the last ten years has it, so that the tour is the same everywhere.
ISA = "avx2"


def code(language: str, text: str) -> str:
    return f"```{language}\n{text.strip()}\n```"


def without_comments(text: str) -> str:
    """The text form without the origins (path, source line) at the end of each line."""
    return re.sub(r"  # .*", "", text)


def between(text: str, start: str, end: str) -> str:
    """The lines from the first that holds `start` to before the next that holds `end`."""
    lines = text.splitlines()
    first = next(index for index, line in enumerate(lines) if start in line)
    last = next((index for index in range(first + 1, len(lines)) if end in lines[index]), len(lines))
    return dedent("\n".join(lines[first:last]))


def tree(folder: Path) -> str:
    """The files of a package, the many small ones by folder."""
    lines = []
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not re.search(r"pycache|runtime/|tests/_|py\.typed", name):
            lines.append(name)
    return "\n".join(lines)


def tour() -> str:
    """The page. Runs the whole pipeline, about ten seconds."""
    from transpiler import transpile
    from transpiler.c_plan import render_plan
    from transpiler.capture import capture_file
    from transpiler.importer import import_program
    from transpiler.lower import lower, with_taps
    from transpiler.passes import PIPELINE, run_passes
    from transpiler.target import load_target
    from transpiler.text import print_graph

    captured = capture_file(MODEL)
    imported = import_program(captured)
    program = with_taps(imported.program, imported.taps)
    rewritten = run_passes(program)
    lowered = lower(rewritten, load_target("cpu", ISA))
    plan_c = render_plan(lowered.plans, "mnist", ISA)
    # The one that is short enough to be read here.
    kernel = next(item for item in lowered.kernels if item.kernel.name == "linear_bias_10")
    fx = re.sub(r";  .*", "", captured.exported_program.graph_module.code)
    imported_text = print_graph(program.main)
    with tempfile.TemporaryDirectory() as out:
        package = transpile(MODEL, isa=ISA, out=out, test=True)
        model_py = (package.path / "src/mnist/model.py").read_text()
        prepare_py = (package.path / "src/mnist/prepare.py").read_text()
        files = tree(package.path)
    report = package.report
    assert report.tests is not None
    error = report.errors["output0"]
    taps = "\n".join(f"{path:8} {tap.value}" for path, tap in lowered.plan.taps.items())
    fused = "\n".join(f"{path:8} fused; the nearest is {near}" for path, near in lowered.plan.fused.items())
    passes = ", ".join(dict.fromkeys(step.__name__ for step in PIPELINE))
    conv1 = next(line for line in imported_text.splitlines() if "%conv1: " in line)
    return f"""# A tour: one model through every stage

<!-- Written by docs/make_tour.py; do not edit. -->

What follows is `transpile tests/models/mnist.py --isa {ISA}`, taken apart. Everything shown comes from a real run.

## 1. The model

{code("python", MODEL.read_text())}

`transpiler/source.py` reads this text without running it: it finds the one `nn.Module` class that no other class
builds, sees that the constructor needs no arguments and that there is an `example_inputs()`, and keeps names and lines
for the generated code and for error messages.

## 2. The FX graph

`transpiler/capture.py` runs the file, puts the model into eval mode, calls `torch.export`, and applies the project's
own [decomposition table](adr/0003-own-decomposition-table.md). Convolutions, linear layers, pools and softmax stay
whole:

{code("python", fx)}

## 3. The neutral op graph

`transpiler/importer.py` translates ATen operators, one class each in `transpiler/ops`, into the project's own
[op graph](adr/0001-neutral-op-graph.md): typed, functional, every input with a role. This is its text form; it reads
back to the same program:

{code("text", without_comments(imported_text))}

Every value also carries where it comes from, left out above. One line in full:

{code("text", conv1.strip())}

## 4. The graph, rewritten

The passes, in order (a pass is `Graph -> Graph`, and the verifier runs after each):

{code("text", passes)}

They fold what does not depend on weights, fold batch norms into convolutions, choose layouts (channels in blocks of 16,
packed matrices) and cancel what that leaves over:

{code("text", without_comments(print_graph(rewritten.main)))}

## 5. `prepare` is split off

What happens to weights before the first call is a small graph of its own. It runs when the package is built, and again
in `load_weights`:

{code("text", print_graph(lowered.plan.prepare))}

It becomes `prepare.py` of the package:

{code("python", between(prepare_py, "def prepare", "    return {"))}

## 6. Kernels

`transpiler/passes/fusion.py` partitions the graph into groups: a convolution with its bias and ReLU is one kernel. The
schedule rules that `targets/cpu.toml` lists are asked in order for each; the first that takes a group writes its loops
with TVM's IR builder. The second linear layer, one row by ten columns, the sums of a row in registers:

{code("python", between(kernel.function.script(), "@T.prim_func", "no such line"))}

The kernels of this model, and what each computes:

{code("text", chr(10).join(f"{item.name:30} {item.summary}" for item in lowered.plan.kernels))}

TVM's passes and LLVM make an object file of them: plain C functions over raw pointers.

## 7. The plan

`transpiler/memory.py` lets values that are not alive at the same time share one arena of
{lowered.plan.arena_bytes:,} bytes.
The plan, in order and with all offsets, is printed twice: as C for the native entry,

{code("c", between(plan_c, "/* 0: ", "/* 2: "))}

and as readable Python, which `Model(native=False)` executes kernel by kernel. The generated tests require the two to be
bitwise equal:

{code("python", between(model_py, "    def forward(", "    def _bind("))}

The names are those of `forward` in step 1. A module whose value survived can be tapped:

{code("text", taps + chr(10) + fused)}

## 8. The package

The objects, the plan and a [C runtime](adr/0002-standalone-cpu-runtime.md) of a few hundred lines are linked into one
`.so` that needs libc only. With the prepared weights, Python and tests:

{code("text", files)}

(`src/mnist/runtime/` and the helpers of the tests are left out.)

## 9. Proof

The package runs on the user's example, on drawn inputs and on edge cases (zeros, large, denormal, NaN, infinity), and
is compared with PyTorch in float64 under one [tolerance](adr/0005-tolerance.md). Then its own tests run in a process
that cannot import torch, TVM or the transpiler. Of the largest errors, the one closest to its tolerance is written into
the manifest:

{
        code(
            "text",
            f'''tests  {report.tests.passed} passed
error  output0: {error.max_abs_error:.1e} from PyTorch in float64, tolerance {error.tolerance:.1e}''',
        )
    }

`LIVE_MODEL=tests/models/mnist.py` adds tests that compare with live PyTorch. Only when all have passed is the
package moved to where it was asked for, by a rename.
"""


if __name__ == "__main__":
    (ROOT / "docs" / "tour.md").write_text(tour())
