"""Scheduled kernels -> CUDA text, one file of machine code for all of them, and the list of their launches."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import tvm

from transpiler.errors import Location, Problem, TranspileErrors
from transpiler.gpu.host import HostLaunch, read_launches
from transpiler.gpu.launches import Compiled, Launch, Scalar
from transpiler.gpu.lowering import lower
from transpiler.gpu.nvrtc import compile_code, fatbin
from transpiler.group import Lowered
from transpiler.target import Target
from transpiler.tvm_lock import LOWERING

FILE = "kernels.fatbin"
_BITS = re.compile(r"(\d+)$")
# What TVM's text begins with, down to its own names of unsigned types, which needs headers of a toolkit.
_PREAMBLE = re.compile(r"\A.*?#define ushort unsigned short\n#endif\n", re.DOTALL)
TYPES = """\
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
typedef unsigned int uint;
typedef unsigned char uchar;
typedef unsigned short ushort;
"""


@dataclass(frozen=True)
class Source:
    """CUDA text, and the launches of every kernel by the kernel's name."""

    text: str
    launches: Mapping[str, tuple[Launch, ...]]


def compile_kernels(
    kernels: Mapping[str, Sequence[Lowered]],
    targets: Sequence[Target],
    *,
    places: Mapping[str, Sequence[Location]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Compiled]:
    """By variant the launches of every kernel; the first variant has `kernels.fatbin`, which is for all of them.

    The file holds machine code for each variant's architecture, and PTX of the oldest one, which devices that are newer
    than all of them run. `kernels.<variant>.cu` is the text that it was made from, for people.

    Args:
        kernels: by variant.
        targets: one for each variant, best first.
        places: the source lines of kernels, for errors.

    Raises:
        TranspileErrors: kernels without CUDA text, all of them; or what NVRTC says.
    """
    sources = cuda_sources(kernels, targets, places=places, progress=progress)
    texts = {target.gpu.arch: sources[target.variant.name].text for target in targets}
    with ThreadPoolExecutor() as pool:
        codes = dict(zip(texts, pool.map(compile_code, texts.values(), texts), strict=True))
    # Code of an architecture with a letter runs on no other one, and neither does its PTX.
    portable = [arch for arch in texts if arch[-1].isdigit()][-1:]
    binary = fatbin({arch: code.cubin for arch, code in codes.items()}, {arch: codes[arch].ptx for arch in portable})
    files: dict[str, bytes] = {FILE: binary}
    compiled = {}
    for name, source in sources.items():
        text = {f"kernels.{name}.cu": source.text.encode()}
        compiled[name] = Compiled(source.launches, {**files, **text}, f"launches.{name}.json")
        files = {}
    return compiled


def cuda_sources(
    kernels: Mapping[str, Sequence[Lowered]],
    targets: Sequence[Target],
    *,
    places: Mapping[str, Sequence[Location]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Source]:
    """What `compile_kernels` compiles, by variant. Raises as it does."""
    sources = {}
    problems: list[Problem] = []
    for target in targets:
        try:
            sources[target.variant.name] = cuda_source(
                kernels[target.variant.name], target.tvm_target(), places=places, progress=progress
            )
        except TranspileErrors as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise TranspileErrors(problems)
    return sources


def cuda_source(
    kernels: Sequence[Lowered],
    target: Mapping[str, object],
    *,
    places: Mapping[str, Sequence[Location]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Source:
    """The text of kernels for one architecture.

    Args:
        target: the dict that `tvm.target.Target` takes.

    Raises:
        TranspileErrors: kernels without CUDA text, all of them.
    """
    described = tvm.target.Target(dict(target))
    launches: dict[str, tuple[Launch, ...]] = {}
    devices: dict[str, Any] = {}
    problems: list[Problem] = []
    for done, item in enumerate(kernels):
        name = item.kernel.name
        try:
            host, device = lower(tvm.IRModule({name: item.function}), described)
            (function,) = host.functions.values()
            launches[name] = tuple(
                _launch(item, found, _parameters(device, found)) for found in read_launches(name, function)
            )
            devices[name] = device
        except TranspileErrors as error:
            problems += _located(error, (places or {}).get(name, ()))
        if progress is not None:
            progress(done + 1, len(kernels))
    if problems:
        raise TranspileErrors(problems)
    return Source(_text(devices, described, places or {}) if devices else TYPES, launches)


def _located(error: TranspileErrors, places: Sequence[Location]) -> list[Problem]:
    return [replace(problem, locations=(*problem.locations, *places)) for problem in error.problems]


def _text(devices: Mapping[str, Any], target: Any, places: Mapping[str, Sequence[Location]]) -> str:
    """The text of all kernels, whose device sides are given by name. Raises TranspileErrors."""
    functions = {name: function for device in devices.values() for name, function in device.functions.items()}
    try:
        written = _written(tvm.IRModule(functions), target)
    except tvm.error.InternalError:
        problems = []
        for name, device in devices.items():
            try:
                _written(device, target)
            except tvm.error.InternalError as error:
                reason = str(error).strip().splitlines()[-1]
                text = f"Kernel {name!r} has no CUDA text: {reason}"
                problems.append(Problem("no-cuda", text, locations=tuple(places.get(name, ()))))
        raise TranspileErrors(problems) from None
    if not _PREAMBLE.match(written):
        raise AssertionError("TVM's CUDA text begins in another way")
    includes = re.findall(r"^#include <cuda_(?:fp16|bf16)\.h>$|^#include <math_constants\.h>$", written, re.MULTILINE)
    body = re.sub(r"^#include .*\n", "", _PREAMBLE.sub("", written), flags=re.MULTILINE)
    return "\n".join(dict.fromkeys(includes)) + "\n" + TYPES + body


def _written(device: Any, target: Any) -> str:
    with LOWERING:
        built = tvm.get_global_func("target.build.cuda")(device, target)
    return str(built.inspect_source("cuda") or built.inspect_source())


def _parameters(device: Any, found: HostLaunch) -> list[Any]:
    (function,) = [f for name, f in device.functions.items() if str(name.name_hint) == found.function]
    return list(function.params)


def _launch(item: Lowered, found: HostLaunch, parameters: Sequence[Any]) -> Launch:
    kinds = [kind for kind, _ in found.arguments]
    assert kinds == sorted(kinds), f"{found.function} takes numbers before buffers"
    buffers = tuple(place for kind, place in found.arguments if kind == "buffer" and isinstance(place, int))
    scalars = []
    offset = 0
    for parameter, (kind, value) in zip(parameters, found.arguments, strict=True):
        if kind == "number":
            dtype = str(parameter.ty.dtype)
            digits = _BITS.search(dtype)
            bits = int(digits[1]) if digits else 8
            offset = -(-offset * 8 // bits) * bits // 8
            scalars.append(Scalar(value, dtype, offset, bits))
            offset += bits // 8
    return Launch(
        file=FILE,
        entry=found.function,
        buffers=buffers,
        # A kernel writes to no input.
        written=tuple(sorted(place for place in buffers if place >= len(item.kernel.inputs))),
        scalars=tuple(scalars),
        scalar_bytes=offset,
        workgroup=found.workgroup,
        grid=found.grid,
        folded=None,
        shared_bytes=found.shared_bytes,
        features=(),
    )
