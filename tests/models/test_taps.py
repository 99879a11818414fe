"""`model.tap(path)` gives what PyTorch's module at `path` returns, seen by hooks on the module itself."""

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.models import hf
from tests.models.generated import GeneratedTests
from tests.models.redraw import redraw
from tests.models.support import FILES, Built, convert, fresh, load, pairs, to_double
from transpiler import transpile
from transpiler.errors import UsageError

# Their call hands out several tensors: there is no one value at their path.
SEVERAL = (nn.LSTM, nn.GRU)


def hooked(module: nn.Module, args: Any, kwargs: Any) -> dict[str, list[torch.Tensor]]:
    """The tensors that every call of every module returns; the k-th call of a module is `path#k`."""
    values: dict[str, list[torch.Tensor]] = {}
    calls: Counter[str] = Counter()

    def hook(path: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            calls[path] += 1
            # Copies: the next module may work in place.
            values[path if calls[path] == 1 else f"{path}#{calls[path]}"] = [
                tensor.clone() for (tensor,) in pairs(output)
            ]

        return keep

    handles = [item.register_forward_hook(hook(path)) for path, item in module.named_modules() if path]
    with torch.no_grad():
        module(*args, **kwargs)
    for handle in handles:
        handle.remove()
    return values


def check_taps(model: Any, built: Built, seed: int = 5) -> set[str]:
    """Every path of `model.taps` against the hooks, for fresh inputs; the paths whose module returns one tensor.

    Of a module that returns several, the one that the model goes on with may have a value.
    """
    module, args, kwargs = built
    generator = torch.Generator().manual_seed(seed)
    args, kwargs = fresh(args, generator), fresh(kwargs, generator)
    single = hooked(module, convert(args, torch.clone), convert(kwargs, torch.clone))
    double = hooked(copy.deepcopy(module).double(), convert(args, to_double), convert(kwargs, to_double))
    assert model.taps
    for path in model.taps:
        got = model.tap(path)(*convert(args, torch.Tensor.numpy), **convert(kwargs, torch.Tensor.numpy))
        returned = zip(single[path], double[path], strict=True)
        assert any(_equal(got, theirs.numpy(), exact.numpy()) for theirs, exact in returned), path
    return {path for path, tensors in single.items() if len(tensors) == 1}


def _equal(got: np.ndarray, theirs: np.ndarray, exact: np.ndarray) -> bool:
    if got.shape != theirs.shape or got.dtype != theirs.dtype:
        return False
    if got.dtype.kind != "f":
        return np.array_equal(got, theirs)
    error = np.abs(theirs - exact).max(initial=0)
    allowed = 4 * error + 128 * np.finfo(np.float32).eps * np.abs(exact).max(initial=0)
    return bool(np.abs(got - exact).max(initial=0) <= allowed)


def build(built: Built, name: str, out: Path, **options: Any) -> Any:
    return transpile(built[0], args=built[1], kwargs=built[2], name=name, out=out, **options)


@pytest.mark.parametrize("name", FILES)
def test_every_module_path_with_all_taps(name: str, tmp_path: Path) -> None:
    """Unfused and unfolded: every module call that returns a tensor has a value, and it is PyTorch's."""
    built = load(name)
    package = build(built, name, tmp_path, taps="all")
    model = package.load()
    assert check_taps(model, built) == set(model.taps)
    # And the generated tests hold all of them.
    generated = GeneratedTests(package.path)
    assert generated.failures(model) == []
    generated.check_taps(model)
    without = {
        path
        for path, item in built[0].named_modules()
        if path and not isinstance(item, (nn.ModuleList, nn.ModuleDict, *SEVERAL))
    }
    assert without <= {path.partition("#")[0] for path in model.taps}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert_2layer", "resnet50"])
def test_every_module_path_of_large_models(name: str, tmp_path: Path) -> None:
    module, args, kwargs = hf.FAST[name]()
    built = redraw(module, 1), args, kwargs
    package = build(built, name, tmp_path, taps="all")
    model = package.load()
    # Modules that return what they were given have no value of their own.
    assert check_taps(model, built) <= set(model.taps) | _identities(built)
    GeneratedTests(package.path).check_taps(model)


def _identities(built: Built) -> set[str]:
    return {path for path, item in built[0].named_modules() if isinstance(item, nn.Identity | nn.Dropout)}


@pytest.mark.parametrize("name", ["bottleneck_block", "unet", "mlp"])
def test_a_fused_package(name: str, tmp_path: Path) -> None:
    """The values that fusion left are PyTorch's; the others name one that exists."""
    built = load(name)
    model = build(built, name, tmp_path).load()
    fused = check_taps(model, built) - set(model.taps)
    assert fused, "nothing was fused: this test shows nothing"
    for path in fused:
        with pytest.raises(KeyError) as caught:
            model.tap(path)
        nearest = [other for other in model.taps if f"the nearest value is {other!r}" in str(caught.value)]
        assert nearest, caught.value
        model.tap(nearest[0])


# Globs, paths that must be there, and paths that are still fused.
PINNED = [
    ("bottleneck_block", "0.conv?,*bn2", {"0.conv1", "0.conv2", "0.bn2", "1.bn2"}, {"0.bn1", "1.conv1", "1.conv2"}),
    ("mnist", "conv?", {"conv1", "conv2"}, {"fc1"}),
    ("mlp", "*", set(), set()),
    ("cifar", "*", set(), set()),
]


@pytest.mark.parametrize(("name", "glob", "present", "absent"), PINNED, ids=[case[0] for case in PINNED])
def test_a_glob_pins_what_it_matches(name: str, glob: str, present: set[str], absent: set[str], tmp_path: Path) -> None:
    built = load(name)
    package = build(built, name, tmp_path, taps=glob)
    model = package.load()
    returned = check_taps(model, built)
    assert present <= set(model.taps)
    assert not absent & set(model.taps)
    if glob == "*":
        assert set(model.taps) == returned
    generated = GeneratedTests(package.path)
    assert generated.failures(model) == []
    generated.check_taps(model)


def test_only_what_matches_is_unfused(tmp_path: Path) -> None:
    def kernels(**options: Any) -> int:
        return build(load("bottleneck_block"), "block", tmp_path, **options).report.kernels

    assert kernels() < kernels(taps="0.conv1") < kernels(taps="all")


def test_a_glob_that_matches_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)--taps 'fc9' matches no module.*module paths are: fc2, fc1"):
        build(load("mnist"), "mnist", tmp_path, taps="fc9")
