"""A target is facts: what TVM is told, which dtypes it takes, the order of its schedule rules, and its variants: the
instruction sets of a CPU, or what is taken for granted of a GPU."""

from __future__ import annotations

import os
import platform
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transpiler.errors import TranspileError, UsageError, unknown
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

    @property
    def machine(self) -> str:
        """The processor family, as `platform.machine()` names it."""
        return self.triple.partition("-")[0]

    def lanes(self, bits: int = 32) -> int:
        """Elements of `bits` bits in one register."""
        return self.vector_bits // bits


@dataclass(frozen=True)
class Gpu:
    """What kernels may take for granted of a device: `threads` of a workgroup (`workgroup`: on each axis),
    `shared_bytes` of memory that they share, `subgroup`: threads that run together at least. `features` are those that
    schedules choose by ("subgroups": threads that run together, however many, have instructions for sums and largest
    numbers); what kernels need is asked of the device at load.
    `staged`: products copy blocks of their operands to shared memory, and threads share rows of scans and sorts in it,
    which pays where barriers are cheap. `buffers` are those that a launch takes at most, each once, in however many
    pieces it is bound; 0: there is no such limit. `arch` is what code is made for ("sm_80"), "" where a device's own
    driver does that.
    `binding_bytes`: what every device sees through one binding, a multiple of `Target.alignment`; larger buffers are
    bound in pieces where the device sees no more. 0: there is no such limit. `kinds` of devices that this variant is
    for, as the runtime calls them; empty: all.
    """

    name: str
    threads: int
    workgroup: tuple[int, int, int]
    shared_bytes: int
    subgroup: int
    features: tuple[str, ...]
    staged: bool = False
    arch: str = ""
    binding_bytes: int = 0
    buffers: int = 0
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """A target with one variant chosen: what a schedule rule is asked for.

    `alignment` is that of buffers in the arena, in bytes. `pairs` are ops that become one kernel where the map between
    them has `pair_bytes` and more, `overlapped` ones where the second runs over `overlapped_steps` and more. `widened`
    ops read half floats and compute on them in float32, `narrowed` ones store results as half floats besides those with
    an epilogue. `strided` ops read their first operands through views that lie evenly in memory, in rows that begin at
    multiples of `strided_bytes`, and write their result through a transpose. With `half_activations`, values between
    kernels may be half floats. `tf32`: products have units that round their operands to TF32; `half_operands`: and
    units that take nothing but half floats.
    """

    name: str
    kind: str
    dtypes: tuple[str, ...]
    schedules: tuple[str, ...]
    epilogue: frozenset[str]
    prologue: frozenset[str]
    pairs: frozenset[tuple[str, str]]
    pair_bytes: int
    overlapped: frozenset[tuple[str, str]]
    overlapped_steps: int
    strided: frozenset[str]
    strided_bytes: int
    widened: frozenset[str]
    narrowed: frozenset[str]
    half_activations: bool
    half_operands: bool
    tf32: bool
    alignment: int
    variant: Isa | Gpu

    @property
    def isa(self) -> Isa:
        """The instruction set of a CPU target."""
        assert isinstance(self.variant, Isa), f"target {self.name!r} has no instruction sets"
        return self.variant

    @property
    def gpu(self) -> Gpu:
        """The device facts of a GPU target."""
        assert isinstance(self.variant, Gpu), f"target {self.name!r} is no GPU"
        return self.variant

    @property
    def is_gpu(self) -> bool:
        return isinstance(self.variant, Gpu)

    def tvm_target(self) -> dict[str, object]:
        """The dict that `tvm.target.Target` takes."""
        if isinstance(self.variant, Gpu) and self.variant.arch:
            return {
                "kind": self.kind,
                "arch": self.variant.arch,
                "max_num_threads": self.variant.threads,
                "thread_warp_size": self.variant.subgroup,
                "max_shared_memory_per_block": self.variant.shared_bytes,
            }
        if isinstance(self.variant, Gpu):
            return {
                "kind": self.kind,
                "max_num_threads": self.variant.threads,
                "max_threads_per_block": self.variant.threads,
                "max_shared_memory_per_block": self.variant.shared_bytes,
                **{f"supports_{name}": True for name in _GPU_DTYPES},
            }
        described: dict[str, object] = {"kind": self.kind, "mcpu": self.isa.mcpu, "mtriple": self.isa.triple}
        return described | ({"mattr": list(self.isa.mattr)} if self.isa.mattr else {})


# What TVM may use. Whether a device has it is asked by the runtime, kernel by kernel.
_GPU_DTYPES = ("float16", "float64", "int8", "int16", "int64", "8bit_buffer", "16bit_buffer")


def known_targets() -> list[str]:
    return sorted(path.stem for path in tree("targets").glob("*.toml"))


def load_target(name: str, isa: str | None = None, triple: str | None = None) -> Target:
    """The target `name` for `isa`, or for the best one that this machine has; a GPU's first variant.

    Args:
        triple: of the machine that is built for, as `--triple` takes it; this machine's by default.

    Raises:
        UsageError: unknown target, ISA or triple; the message lists the known ones.
        TranspileError: this machine has none of the target's ISAs.
    """
    if _gpus(name):
        return load_targets(name, [isa] if isa else [], triple)[0]
    isas = _isas(name)
    if isa is None:
        return _target(name, _native(name, _for_triple(isas, triple)))
    chosen = [item for item in isas if item.name == isa]
    if not chosen:
        raise unknown("ISA", isa, [item.name for item in isas], code="unknown-isa")
    return _target(name, chosen[0])


def load_targets(name: str, isas: Sequence[str] = (), triple: str | None = None) -> list[Target]:
    """The target `name` once per instruction set, best first; a GPU target once per variant.

    Args:
        isas: names, or "native" for the best one that this machine has; none: all that `triple` has.
        triple: as in `load_target`.

    Raises:
        UsageError: as `load_target`; also for an instruction set of another triple.
        TranspileError: this machine has none of the target's ISAs.
    """
    if gpus := _gpus(name):
        return [_target(name, item) for item in _architectures(name, gpus, isas, triple)]
    everything = _isas(name)
    known = ["native", *(item.name for item in everything)]
    if bad := [isa for isa in isas if isa not in known]:
        raise unknown("ISA", bad[0], known, code="unknown-isa")
    fitting = _for_triple(everything, triple)
    wanted = {_native(name, fitting).name if isa == "native" else isa for isa in isas}
    foreign = sorted(wanted - {item.name for item in fitting})
    if foreign:
        raise UsageError(
            "foreign-isa",
            f"{', '.join(foreign)} is not an instruction set of {fitting[0].triple}; "
            f"it has: {', '.join(item.name for item in fitting)}.",
            hints=[f"another processor family is chosen with --triple; known: {', '.join(known_triples(name))}"],
        )
    return [_target(name, item) for item in fitting if not wanted or item.name in wanted]


def load_groups(
    names: Sequence[str], isas: Sequence[str] = (), archs: Sequence[str] = (), triple: str | None = None
) -> dict[str, list[Target]]:
    """The variants of each of the targets `names`, best first.

    Instruction sets and the triple are for targets that have some (where none is named, `default_isas`), `archs` for
    GPUs whose code is made by architecture.

    Raises:
        UsageError: as `load_targets`; also for one of them without a target that it is for.
        TranspileError: as `load_targets`.
    """
    names = tuple(dict.fromkeys(names))
    for name in names:
        if name not in known_targets():
            raise unknown("target", name, known_targets(), code="unknown-target")
    wanted = {name: archs if has_archs(name) else () for name in names}
    if any(map(has_isas, names)):
        default = default_isas() if triple in (None, host_triple()) else ()
        wanted |= {name: isas or default for name in names if has_isas(name)}
    elif isas or triple:
        raise _no_isas(names[0], "--isa" if isas else "--triple")
    if archs and not any(map(has_archs, names)):
        raise UsageError("no-archs", f"--arch is for GPUs of NVIDIA, not for target {names[0]!r}.")
    return {name: load_targets(name, wanted[name], triple if has_isas(name) else None) for name in names}


def has_archs(name: str) -> bool:
    """Whether code for a target is made by architectures of its GPUs."""
    return any(item.arch for item in _gpus(name))


def has_isas(name: str) -> bool:
    """Whether a target has instruction sets to choose from."""
    return bool(_isas(name))


def default_isas() -> tuple[str, ...]:
    """What is built where no instruction set is named: $TRANSPILE_BUILD_ISA, separated by commas, else all."""
    return tuple(filter(None, os.environ.get("TRANSPILE_BUILD_ISA", "").split(",")))


def runs_here(isa: Isa) -> bool:
    """Whether this machine can run code for `isa`."""
    return isa.triple == host_triple() and cpu_features().issuperset(isa.features)


def known_triples(name: str) -> list[str]:
    """What `triple` may be, this machine's kind first if it is among them."""
    triples = dict.fromkeys(item.triple for item in _isas(name))
    return sorted(triples, key=lambda triple: (triple != host_triple(), triple))


def refuse_elsewhere() -> None:
    """Raises TranspileError "not-linux" on a system that packages do not run on."""
    if sys.platform != "linux":
        name = {"darwin": "macOS", "win32": "Windows"}.get(sys.platform, sys.platform)
        raise TranspileError(
            "not-linux", f"transpile runs on Linux only, not on {name}.",
            hints=["run it in a container or a virtual machine with Linux: its packages run there too"],
        )  # fmt: skip


def host_triple() -> str:
    """The triple of this machine."""
    return f"{platform.machine()}-unknown-linux-gnu"


def _architectures(name: str, gpus: Sequence[Gpu], wanted: Sequence[str], triple: str | None) -> list[Gpu]:
    """The variants of a GPU target, those of `wanted` if it names any."""
    known = [item.name for item in gpus if item.arch]
    if triple or (wanted and not known):
        raise _no_isas(name, "--triple" if triple else "--isa")
    if bad := [item for item in wanted if item not in known]:
        raise unknown("architecture", bad[0], known, code="unknown-isa")
    return [item for item in gpus if not wanted or item.name in wanted]


def _no_isas(name: str, option: str) -> UsageError:
    return UsageError(
        "no-isas",
        f"Target {name!r} has no instruction sets: {option} is for CPUs.",
        hints=["its kernels run on every device that has the features they need"],
    )


def _gpus(name: str) -> list[Gpu]:
    """The variants of a GPU target; none of another."""
    facts: list[dict[str, Any]] = _facts(name).get("gpu", [])
    lists = ("workgroup", "features", "kinds")
    return [Gpu(**{**item, **{key: tuple(item.get(key, ())) for key in lists}}) for item in facts]


def _isas(name: str) -> list[Isa]:
    facts = _facts(name).get("isa", ())
    return [Isa(**{**item, "mattr": tuple(item["mattr"]), "features": tuple(item["features"])}) for item in facts]


def _for_triple(isas: Sequence[Isa], triple: str | None) -> list[Isa]:
    wanted = triple or host_triple()
    parts = wanted.split("-")
    plain = "-".join(part for part in parts if part not in ("unknown", "pc"))
    found = [item for item in isas if item.triple.replace("-unknown", "") == plain]
    if found:
        return found
    known = ", ".join(dict.fromkeys(item.triple for item in isas))
    if triple is None:
        raise TranspileError(
            "no-isa", f"There are no kernels for {platform.machine()} processors.",
            hints=[f"build for another machine: --triple with one of {known}"],
        )  # fmt: skip
    elsewhere = "" if "linux" in parts else "packages run on Linux only; "
    raise UsageError("unknown-triple", f"Unknown triple {triple!r}; {elsewhere}known: {known}.")


def _native(name: str, isas: Sequence[Isa]) -> Isa:
    for item in isas:
        if runs_here(item):
            return item
    raise TranspileError(
        "no-isa", f"This CPU has none of the instruction sets of target {name!r} that are asked for.",
        hints=[f"name one to build for another machine: --isa {isas[-1].name}"],
    )  # fmt: skip


def _target(name: str, variant: Isa | Gpu) -> Target:
    facts = _facts(name)
    return Target(
        name=facts["name"], kind=facts["kind"], dtypes=tuple(facts["dtypes"]),
        schedules=tuple(facts["schedules"]),
        epilogue=frozenset(facts["epilogue"]), prologue=frozenset(facts["prologue"]),
        pairs=frozenset((first, second) for first, second in facts.get("pairs", ())),
        pair_bytes=facts.get("pair_bytes", 0),
        overlapped=frozenset((first, second) for first, second in facts.get("overlapped", ())),
        overlapped_steps=facts.get("overlapped_steps", 0),
        strided=frozenset(facts.get("strided", ())), strided_bytes=facts.get("strided_bytes", 1),
        widened=frozenset(facts.get("widened", ())), narrowed=frozenset(facts.get("narrowed", ())),
        half_activations=facts.get("half_activations", False),
        half_operands=facts.get("half_operands", False), tf32=facts.get("tf32", False),
        alignment=facts["alignment"], variant=variant,
    )  # fmt: skip


def _facts(name: str) -> dict[str, Any]:
    if name not in known_targets():
        raise unknown("target", name, known_targets(), code="unknown-target")
    return tomllib.loads((tree("targets") / f"{name}.toml").read_text())


def cpu_features() -> frozenset[str]:
    """This machine's CPU flags as Linux lists them."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()
