"""How fast what runs on the device is: against PyTorch (cuBLAS, cuDNN, its attention, torch.compile) where it has the
device, by the device's events, sides in turns, medians; kernels in CUDA graphs on both sides, with inputs that take
turns, so that caches keep none of them. Seconds throughout."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.cuda.gpu.calls import Calls
from tests.cuda.gpu.cases import SMALL, Case, Heads, ModelCase, kernel_cases, model_cases
from tests.cuda.gpu.results import Part
from transpiler.gpu.runtime import import_runtime
from transpiler.loading import load_package

Times = dict[str, float]
WARMING, LEAST, MOST, SECONDS = 3, 5, 60, 0.4
COPIED = 1 << 31
# Layouts of a convolution's tensors that cuDNN is asked with: the better one counts.
LAYOUTS = {"cudnn_nchw": torch.contiguous_format, "cudnn_nhwc": torch.channels_last}


def times(work: Path, parts: Sequence[str], end: float, only: str, *, tiny: bool, compiled: bool) -> list[str]:
    """Parts: rates, products, convolutions, attention, models. What failed, by name."""
    failed = []
    for name in parts:
        part = Part(work, f"time.{name}", end, only)
        part.run(_items(work, name, tiny, compiled), _facts())
        failed += [f"{name} {key}" for key in part.failed]
    return failed


def _facts() -> dict[str, str]:
    """Date, card, driver and what it was compared with."""
    from transpiler.gpu.here import cuda_device

    peers = f"PyTorch {torch.__version__}" if torch.cuda.is_available() else "none: this PyTorch has no CUDA"
    return {"date": time.strftime("%Y-%m-%d"), "card, capability, driver's CUDA": cuda_device(), "peers": peers}


def _items(work: Path, name: str, tiny: bool, compiled: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    if name == "rates":
        yield "copies", lambda: {"value": copy_rate(1 << 20 if tiny else COPIED), "unit": "GB/s read and written"}
        if torch.cuda.is_available():
            yield "bfloat16 products of cuBLAS", lambda: {"value": matrix_rate(), "unit": "TFLOP/s"}
    elif name == "models":
        for case in model_cases(tiny):
            yield case.key, lambda case=case: model(work, case, compiled)
    else:
        calls: list[Calls] = []  # loaded with the first item that needs them
        for key, case in kernel_cases(tiny)[name].items():
            yield key, lambda key=key, case=case: kernel(work / "timed" / name, calls, key, case)


def in_turns(sides: Mapping[str, Callable[[], float]]) -> Times:
    """The median of each side's own reading of the device's clock."""
    first = [min(run() for _ in range(WARMING)) for run in sides.values()]
    turns = max(LEAST, min(MOST, int(SECONDS / max(max(first), 1e-6))))
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, run in sides.items():
            taken[name].append(run())
    return {name: statistics.median(values) for name, values in taken.items()}


# --- kernels


def kernel(folder: Path, calls: list[Calls], key: str, case: Case) -> dict[str, Any]:
    if not calls:
        calls.append(Calls(folder))
    (own,) = calls
    if key not in own.names:
        raise RuntimeError(f"refused: {own.facts['refused'].get(key)}")
    recording, repeats = own.recorded(key)
    try:
        sides: dict[str, Callable[[], float]] = {"ours": lambda: own.timer.once(recording) / repeats}
        sides |= _kernel_peers(case, repeats) if torch.cuda.is_available() else {}
        found = in_turns(sides)
    finally:
        recording.free()
    ours = found.pop("ours")
    return {"ours": ours, "peers": found, "flops": case.flops}


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
        return _events(graph.replay) / repeats

    return run


def _events(run: Callable[[], Any]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3


# --- rates


def copy_rate(nbytes: int) -> float:
    """GB/s of a copy on the device, bytes read and written."""
    memory, module, clocks = (import_runtime(f"cuda.{name}") for name in ("memory", "device", "recording"))
    device = module.open_device(None)
    source, target = memory.Buffer(device, nbytes, "a copy"), memory.Buffer(device, nbytes, "a copy")
    stream = device.driver.CUstream(1)

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


def matrix_rate() -> float:
    """TFLOP/s of cuBLAS's bfloat16 products of 8192 x 8192 on random data."""
    x, y = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / in_turns({"product": lambda: _events(lambda: x @ y)})["product"] * 1e-12


# --- models


def model(work: Path, case: ModelCase, compiled: bool) -> dict[str, Any]:
    """A call with tensors on the device where PyTorch has it, else with arrays of the host."""
    module, args, kwargs = case.build()
    assert not kwargs
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    with load_package(work / "models" / case.key, case.key).Model(weights=state) as runner:
        if not torch.cuda.is_available():
            arrays = [item.numpy() for item in args]
            found = in_turns({"ours": lambda: _on_host(lambda: runner.infer(*arrays))})
        else:
            found = _against_pytorch(runner, module, args, case, compiled)
    return {
        "ours": found.pop("ours"),
        "peers": found,
        "bar": 0.5 if case.name in SMALL and case.batch == 1 else 0.9,
        **first_call(work, case),
    }


def _on_host(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _against_pytorch(
    runner: Any, module: torch.nn.Module, args: Sequence[torch.Tensor], case: ModelCase, compiled: bool
) -> Times:
    half = case.precision == "bfloat16"
    ours = [item.cuda() for item in args]
    module = module.cuda().bfloat16() if half else module.cuda()
    theirs = [item.bfloat16() if half and item.is_floating_point() else item for item in ours]
    # float32 is float32 on both sides.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    sides: dict[str, Callable[[], float]] = {"ours": lambda: _events(lambda: runner.infer(*ours))}
    with torch.inference_mode():
        sides["eager"] = lambda: _events(lambda: module(*theirs))
        if compiled:
            torch._dynamo.reset()
            fast = torch.compile(module, mode="max-autotune")
            for _ in range(WARMING):
                fast(*theirs)
            sides["compile"] = lambda: _events(lambda: fast(*theirs))
        return in_turns(sides)


def first_call(work: Path, case: ModelCase) -> dict[str, float | None]:
    """Seconds of making the model and of its first call, in a process of its own."""
    command = [sys.executable, "-m", "tests.cuda.on_gpu", "first", "--work", str(work), "--only", case.key]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        return {"load": None, "first_call": None}
    found: dict[str, float | None] = json.loads(done.stdout.splitlines()[-1])
    return found


def first(work: Path, key: str) -> dict[str, float]:
    """What `first_call` starts."""
    (case,) = [item for tiny in (False, True) for item in model_cases(tiny) if item.key == key]
    module, args, _ = case.build()
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    arrays = [item.numpy() for item in args]
    start = time.perf_counter()
    runner = load_package(work / "models" / key, key).Model(weights=state)
    loaded = time.perf_counter()
    runner.infer(*arrays)
    called = time.perf_counter()
    runner.close()
    return {"load": loaded - start, "first_call": called - loaded}


# --- tiles


def tiles(work: Path, end: float, only: str) -> list[str]:
    """The fastest tile for every size of the table."""
    part = Part(work, "tune.tiles", end, only)
    folders = sorted(path for path in (work / "tiles").iterdir() if path.is_dir())
    part.run([(folder.name, lambda folder=folder: {"tiles": fastest(folder)}) for folder in folders], _facts())
    return part.failed


def fastest(folder: Path) -> dict[str, str]:
    candidates: dict[str, tuple[str, str]] = json.loads((folder / "tiles.json").read_text())
    calls = Calls(folder)
    found = {}
    for sizes in dict.fromkeys(text for text, _ in candidates.values()):
        names = [name for name, (text, _) in candidates.items() if text == sizes and name in calls.names]
        graphs = {name: calls.recorded(name) for name in names}
        try:
            taken = in_turns(
                {name: lambda pair=pair: calls.timer.once(pair[0]) / pair[1] for name, pair in graphs.items()}
            )
        finally:
            for recording, _ in graphs.values():
                recording.free()
        if taken:
            found[sizes] = candidates[min(taken, key=taken.__getitem__)][1]
    return found


def write_table(work: Path, file: Path) -> int:
    """Put what was measured into the table beside the target's file; how many entries."""
    results = json.loads((work / "results" / "tune.tiles.json").read_text())
    content = json.loads(file.read_text())
    count = 0
    for key, item in results["items"].items():
        arch, kind, _ = key.split(".")
        for sizes, tile in item.get("tiles", {}).items():
            if sizes in content["tiles"].get(arch, {}).get(kind, {}):
                content["tiles"][arch][kind][sizes] = tile
                count += 1
    if count:
        content["card"] = results["facts"]
        file.write_text(json.dumps(content, indent=1) + "\n")
    return count
