"""How fast kernels are on the device: against PyTorch (cuBLAS, cuDNN, its attention) where it has the device, in CUDA
graphs on both sides, with inputs that take turns, so that caches keep none of them; and what the card itself can do.
Before it is timed, a kernel has to be right: parts of its result are compared with float64."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tests.cuda.gpu.calls import Calls
from tests.cuda.gpu.cases import Case, Gemm, Heads, kernel_cases, model_cases
from tests.cuda.gpu.model_times import model
from tests.cuda.gpu.products import ProductCase
from tests.cuda.gpu.results import Part
from tests.cuda.gpu.timing import WARMING, events, facts, in_turns
from transpiler.gpu.runtime import import_runtime
from transpiler.ops.attention import Attention
from transpiler.ops.conv import Conv
from transpiler.ops.dtypes import numpy_dtype
from transpiler.ops.linalg import Linear

Array = npt.NDArray[Any]
COPIED, CHUNK = 1 << 31, 1 << 26
BFLOAT16 = numpy_dtype("bfloat16")
# Layouts of a convolution's tensors that cuDNN is asked with: the better one counts.
LAYOUTS = {"cudnn_nchw": torch.contiguous_format, "cudnn_nhwc": torch.channels_last}
SAMPLED = 6  # lines of a result that are compared with float64, besides the first and the last


def times(
    work: Path, results: Path, parts: Sequence[str], end: float, only: str, *, tiny: bool, compiled: bool
) -> list[str]:
    """Parts: rates, products, convolutions, attention, models. What failed, by name."""
    failed = []
    for name in parts:
        part = Part(results, f"time.{name}", end, only)
        if name == "models" and compiled and torch.cuda.is_available():
            part.again = {key for key, item in part.items.items() if "compile" not in item.get("peers", {})}
        part.run(_items(work, name, tiny, compiled), facts())
        failed += [f"{name} {key}" for key in part.failed]
    return failed


def _items(work: Path, name: str, tiny: bool, compiled: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    if name == "rates":
        yield "copies", lambda: {"value": copy_rate(1 << 20 if tiny else COPIED), "unit": "GB/s read and written"}
        if torch.cuda.is_available():
            for precision, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
                yield f"{precision} products", lambda dtype=dtype: {"value": matrix_rate(dtype), "unit": "TFLOP/s"}
    elif name == "models":
        for case in model_cases(tiny):
            yield case.key, lambda case=case: model(work, case, compiled)
    else:
        calls: list[Calls] = []  # loaded with the first item that needs them
        for key, case in kernel_cases(tiny)[name].items():
            yield key, lambda key=key, case=case: kernel(work / "timed" / name, calls, key, case)


# --- kernels


def kernel(folder: Path, calls: list[Calls], key: str, case: Case) -> dict[str, Any]:
    if not calls:
        calls.append(Calls(folder))
    (own,) = calls
    if key not in own.names:
        raise RuntimeError(f"refused: {own.facts['refused'].get(key)}")
    if problems := wrong(own, key, case):
        return {"problems": problems}
    recording, repeats = own.recorded(key)
    try:
        sides: dict[str, Callable[[], float]] = {"ours": lambda: own.timer.once(recording) / repeats}
        sides |= _kernel_peers(case, repeats) if torch.cuda.is_available() else {}
        found = in_turns(sides)
    finally:
        recording.free()
    ours = found.pop("ours")
    return {"ours": ours, "peers": found, "flops": case.flops, "bytes": nbytes(case)}


def nbytes(case: Case) -> int:
    """What is read and written at least, in bfloat16."""
    shapes = [*case.shapes, result_shape(case)]
    return sum(int(np.prod(shape)) for shape in shapes) * BFLOAT16.itemsize


def result_shape(case: Case) -> tuple[int, ...]:
    if isinstance(case, Gemm):
        return case.rows, case.columns
    if isinstance(case, Heads):
        return case.shapes[0]
    return case.batch, case.out, *[(case.size + 2 * case.padding - case.kernel) // case.stride + 1] * 2


def wrong(calls: Calls, key: str, case: Case) -> list[str]:
    """What is wrong with parts of a result, of inputs that are drawn now."""
    rng = np.random.default_rng(time.time_ns())
    inputs = [rng.standard_normal(shape, np.float32).astype(BFLOAT16) for shape in case.shapes]
    with calls.recording(key) as recording:
        calls.poison(recording)
        (got,) = calls.run(key, recording, inputs, [np.empty(result_shape(case), BFLOAT16)])
    return [text for part in _parts(case, inputs, got, rng) for text in part]


def _some(count: int, rng: np.random.Generator) -> list[int]:
    return sorted({0, count - 1, *rng.integers(0, count, SAMPLED).tolist()})


def _parts(case: Case, inputs: Sequence[Array], got: Array, rng: np.random.Generator) -> Iterator[list[str]]:
    if isinstance(case, Gemm):
        rows, columns = _some(case.rows, rng), _some(case.columns, rng)
        part = ProductCase(Linear(), ((len(rows), case.inner), (len(columns), case.inner))).of("bfloat16")
        yield part.expected([inputs[0][rows], inputs[1][columns]]).problems(got[np.ix_(rows, columns)])
    elif isinstance(case, Heads):
        for row in _some(case.queries, rng):
            batch, head = int(rng.integers(case.batch)), int(rng.integers(case.heads))
            last = row + 1 if case.causal else case.keys
            q, k, v = inputs[0][batch, head, row : row + 1], *(x[batch, head, :last] for x in inputs[1:])
            part = ProductCase(Attention(), (q.shape, k.shape, v.shape)).of("bfloat16")
            yield part.expected([q, k, v]).problems(got[batch, head, row : row + 1])
    else:
        channels, side = _some(case.out, rng), case.padding
        strided = Conv((case.stride,) * 2, (0, 0), (1, 1))
        for image in _some(case.batch, rng):
            line = int(rng.integers(got.shape[2]))
            padded = np.pad(inputs[0][image], [(0, 0), (side, side), (side, side)])
            strip = padded[None, :, line * case.stride : line * case.stride + case.kernel]
            filters = inputs[1][channels]
            part = ProductCase(strided, (strip.shape, filters.shape)).of("bfloat16")
            yield part.expected([strip, filters]).problems(got[image : image + 1, channels, line : line + 1])


def _kernel_peers(case: Case, repeats: int) -> dict[str, Callable[[], float]]:
    if isinstance(case, Heads):
        return _attention_peers(case, repeats)
    if len(case.shapes[0]) == 2:
        return {"cublas": _captured(case, repeats)}
    torch.backends.cudnn.benchmark = True
    return {name: _captured(case, repeats, layout) for name, layout in LAYOUTS.items()}


def _attention_peers(case: Heads, repeats: int) -> dict[str, Callable[[], float]]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    found = {}
    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"):
        try:
            with sdpa_kernel(getattr(SDPBackend, name)):
                found[name.partition("_")[0].lower()] = _captured(case, repeats)
        except (RuntimeError, AttributeError):
            continue  # this one does not take these sizes, or is not there
    return found


def _captured(case: Case, repeats: int, layout: torch.memory_format = torch.contiguous_format) -> Callable[[], float]:
    """A CUDA graph of several calls of PyTorch's function, each with inputs of its own."""
    inputs = [
        [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in case.shapes] for _ in range(repeats)
    ]
    if layout == torch.channels_last:
        inputs = [[tensor.to(memory_format=layout) for tensor in tensors] for tensors in inputs]
    with torch.inference_mode():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())  # which fills the inputs
        with torch.cuda.stream(stream):
            for _ in range(WARMING):
                case.torch(*inputs[0])
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            kept = [case.torch(*tensors) for tensors in inputs]

    def run() -> float:
        assert kept
        return events(graph.replay) / repeats

    return run


# --- rates


def copy_rate(nbytes: int) -> float:
    """GB/s of a copy of random bytes on the device, bytes read and written."""
    memory, module, clocks = (import_runtime(f"cuda.{name}") for name in ("memory", "device", "recording"))
    device = module.open_device(None)
    source, target = memory.Buffer(device, nbytes, "a copy"), memory.Buffer(device, nbytes, "a copy")
    stream = device.driver.CUstream(1)
    chunk = np.frombuffer(np.random.default_rng(0).bytes(min(CHUNK, nbytes)), np.uint8)
    with device.current():
        for start in range(0, nbytes, len(chunk)):
            source.write(start, chunk)

    def once() -> float:
        with device.current():
            clock = clocks._Clock(device)
            clock.read(stream)
            for _ in range(10):
                device.do("a copy", device.driver.cuMemcpyDtoDAsync(target.address, source.address, nbytes, stream))
            clock.read(stream)
            device.do("a copy", device.driver.cuStreamSynchronize(stream))
            return float(clock.seconds()[-1])

    seconds = in_turns({"copy": once})["copy"]
    return 20 * nbytes / seconds * 1e-9 if seconds else 0.0


def matrix_rate(dtype: torch.dtype) -> float:
    """TFLOP/s of cuBLAS's products of 8192 x 8192 on random data; float32 is float32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    x, y = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * 8192**3 / in_turns({"product": lambda: events(lambda: x @ y)})["product"] * 1e-12
