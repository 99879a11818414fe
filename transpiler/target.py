"""A target is facts: what TVM is told, which dtypes it takes, the order of its schedule rules, its ISAs."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from transpiler.errors import TranspileError, unknown
from transpiler.resources import tree


@dataclass(frozen=True)
class Isa:
    """One instruction set of the CPU target. `features` are /proc/cpuinfo flags that it needs."""

    name: str
    mcpu: str
    mattr: tuple[str, ...]
    features: tuple[str, ...]
    vector_bits: int
    vector_registers: int
    triple: str

    def lanes(self, bits: int = 32) -> int:
        """Elements of `bits` bits in one register."""
        return self.vector_bits // bits


@dataclass(frozen=True)
class Target:
    """A target with one ISA chosen: what a schedule rule is asked for."""

    name: str
    kind: str
    dtypes: tuple[str, ...]
    layout_block: int
    schedules: tuple[str, ...]
    epilogue: frozenset[str]
    prologue: frozenset[str]
    isa: Isa

    def tvm_target(self) -> dict[str, object]:
        """The dict that `tvm.target.Target` takes."""
        described: dict[str, object] = {"kind": self.kind, "mcpu": self.isa.mcpu, "mtriple": self.isa.triple}
        return described | ({"mattr": list(self.isa.mattr)} if self.isa.mattr else {})


def known_targets() -> list[str]:
    return sorted(path.stem for path in tree("targets").glob("*.toml"))


def load_target(name: str, isa: str | None = None) -> Target:
    """The target `name` for `isa`, or for the best one that this machine has.

    Raises:
        UsageError: unknown target or ISA; the message lists the known ones.
        TranspileError: this machine has none of the target's ISAs.
    """
    if name not in known_targets():
        raise unknown("target", name, known_targets(), code="unknown-target")
    facts = tomllib.loads((tree("targets") / f"{name}.toml").read_text())
    isas = [
        Isa(**{**item, "mattr": tuple(item["mattr"]), "features": tuple(item["features"])}) for item in facts["isa"]
    ]
    if isa is None:
        have = cpu_features()
        fitting = [item for item in isas if have.issuperset(item.features)]
        if not fitting:
            raise TranspileError(
                "no-isa", f"This CPU has none of the instruction sets of target {name!r}.",
                hints=[f"name one to build for another machine: --isa {isas[-1].name}"],
            )  # fmt: skip
        chosen = fitting[0]
    else:
        named = {item.name: item for item in isas}
        if isa not in named:
            raise unknown("ISA", isa, list(named), code="unknown-isa")
        chosen = named[isa]
    return Target(
        name=facts["name"], kind=facts["kind"], dtypes=tuple(facts["dtypes"]),
        layout_block=facts["layout_block"], schedules=tuple(facts["schedules"]),
        epilogue=frozenset(facts["epilogue"]), prologue=frozenset(facts["prologue"]), isa=chosen,
    )  # fmt: skip


def cpu_features() -> frozenset[str]:
    """This machine's CPU flags as Linux lists them."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()
