"""The tables and the example of a package's README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transpiler.backends import backend
from transpiler.dims import SymbolRange, evaluate, free_symbols
from transpiler.forward import numpy_dtype, shape_text
from transpiler.interface import Argument, literal
from transpiler.ir import Input, TensorType
from transpiler.naming import comment
from transpiler.plan import KernelPlan, output_names
from transpiler.precision import is_half
from transpiler.structure import Leaf, Literal, Mapping_, Sequence_, Structure, leaves

LOWER = ", y_torch its float32 with what {0} may round rounded to it, eps the spacing of {0} at 1"


@dataclass(frozen=True)
class ReadmeView:
    summary: str
    targets: str
    devices: tuple[tuple[str, ...], ...]
    order: str
    functions: tuple[FunctionReadme, ...]
    state: tuple[tuple[str, ...], ...]
    verified: str
    keys: int
    taps: int
    random: bool
    needs: str
    environment: str


@dataclass(frozen=True)
class FunctionReadme:
    """`title` is empty for the only function of a model."""

    title: str
    sizes: tuple[tuple[str, ...], ...]
    example: tuple[str, ...]
    inputs: tuple[tuple[str, ...], ...]
    outputs: tuple[tuple[str, ...], ...]


def readme_view(
    summary: str,
    arguments: Mapping[str, Sequence[Argument]],
    plans: Sequence[KernelPlan],
    manifest: Mapping[str, Any],
) -> ReadmeView:
    factors = manifest["tolerance"]
    lower = is_half(manifest["precision"])
    half = lower or any(is_half(value.dtype) for plan in plans for value in plan.outputs)
    roundings = factors.get("factor_eps_half", 4) if half else factors.get("factor_eps", 128)
    good = (
        "The package was verified against PyTorch when it was built: max|y - y64| <= "
        f"{factors.get('factor_torch', 4)} max|y_torch - y64| + "
        f"{roundings} eps max|y64|, y64 being PyTorch in float64"
        f"{LOWER.format(manifest['precision']) if lower else ''}."
    )
    sections = [(target, manifest["built"][target]) for target in manifest["targets"]]
    functions = tuple(_function(plan, arguments[plan.function], manifest, len(plans) > 1) for plan in plans)
    return ReadmeView(
        summary=_cell(summary.strip().split("\n\n")[0]),
        targets=" and ".join(
            f"{backend(target).title} kernels ({', '.join(built['isas'])})" for target, built in sections
        ),
        devices=tuple(
            (f"`{target}`", backend(target).title, ", ".join(built["isas"]), _cell(backend(target).needs))
            for target, built in sections
        ),
        functions=functions,
        state=tuple((f"`{_cell(slot.key)}`", str(slot.value.type)) for slot in plans[0].state),
        # What every machine has comes last: behind it nothing is ever tried.
        order=", ".join(f'"{target}"' for target in sorted(manifest["targets"], key=lambda target: target == "cpu")),
        verified=_verified(good, {target: built["verified"] for target, built in sections}),
        keys=len(manifest["weights"]["keys"]),
        taps=sum(len(plan.taps) for plan in plans),
        random=manifest["rng"] is not None,
        needs=backend(plans[0].target).needs if len(sections) == 1 else "numpy",
        environment=" ".join(backend(target).environment for target, _ in sections),
    )


def _verified(good: str, verified: Mapping[str, bool]) -> str:
    bad = [target for target, is_verified in verified.items() if not is_verified]
    if len(bad) == len(verified):
        return "The package was not verified against PyTorch when it was built."
    return f"{good} Not verified: {', '.join(bad)}." if bad else good


def _function(
    plan: KernelPlan, arguments: Sequence[Argument], manifest: Mapping[str, Any], titled: bool
) -> FunctionReadme:
    entry = manifest if plan.function == manifest["function"] else manifest["functions"][plan.function]
    bounds = {item["name"]: item["bounds"] for item in entry["inputs"] if "bounds" in item}
    rows = []
    for argument in arguments:
        for leaf in leaves(argument.structure):
            item = plan.inputs[leaf]
            limits = " in {}..{}".format(*bounds[item.key]) if item.key in bounds else ""
            rows.append((f"`{argument.name}`", f"`{_cell(item.key)}`", f"{item.value.type}{limits}"))
    outputs = []
    for output, value in zip(output_names(plan), plan.outputs, strict=True):
        error = _worst(manifest, plan.function, output)
        measured = tuple(_number(error.get(key)) for key in ("max_abs_error", "tolerance", "max_abs_reference"))
        outputs.append((f"`{output}`", str(value.type), *measured))
    called = "model" if plan.function == "forward" else f"model.{plan.function}"
    return FunctionReadme(
        title=f" of {called}" if titled else "",
        sizes=tuple(_size_row(item, plan) for item in entry["symbols"]),
        example=_example(called, arguments, plan.inputs, {item["name"]: item["example"] for item in entry["symbols"]}),
        inputs=tuple(rows),
        outputs=tuple(outputs),
    )


def _worst(manifest: Mapping[str, Any], function: str, output: str) -> Mapping[str, Any]:
    """What was measured of an output on the target that is closest to its tolerance."""
    found = [
        item
        for built in manifest["built"].values()
        for item in built["error"]
        if (item["function"], item["output"]) == (function, output)
    ]
    return max(found, key=lambda item: item["max_abs_error"] / (item["tolerance"] or 1), default={})


def _size_row(item: Mapping[str, Any], plan: KernelPlan) -> tuple[str, ...]:
    """A symbol, its bounds, and where it is."""
    bounds = SymbolRange(item["low"], item["high"])
    text = f"{bounds.low} or more" if bounds.high is None else f"{bounds.low} to {bounds.high}"
    where = [
        f"dimension {axis} of `{_cell(given.key)}`" + ("" if str(dim) == item["name"] else f" is {_cell(str(dim))}")
        for given in plan.inputs
        for axis, dim in enumerate(given.value.shape)
        if item["name"] in free_symbols(dim)
    ]
    return f"`{_cell(item['name'])}`", text, ", ".join(where)


def _cell(text: str) -> str:
    """Plain text that cannot leave a table cell or start markup."""
    return comment(text, 400).replace("|", "/").replace("`", "'").replace("<", "&lt;")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _example(
    called: str, arguments: Sequence[Argument], inputs: Sequence[Input], sizes: Mapping[str, int]
) -> tuple[str, ...]:
    lines = [f"{argument.name} = {_zeros(argument.structure, inputs, sizes)}" for argument in arguments]
    passed = ", ".join(f"{a.name}={a.name}" if a.keyword_only else a.name for a in arguments)
    return (*lines, f"result = {called}({passed})")


def _zeros(structure: Structure, inputs: Sequence[Input], sizes: Mapping[str, int]) -> str:
    match structure:
        case Leaf(index):
            type = inputs[index].value.type
            dtype = "np.float32" if type.dtype == "bfloat16" else numpy_dtype(type.dtype)
            shape = shape_text(TensorType(type.dtype, tuple(evaluate(dim, sizes) for dim in type.shape)))
            return f"np.zeros({shape}, {dtype})"
        case Literal(value):
            return literal(value)
        case Sequence_(kind, items):
            inside = ", ".join(_zeros(item, inputs, sizes) for item in items)
            return f"[{inside}]" if kind == "list" else f"({inside}{',' * (len(items) == 1)})"
        case Mapping_(_, fields):
            return f"{{{', '.join(f'{key!r}: {_zeros(item, inputs, sizes)}' for key, item in fields)}}}"
