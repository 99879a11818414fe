"""Scheduled kernels -> CUDA text, one file of machine code for all of them, and the list of their launches."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import tvm

from transpiler.errors import Location, Problem, TranspileErrors
from transpiler.gpu.cuda_text import TENSOR_MAP, shared_text
from transpiler.gpu.host import HostLaunch, read_launches
from transpiler.gpu.launches import Compiled, Launch, Scalar
from transpiler.gpu.lowering import lower
from transpiler.gpu.nvrtc import compile_code, fatbin
from transpiler.group import Lowered
from transpiler.special_functions import PREFIX, special_functions
from transpiler.target import Target
from transpiler.tvm_lock import LOWERING

FILE, TEXT = "kernels.fatbin", "kernels.cu"
UNNAMED = "*(*)("  # a pointer to vectors for which TVM has no name, and no error either
_BITS = re.compile(r"(\d+)$")
# What TVM's text begins with, down to its own names of unsigned types, which needs headers of a toolkit.
_PREAMBLE = re.compile(r"\A.*?#define ushort unsigned short\n#endif\n", re.DOTALL)
# What TVM writes where blocks are clusters; no kernel calls it.
_RANK = re.compile(r"^__forceinline__ __device__ unsigned int tvm_builtin_cluster_ctaid_x\(\) \{\n(?: .*\n)*\}\n", re.M)
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
# Around the C of special functions, which packages for processors have as well: what NVRTC has of the C library is
# in it without headers, but for these.
SPECIAL = """\
#ifdef __CUDACC_RTC__
#define INFINITY __longlong_as_double(0x7FF0000000000000LL)
#define NAN __longlong_as_double(0x7FF8000000000000LL)
static double lgamma_r(double x, int *sign) {{ return lgamma(x); }}
#endif
{text}
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
    than all of them run. It was made from `kernels.cu` and, behind that, `kernels.<variant>.cu` with what only this
    variant has, if anything.

    Args:
        kernels: by variant.
        targets: one for each variant, best first.
        places: the source lines of kernels, for errors.

    Raises:
        TranspileErrors: kernels without CUDA text, all of them; or what NVRTC says.
    """
    sources = cuda_sources(kernels, targets, places=places, progress=progress)
    shared, own = shared_text({name: source.text for name, source in sources.items()})
    texts = {target.gpu.arch: shared + own[target.variant.name] for target in targets}
    with ThreadPoolExecutor() as pool:
        codes = dict(zip(texts, pool.map(compile_code, texts.values(), texts), strict=True))
    # Code of an architecture with a letter runs on no other one, and neither does its PTX.
    portable = [arch for arch in texts if arch[-1].isdigit()][-1:]
    binary = fatbin({arch: code.cubin for arch, code in codes.items()}, {arch: codes[arch].ptx for arch in portable})
    files: dict[str, bytes] = {FILE: binary} | ({TEXT: shared.encode()} if shared else {})
    compiled = {}
    for name, source in sources.items():
        text = {f"kernels.{name}.cu": own[name].encode()} if own[name] else {}
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
    lowered: dict[str, _Device] = {}
    problems: list[Problem] = []
    for done, item in enumerate(kernels):
        name = item.kernel.name
        try:
            lowered[name] = _lower(item, described, vectors=True)
        except TranspileErrors as error:
            problems += _located(error, (places or {}).get(name, ()))
        if progress is not None:
            progress(done + 1, len(kernels))
    if problems:
        raise TranspileErrors(problems)
    try:
        text = _text(lowered.values(), described)
    except tvm.error.InternalError:
        # CUDA has no vectors as wide as those of a processor's schedules.
        for item in kernels:
            name = item.kernel.name
            if _refusal(lowered[name], described):
                lowered[name] = _lower(item, described, vectors=False)
                if reason := _refusal(lowered[name], described):
                    message = f"Kernel {name!r} has no CUDA text: {reason}"
                    problems.append(Problem("no-cuda", message, locations=tuple((places or {}).get(name, ()))))
        if problems:
            raise TranspileErrors(problems) from None
        text = _text(lowered.values(), described)
    return Source(text, {name: item.launches for name, item in lowered.items()})


@dataclass(frozen=True)
class _Device:
    """The device side of a kernel, and its launches."""

    module: Any
    launches: tuple[Launch, ...]


def _lower(item: Lowered, target: Any, *, vectors: bool) -> _Device:
    """Raises TranspileErrors."""
    name = item.kernel.name
    host, device = lower(tvm.IRModule({name: item.function}), target, vectors=vectors)
    (function,) = host.functions.values()
    found = read_launches(name, function)
    return _Device(device, tuple(_launch(item, launch, _parameters(device, launch)) for launch in found))


def _located(error: TranspileErrors, places: Sequence[Location]) -> list[Problem]:
    return [replace(problem, locations=(*problem.locations, *places)) for problem in error.problems]


def _text(devices: Iterable[_Device], target: Any) -> str:
    """The text of all kernels. Raises tvm.error.InternalError."""
    functions = {name: function for device in devices for name, function in device.module.functions.items()}
    if not functions:
        return TYPES
    written = _written(tvm.IRModule(functions), target)
    if not _PREAMBLE.match(written):
        raise AssertionError("TVM's CUDA text begins in another way")
    includes = re.findall(r"^#include <cuda_(?:fp16|bf16)\.h>$|^#include <math_constants\.h>$", written, re.MULTILINE)
    body = _RANK.sub("", re.sub(r"^#include .*\n", "", _PREAMBLE.sub("", written), flags=re.MULTILINE))
    special = SPECIAL.format(text=special_functions()) if PREFIX in body else ""
    maps = TENSOR_MAP if "CUtensorMap" in body else ""
    return "\n".join(dict.fromkeys(includes)) + "\n" + TYPES + maps + special + body


def _refusal(device: _Device, target: Any) -> str:
    """Why there is no text of a kernel; "" if there is."""
    try:
        _written(device.module, target)
    except tvm.error.InternalError as error:
        return str(error).strip().splitlines()[-1]
    return ""


def _written(device: Any, target: Any) -> str:
    with LOWERING:
        built = tvm.get_global_func("target.build.cuda")(device, target)
    text = str(built.inspect_source("cuda") or built.inspect_source())
    if UNNAMED in text:
        raise tvm.error.InternalError("a vector that CUDA has no type for")
    return text


def _parameters(device: Any, found: HostLaunch) -> list[Any]:
    (function,) = [f for name, f in device.functions.items() if str(name.name_hint) == found.function]
    return list(function.params)


def _launch(item: Lowered, found: HostLaunch, parameters: Sequence[Any]) -> Launch:
    kinds = [kind == "number" for kind, _ in found.arguments]
    assert kinds == sorted(kinds), f"{found.function} takes numbers before buffers"
    maps = [position for position, (kind, _) in enumerate(found.arguments) if kind == "map"]
    buffers = tuple(place for kind, place in found.arguments if kind == "buffer" and isinstance(place, int))
    buffers += tuple(place for _, place, _ in found.maps)
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
        maps=tuple(
            (position, replace(item.tensor_maps[number], offset=begin * item.tensor_maps[number].element_bytes))
            for position, (number, _, begin) in zip(maps, found.maps, strict=True)
        ),
        cluster=found.cluster,
    )
