"""Writes docs/operators.md: every ATen operator and where it goes, and PyTorch's layers in a package.

`python docs/make_operators.py` writes it anew; tests/golden/test_operators.py checks that it is fresh. Everything is
read off the registry, the importers' source and the tables: no model is run.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from importer_survey import survey
from layer_table import layer_section
from operator_facts import (
    ABSOLUTE,
    GLUE,
    ULPS,
    Way,
    accuracy,
    brief,
    coverage,
    covered,
    dtypes,
    family,
    overloads,
    samples,
    suites,
    tables,
    tests,
    way,
)

from transpiler.ops import ATEN, REGISTRY
from transpiler.ops.complex_pairs import COMPLEX, PARTWISE
from transpiler.problems import HINTS

ROOT = Path(__file__).parents[1]
# Ops that a row names.
LONG = 8


def rows() -> dict[str, dict[str, dict[Way, list[str]]]]:
    """family -> base name -> where its overloads go."""
    table: dict[str, dict[str, dict[Way, list[str]]]] = {}
    homes: dict[str, str] = {}
    for overload in overloads():
        base, _, _ = overload.rpartition(".")
        home = homes.setdefault(base, family(overload))
        table.setdefault(home, {}).setdefault(base, {}).setdefault(way(overload), []).append(overload)
    return table


def operator_row(base: str, ways: Mapping[Way, Sequence[str]]) -> str:
    cells: list[list[str]] = []
    for item, group in ways.items():
        core = item.core
        shared = sum(overload in COMPLEX or overload in PARTWISE for overload in group)
        also = ("complex",) if shared == len(group) else ()
        names = [f"`{op.name}`" for op in sorted(item.ops, key=lambda op: op.name in GLUE)]
        more = f" and {len(names) - LONG} more" if len(names) > LONG + 1 else ""
        shown = names[:LONG] if more else names
        cells.append(
            [
                ", ".join(f"`.{name.rpartition('.')[2]}`" for name in group),
                "" if item.kind == "refused" else ", ".join(shown) + more or "its input",
                item.kind,
                brief(dtypes(core), also) if core else "complex too" if also else "",
                accuracy(item),
                tests(group, item.ops),
                *("" if item.kind == "refused" else coverage(target, item.ops) for target in suites()),
            ]
        )
    columns = ["<br>".join(column) for column in zip(*cells, strict=True)]
    return f"| `{base}` | {' | '.join(columns)} |"


def refusals(table: Mapping[str, Mapping[Way, Sequence[str]]]) -> list[str]:
    """Which operators say no, by reason."""
    by_reason: dict[str, dict[str, None]] = {}
    for base, ways in table.items():
        for item in ways:
            for reason in item.reasons:
                by_reason.setdefault(reason, {})[base] = None
    lines = [f"- {', '.join(f'`{base}`' for base in bases)}: {reason}" for reason, bases in by_reason.items()]
    return ["Refused, some only for certain arguments:\n", *lines, ""] if lines else []


def title(module: str) -> str:
    """The first sentence of the module."""
    text = " ".join((sys.modules[module].__doc__ or "").split())
    return re.split(r"(?<=[.;:])\s", text)[0].rstrip(".;:")


def operator_section() -> str:
    lines = []
    for module, table in sorted(rows().items(), key=lambda item: item[0]):
        name = module.rpartition(".")[2]
        lines += [f"### {name}: {title(module)}\n", f"[transpiler/ops/{name}.py](../transpiler/ops/{name}.py)\n"]
        titles = "".join(f" {name} |" for name in suites().values())
        lines.append(f"| ATen | overloads | becomes | kind | dtypes | result | conformance |{titles}")
        lines.append("|---|---|---|---|---|---|---|" + "---|" * len(suites()))
        lines += [operator_row(base, ways) for base, ways in sorted(table.items())]
        lines += ["", *refusals(table)]
    return "\n".join(lines)


def listing(names: Iterable[str]) -> str:
    """One line of base names, the overloads behind each."""
    by_base: dict[str, list[str]] = {}
    for overload in sorted(names):
        base, _, name = overload.rpartition(".")
        by_base.setdefault(base, []).append(name)
    return ", ".join(
        f"`{base}`" if found == ["default"] else f"`{base}` ({', '.join(found)})" for base, found in by_base.items()
    )


def neutral_ops() -> str:
    """What no ATen operator becomes by itself: the forms that passes choose."""
    reached = {op for overload in overloads() for op in survey(ATEN[overload]).ops}
    lines = ["| op | meaning | dtypes | samples |", "|---|---|---|---|"]
    for name, op in sorted(REGISTRY.items()):
        if op not in reached and op.__module__.startswith("transpiler."):
            text = " ".join((op.__doc__ or "").split()).replace("|", "\\|")
            lines.append(f"| `{name}` | {text} | {brief(dtypes(op))} | {len(samples(op))} |")
    return "\n".join(lines)


def page() -> str:
    own, listed, automatic = tables()
    backward = {name for name in automatic if "backward" in name}
    only_listed = {name for name in listed | own if name not in ATEN}
    hints: dict[str, list[str]] = {}
    for prefix, hint in HINTS.items():
        hints.setdefault(hint, []).append(f"`{prefix.rstrip('.')}`")
    refused = "\n".join(f"| {', '.join(names)} | {hint} |" for hint, names in hints.items())
    bounds = ", ".join(f"{name} {ulps}" for name, ulps in ULPS.items())
    absolute = ", ".join(f"{name} {bound:.1e}" for name, bound in ABSOLUTE.items())
    targets = "\n".join(
        f"- **{name}**: how many of those samples are equal there, by its run of "
        f"[the suite](../tests/{target}/test_conformance.py); every one of {covered(target)[0]} of the "
        f"{covered(target)[1]} ops that these operators become. What is missing is refused."
        for target, name in suites().items()
    )
    bases = len({name.rpartition(".")[0] for name in overloads()})
    return f"""# Operators and layers

<!-- Written by docs/make_operators.py; do not edit. -->

1. [ATen operators](#aten-operators): {len(overloads())} overloads of {bases} operators, and what each becomes.
2. [Decomposed operators](#decomposed-operators): those that are written with others first.
3. [Operators that are refused](#operators-that-are-refused).
4. [Layers](#layers): where PyTorch's layers and their weights stand in a package.
5. [Ops that passes choose](#ops-that-passes-choose).

## ATen operators

One row is one ATen operator, one table one file of `transpiler/ops`. Overloads that go different ways have a line each.

- **becomes**: the ops of the [op graph](adr/0001-neutral-op-graph.md) that the importer may emit, found in its source;
  which of them are needed depends on the arguments. Casts and constants that only bring operands together are left
  out.
- **kind**: *one op*, with views of its operands; *one op or more*: the one of its name, with others for some arguments;
  *composition* of several; *nothing*: the result is an input; *a cast* of it; *decomposed*: PyTorch's own definition is
  applied right after `torch.export` (*ours*: one written here), and the importer serves graphs that come without;
  *refused*, always.
- **dtypes**: what the op that does the work takes, by its type rule and its samples: *floats* are float16, bfloat16,
  float32, float64; *ints* uint8, int8, int16, int32, int64. Operands are cast as PyTorch promotes before that,
  so `exp` of integers works. Half floats are computed in float32 and rounded. *complex*: as pairs of real values,
  inside of a model.
- **result**, of that op in float32: *exact*; *n ulp*: the largest error over the whole range, measured by
  [test_vector_math](../tests/unit/test_vector_math.py) ({bounds}; absolute errors: {absolute}); *roundings* of single
  operations, each half an ulp of what it gives; *libm*: as good as the C library's function; *special*: computed in
  float64 by the package's runtime, checked by
  [test_special_functions](../tests/conformance/test_special_functions.py); *bounded*: sums and iterations. All are
  held to one rule on every target: at most 4 times as far from float64 as numpy in float32, plus 128 roundings of the
  largest result. Integers and bools are exact. Empty: a composition is as good as its ops.
- **conformance**: how many samples of its ops
  [every target runs](../tests/conformance/test_ops_on_targets.py) (`op.samples()` has their ids), and the files that
  compare the overload with PyTorch. PyTorch's own test databases are run besides:
  [which operators work](coverage.md) has the outcome.
{targets}

{operator_section()}
## Decomposed operators

`torch.export` itself breaks up what PyTorch defines by other operators. Beyond that, these are replaced before the
import ([ADR 3](adr/0003-own-decomposition-table.md)).

By functions of our own, [decomposed_here.py](../transpiler/decomposed_here.py): {listing(own)}.

By PyTorch's definitions, since no importer is worth it ([decompositions.py](../transpiler/decompositions.py)):
{listing(only_listed - own)}.

By PyTorch's definitions, because no importer knows them (an operator that one of them leads to may still be refused):

<details><summary>{len(automatic - backward)} overloads</summary>

{listing(automatic - backward)}.

</details>
<details><summary>{len(backward)} overloads that are parts of gradients</summary>

{listing(backward)}.

</details>

## Operators that are refused

What is in none of the tables is an error that names the operator and the line that uses it. Some say what to do:

| operator | instead |
|---|---|
{refused}

[Operators of your own](custom_operators.md) can be given a meaning; [random numbers](random.md) need `--rng`.

## Layers

A row is a layer alone, of a float32 model for the CPU. `state_dict` names are what `load_weights` takes, behind the
layer's path (`encoder.0.weight`); the package's `prepare.py` makes `encoder_0_weight_packed` of it, or keeps it as
`encoder_0_weight`. The kernel's name goes on with what is fused into it and the sizes: `conv3x3_bias_relu_64x56x56`.
`pack_channels` and `unpack_channels` stand at the borders of a chain of convolutions only: between them, maps keep
their blocks of 16 channels.

`model.tap("encoder.0")` is the layer's output, in PyTorch's layout. A layer whose output was fused into its neighbour
has none, and the error names the nearest that has; `--taps 'encoder.*'` keeps those that match, and `path#2` is a
second call.

{layer_section()}
Other layers are made of [operators](#aten-operators).

## Ops that passes choose

No operator becomes one of these directly; layouts, folding and the import of several operators make them.

{neutral_ops()}
"""


if __name__ == "__main__":
    (ROOT / "docs" / "operators.md").write_text(page())
