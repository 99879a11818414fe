"""From a kernel plan and its artifacts to the files of a package: Python decides, templates only lay out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transpiler.artifacts import Artifacts
from transpiler.backends import backend
from transpiler.formatting import format_python
from transpiler.forward import ForwardView, KernelMethodView, forward_view, kernel_methods, kernel_views
from transpiler.interface import Argument, CallView, Records, RecordView, call_arguments, interface
from transpiler.ir import Array, Program, Role
from transpiler.manifest import build_manifest, manifest_hash
from transpiler.naming import DEFAULT_VERSION, comment, docstring, package_name, package_version
from transpiler.output import write_package
from transpiler.plan import KernelPlan, output_names
from transpiler.prepared import PrepareView, prepare_view, run_prepare, runtime_module, weights_key
from transpiler.readme import ReadmeView, readme_view
from transpiler.sbom import FILE as BILL_OF_MATERIALS
from transpiler.sbom import NOTICES, bill_of_materials, notices
from transpiler.templates import PLACEHOLDER, TARGET, package_tree, render

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


@dataclass(frozen=True)
class KernelPlanView:
    """reprs of a function's name and of the kernels it calls, in order."""

    function: str
    kernels: tuple[str, ...]


@dataclass(frozen=True)
class FunctionView:
    """The methods of one function: the typed call, the plan kernel by kernel, the binding of arguments."""

    call_name: str
    call: CallView
    plan_name: str
    plan_doc: str
    forward: ForwardView
    bind_name: str


@dataclass(frozen=True)
class PackageView:
    """Everything the templates print. `manifest` lacks only "files"; `binaries` are files as they are."""

    name: str
    version: str
    title_doc: str
    module_doc: str
    class_doc: str
    exports: tuple[str, ...]
    all_names: tuple[str, ...]
    std_imports: tuple[str, ...]
    kernel_plans: tuple[KernelPlanView, ...]
    kernels: tuple[KernelMethodView, ...]
    records: tuple[RecordView, ...]
    functions: tuple[FunctionView, ...]
    keeps_state: bool
    prepare: PrepareView
    toml: TomlView
    readme: ReadmeView
    manifest: Mapping[str, Any]
    binaries: Mapping[str, bytes]
    target: str
    target_title: str


def make_view(
    *,
    name: str,
    program: Program,
    plans: Sequence[KernelPlan],
    binaries: Artifacts,
    prepared: Mapping[str, Array],
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
    """The package of a program's plans, one per function in its order.

    Args:
        name: import name.
        program: for constants, aliases, state_dict keys and how arguments and results nest.
        binaries: the compiled files.
        prepared: what `run_prepare` returned.
        verification: "verified" (bool), "error" (a record per output), "tolerance"; None for unverified.
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
    plan = next(plan for plan in plans if plan.function == program.main.name)
    arguments = {
        item.function: call_arguments(
            program.functions[item.function].in_structure, item.user_inputs, source.arguments.get(item.function, ())
        )
        for item in plans
    }
    found = Records(argument.name for items in arguments.values() for argument in items)
    note = "The state (`model.state`) moves on." if plan.state else ""
    calls = {
        item.function: interface(
            arguments[item.function], item.user_inputs, item.outputs, output_names(item),
            program.functions[item.function].out_structure, found, item.function, note,
            streams=backend(plan.target).streams,
        )
        for item in plans
    }  # fmt: skip
    records = tuple(found.views)
    what = f"{source.model_class or name}, transpiled from PyTorch"
    methods = kernel_methods(plan)
    manifest = build_manifest(
        name=name,
        version=version,
        program=program,
        plans=plans,
        isas=binaries.variants,
        requires=binaries.requires,
        arguments=arguments,
        verification=verification or {},
        tools=tool_versions or {},
        source={"file": source.file, "class": source.model_class, **source.facts},
        bounds=bounds or {},
        platform=binaries.platform(),
        summary=comment(what),
        options=options,
        weights_hash=weights_hash,
        third_party=binaries.third_party,
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
        kernel_plans=tuple(
            KernelPlanView(repr(item.function), tuple(repr(call.kernel) for call in item.calls())) for item in plans
        ),
        kernels=kernel_views(plans, methods),
        records=records,
        functions=tuple(
            _function_view(item, calls[item.function], methods, [record.name for record in records]) for item in plans
        ),
        keeps_state=bool(plan.state),
        prepare=prepare_view(plan),
        toml=TomlView(
            _toml(name.replace("_", "-")),
            _toml(version),
            _toml(comment(what)),
            _toml(name),
            ", ".join(map(_toml, binaries.requires)),
        ),
        readme=readme_view(name, source.docstring or what, arguments, plans, manifest),
        manifest=manifest,
        binaries=_binaries(name, program, plan, binaries, prepared, sample, graph_json),
        target=plan.target,
        target_title=backend(plan.target).title,
    )


def _function_view(
    plan: KernelPlan, call: CallView, methods: Mapping[str, str], reserved: Sequence[str]
) -> FunctionView:
    name, is_forward = plan.function, plan.function == "forward"
    doc = "The plan, kernel by kernel: flat inputs to flat outputs."
    return FunctionView(
        call_name="__call__" if is_forward else name,
        call=call,
        plan_name="forward" if is_forward else f"plan_{name}",
        plan_doc=doc if is_forward else f"The plan of `{name}`, kernel by kernel: flat inputs to flat outputs.",
        forward=forward_view(plan, methods, reserved),
        bind_name="_bind" if is_forward else f"_bind_{name}",
    )


def emit_package(view: PackageView, extra: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """The files of a package: relative path -> content, sorted. `extra` are further files, such as the tests.

    Python files are formatted. manifest.json holds the hashes of all others: "files" those of the package's
    own folder, relative to it; "project_files" the rest; "sha256" its own.
    """
    files: dict[str, bytes] = {**view.binaries, **(extra or {})}
    for path, content in package_tree((view.target,)):
        target = path.removesuffix(".jinja").replace(f"/{PLACEHOLDER}/", f"/{view.name}/")
        target = target.replace(f"/{TARGET}/", f"/{view.target}/")
        files[target] = render(path, view).encode("utf-8") if content is None else content
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
    program: Program,
    plan: KernelPlan,
    compiled: Artifacts,
    prepared: Mapping[str, Array],
    sample: Mapping[str, Array] | None,
    graph_json: str,
) -> dict[str, bytes]:
    encode = runtime_module("safetensors").encode
    folder = f"src/{name}"
    files = {f"{folder}/{path}": content for path, content in compiled.files(name).items()}
    files[f"{folder}/graph.json"] = graph_json.encode("utf-8")
    files[f"{folder}/weights.{plan.target}.safetensors"] = encode(
        {value.name: prepared[value.name] for value in plan.weights},
        dtypes={value.name: value.dtype for value in plan.weights},
        offsets={value.name: _offset(plan, value.name) for value in plan.weights},
        total=plan.weight_bytes,
        metadata={"transpile.prepared": weights_key(name, plan)},
    )
    needed = [item for item in plan.prepare.inputs if item.role is Role.CONSTANT]
    if needed:
        constants = {item.key: program.constants[item.key] for item in needed}
        dtypes = {item.key: item.value.dtype for item in needed}
        files[f"{folder}/constants.safetensors"] = encode(constants, dtypes=dtypes)
    if sample and sum(array.nbytes for array in sample.values()) <= MAX_SAMPLE_BYTES - 4096:
        types = {f"input.{i}": item.value.type for i, item in enumerate(plan.inputs)}
        types |= {f"output.{i}": value.type for i, value in enumerate(plan.outputs)}
        raw = {key: types[key].dtype for key, array in sample.items() if array.itemsize == types[key].item_bytes}
        files[f"{folder}/sample.safetensors"] = encode(sample, dtypes=raw)
    return files


def _offset(plan: KernelPlan, name: str) -> int:
    return plan.storage[name].offset


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
