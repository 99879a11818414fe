"""From a kernel plan and its artifacts to the files of a package: Python decides, templates only lay out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transpiler.backends import backend
from transpiler.formatting import format_python
from transpiler.forward import ForwardView, KernelMethodView, forward_view, kernel_methods, kernel_views
from transpiler.interface import Argument, CallView, Records, RecordView, call_arguments, interface
from transpiler.ir import Array, Program, Role
from transpiler.manifest import build_manifest, constants_file, manifest_hash
from transpiler.naming import DEFAULT_VERSION, comment, docstring, package_name, package_version
from transpiler.output import write_package
from transpiler.parts import Part
from transpiler.plan import KernelPlan, output_names
from transpiler.prepared import PrepareView, prepare_view, run_prepare, runtime_module, weights_key, weights_mark
from transpiler.readme import ReadmeView, readme_view
from transpiler.sbom import FILE as BILL_OF_MATERIALS
from transpiler.sbom import NOTICES, bill_of_materials, notices
from transpiler.templates import emitted_paths, package_tree, render

__all__ = ["PackageView", "SourceFacts", "emit_package", "make_view", "run_prepare", "write_package"]

MAX_SAMPLE_BYTES = 65536


@dataclass(frozen=True)
class SourceFacts:
    """What the user's source contributes to the texts of a package.

    `file` is a name without folders, `arguments` are each function's positional parameters without `self`,
    `facts` goes to the manifest as it is (hashes, what was called).
    """

    file: str = ""
    model_class: str = ""
    docstring: str = ""
    arguments: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TomlView:
    """TOML basic strings, quotes included."""

    name: str
    version: str
    description: str
    package: str
    requires: str
    extras: tuple[str, ...]


@dataclass(frozen=True)
class KernelPlanView:
    """reprs of a function's name and of the kernels it calls, in order."""

    function: str
    kernels: tuple[str, ...]


@dataclass(frozen=True)
class PlanView:
    """The method that runs a function kernel by kernel."""

    name: str
    doc: str
    forward: ForwardView


@dataclass(frozen=True)
class TargetView:
    """What is a target's own: `plans` are a method per function, in their order."""

    name: str
    title: str
    doc: str
    kernel_plans: tuple[KernelPlanView, ...]
    kernels: tuple[KernelMethodView, ...]
    plans: tuple[PlanView, ...]
    prepare: PrepareView


@dataclass(frozen=True)
class FunctionView:
    """The methods of one function: the typed call, the binding of arguments, and its plan if there is one target."""

    call_name: str
    call: CallView
    bind_name: str
    plan: PlanView | None


@dataclass(frozen=True)
class PackageView:
    """Everything the templates print. `manifest` lacks only "files"; `binaries` are files as they are.

    `alone` is the only target, if there is one: its plan stands in model.py.
    """

    name: str
    version: str
    title_doc: str
    module_doc: str
    class_doc: str
    exports: tuple[str, ...]
    all_names: tuple[str, ...]
    std_imports: tuple[str, ...]
    records: tuple[RecordView, ...]
    functions: tuple[FunctionView, ...]
    keeps_state: bool
    toml: TomlView
    readme: ReadmeView
    manifest: Mapping[str, Any]
    binaries: Mapping[str, bytes]
    targets: tuple[TargetView, ...]
    alone: TargetView | None


def make_view(
    *,
    name: str,
    program: Program,
    parts: Sequence[Part],
    source: SourceFacts | None = None,
    verification: Mapping[str, Any] | None = None,
    sample: Mapping[str, Array] | None = None,
    tool_versions: Mapping[str, str] | None = None,
    graph_json: str = "{}\n",
    bounds: Mapping[str, Mapping[str, tuple[int, int]]] | None = None,
    examples: Mapping[str, Sequence[tuple[int, ...]]] | None = None,
    exact: bool = False,
    precision: str = "float32",
    options: Mapping[str, Any] | None = None,
    weights_hash: str = "",
    version: str = DEFAULT_VERSION,
) -> PackageView:
    """The package of a program that was compiled for one target or several.

    Args:
        name: import name.
        program: for aliases, state_dict keys and how arguments and results nest.
        parts: what there is for each target, the default one first.
        verification: "tolerance" and "sample_tolerance", if they are known.
        sample: "input.<i>" and "output.<i>" of the main function by flat position; left out beyond 64 KB.
        graph_json: the imported program (`transpiler.serialize`).
        bounds: inclusive bounds of integer inputs, by function and flat name.
        examples: shapes of each function's example inputs.
        options: those that decided what the package is (`transpiler.provenance`).
        weights_hash: of the state_dict.
        version: of the package.
        exact: whether faster algorithms with other rounding were left out.
        precision: what weights and operands of products may be rounded to.

    Raises:
        UsageError: "bad-name"; "bad-version".
    """
    name, version = package_name(name), package_version(version)
    source = source or SourceFacts()
    plans, several = parts[0].plans, len(parts) > 1
    plan = next(plan for plan in plans if plan.function == program.main.name)
    arguments = {
        item.function: call_arguments(
            program.functions[item.function].in_structure, item.user_inputs, source.arguments.get(item.function, ())
        )
        for item in plans
    }
    calls, records = _calls(program, parts, arguments, bool(plan.state))
    what = f"{source.model_class or name}, transpiled from PyTorch"
    targets = tuple(_target_view(part, what, source, [record.name for record in records]) for part in parts)
    manifest = build_manifest(
        name=name,
        version=version,
        program=program,
        parts=parts,
        arguments=arguments,
        verification=verification or {},
        tools=tool_versions or {},
        source={"file": source.file, "class": source.model_class, **source.facts},
        bounds=bounds or {},
        summary=comment(what),
        options=options,
        weights_hash=weights_hash,
        examples=examples or {},
        exact=exact,
        precision=precision,
    )
    exports = tuple(sorted(["Model", *(record.name for record in records)]))
    everything = sorted([*exports, "PackageError", "TapError", "WeightsError", "__version__"], key=_sort_key)
    return PackageView(
        name=name,
        version=repr(version),
        title_doc=docstring(f"{what}: `Model()` runs it with numpy arrays."),
        module_doc=_module_doc(what, source, calls, arguments),
        class_doc=docstring(f"{what}; see `runtime.package.Package` for what every model can do."),
        exports=tuple(sorted(exports, key=_sort_key)),
        all_names=tuple(map(repr, everything)),
        std_imports=tuple(
            ["from dataclasses import dataclass"] * any(not record.named_tuple for record in records)
            + ["from pathlib import Path"]
            + ["from typing import Any" + ", NamedTuple" * any(record.named_tuple for record in records)]
        ),
        records=records,
        functions=tuple(
            FunctionView(
                "__call__" if item.function == "forward" else item.function,
                calls[item.function],
                "_bind" if item.function == "forward" else f"_bind_{item.function}",
                None if several else targets[0].plans[index],
            )
            for index, item in enumerate(plans)
        ),
        keeps_state=bool(plan.state),
        toml=_toml_view(manifest, what),
        readme=readme_view(source.docstring or what, arguments, plans, manifest),
        manifest=manifest,
        binaries=_binaries(name, parts, plan, sample, graph_json),
        targets=targets,
        alone=None if several else targets[0],
    )


def _calls(
    program: Program, parts: Sequence[Part], arguments: Mapping[str, Sequence[Argument]], state: bool
) -> tuple[dict[str, CallView], tuple[RecordView, ...]]:
    """How every function is called, and the classes of results that this takes."""
    modules = [f"model_{part.target}" for part in parts]
    found = Records([*modules, *(argument.name for items in arguments.values() for argument in items)])
    calls = {
        item.function: interface(
            arguments[item.function], item.user_inputs, item.outputs, output_names(item),
            program.functions[item.function].out_structure, found, item.function,
            "The state (`model.state`) moves on." if state else "",
            streams=any(backend(part.target).streams for part in parts),
        )
        for item in parts[0].plans
    }  # fmt: skip
    return calls, tuple(found.views)


def _toml_view(manifest: Mapping[str, Any], what: str) -> TomlView:
    return TomlView(
        _toml(manifest["name"].replace("_", "-")),
        _toml(manifest["version"]),
        _toml(comment(what)),
        _toml(manifest["name"]),
        ", ".join(map(_toml, manifest["requires"])),
        tuple(f"{extra} = [{', '.join(map(_toml, needed))}]" for extra, needed in sorted(manifest["extras"].items())),
    )


def _target_view(part: Part, what: str, source: SourceFacts, reserved: Sequence[str]) -> TargetView:
    methods = kernel_methods(part.plans[0])
    title = backend(part.target).title
    lines = [f"{what}: its plan for the target {title}."]
    if source.file:
        lines.append(f"Generated from {source.file}. Comments show the lines that the kernels below them compute.")
    return TargetView(
        name=part.target,
        title=title,
        doc="\n\n".join(map(docstring, lines)) + ("\n" if len(lines) > 1 else ""),
        kernel_plans=tuple(
            KernelPlanView(repr(item.function), tuple(repr(call.kernel) for call in item.calls()))
            for item in part.plans
        ),
        kernels=kernel_views(part.plans, methods),
        plans=tuple(_plan_view(item, methods, reserved) for item in part.plans),
        prepare=prepare_view(part.plans[0]),
    )


def _plan_view(plan: KernelPlan, methods: Mapping[str, str], reserved: Sequence[str]) -> PlanView:
    name, is_forward = plan.function, plan.function == "forward"
    doc = "The plan, kernel by kernel: flat inputs to flat outputs."
    return PlanView(
        "forward" if is_forward else f"plan_{name}",
        doc if is_forward else f"The plan of `{name}`, kernel by kernel: flat inputs to flat outputs.",
        forward_view(plan, methods, reserved),
    )


def emit_package(view: PackageView, extra: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """The files of a package: relative path -> content, sorted. `extra` are further files, such as the tests.

    Python files are formatted. manifest.json holds the hashes of all others: "files" those of the package's
    own folder, relative to it; "project_files" the rest; "sha256" its own.
    """
    files: dict[str, bytes] = {**view.binaries, **(extra or {})}
    targets = {target.name: target for target in view.targets}
    for template, content in package_tree(tuple(targets)):
        for path, owner in emitted_paths(template, view.name, tuple(targets)).items():
            own = None if owner is None else targets[owner]
            files[path] = render(template, view, own).encode("utf-8") if content is None else content
    files = format_python(files)
    inside = f"src/{view.name}/"
    if view.manifest["third_party"]:
        files[f"{inside}{NOTICES}"] = notices(view.manifest["third_party"])
    shipped = {path.removeprefix(inside): content for path, content in files.items() if path.startswith(inside)}
    digests = {path: hashlib.sha256(content).hexdigest() for path, content in shipped.items()}
    files[BILL_OF_MATERIALS] = bill_of_materials(view.manifest, digests)
    hashes = {path: hashlib.sha256(content).hexdigest() for path, content in sorted(files.items())}
    manifest = {
        **view.manifest,
        "files": {path.removeprefix(inside): digest for path, digest in hashes.items() if path.startswith(inside)},
        "project_files": {path: digest for path, digest in hashes.items() if not path.startswith(inside)},
    }
    manifest["sha256"] = manifest_hash(manifest)
    files[f"{inside}manifest.json"] = (json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    return dict(sorted(files.items()))


def _binaries(
    name: str,
    parts: Sequence[Part],
    plan: KernelPlan,
    sample: Mapping[str, Array] | None,
    graph_json: str,
) -> dict[str, bytes]:
    encode = runtime_module("safetensors").encode
    folder = f"src/{name}"
    files = {f"{folder}/{path}": content for part in parts for path, content in part.artifacts.files(name).items()}
    files[f"{folder}/graph.json"] = graph_json.encode("utf-8")
    files[f"{folder}/{plan.weights_file}"] = _weights(name, parts)
    for part in parts:
        needed = [item for item in part.plans[0].prepare.inputs if item.role is Role.CONSTANT]
        if needed:
            constants = {item.key: part.constants[item.key] for item in needed}
            dtypes = {item.key: item.value.dtype for item in needed}
            path = constants_file(part.target, several=len(parts) > 1)
            files[f"{folder}/{path}"] = encode(constants, dtypes=dtypes)
    if sample and sum(array.nbytes for array in sample.values()) <= MAX_SAMPLE_BYTES - 4096:
        types = {f"input.{i}": item.value.type for i, item in enumerate(plan.inputs)}
        types |= {f"output.{i}": value.type for i, value in enumerate(plan.outputs)}
        raw = {key: types[key].dtype for key, array in sample.items() if array.itemsize == types[key].item_bytes}
        files[f"{folder}/sample.safetensors"] = encode(sample, dtypes=raw)
    return files


def _weights(name: str, parts: Sequence[Part]) -> bytes:
    """The file of the weights in the layouts of all targets; what several read is in it once."""
    tensors: dict[str, Array] = {}
    dtypes: dict[str, str] = {}
    offsets: dict[str, int] = {}
    for part in parts:
        plan = part.plans[0]
        for value in plan.weights:
            stored = plan.stored.get(value.name, value.name)
            array = part.prepared[value.name]
            if stored in tensors and (
                offsets[stored] != plan.storage[value.name].offset or tensors[stored].tobytes() != array.tobytes()
            ):
                raise AssertionError(f"the weights {value.name} for {part.target} are not those of another target")
            tensors[stored], dtypes[stored] = array, value.dtype
            offsets[stored] = plan.storage[value.name].offset
    encoded: bytes = runtime_module("safetensors").encode(
        tensors,
        dtypes=dtypes,
        offsets=offsets,
        total=max(part.plans[0].weight_bytes for part in parts),
        metadata={weights_mark(part.target): weights_key(name, part.plans[0]) for part in parts},
    )
    return encoded


def _module_doc(
    what: str, source: SourceFacts, calls: Mapping[str, CallView], arguments: Mapping[str, Sequence[Argument]]
) -> str:
    signatures = [
        f"model{'' if name == 'forward' else f'.{name}'}({', '.join(argument.name for argument in arguments[name])})"
        f" -> {call.returns}"
        for name, call in calls.items()
    ]
    parts = [f"{what}: {signatures[0]}", *signatures[1:]]
    if source.file:
        parts.append(f"Generated from {source.file}. Comments show the lines that the kernels below them compute.")
    if source.docstring:
        parts.append(source.docstring)
    return "\n\n".join(docstring(part) for part in parts) + ("\n" if len(parts) > 1 else "")


def _sort_key(name: str) -> tuple[int, str]:
    """isort's order of names: CONSTANTS, Classes, then the rest."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2, name)


def _toml(text: str) -> str:
    """A TOML basic string: JSON's escapes are a subset of its own."""
    return json.dumps(text, ensure_ascii=True).replace("\x7f", "\\u007f")
