"""manifest.json: what a package says about itself. The emitted runtime is driven by it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from transpiler.c_plan import symbol_views
from transpiler.dims import Dim, symbol_places
from transpiler.interface import Argument
from transpiler.ir import Program, Role, TensorType
from transpiler.parts import Part
from transpiler.plan import Call, KernelPlan, Tap, View, output_names, storage_of
from transpiler.prepared import prepared_keys, weights_key, weights_mark
from transpiler.structure import to_json

FORMAT = 6
RANDOM = {
    "generator": "philox4x32-10",
    "compared": "values: PyTorch on these random numbers; distribution: moments of PyTorch's own",
}
TOLERANCE = {"factor_torch": 4, "factor_eps": 128, "factor_eps_half": 4}


def build_manifest(
    *,
    name: str,
    version: str,
    program: Program,
    parts: Sequence[Part],
    arguments: Mapping[str, Sequence[Argument]],
    verification: Mapping[str, Any],
    tools: Mapping[str, str],
    source: Mapping[str, Any],
    bounds: Mapping[str, Mapping[str, tuple[int, int]]],
    summary: str = "",
    options: Mapping[str, Any] | None = None,
    weights_hash: str = "",
    examples: Mapping[str, Sequence[tuple[int, ...]]] | None = None,
    exact: bool = False,
    precision: str = "float32",
) -> dict[str, Any]:
    """The manifest without its hashes.

    What is the same for all targets stands at the top, the rest under "built", by target; the first of "targets" is the
    one that a model runs on by default. The main function's signature stands at the top, those of others under
    "functions". Sizes that vary are texts over the names in "symbols", which says where each is read off: dimension
    `dim` of input `input` is `scale * value + offset`; `index` is its number in the native library. `examples` are the
    shapes of each function's example inputs. `exact` says that convolutions and products are direct sums, none by
    Winograd's or Strassen's algorithm; `precision` what weights and operands of products may be rounded to. "platform"
    says what the libraries need (`transpiler.elf`), "extras" what some targets need from PyPI and others do not;
    "bundle" of the weights says where a wheel has them, "sha256" which state_dict they were made from
    (`transpiler.provenance.state_hash`).
    """
    plans = parts[0].plans
    main = program.main.name
    numbers = {symbol: view.index for symbol, view in symbol_views(plans).items()}
    functions = {
        plan.function: _function(
            program,
            plan,
            arguments[plan.function],
            bounds.get(plan.function, {}),
            (examples or {}).get(plan.function, ()),
            numbers,
        )
        for plan in plans
    }
    platforms = [part.artifacts.platform() for part in parts]
    platform = next((item for item in platforms if item["tag"] != "any"), platforms[0])
    common = [item for item in parts[0].artifacts.requires if all(item in part.artifacts.requires for part in parts)]
    own = {part.target: [item for item in part.artifacts.requires if item not in common] for part in parts}
    weights = _weights(program, plans[0])
    return {
        "format": FORMAT,
        "name": name,
        "version": version,
        "targets": [part.target for part in parts],
        "built": {part.target: _built(name, program, part, weights, several=len(parts) > 1) for part in parts},
        "machine": platform["machine"],
        "platform": dict(platform),
        "requires": common,
        "extras": {target: needed for target, needed in own.items() if needed},
        "third_party": sorted({item for part in parts for item in part.artifacts.third_party}),
        "summary": summary,
        "options": dict(options or {}),
        "function": main,
        **functions.pop(main),
        "functions": functions,
        "exact": exact,
        "precision": precision,
        "rng": RANDOM if any(_draws(plan) for plan in plans) else None,
        "weights": {
            **weights,
            "file": plans[0].weights_file,
            "bundle": "embed",
            "beside": {},
            "sha256": weights_hash,
        },
        "tolerance": dict(verification.get("tolerance", TOLERANCE)),
        "sample_tolerance": dict(verification.get("sample_tolerance", {})),
        "tools": dict(tools),
        "source": dict(source),
    }


def constants_file(target: str, *, several: bool) -> str:
    """The file of what `prepare` for a target reads besides the state_dict."""
    return f"constants.{target}.safetensors" if several else "constants.safetensors"


def _built(name: str, program: Program, part: Part, weights: Mapping[str, Any], *, several: bool) -> dict[str, Any]:
    """What is true for one target: `runtime/manifest.py` of packages puts it over the rest. `weights` is the rest's."""
    plans, main = part.plans, program.main.name
    plan = plans[0]
    keys = prepared_keys(plan)
    constant = any(item.role is Role.CONSTANT for item in plan.prepare.inputs)
    return {
        "isas": list(part.artifacts.variants),
        "requires": list(part.artifacts.requires),
        "state": _state(plan),
        "weights": {
            **{key: value for key, value in _weights(program, plan).items() if value != weights[key]},
            "prepared": {
                value.name: {
                    **_type(value.type),
                    "offset": plan.storage[value.name].offset,
                    "keys": keys[value.name],
                    **({"stored": plan.stored[value.name]} if value.name in plan.stored else {}),
                }
                for value in plan.weights
            },
            "bytes": plan.weight_bytes,
            "key": weights_key(name, plan),
            "mark": weights_mark(part.target),
            "constants": constants_file(part.target, several=several) if constant else None,
        },
        "kernels": _kernels(plans),
        "taps": {plan.function: _taps(plan) for plan in plans},
        "fused": {plan.function: dict(plan.fused) for plan in plans},
        "verified": part.verified,
        "error": [{"function": main, **entry} for entry in part.errors],
    }


def manifest_hash(manifest: Mapping[str, Any]) -> str:
    """Of what manifest.json says but its own hash, as runtime/manifest.py of packages computes it."""
    said = {key: value for key, value in json.loads(json.dumps(manifest)).items() if key != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _function(
    program: Program,
    plan: KernelPlan,
    arguments: Sequence[Argument],
    bounds: Mapping[str, tuple[int, int]],
    examples: Sequence[tuple[int, ...]],
    numbers: Mapping[str, int],
) -> dict[str, Any]:
    graph = program.functions[plan.function]
    inputs = []
    for item in plan.user_inputs:
        entry: dict[str, Any] = {"name": item.key, **_type(item.value.type)}
        if item.key in bounds:
            entry["bounds"] = list(bounds[item.key])
        inputs.append(entry)
    outputs = []
    for output_name, value in zip(output_names(plan), plan.outputs, strict=True):
        entry = {"name": output_name, **_type(value.type)}
        if value.path:
            entry["path"] = value.path
        outputs.append(entry)
    return {
        "symbols": _symbols(plan, examples, numbers),
        "inputs": inputs,
        "outputs": outputs,
        "arguments": {argument.name: to_json(argument.structure) for argument in arguments},
        "in_structure": to_json(graph.in_structure) if graph.in_structure else None,
        "out_structure": to_json(graph.out_structure) if graph.out_structure else None,
        "random": _draws(plan),
    }


def _draws(plan: KernelPlan) -> bool:
    return len(plan.inputs) > len(plan.user_inputs)


def _state(plan: KernelPlan) -> dict[str, Any]:
    """Where each buffer lies in the memory of the state, and the prepared tensor that it starts as (null: zeros)."""
    return {
        "buffers": [
            {
                "name": slot.key,
                "cell": slot.value.name,
                **_type(slot.value.type),
                "offset": slot.offset,
                "initial": slot.initial or None,
            }
            for slot in plan.state
        ],
        "bytes": plan.state_bytes,
    }


def _type(type: TensorType) -> dict[str, Any]:
    return {"dtype": type.dtype, "shape": [_size(dim) for dim in type.shape]}


def _size(size: Dim) -> int | str:
    return size if isinstance(size, int) else str(size)


def _symbols(plan: KernelPlan, examples: Sequence[tuple[int, ...]], numbers: Mapping[str, int]) -> list[dict[str, Any]]:
    shapes = [item.value.shape for item in plan.inputs]
    places = symbol_places(shapes)
    entries = []
    for name, bounds in plan.symbols.items():
        place = places[name]
        entry = {"name": name, "index": numbers[name], "low": bounds.low, "high": bounds.high, **asdict(place)}
        example = examples[place.input][place.dim] if examples else place.scale * bounds.low + place.offset
        entries.append({**entry, "example": (example - place.offset) // place.scale})
    return entries


def _weights(program: Program, plan: KernelPlan) -> dict[str, Any]:
    """Which tensors of a state_dict are needed."""
    needed = {
        item.key: _type(item.value.type) for item in plan.prepare.inputs if item.role in (Role.PARAMETER, Role.BUFFER)
    }
    known = {
        item.key
        for graph in program.functions.values()
        for item in graph.inputs
        if item.role in (Role.PARAMETER, Role.BUFFER)
    }
    return {"keys": needed, "unused": sorted(known - set(needed)), "aliases": dict(program.aliases)}


def _kernels(plans: Sequence[KernelPlan]) -> dict[str, Any]:
    counts: dict[str, int] = {}
    weights: dict[str, Dim] = {}
    for plan in plans:
        for call in plan.calls():
            counts[call.kernel] = counts.get(call.kernel, 0) + 1
            read = [value.type for value in call.inputs if storage_of(plan, value).kind == "weight"]
            weights.setdefault(call.kernel, sum(type_.bytes for type_ in read))
    return {
        kernel.name: {
            "summary": kernel.summary,
            "flops": _size(kernel.flops),
            "bytes": _size(kernel.bytes),
            "weight_bytes": _size(weights.get(kernel.name, 0)),
            **({"reread_bytes": _size(kernel.reread_bytes)} if kernel.reread_bytes != 0 else {}),
            "calls": counts.get(kernel.name, 0),
        }
        for kernel in plans[0].kernels
    }


def _taps(plan: KernelPlan) -> dict[str, Any]:
    """Where the runtime finds a tap: output `output` of call `index`, input `index`, or a weight."""
    where: dict[str, tuple[str, int, int]] = {
        item.value.name: ("input", index, 0) for index, item in enumerate(plan.inputs)
    }
    where |= {value.name: ("weight", 0, 0) for value in plan.weights}
    where |= {slot.value.name: ("state", 0, 0) for slot in plan.state}
    views = {step.output.name: step.input.name for step in plan.steps if isinstance(step, View)}
    calls = (step for step in plan.steps if isinstance(step, Call))
    for index, call in enumerate(calls):
        where |= {value.name: ("call", index, position) for position, value in enumerate(call.outputs)}

    def entry(tap: Tap) -> dict[str, Any]:
        value = tap.value
        while value not in where:
            value = views[value]
        kind, index, output = where[value]
        return {
            "kind": kind,
            "value": value,
            "index": index,
            "output": output,
            **_type(tap.type),
            "blocked_channels": tap.layout.blocked_channels,
            "channels_last": tap.layout.channels_last,
        }

    return {path: entry(tap) for path, tap in plan.taps.items()}
