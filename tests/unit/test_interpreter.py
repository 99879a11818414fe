import numpy as np
import pytest
import torch
from torch import nn

from transpiler.capture import capture_module
from transpiler.dims import symbol
from transpiler.importer import import_program
from transpiler.interpreter import bind_op, bind_symbols, run_graph
from transpiler.ir import TensorType, Value
from transpiler.ops import REGISTRY
from transpiler.reference import run_reference
from transpiler.weights import state_arrays


def test_symbols_are_bound() -> None:
    values = [Value("x", TensorType("float32", (symbol("n") * 2 + 1, symbol("m") % 3)))]
    with pytest.raises(ValueError, match="no input has the size m"):
        bind_symbols(values, [np.ones((7, 2), np.float32)])
    assert bind_symbols([Value("x", TensorType("float32", (symbol("n") * 2 + 1,)))], [np.ones(7)]) == {"n": 3}


def test_bind_op() -> None:
    op = REGISTRY["reshape"](shape=(symbol("n") * 2, 3))
    assert bind_op(op, {"n": 4}).attributes()["shape"] == (8, 3)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(32, 5), nn.Softmax(-1),
    )  # fmt: skip


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, 2, batch_first=True)
        self.norm = nn.LayerNorm(6)

    def forward(self, x, state):
        y, (h, c) = self.lstm(x, state)
        return self.norm(y), (h, c)


class Attention(nn.Module):
    def forward(self, q, k, v):
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    ("module", "shapes"),
    [
        (small(), ((2, 3, 4, 4),)),
        (Recurrent(), ((2, 3, 4), ((2, 2, 6), (2, 2, 6)))),
        (Attention(), ((1, 2, 5, 4), (1, 2, 5, 4), (1, 2, 5, 4))),
        (nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Dropout(), nn.Linear(4, 2)), ((3, 4),)),
    ],
)
def test_against_torch(module: nn.Module, shapes: tuple) -> None:
    generator = torch.Generator().manual_seed(1)

    def draw(shape):
        if isinstance(shape[0], tuple):
            return tuple(draw(item) for item in shape)
        return torch.randn(shape, generator=generator)

    captured = capture_module(module, tuple(draw(shape) for shape in shapes))
    imported = import_program(captured)
    flat = [leaf.numpy() for leaf in torch.utils._pytree.tree_leaves(captured.args)]
    ours = run_graph(imported.program, state_arrays(captured.exported_program.state_dict), flat)
    theirs, _ = run_reference(captured, flat, double=True)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_wrong_inputs() -> None:
    imported = import_program(capture_module(Attention(), (torch.zeros(1, 2, 5, 4),) * 3))
    good = np.zeros((1, 2, 5, 4), np.float32)
    with pytest.raises(ValueError, match="1 inputs given, 3 expected"):
        run_graph(imported.program, {}, [good])
    with pytest.raises(ValueError, match=r"input 'k' is float64\[1, 2, 5, 4\], expected float32"):
        run_graph(imported.program, {}, [good, good.astype(np.float64), good])
