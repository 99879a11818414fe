"""Loading the model files, and a comparison that shares no code with the transpiler's own."""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.models.redraw import redraw
from transpiler.model_file import load_model_file

FOLDER = Path(__file__).parent
# Every file here that defines example inputs is a model.
FILES = sorted(
    path.stem
    for path in FOLDER.glob("*.py")
    if not path.stem.startswith("test_") and "\ndef example_inputs" in path.read_text()
)
Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def load(name: str, seed: int = 1) -> Built:
    """The model of a file, its weights redrawn, and its example inputs."""
    loaded = load_model_file(FOLDER / f"{name}.py")
    return redraw(loaded.module, seed), tuple(loaded.args), dict(loaded.kwargs)


def fresh(value: Any, generator: torch.Generator) -> Any:
    """Random tensors like those in `value`; integers stay below the example's largest plus one."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            return torch.randn(value.shape, generator=generator)
        if value.dtype == torch.bool:
            return torch.rand(value.shape, generator=generator) < 0.5
        drawn = torch.randint(int(value.min()), int(value.max()) + 1, value.shape, generator=generator)
        if int(value.max()) == 1 and value.ndim == 2:
            drawn[:, 0] = 1  # a mask that hides everything is no use
        return drawn.to(value.dtype)
    if isinstance(value, tuple | list):
        return type(value)(fresh(item, generator) for item in value)
    if isinstance(value, dict):
        return {key: fresh(item, generator) for key, item in value.items()}
    return value


def convert(value: Any, function: Any) -> Any:
    """`function` of every tensor."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, tuple | list):
        return type(value)(convert(item, function) for item in value)
    if isinstance(value, dict):
        return {key: convert(item, function) for key, item in value.items()}
    return value


def to_double(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in float64, if it holds floats."""
    return tensor.double() if tensor.is_floating_point() else tensor.clone()


def pairs(expected: Any, *others: Any) -> Iterator[tuple[Any, ...]]:
    """The leaves of PyTorch's result with those at the same places of the others."""
    if isinstance(expected, torch.Tensor):
        yield (expected, *others)
    elif isinstance(expected, Mapping):
        for key, item in expected.items():
            if item is not None:
                yield from pairs(item, *(other[key] for other in others))
    elif isinstance(expected, tuple | list):
        for index, item in enumerate(expected):
            yield from pairs(item, *(other[index] for other in others))


def assert_equal_to_pytorch(model: Any, built: Built, seed: int) -> None:
    """Fresh inputs through package and PyTorch: within 4 times PyTorch's own error plus 128 roundings."""
    module, args, kwargs = built
    generator = torch.Generator().manual_seed(seed)
    args, kwargs = fresh(args, generator), fresh(kwargs, generator)
    with torch.no_grad():
        single = module(*convert(args, torch.clone), **convert(kwargs, torch.clone))
        double = copy.deepcopy(module).double()(*convert(args, to_double), **convert(kwargs, to_double))
    got = model(*convert(args, lambda x: x.numpy().copy()), **convert(kwargs, lambda x: x.numpy().copy()))
    leaves = list(pairs(single, double, got))
    assert leaves
    for one, two, ours in leaves:
        assert ours.dtype == one.numpy().dtype
        assert ours.shape == tuple(one.shape)
        if not one.is_floating_point():
            agree = (one == two).numpy()
            np.testing.assert_array_equal(ours[agree], one.numpy()[agree])
            continue
        exact = two.numpy()
        assert np.isfinite(exact).all(), "the model is no test if its outputs are not finite"
        theirs = np.abs(one.numpy() - exact).max(initial=0)
        allowed = 4 * theirs + 128 * np.finfo(np.float32).eps * np.abs(exact).max(initial=0)
        assert np.abs(ours - exact).max(initial=0) <= allowed
