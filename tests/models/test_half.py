"""Models in half floats end to end: their packages' own tests pass, and fresh inputs agree with float64 PyTorch."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.models.hf import bert_tiny
from tests.models.redraw import redraw
from tests.models.support import Built, convert, fresh, pairs, to_double
from transpiler import transpile


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def mlp() -> Built:
    layers = nn.Linear(33, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 20), nn.Softmax(-1)
    return nn.Sequential(*layers), (_normal(5, 33),), {}


def conv_net() -> Built:
    """A stem, a blocked convolution, a depthwise one, pools and batch norms."""
    layers = (
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 24, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(24), nn.SiLU(),
        nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 7),
    )  # fmt: skip
    return nn.Sequential(*layers), (_normal(2, 3, 17, 19),), {}


def gpt2_tiny() -> Built:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=61, n_positions=16, n_embd=32, n_layer=2, n_head=4, use_cache=False)
    ids = torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(0))
    return GPT2LMHeadModel(config), (ids,), {}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 20, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(40, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states, (hidden, _) = self.lstm(x)
        return self.head(states), hidden


def lstm() -> Built:
    return Recurrent(), (_normal(3, 9, 12),), {}


MODELS: dict[str, Callable[[], Built]] = {
    "mlp": mlp, "conv_net": conv_net, "bert_tiny": bert_tiny, "gpt2_tiny": gpt2_tiny, "lstm": lstm,
}  # fmt: skip
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


def in_dtype(value: Any, dtype: torch.dtype) -> Any:
    return convert(value, lambda item: item.to(dtype) if item.is_floating_point() else item.clone())


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """bfloat16 as float32."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy().copy()


@pytest.mark.parametrize("isa", ["", *(pytest.param(isa, marks=pytest.mark.slow) for isa in ("avx2", "baseline"))])
@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("name", sorted(MODELS))
def test_half(name: str, dtype: str, isa: str, tmp_path: Path) -> None:
    """`isa`: an instruction set, or the best of this machine."""
    module, args, kwargs = MODELS[name]()
    module = redraw(module, 1).to(DTYPES[dtype])
    args, kwargs = in_dtype(args, DTYPES[dtype]), in_dtype(kwargs, DTYPES[dtype])
    package = transpile(
        module, args=args, kwargs=kwargs, target="cpu", name=f"{name}_half", out=tmp_path, quiet=True,
        isa=isa or (),
    )  # fmt: skip
    report = package.test()
    assert report.failed == 0, report.output
    generator = torch.Generator().manual_seed(2)
    args, kwargs = (in_dtype(fresh(item, generator), DTYPES[dtype]) for item in (args, kwargs))
    with torch.no_grad():
        single = module(*in_dtype(args, DTYPES[dtype]), **in_dtype(kwargs, DTYPES[dtype]))
        double = copy.deepcopy(module).double()(*convert(args, to_double), **convert(kwargs, to_double))
    got = package.load()(*convert(args, as_numpy), **convert(kwargs, as_numpy))
    leaves = list(pairs(single, double, got))
    assert leaves
    for one, two, ours in leaves:
        assert str(ours.dtype) == dtype
        exact, values = two.numpy(), ours.astype(np.float64)
        theirs = np.abs(one.double().numpy() - exact).max()
        assert np.abs(values - exact).max() <= 4 * theirs + 4 * EPS[dtype] * np.abs(exact).max()
        # Rounded where PyTorch rounds: no further from it than the two are from the exact result.
        assert np.abs(values - one.double().numpy()).mean() <= 2 * np.abs(one.double().numpy() - exact).mean()
