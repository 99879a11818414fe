"""The outputs equal PyTorch's, within a tolerance derived from PyTorch in float64 (see _checks.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from _cases import ALL, Case
from _checks import compare, meaningful_ratio, unit

if TYPE_CHECKING:
    from example import Model


@pytest.mark.parametrize("case", ALL, ids=str)
def test_outputs_equal_pytorch(each_isa: Model, case: Case) -> None:
    got = case.run(each_isa)
    expected = case.outputs()
    assert len(got) == len(expected), f"expected {len(expected)} outputs, got {len(got)}"
    comparisons = [compare(*pair, f"case {case.name!r}") for pair in zip(expected, got, strict=True)]
    wrong = [comparison.message for comparison in comparisons if comparison.message]
    assert not wrong, "\n".join(wrong)


def test_the_tolerance_is_tight_enough_to_mean_something() -> None:
    """At least one case has an output whose values are far above its tolerance (or that is compared exactly)."""
    outputs = [item for case in ALL for item in case.outputs() if item.torch.size]
    meaningful = [
        item
        for item in outputs
        if item.tolerance == 0
        or (abs(item.float64) > meaningful_ratio(unit(item.dtype, item.precision)) * item.tolerance).any()
    ]
    assert meaningful or not outputs, "every output is within a few of its tolerances"
