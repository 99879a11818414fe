"""What sizes that vary cost: one dynamic package against a fixed one per size, on the same machine.

    python tests/benchmarks/dynamic_against_static.py [bert resnet50] [--layers N] [--sizes 16 128 512] [--threads N]

Calls alternate between the two packages; the medians and their ratio are printed. The project's bound is 1.15.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from transpiler import transpile

SIZES = {"bert": (16, 128, 512), "resnet50": (1, 2, 8)}
ROUNDS = 15


def bert(layers: int) -> tuple[nn.Module, Any, Any]:
    from transformers import BertConfig, BertModel

    module = BertModel(BertConfig(num_hidden_layers=layers)).eval()
    return module, lambda size: {"input_ids": torch.randint(0, 30000, (1, size))}, {1: Dim("seq", min=16, max=512)}


def resnet50(layers: int) -> tuple[nn.Module, Any, Any]:
    from transformers import ResNetConfig, ResNetForImageClassification

    module = ResNetForImageClassification(ResNetConfig()).eval()
    return module, lambda size: {"pixel_values": torch.randn(size, 3, 224, 224)}, {0: Dim("batch", min=1, max=8)}


def seconds(model: Any, inputs: Mapping[str, Any]) -> float:
    start = time.perf_counter()
    model(**inputs)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["bert", "resnet50"])
    parser.add_argument("--layers", type=int, default=12, help="of BERT")
    parser.add_argument("--sizes", type=int, nargs="*")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    for name in options.models:
        module, draw, dims = {"bert": bert, "resnet50": resnet50}[name](options.layers)
        sizes = options.sizes or SIZES[name]
        with tempfile.TemporaryDirectory() as folder:
            given = draw(sizes[0])
            shapes = dict.fromkeys(given, dims)
            package = transpile(module, kwargs=given, dynamic_shapes=shapes, name=f"{name}_any", out=folder)
            varying = package.load(threads=options.threads)
            for size in sizes:
                inputs = draw(size)
                fixed = transpile(module, kwargs=inputs, name=f"{name}_{size}", out=folder).load(
                    threads=options.threads
                )
                arrays = {key: value.numpy() for key, value in inputs.items()}
                times: tuple[list[float], list[float]] = [], []
                for turn in range(ROUNDS + 2):
                    pair = seconds(fixed, arrays), seconds(varying, arrays)
                    if turn >= 2:
                        for values, value in zip(times, pair, strict=True):
                            values.append(value)
                static, dynamic = (statistics.median(values) for values in times)
                print(
                    f"{name} {size}: fixed {static * 1e3:.2f} ms, varying {dynamic * 1e3:.2f} ms, "
                    f"ratio {dynamic / static:.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
