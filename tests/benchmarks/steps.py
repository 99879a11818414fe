"""What is prepared for a model before it is timed, a step per process: `python -m tests.benchmarks.steps`.

Runs in the environment `torch`. `reference` writes inputs, PyTorch's outputs and statistics of the activations; `onnx`,
`aot`, `ncnn` and `iree` write what the peers load; `compile` fills the cache of torch.compile; `package` and
`package_vulkan` are the transpiler's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.environments import python_of
from tests.benchmarks.models import MODELS, statistics


def _save(path: Path, tensors: Sequence[torch.Tensor]) -> None:
    with path.open("wb") as file:
        np.savez(file, *[tensor.numpy() for tensor in tensors])


def _flat(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    assert isinstance(value, tuple | list)
    return [tensor for item in value for tensor in _flat(item)]


def reference(name: str, folder: Path, threads: int) -> None:
    module, inputs = MODELS[name].build()
    with torch.no_grad():
        expected = _flat(module(*inputs))
    found = statistics(module, inputs)
    if found["least std of a layer"] < 1e-3 or found["largest share of denormals"] > 1e-3:
        raise ValueError(f"{name}: activations fade: {found}")
    _save(folder / "inputs.npz", inputs)
    _save(folder / "expected.npz", expected)
    (folder / "statistics.json").write_text(json.dumps(found, indent=1) + "\n")


def onnx(name: str, folder: Path, threads: int) -> None:
    module, inputs = MODELS[name].build()
    path = str(folder / "model.onnx")
    torch.onnx.export(module, inputs, path, dynamo=True, optimize=True)


def aot(name: str, folder: Path, threads: int) -> None:
    torch.set_num_threads(threads)  # they are part of the generated code
    module, inputs = MODELS[name].build()
    with torch.no_grad():
        exported = torch.export.export(module, inputs)
    settings = {"freezing": True, "max_autotune": True}
    path = str(folder / f"aot.{threads}.pt2")
    torch._inductor.aoti_compile_and_package(exported, package_path=path, inductor_configs=settings)


def compiled(name: str, folder: Path, threads: int) -> None:
    from tests.benchmarks.worker import _read, load_compiled

    run, _, _ = load_compiled(folder, _read(folder / "inputs.npz"), threads, folder)
    run()


def ncnn(name: str, folder: Path, threads: int) -> None:
    """float32 weights: the converter would take float16."""
    module, inputs = MODELS[name].build()
    home = folder / "ncnn"
    home.mkdir(exist_ok=True)
    with torch.no_grad():
        torch.jit.trace(module, inputs).save(home / "model.pt")
    shapes = ",".join(f"[{','.join(map(str, item.shape))}]" for item in inputs)
    converter = Path(sys.executable).parent / "pnnx"
    subprocess.run([converter, "model.pt", f"inputshape={shapes}", "fp16=0"], cwd=home, check=True)


def iree(name: str, folder: Path, threads: int) -> None:
    tools = python_of("iree", folder.parents[1] / "environments").parent
    text, binary = folder / "model.mlir", folder / "model.vmfb"
    subprocess.run([tools / "iree-import-onnx", folder / "model.onnx", "-o", text], check=True)
    subprocess.run([tools / "iree-compile", text, "--iree-hal-target-device=vulkan", "-o", binary], check=True)


def package(name: str, folder: Path, threads: int) -> None:
    from transpiler import transpile

    module, inputs = MODELS[name].build()
    transpile(module, inputs, name=name, out=folder, isa="native")


def package_vulkan(name: str, folder: Path, threads: int) -> None:
    from transpiler import transpile

    module, inputs = MODELS[name].build()
    transpile(module, inputs, name=name, out=folder, target="vulkan", test=False)


STEPS: dict[str, Callable[[str, Path, int], None]] = {
    "reference": reference,
    "onnx": onnx,
    "aot": aot,
    "compile": compiled,
    "ncnn": ncnn,
    "iree": iree,
    "package": package,
    "package_vulkan": package_vulkan,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    STEPS[options.step](options.model, options.folder, options.threads)


if __name__ == "__main__":
    main()
