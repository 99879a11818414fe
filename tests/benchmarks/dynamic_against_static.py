"""What sizes that vary cost: one dynamic package against a fixed one per size, on the same machine.

    python -m tests.benchmarks.dynamic_against_static [bert resnet50] [--layers N] [--sizes 16 128 512] [--threads 1 2]
        [--folder DIR [--build]]

Calls alternate between the two packages, each going first in every other round; the medians and the median of the
ratios of neighbours are printed. The project's bound is 1.15. Packages that `--folder` holds are used as they are, and
with `--build` the missing ones are made and nothing is timed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from transpiler import transpile
from transpiler.loading import load_package

SIZES = {"bert": (16, 128, 512), "resnet50": (1, 2, 4, 8)}
SECONDS = 6.0  # that one comparison may take

Inputs = dict[str, torch.Tensor]


def bert(layers: int) -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(num_hidden_layers=layers)).eval()


def resnet50(layers: int) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig()).eval()


MODELS: Mapping[str, Callable[[int], nn.Module]] = {"bert": bert, "resnet50": resnet50}
DIMS: Mapping[str, Any] = {"bert": {1: Dim("seq", min=16, max=512)}, "resnet50": {0: Dim("batch", min=1, max=8)}}


def draw(name: str, size: int) -> Inputs:
    if name == "bert":
        return {"input_ids": torch.randint(0, 30000, (1, size))}
    return {"pixel_values": torch.randn(size, 3, 224, 224)}


def build(name: str, size: int | None, layers: int, folder: Path, first: int) -> None:
    """The package for one size, or with `size` None the one for all."""
    package = f"{name}_{size or 'any'}"
    if (folder / package).exists():
        return
    torch.manual_seed(0)
    inputs = draw(name, size or first)
    shapes = dict.fromkeys(inputs, DIMS[name]) if size is None else None
    transpile(MODELS[name](layers), kwargs=inputs, dynamic_shapes=shapes, name=package, out=folder, isa="native")
    print(f"{package} built", flush=True)


def seconds(model: Any, inputs: Mapping[str, Any]) -> float:
    start = time.perf_counter()
    model(**inputs)
    return time.perf_counter() - start


def compare(name: str, size: int, threads: int, folder: Path) -> str:
    fixed, varying = (
        load_package(folder / package, package).Model(threads=threads) for package in (f"{name}_{size}", f"{name}_any")
    )
    arrays = {key: value.numpy() for key, value in draw(name, size).items()}
    for model in (fixed, varying):
        seconds(model, arrays)
    rounds = max(7, min(61, int(SECONDS / 2 / seconds(fixed, arrays))))
    pairs = []
    for turn in range(rounds):
        if turn % 2:
            pairs.append((seconds(fixed, arrays), seconds(varying, arrays)))
        else:
            late = seconds(varying, arrays)
            pairs.append((seconds(fixed, arrays), late))
    static, dynamic = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    return (
        f"{name} {size}, {threads} threads: fixed {static * 1e3:.2f} ms, varying {dynamic * 1e3:.2f} ms, "
        f"ratio {ratio:.3f} ({rounds} rounds)"
    )


def run(names: Sequence[str], options: argparse.Namespace, folder: Path) -> None:
    for name in names:
        sizes = options.sizes or SIZES[name]
        for size in (None, *sizes):
            build(name, size, options.layers, folder, sizes[0])
        if not options.build:
            for threads in options.threads:
                for size in sizes:
                    print(compare(name, size, threads, folder), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["bert", "resnet50"])
    parser.add_argument("--layers", type=int, default=12, help="of BERT")
    parser.add_argument("--sizes", type=int, nargs="*")
    parser.add_argument("--threads", type=int, nargs="*", default=[1])
    parser.add_argument("--folder", type=Path, help="where packages are kept")
    parser.add_argument("--build", action="store_true", help="only make the packages")
    options = parser.parse_args()
    if options.folder is not None:
        run(options.models, options, options.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        run(options.models, options, Path(folder))


if __name__ == "__main__":
    main()
