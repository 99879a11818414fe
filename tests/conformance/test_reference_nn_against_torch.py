"""The importers of the neural-network ops against the torch overloads they stand for, on the same inputs."""

from __future__ import annotations

import pytest

from tests.conformance import nn_cases, nn_map_cases
from tests.conformance.eager import compare, run_import
from tests.conformance.nn_cases import Case, case, draw, positive
from transpiler.ops.base import ATEN

FAMILIES = (
    nn_cases.activations, nn_cases.products, nn_cases.norms, nn_cases.softmaxes, nn_cases.attentions,
    nn_cases.recurrences, nn_cases.lookups, nn_map_cases.convolutions, nn_map_cases.pools,
    nn_map_cases.resizes,
)  # fmt: skip
CASES = [item for family in FAMILIES for item in family()]


@pytest.mark.parametrize("item", CASES, ids=[f"{n}-{item[0]}" for n, item in enumerate(CASES)])
def test_importer_equals_torch(item: Case) -> None:
    overload, args, options = item
    compare(overload, *args, **({"rtol": 2e-5, "atol": 4e-6} | options))


REFUSED = [
    case("gru.data", draw(3, 4)),
    case("rnn_tanh.data", draw(3, 4)),
    case("rnn_relu.data", draw(3, 4)),
    case("lstm.data", draw(3, 4)),
    case("gru.input", draw(5, 3, 4), draw(1, 3, 6), [draw(3)] * 4, True, 1, 0.5, True, False, False),
    case("batch_norm.default", draw(2, 3), None, None, draw(3), positive(3), True, 0.1, 1e-5, True),
    case("instance_norm.default", draw(2, 3, 4), None, None, draw(3), positive(3), True, 0.1, 1e-5, True),
    case("_native_batch_norm_legit.default", draw(2, 3), None, None, draw(3), positive(3), True, 0.1, 1e-5),
    case("scaled_dot_product_attention.default", *[draw(2, 3, 4)] * 3, None, 0.1),
]  # fmt: skip


@pytest.mark.parametrize("item", REFUSED, ids=[item[0] for item in REFUSED])
def test_refused_with_a_reason(item: Case) -> None:
    overload, args, options = item
    with pytest.raises(NotImplementedError, match=r"\w+ \w+"):
        run_import(overload, [], *args, **options)


MODULES = (
    "activation", "adaptive_pool", "attention", "conv", "dropout", "einsum", "embedding", "grid_sample",
    "linalg",
    "norm_layers", "pool", "resize", "rnn_layers", "softmax",
)  # fmt: skip


def test_every_importer_is_exercised() -> None:
    """By a comparison or a refusal."""
    mine = {
        overload
        for overload, function in ATEN.items()
        if function.__module__.removeprefix("transpiler.ops.") in MODULES
    }
    covered = {item[0] for item in (*CASES, *REFUSED)}
    assert sorted(mine - covered) == []
