"""One engine with one model, in a process of its own: it loads, then runs as many calls as it is asked for.

    python worker.py PEER FOLDER --threads N --processors 0,1 [--package FOLDER]

It runs in the environment of its engine, so it imports that engine, numpy and the standard library. It reads JSON
lines: {"warm": 2, "calls": 10} is answered with {"seconds": [...]}, {"profile": 10} with the kernels' times. Between
requests it waits for a line and its threads sleep, so that the process that is measured has the machine. With
`--clock processor` the seconds are those of all processors that the process used: what a driver that computes on
processors costs, however many threads it takes.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Arrays = list[Any]
Run = Callable[[], Any]


def _read(path: Path) -> Arrays:
    with np.load(path) as file:
        return [file[f"arr_{index}"] for index in range(len(file.files))]


def _flat(value: Any) -> Arrays:
    """The arrays in a nested result, in order."""
    if isinstance(value, np.ndarray):
        return [value]
    if hasattr(value, "numpy"):
        return [value.numpy()]
    values = value.values() if hasattr(value, "values") else value
    return [array for item in values for array in _flat(item)]


def load_ours(folder: Path, inputs: Arrays, threads: int, package: Path) -> tuple[Run, str, Any]:
    sys.path.insert(0, str(package / "src"))
    model = importlib.import_module(package.name).Model(threads=threads)
    return lambda: model(*inputs), model.isa, model


def load_onnxruntime(folder: Path, inputs: Arrays, threads: int, package: Path) -> tuple[Run, str, Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Its threads spin between calls, as by default: waking them up would cost more than a small model.
    session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    feed = dict(zip((item.name for item in session.get_inputs()), inputs, strict=True))
    return lambda: session.run(None, feed), ort.__version__, None


def load_openvino(folder: Path, inputs: Arrays, threads: int, package: Path) -> tuple[Run, str, Any]:
    import openvino as ov

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",  # it would take bfloat16 where the processor has it
    }
    compiled = ov.Core().compile_model(str(folder / "model.onnx"), "CPU", settings)
    return lambda: compiled(inputs), ov.__version__.split("-")[0], None


def _torch(threads: int) -> Any:
    import torch

    torch.set_num_threads(threads)
    return torch


def load_eager(folder: Path, inputs: Arrays, threads: int, package: Path) -> tuple[Run, str, Any]:
    from tests.benchmarks.models import MODELS

    torch = _torch(threads)
    module = MODELS[folder.name].build()[0]

    def run() -> Any:
        with torch.inference_mode():
            return _flat(module(*map(torch.from_numpy, inputs)))

    return run, torch.__version__, None


def load_compiled(folder: Path, inputs: Arrays, threads: int, package: Path) -> tuple[Run, str, Any]:
    import torch._inductor.config as settings

    from tests.benchmarks.models import MODELS

    torch = _torch(threads)
    settings.freezing = True
    module = torch.compile(MODELS[folder.name].build()[0], mode="max-autotune")

    def run() -> Any:
        with torch.no_grad():  # freezing needs it instead of inference_mode
            return _flat(module(*map(torch.from_numpy, inputs)))

    return run, torch.__version__, None


def load_aot(folder: Path, inputs: Arrays, threads: int, package: Path) -> tuple[Run, str, Any]:
    torch = _torch(threads)
    module = torch._inductor.aoti_load_package(str(folder / f"aot.{threads}.pt2"))

    def run() -> Any:
        with torch.inference_mode():
            return _flat(module(*map(torch.from_numpy, inputs)))

    return run, torch.__version__, None


def load_ncnn(folder: Path, inputs: Arrays, threads: int, package: Path) -> tuple[Run, str, Any]:
    """On the first Vulkan device, in float32, with Winograd convolutions where it takes them."""
    import ncnn

    net = ncnn.Net()
    net.opt.use_vulkan_compute = True
    for name in dir(net.opt):
        if name.startswith(("use_fp16", "use_bf16", "use_int8")):
            setattr(net.opt, name, False)
    net.load_param(str(folder / "ncnn" / "model.ncnn.param"))
    net.load_model(str(folder / "ncnn" / "model.ncnn.bin"))
    elsewhere = {layer.type for layer in net.layers() if not layer.support_vulkan}
    if elsewhere:
        raise RuntimeError(f"it has no Vulkan kernel for {', '.join(sorted(elsewhere))}")
    shapes = [array.shape for array in _read(folder / "expected.npz")]

    def run() -> Arrays:
        extractor = net.create_extractor()
        for index, array in enumerate(inputs):
            # A matrix has no batch dim there.
            extractor.input(f"in{index}", ncnn.Mat(array[0] if array.ndim != 2 else array))
        found = [extractor.extract(f"out{index}")[1] for index in range(len(shapes))]
        return [np.array(item).reshape(shape) for item, shape in zip(found, shapes, strict=True)]

    return run, ncnn.__version__, None


def load_iree(folder: Path, inputs: Arrays, threads: int, package: Path) -> tuple[Run, str, Any]:
    import iree.runtime as iree
    from iree.runtime import version

    context = iree.SystemContext(config=iree.Config("vulkan"))
    module = iree.VmModule.mmap(context.instance, str(folder / "model.vmfb"))
    context.add_vm_module(module)
    (name,) = [name for name in module.function_names if not name.endswith(("$async", "__init"))]
    function = context.modules[module.name][name]

    def on_host(value: Any) -> Any:
        """Through memory of its own: the copy of the package wants memory that a driver on a processor cannot give."""
        device, source = value._device, value._buffer_view.get_buffer()
        memory = device.allocator.allocate_buffer(
            memory_type=int(iree.MemoryType.HOST_LOCAL | iree.MemoryType.DEVICE_VISIBLE),
            allowed_usage=int(iree.BufferUsage.TRANSFER_TARGET | iree.BufferUsage.MAPPING_SCOPED),
            allocation_size=source.byte_length(),
        )
        done = device.create_semaphore(0)
        fences = (iree.HalFence.create_at(done, step) for step in (0, 1))
        device.queue_copy(source, memory, wait_semaphores=next(fences), signal_semaphores=next(fences))
        iree.HalFence.create_at(done, 1).wait()
        return np.array(memory.map().asarray(list(value.shape), np.dtype(value.dtype)))

    def run() -> Arrays:
        results = function(*inputs)
        return [on_host(item) for item in (results if isinstance(results, tuple | list) else (results,))]

    return run, version.VERSION, None


LOADERS = {
    "ours": load_ours,
    "onnxruntime": load_onnxruntime,
    "openvino": load_openvino,
    "eager": load_eager,
    "compile": load_compiled,
    "aot": load_aot,
    "ncnn": load_ncnn,
    "iree": load_iree,
}


def relative_error(got: Sequence[Any], expected: Sequence[Any]) -> float:
    """The largest difference over the largest value, of all outputs."""
    if len(got) != len(expected):
        return float("inf")
    worst = 0.0
    for one, two in zip(got, expected, strict=True):
        if one.shape != two.shape:
            return float("inf")
        worst = max(worst, float(np.abs(one - two).max() / (np.abs(two).max() or 1.0)))
    return worst


CLOCKS = {"wall": time.perf_counter_ns, "processor": time.process_time_ns}


def timed(run: Run, warm: int, calls: int, clock: Callable[[], int] = time.perf_counter_ns) -> list[float]:
    for _ in range(warm):
        run()
    seconds = []
    for _ in range(calls):
        start = clock()
        run()
        seconds.append((clock() - start) * 1e-9)
    return seconds


def profiled(package: str, model: Any, inputs: Arrays, calls: int) -> dict[str, Any]:
    """Rates of the machine, and the kernels against them, the longest first; see the package's `runtime/profile.py`."""
    profile = importlib.import_module(f"{package}.runtime.profile")
    runs = [model.timeline(*inputs) for _ in range(calls + 2)][2:]
    rates = model.measure_rates()
    times = profile.by_kernel(profile.kernel_times(runs, model.manifest, {}, rates))
    return {
        "kernels": [{**dataclasses.asdict(time), "least": time.least} for time in times],
        "rates": dataclasses.asdict(rates),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=LOADERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--processors", required=True)
    parser.add_argument("--package", type=Path, default=Path())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    os.sched_setaffinity(0, {int(item) for item in options.processors.split(",")})
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    inputs = _read(options.folder / "inputs.npz")
    start = time.perf_counter()
    run, version, model = LOADERS[options.peer](options.folder, inputs, options.threads, options.package)
    error = relative_error(_flat(run()), _read(options.folder / "expected.npz"))
    answer({"version": version, "error": error, "load_s": time.perf_counter() - start})
    gc.collect()
    gc.disable()
    for line in sys.stdin:
        request = json.loads(line)
        if "profile" in request:
            answer(profiled(options.package.name, model, inputs, request["profile"]))
        else:
            answer({"seconds": timed(run, request["warm"], request["calls"], CLOCKS[options.clock])})


if __name__ == "__main__":
    main()
