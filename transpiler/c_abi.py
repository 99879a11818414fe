"""What a C program needs of a package: the header, the library that picks the kernels, the pkg-config file.

Whatever a user or a file controls is printed inside of comments only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transpiler.c_compiler import Compiler
from transpiler.c_plan import symbol_views
from transpiler.ir import Role
from transpiler.link import link_dispatcher
from transpiler.naming import c_comment, checked_symbol
from transpiler.plan import KernelPlan, output_names
from transpiler.target import Isa
from transpiler.templates import render_c

ABI_VERSION = 6


@dataclass(frozen=True)
class FunctionView:
    """A function of the model: its constant, and what it takes and gives, a line each."""

    macro: str
    comment: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class IsaView:
    name: str
    features: str


@dataclass(frozen=True)
class CView:
    """What the templates print; `indent` is as long as a declaration's name."""

    name: str
    macro: str
    title: str
    version: str
    weights: str
    beside: str
    abi_version: int
    isa_names: str
    isas: tuple[IsaView, ...]
    functions: tuple[FunctionView, ...]
    state_bytes: int
    indent: str


def c_files(
    name: str, plans: Sequence[KernelPlan], isas: Sequence[Isa], version: str, compiler: Compiler
) -> dict[str, bytes]:
    """Path in the package -> content: include/<name>.h, lib/lib<name>.so, lib/pkgconfig/<name>.pc.

    `isas` are those that the package carries, best first.

    Raises:
        TranspileError: "link-failed".
    """
    view = _view(checked_symbol(name), plans, isas, version)
    # It sees the declarations, and nothing of the model: one is like another.
    declarations = render_c("package.h.jinja", replace(view, functions=(FunctionView("NONE", "", ()),), state_bytes=0))
    dispatcher = link_dispatcher(name, declarations, render_c("carried.h.jinja", view), compiler)
    return {
        f"include/{name}.h": render_c("package.h.jinja", view).encode(),
        f"lib/lib{name}.so": dispatcher,
        f"lib/pkgconfig/{name}.pc": render_c("package.pc.jinja", view).encode(),
    }


def _view(name: str, plans: Sequence[KernelPlan], isas: Sequence[Isa], version: str) -> CView:
    macro = name.upper()
    return CView(
        name=name,
        macro=macro,
        title=f"{name}, transpiled from PyTorch",
        version=version,
        weights=plans[0].weights_file,
        beside=f"{name.lower()}-{version}.{plans[0].weights_file}",
        abi_version=ABI_VERSION,
        isa_names=", ".join(isa.name for isa in isas),
        isas=tuple(IsaView(checked_symbol(isa.name), " ".join(isa.features)) for isa in isas),
        functions=tuple(_function(macro, plan, plans) for plan in plans),
        state_bytes=plans[0].state_bytes,
        indent=" " * len(name),
    )


def _function(macro: str, plan: KernelPlan, plans: Sequence[KernelPlan]) -> FunctionView:
    lines = []
    for index, item in enumerate(plan.inputs):
        what = "" if item.role is Role.USER else ": the seed and the number of the call"
        lines.append(f"input {index}: {item.key}, {item.value.type}{what}")
    for index, (label, value) in enumerate(zip(output_names(plan), plan.outputs, strict=True)):
        lines.append(f"output {index}: {label}, {value.type}")
    for name, view in symbol_views(plans).items():
        if name in plan.symbols:
            bounds = plan.symbols[name]
            high = "" if bounds.high is None else bounds.high
            lines.append(f"symbol {view.index}: {name}, {bounds.low}..{high}")
    function = checked_symbol(plan.function)
    upper = function.upper()
    unique = [item.function.upper() for item in plans].count(upper) == 1
    return FunctionView(
        f"{macro}_FUNCTION_{upper if unique else function}", function, tuple(c_comment(line) for line in lines)
    )
