"""Modules that once gave wrong numbers or no package, found by review and by `test_random_graphs.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.properties.calls import Call, Graph, Made, Ref, Weight
from tests.properties.support import assert_equals_pytorch, built
from tests.properties.verdicts import judge
from transpiler.errors import TranspileErrors

NAN, INF = float("nan"), float("inf")


class Function(nn.Module):
    """`f(module, *inputs)` with some members."""

    def __init__(self, f: Callable[..., Any], members: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.f = f
        for name, member in (members or {}).items():
            setattr(self, name, member)

    def forward(self, *inputs: Tensor) -> Any:
        return self.f(self, *inputs)


def check(f: Callable[..., Any], *inputs: Tensor, fold: bool = True, **members: Any) -> None:
    assert_equals_pytorch(Function(f, members), [inputs], fold=fold)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_an_operand_computed_before_a_product_is_part_of_its_epilogue() -> None:
    def f(m: Any, x: Tensor, bias: Tensor) -> Any:
        early = torch.exp(x)
        later = m.linear(x) + early
        return later, m.linear(x * 2) * torch.full((8,), 2.0) + torch.tanh(bias), m.linear(x + 1) + bias.expand(3, 8)

    check(f, torch.randn(3, 8), torch.randn(8), linear=nn.Linear(8, 8))


def test_an_index_mapping_stays_out_of_a_products_epilogue() -> None:
    def f(m: Any, x: Tensor, y: Tensor, ids: Tensor) -> Any:
        return m.linear(x) + m.table(ids), m.linear(x * 2) + y.transpose(0, 1), x.sum(1) + y[0, :3].flip(0)

    ids = torch.tensor([4, 0, 2])
    check(f, torch.randn(3, 8), torch.randn(8, 3), ids, linear=nn.Linear(8, 8), table=nn.Embedding(5, 8))


def test_a_map_made_before_a_convolution_is_added_to_its_result() -> None:
    def f(m: Any, x: Tensor) -> Any:
        return m.conv(x) * 2.0 + torch.exp(x) * 2.0

    check(f, torch.randn(1, 16, 6, 6), conv=nn.Conv2d(16, 16, 3, padding=1))


def test_comparisons_of_nan_are_not_simplified() -> None:
    def f(_: Any, x: Tensor, y: Tensor) -> Any:
        orders = (x == x, x != x, x <= x, (x <= y) | (x > y), (x < y) & (x >= y), ~(x < y), ~(x < y) | (x < y))
        chosen = torch.where(x < y, 1.0, torch.where(x >= y, 2.0, 3.0))
        return (*orders, chosen)

    check(f, torch.tensor([1.0, NAN, 2.0, INF] * 8), torch.randn(32))


def test_arithmetic_of_one_value_with_itself_is_not_simplified() -> None:
    def f(_: Any, x: Tensor) -> Any:
        return x - x, x / x, x * 0, (x + 1) - (x + 1), torch.minimum(x, x)

    check(f, torch.tensor([1.0, NAN, 0.0, INF] * 8))


def test_zeros_of_both_signs_are_two_constants() -> None:
    def f(_: Any, x: Tensor) -> Any:
        return 1 / (x + torch.full((4,), 0.0)), 1 / (x + torch.full((4,), -0.0))

    check(f, torch.tensor([1.0, -2.0, -0.0, 0.0]))


def test_a_weight_broadcast_twice_is_prepared() -> None:
    def f(m: Any, x: Tensor) -> Tensor:
        return F.conv2d(x, m.kernel.expand(1, 1, 3, 3).expand(4, 1, 3, 3))

    check(f, torch.randn(1, 1, 3, 8), kernel=nn.Parameter(torch.randn(3, 3)))


@pytest.mark.parametrize("fold", [True, False])
def test_a_module_whose_output_only_a_check_reads(fold: bool) -> None:
    def f(m: Any, x: Tensor) -> Tensor:
        (m.linear(x) < m.weight).to(torch.float32)
        return x + 1

    check(f, torch.randn(3, 8), fold=fold, linear=nn.Linear(8, 8), weight=nn.Parameter(torch.randn(8)))


def test_more_elements_than_an_offset_counts_are_refused() -> None:
    module = Function(lambda _, x: (x[:, None] + x[None, :]).cumsum(1).sum(1))
    with pytest.raises(TranspileErrors, match="2\\^31 elements"), built(module, [torch.zeros(50_000)]):
        pass


# --- graphs that `python -m tests.properties` found -----------------------------------------------------------------

BATCH_OF_MATRICES = Made((7, 16, 4, 4), varies=True)
FOUND: dict[str, Graph] = {
    # The arena of a plan whose sizes vary had no room for a workspace that has one size for all of them.
    "workspace_of_one_size": Graph(
        (BATCH_OF_MATRICES,), (Call("torch.matmul", (Ref(0), Weight(0))),), (1,), (Made((4,)),)
    ),
    "workspace_of_one_size_attention": Graph(
        (Made((7, 3, 1), varies=True),),
        (Call("F.scaled_dot_product_attention", (Ref(0), Ref(0), Ref(0)), {"is_causal": True}),),
        (1,),
    ),
    # PyTorch's composite attention keeps a row of NaN, its fused kernel (rank 4) does not.
    "attention_of_nan": Graph(
        (Made((3, 4), torch.float64), Made((2, 3, 5, 4))),
        (
            Call("F.scaled_dot_product_attention", (Ref(0), Ref(0), Ref(0)), {"is_causal": True}),
            Call("F.scaled_dot_product_attention", (Ref(1), Ref(1), Ref(1))),
        ),
        (2, 3),
    ),
    "bools_accumulated": Graph(
        (Made((1, 2, 3), torch.bool),),
        (Call("aten.index_put.default", (Ref(0), [Weight(0)], Ref(0), True)),),
        (1,),
        (Made((2, 2), torch.int64, "index"),),
    ),
    "bounds_of_bools": Graph(
        (Made((3, 4), torch.bool), Made((4,), torch.bool)),
        (
            Call("aten.clamp_max.Tensor", (Ref(0), Ref(1))),
            Call("aten.fmin.default", (Ref(0), Ref(1))),
            Call("aten.fmax.default", (Ref(0), Ref(1))),
        ),
        (2, 3, 4),
    ),
    # TVM takes a product with 0 for 0.
    "slope_of_zero": Graph(
        (Made((3, 4)), Made((5,), torch.float16)),
        (Call("aten.leaky_relu.default", (Ref(0), 0)), Call("aten.leaky_relu.default", (Ref(1), 0))),
        (2, 3),
    ),
    # Of no axis: element by element, where a sum takes an empty list for all axes.
    "truth_of_no_axis": Graph(
        (Made((3, 4)),),
        (
            Call("aten.any.dims", (Ref(0), [])),
            Call("aten.all.dims", (Ref(0), [], True)),
            Call("aten.sum.dim_IntList", (Ref(0), [])),
        ),
        (1, 2, 3),
    ),
    # `dynamic_shapes` has one entry for all that `forward(*inputs)` takes.
    "several_vectors_that_vary": Graph(
        (Made((7,), varies=True), Made((7,), varies=True)), (Call("aten.ne.Tensor", (Ref(0), Ref(1))),), (2,)
    ),
}


@pytest.mark.parametrize("varies", [False, True])
def test_graphs_that_were_found(varies: bool) -> None:
    named = {name: graph for name, graph in FOUND.items() if graph.varies == varies}
    verdicts = dict(zip(named, judge(list(named.values())), strict=True))
    bad = {name: verdict.text() for name, verdict in verdicts.items() if verdict.outcome != "equal"}
    assert not bad, "\n\n".join(f"{name}\n{text}" for name, text in bad.items())
