"""The package's command line: info, verify, bench, profile; prepare and pkgconfig for C programs."""

from __future__ import annotations

import argparse
import io
import math
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .model import Model
from .runtime.devices import target_of, wanted_devices
from .runtime.errors import PackageError
from .runtime.manifest import check_files, for_target, functions_of, read_manifest
from .runtime.profile import by_kernel, kernel_times, table, time_text, trace
from .runtime.safetensors import File, storage_dtype
from .runtime.sizes import Shape, Sizes

Array = npt.NDArray[Any]

PRECISIONS = {
    "tf32": ": products may round their operands, where the device has units for it",
    "float16": ": weights are kept in it, sums are float32",
    "bfloat16": ": weights are kept in it, sums are float32",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0 done, 1 the package is not what it should be, 2 wrong usage."""
    name = Model.folder.name
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=f"The transpiled model {name}.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    teller = commands.add_parser("info", help="signature, devices, kernels, weights, how it was made")
    teller.add_argument("--device", metavar="NAME", default=None, help="of that target only")
    verifier = commands.add_parser("verify", help="hashes of all files, and the embedded sample")
    verifier.add_argument("--layers", action="store_true", help="every layer against PyTorch's values")
    verifier.add_argument(
        "--data", type=Path, metavar="FOLDER", help="for --layers: the project's tests/data"
    )
    verifier.add_argument("--device", metavar="NAME", default=None, help="one of the devices that info lists")
    commands.add_parser("pkgconfig", help="the folder of the pkg-config file, for PKG_CONFIG_PATH")
    preparer = commands.add_parser("prepare", help="PyTorch's weights as C programs open them")
    preparer.add_argument("weights", type=Path, help="a safetensors file with the names of the state_dict")
    preparer.add_argument("output", type=Path, help="the file to write")
    for command, text in (("bench", "time of a call"), ("profile", "time of every kernel")):
        child = commands.add_parser(command, help=text)
        child.add_argument(
            "--device", metavar="NAME", default=None, help="default: the first target of the package"
        )
        child.add_argument("--threads", type=int, default=None, help="default: all processors")
        child.add_argument("-n", "--runs", type=int, default=50, help="calls to measure (default: 50)")
        child.add_argument(
            "--size", metavar="NAME=VALUE", action="append", default=[], help="of a size that varies"
        )
        child.add_argument(
            "--function", metavar="NAME", default=None, help="of a model with several functions"
        )
    child.add_argument("--each", action="store_true", help="every call in order, not their sums by kernel")
    child.add_argument(
        "--trace", type=Path, metavar="FILE", help="also write one call for Chrome or Perfetto"
    )
    options = parser.parse_args(arguments)
    try:
        code = run(parser, options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head`: whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (PackageError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """The chosen command; its exit code."""
    match options.command:
        case "info":
            return info(options.device)
        case "pkgconfig":
            print(Model.folder / "lib" / "pkgconfig")
            return 0
        case "prepare":
            Model.prepare_file(options.weights, options.output)
            return 0
        case "verify" if options.layers:
            return verify_layers(options.data, options.device)
        case "verify":
            if options.data is not None:
                parser.error("--data goes with --layers")
            return verify(options.device)
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    if options.threads is not None and options.threads < 1:
        parser.error("--threads must be at least 1")
    known = functions_of(read_manifest(Model.folder))
    if options.function is not None and options.function not in known:
        parser.error(f"--function: there is no {options.function!r}; known: {', '.join(known)}")
    chosen = (options.device, options.threads, options.runs, options.function, options.size)
    if options.command == "bench":
        return bench(*chosen)
    return profile(*chosen, each=options.each, path=options.trace)


def info(device: str | None = None) -> int:
    """The package, with every device that a model can run on, or with those of one target."""
    manifest = read_manifest(Model.folder)
    shown = [
        target_of(name) for name in wanted_devices(Model.folder, manifest, device or manifest["targets"])
    ]
    carried = [f"{name} ({', '.join(manifest['built'][name]['isas'])})" for name in manifest["targets"]]
    print(f"{manifest['name']} {manifest['version']}: {', '.join(carried)}")
    functions = functions_of(manifest)
    for name, entry in functions.items():
        label = f"{name} " if len(functions) > 1 else ""
        for kind in ("inputs", "outputs"):
            print(f"{label}{kind}:")
            for item in entry[kind]:
                bounds = f"  in {item['bounds'][0]}..{item['bounds'][1]}" if item.get("bounds") else ""
                print(f"  {item['name']}: {item['dtype']}{_shape(item)}{bounds}")
    state = for_target(manifest, manifest["targets"][0])["state"]
    if state["buffers"]:
        print(f"state: {state['bytes']:,} bytes")
        for item in state["buffers"]:
            print(f"  {item['name']}: {item['dtype']}{_shape(item)}")
    precision = manifest.get("precision", "float32")
    if precision != "float32":
        print(f"precision: {precision}{PRECISIONS[precision]}")
    for here in (item for item in Model.devices() if item.target in shown):
        first = len(carried) > 1 and here.target == manifest["targets"][0]
        default = ", which Model() runs on" if first else ""
        print(f"device {here.target}{default}: {here}")
        info_of_target(for_target(manifest, here.target))
    print(f"weights sha256: {manifest['weights']['sha256']}")
    if len(carried) > 1:
        print(f"weights of all devices: {weights_cost(manifest)}")
    print(f"platform: {manifest['platform']['tag']}")
    for kind in ("source", "options", "tools"):
        for key, value in sorted(manifest[kind].items()):
            if isinstance(value, Mapping):
                value = [f"{name}={item}" for name, item in sorted(value.items())]
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            print(f"{kind} {key}: {text}")
    return 0


def info_of_target(manifest: Mapping[str, Any]) -> None:
    """What is true for one target."""
    weights, functions = manifest["weights"], functions_of(manifest)
    calls = sum(kernel["calls"] for kernel in manifest["kernels"].values())
    print(
        f"  weights: {len(weights['keys'])} state_dict tensors, {prepared_bytes(manifest):,} bytes prepared"
    )
    print(f"  kernels: {len(manifest['kernels'])}, called {calls} times")
    print(f"  taps: {sum(len(entry['taps']) for entry in functions.values())}")
    for item in manifest["error"]:
        owner = f"{item['function']} " if len(functions) > 1 else ""
        numbers = f"{item['max_abs_error']:.3g} (tolerance {item['tolerance']:.3g})"
        if "rms_relative_error" in item:
            relative = item["max_relative_error"], item["rms_relative_error"]
            numbers += "; relative: largest {:.2g}, rms {:.2g}".format(*relative)
        print(f"  error of {owner}{item['output']}: {numbers}")
    print(f"  {'verified' if manifest['verified'] else 'not verified'} against PyTorch")


def prepared_bytes(manifest: Mapping[str, Any]) -> int:
    """What the tensors take that the kernels of a target read."""
    prepared: Mapping[str, Any] = manifest["weights"]["prepared"]
    return sum(map(_nbytes, prepared.values()))


def weights_cost(manifest: Mapping[str, Any]) -> str:
    """What the file of weights holds, and how much of it several targets read."""
    layouts = [for_target(manifest, target)["weights"]["prepared"] for target in manifest["targets"]]
    places = {item["offset"]: _nbytes(item) for layout in layouts for item in layout.values()}
    shared = sum(_nbytes(item) for layout in layouts for item in layout.values()) - sum(places.values())
    return f"{sum(places.values()):,} bytes in one file, {shared:,} more if none were shared"


def _nbytes(item: Mapping[str, Any]) -> int:
    return int(math.prod(item["shape"])) * storage_dtype(item["dtype"]).itemsize


def verify(device: str | None = None) -> int:
    """All files, and the sample on a device, by default on every target that this machine has one for."""
    manifest = read_manifest(Model.folder)
    count = check_files(Model.folder, manifest, lambda file: True)
    print(f"{count} files have the hashes of the manifest")
    path = Model.folder / "sample.safetensors"
    if not path.is_file():
        print("no sample is embedded: outputs were not compared")
        return 0
    found = Model.devices() if device is None else []
    for item in found:
        if item.missing and any(other.devices for other in found):
            print(f"{item.target}: not run: {item.missing}")
    chosen: list[str | None] = [item.target for item in found if item.devices]
    failed = sum(_compare_sample(File(path), name, labelled=len(found) > 1) for name in chosen or [device])
    print("the sample failed" if failed else "the sample passed")
    return 1 if failed else 0


def _compare_sample(sample: File, device: str | None, *, labelled: bool) -> int:
    """How many outputs are not what they should be on a device."""
    failed = 0
    label = f"{device} " if labelled else ""
    with Model(device=device) as model, Model(device=device, native=False) as by_kernel:
        manifest = model.manifest
        inputs = [np.array(sample[f"input.{index}"]) for index in range(len(manifest["inputs"]))]
        outputs, stepwise = model.infer(*inputs), by_kernel.infer(*inputs)
    for index, (item, output) in enumerate(zip(manifest["outputs"], outputs, strict=True)):
        if output.tobytes() != stepwise[index].tobytes():
            failed += 1
            print(f"{label}{item['name']}: FAILED: the native plan and model.py differ")
        expected = sample.get(f"output.{index}")
        if expected is None:
            continue
        tolerance = manifest["sample_tolerance"].get(item["name"], 0.0)
        distance = difference(output, expected)
        good = distance <= tolerance
        failed += not good
        verdict = "ok" if good else "FAILED"
        print(f"{label}{item['name']}: {verdict}: off by {distance:.3g}, tolerance {tolerance:.3g}")
    return failed


def verify_layers(data: Path | None, device: str | None = None) -> int:
    from .runtime.layers import compare_layers, find_data, read_recorded, report

    model = Model(device=device, native=False)
    check_files(Model.folder, model.manifest, lambda file: True)
    recorded = read_recorded(model, find_data(model, data))
    layers = compare_layers(model, recorded)
    for line in report(model, recorded, layers):
        print(line)
    return 1 if any(layer.fault for layer in layers) else 0


def difference(output: Array, expected: Array) -> float:
    """The largest absolute difference; inf where only one is NaN or where infinities differ."""
    a, b = output.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        distance = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    return float(np.max(np.where(np.isnan(distance), np.inf, distance), initial=0.0))


def _shape(item: Mapping[str, Any]) -> str:
    return f"[{', '.join(map(str, item['shape']))}]"


def chosen_sizes(manifest: Mapping[str, Any], given: Sequence[str]) -> dict[str, int]:
    """The sizes that vary: those of `given` (NAME=VALUE), else those that the model was captured with."""
    sizes: dict[str, int] = {item["name"]: item["example"] for item in manifest["symbols"]}
    for text in given:
        name, _, value = text.partition("=")
        if name not in sizes or not value.isdigit():
            known = ", ".join(sizes) or "none"
            raise PackageError(f"--size {text}: expected NAME=VALUE; sizes that vary: {known}")
        sizes[name] = int(value)
    return sizes


def drawn_inputs(manifest: Mapping[str, Any], sizes: Sizes) -> list[Array]:
    """Inputs of the right types: normal floats, integers within their bounds."""
    rng = np.random.default_rng(0)
    inputs: list[Array] = []
    for item in manifest["inputs"]:
        shape = Shape(item["shape"]).at(sizes)
        if "float" in item["dtype"]:
            values: Array = rng.standard_normal(shape)
            dtype = np.dtype(np.float32) if item["dtype"] == "bfloat16" else storage_dtype(item["dtype"])
        else:
            low, high = item.get("bounds") or (0, 1)
            values, dtype = rng.integers(low, high + 1, shape), storage_dtype(item["dtype"])
        inputs.append(values.astype(dtype))
    return inputs


def bench(
    device: str | None, threads: int | None, runs: int, function: str | None, given: Sequence[str]
) -> int:
    model = Model(device=device, threads=threads)
    described = functions_of(model.manifest)[function or model.manifest["function"]]
    inputs = drawn_inputs(described, chosen_sizes(described, given))
    for _ in range(max(3, runs // 10)):
        model.infer(*inputs, function=function)
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        model.infer(*inputs, function=function)
        seconds.append(time.perf_counter() - start)
    median, least = statistics.median(seconds), min(seconds)
    times = f"median {time_text(median)}, least {time_text(least)}"
    print(f"{model.hardware}: {times}, {runs} calls")
    return 0


def profile(
    device: str | None,
    threads: int | None,
    runs: int,
    function: str | None,
    given: Sequence[str],
    *,
    each: bool = False,
    path: Path | None = None,
) -> int:
    model = Model(device=device, threads=threads)
    described = functions_of(model.manifest)[function or model.manifest["function"]]
    sizes = chosen_sizes(described, given)
    inputs = drawn_inputs(described, sizes)
    for _ in range(max(3, runs // 10)):
        model.timeline(*inputs, function=function)
    runs_of_calls = [model.timeline(*inputs, function=function) for _ in range(runs)]
    rates = model.measure_rates()
    times = kernel_times(runs_of_calls, model.manifest, sizes, rates)
    for line in table(times if each else by_kernel(times)):
        print(line)
    print(f"{model.hardware}, medians of {runs} calls of the model")
    print(f"this machine: {rates or 'rates are not measured, so that there is no roofline'}")
    if path is not None:
        middle = sorted(runs_of_calls, key=lambda events: events[-1].end if events else 0.0)[runs // 2]
        path.write_text(trace(middle, model.manifest, sizes))
        print(f"{path}: the median call; open it in ui.perfetto.dev or chrome://tracing")
    return 0


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(errors="backslashreplace")  # names of the user's in a locale that lacks them
    sys.exit(main())
