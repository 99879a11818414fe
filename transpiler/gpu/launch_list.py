"""launches.json of a package: what runtime/launch_list.py of packages reads."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from transpiler.dims import Dim, evaluate, free_symbols
from transpiler.gpu.launches import Compiled, Launch, TensorMap
from transpiler.naming import source_line
from transpiler.plan import Call, Kernel, KernelPlan, Storage, storage_of

FORMAT = 1
STATUS_BYTES = 4
# Operations and bytes of a launch, on the average of a call, that are not worth the waking of other threads to help:
# a processor takes 30 to 50 us for either.
SMALL = 1 << 16


def render_launches(plans: Sequence[KernelPlan], compiled: Compiled) -> bytes:
    """The calls of every function and the launches of every kernel; sizes are numbers, or texts over the symbols."""
    reports = {
        kernel.name
        for kernel in plans[0].kernels
        if kernel.checks_index or any(launch.counts for launch in compiled.launches[kernel.name])
    }
    content = {
        "format": FORMAT,
        "kinds": list(compiled.kinds),
        "small": all(_is_small(plan, compiled) for plan in plans),
        "symbols": sorted({name for plan in plans for name in plan.symbols}),
        "kernels": {
            kernel.name: _kernel(kernel, compiled.launches[kernel.name], kernel.name in reports)
            for kernel in plans[0].kernels
        },
        "functions": {plan.function: _function(plan, reports) for plan in plans},
    }
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def _is_small(plan: KernelPlan, compiled: Compiled) -> bool:
    """Whether launches do little work each, at the upper bounds of sizes that vary; False where one has none."""
    highest = {name: bounds.high for name, bounds in plan.symbols.items() if bounds.high is not None}
    kernels = [plan.kernel(call.kernel) for call in plan.calls()]
    work = [part for kernel in kernels for part in (kernel.flops, kernel.bytes)]
    if not all(highest.keys() >= free_symbols(part) for part in work):
        return False
    launches = sum(len(compiled.launches[kernel.name]) for kernel in kernels)
    return sum(evaluate(part, highest) for part in work) <= SMALL * launches


def _size(size: Dim) -> int | str:
    return size if isinstance(size, int) else str(size)


def _kernel(kernel: Kernel, launches: Sequence[Launch], reports: bool) -> dict[str, Any]:
    tensors = (*kernel.inputs, *kernel.outputs)
    sizes: list[Dim] = [type_.bytes for type_ in tensors]
    sizes += [kernel.workspace] if kernel.workspace != 0 else []
    sizes += [STATUS_BYTES] if reports else []
    return {
        "sizes": list(map(_size, sizes)),
        "item_bytes": [type_.item_bytes for type_ in tensors],
        "launches": list(map(_launch, launches)),
    }


def _launch(launch: Launch) -> dict[str, Any]:
    content: dict[str, Any] = {
        "file": launch.file,
        "entry": launch.entry,
        "buffers": list(launch.buffers),
        "written": list(launch.written),
        "scalars": [
            {
                "value": item.value if isinstance(item.value, float) else _size(item.value),
                "dtype": item.dtype,
                "offset": item.offset,
                "bits": item.bits,
            }
            for item in launch.scalars
        ],
        "scalar_bytes": launch.scalar_bytes,
        "workgroup": list(launch.workgroup),
        "grid": list(map(_size, launch.grid)),
        "folded": launch.folded,
        "shared_bytes": launch.shared_bytes,
        "features": list(launch.features),
    }
    if launch.fallback is not None:
        file, features = launch.fallback
        content["fallback"] = {"file": file, "features": list(features)}
    if launch.windows:
        content["windows"] = {"bytes": launch.window_bytes, "counts": list(launch.windows)}
    if launch.maps:
        content["maps"] = [_tensor_map(argument, item) for argument, item in launch.maps]
    if launch.cluster > 1:
        content["cluster"] = launch.cluster
    return content


def _tensor_map(argument: int, item: TensorMap) -> Mapping[str, Any]:
    content = {
        "argument": argument,
        "element": item.element,
        "offset": _size(item.offset),
        "sizes": list(map(_size, item.sizes)),
        "strides": list(map(_size, item.strides)),
        "box": list(item.box),
        "steps": list(item.steps),
    }
    return {**content, "lower": list(item.lower), "upper": list(item.upper)} if item.lower else content


def _function(plan: KernelPlan, reports: Collection[str]) -> dict[str, Any]:
    offsets = {slot.key: slot.offset for slot in plan.state}
    copies = []
    for index, value in enumerate(plan.outputs):
        storage = storage_of(plan, value)
        if storage.kind != "output" or storage.index != index:
            copies.append([index, _place(storage)])
    return {
        "inputs": [_size(item.value.type.bytes) for item in plan.inputs],
        "outputs": [_size(value.type.bytes) for value in plan.outputs],
        "arena": plan.arena_bytes,
        "blocks": [[_size(block.size), block.first, block.last] for block in plan.blocks],
        "calls": [_call(plan, call, call.kernel in reports) for call in plan.calls()],
        "copies": copies,
        "updates": [
            [offsets[key], _place(storage_of(plan, value)), value.type.bytes] for key, value in plan.updates.items()
        ],
    }


def _call(plan: KernelPlan, call: Call, reports: bool) -> Mapping[str, Any]:
    kernel = plan.kernel(call.kernel)
    places = [_place(storage_of(plan, value)) for value in (*call.inputs, *call.outputs)]
    if kernel.workspace != 0:
        places.append(["block" if plan.blocks else "arena", call.workspace_offset])
    return {
        "kernel": call.kernel,
        "places": places,
        "inputs": len(call.inputs),
        "outputs": len(call.outputs),
        "checks": reports,
        "in_place": kernel.in_place,
        "source": source_line(call.covers[-1]) if call.covers else "no source line",
    }


def _place(storage: Storage) -> list[str | int]:
    return [storage.kind, storage.index if storage.kind in ("input", "output", "block") else storage.offset]
