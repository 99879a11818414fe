"""The models of the other targets' suites on CUDA: machine code of every one of them, without a GPU; and a layer of
BERT in its own width through the whole runtime, over the stand-in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cuda import standin
from tests.models.hf import FAST, SLOW, Built
from tests.models.redraw import redraw
from tests.models.support import FILES, assert_equal_to_pytorch, load
from tests.zoo.entry import Entry
from tests.zoo.expected import REFUSED
from tests.zoo.registry import entries
from transpiler import pipeline, transpile
from transpiler.frontend import read_model
from transpiler.gpu.cubin import operations, usage
from transpiler.gpu.cuda import cuda_source
from transpiler.gpu.nvrtc import compile_code
from transpiler.lower import lower
from transpiler.request import Precision, Request
from transpiler.target import load_targets

MODELS: dict[str, Callable[[], Built]] = {**FAST, **SLOW}
# What the text of a kernel calls, and the instruction that it stands for in machine code.
PROMISED = {r"\bwgmma_": "HGMMA", r"\bmma_": "HMMA", r"\bcopies_": "LDGSTS", r"\bCUtensorMap\b": "UTMALDG"}
ZOO = {item.name: item for item in entries() if item.name not in REFUSED}


def machine_code(built: Built, precision: Precision = "float32") -> tuple[list[str], Counter[str]]:
    """What is wrong with a model's kernels (missing ones, local memory where units for products or copies are at work,
    instructions that the text has and the machine code has not), and how many have which instruction."""
    module, args, kwargs = built
    request = Request(module, args, kwargs, targets=("cuda",), precision=precision)
    model = read_model(request, precision)
    wrong: list[str] = []
    seen: Counter[str] = Counter()
    for target in load_targets("cuda"):
        arch = target.gpu.arch
        kernels = lower(pipeline._rewrite(model.program, request, target), target).kernels
        source = cuda_source(kernels, target.tvm_target())
        cubin = compile_code(source.text, arch).cubin
        used, found = usage(cubin), operations(cubin)
        entries_of = {launch.entry for launches in source.launches.values() for launch in launches}
        bodies = {entry: body(source.text, entry) for entry in entries_of}
        for entry, text in bodies.items():
            promised = {name for word, name in PROMISED.items() if re.search(word, text)}
            seen.update(promised)
            wrong += [f"{arch}: {entry} has no {name}" for name in promised if not found[entry][name]]
            if promised and used[entry].stack:
                wrong.append(f"{arch}: {entry} has {used[entry].stack} bytes of local memory")
    return wrong, seen


def body(text: str, entry: str) -> str:
    """A kernel with its arguments. Raises ValueError: it is not there."""
    (found,) = [part for part in text.split('extern "C"') if re.search(rf"\b{entry}\([^;{{]*\) {{", part)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_machine_code_of_model_files(name: str) -> None:
    assert not machine_code(load(name))[0]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_machine_code_of_large_models(name: str, precision: Precision) -> None:
    wrong, seen = machine_code(MODELS[name](), precision)
    assert not wrong
    assert seen["LDGSTS"] > 0, "products copy ahead"
    assert (seen["HMMA"] + seen["HGMMA"] > 0) == (precision == "bfloat16")
    assert (seen["UTMALDG"] > 0) == (seen["HGMMA"] > 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_machine_code_of_the_zoo(name: str) -> None:
    entry: Entry = ZOO[name]
    module, args, kwargs = entry.build()
    assert not machine_code((module.eval(), args, kwargs))[0]


def bert_layer() -> Built:
    """The first layer of BERT-base with the embeddings before it, of fewer words and tokens."""
    import torch
    from transformers import BertConfig, BertModel

    config = BertConfig(num_hidden_layers=1, vocab_size=211)
    mask = torch.ones(1, 13, dtype=torch.int64)
    mask[:, -4:] = 0
    ids = torch.randint(0, 211, (1, 13), generator=torch.Generator().manual_seed(0))
    return redraw(BertModel(config), 1), (ids,), {"attention_mask": mask}


@pytest.mark.slow
@pytest.mark.usefixtures("driver")
def test_a_layer_of_bert(tmp_path: Path) -> None:
    built = bert_layer()
    module, args, kwargs = built
    package = transpile(
        module, args=args, kwargs=kwargs, target="cuda", arch="sm_80", name="layer", out=tmp_path, test=False
    )
    with package.load() as model:
        for seed in (2, 3):
            assert_equal_to_pytorch(model, built, seed)
    assert standin.faults() == ""
