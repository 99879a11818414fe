"""Random modules equal PyTorch: native and kernel by kernel, folded and unfolded, on several inputs.

`TRANSPILE_EXAMPLES=1000 pytest tests/properties/test_random_graphs.py` runs more of them.
"""

from __future__ import annotations

import os

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.properties.drawn import Drawn, draw_inputs
from tests.properties.support import assert_equals_pytorch

EXAMPLES = int(os.environ.get("TRANSPILE_EXAMPLES", "30"))
STEPS = st.lists(st.lists(st.integers(0, 255), min_size=6, max_size=6), min_size=2, max_size=14)


@settings(
    max_examples=EXAMPLES,
    derandomize="TRANSPILE_EXAMPLES" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(code=STEPS, returns=st.lists(st.integers(0, 15), max_size=3), fold=st.sampled_from([True, True, True, False]))
def test_random_module(code: list[list[int]], returns: list[int], fold: bool) -> None:
    torch.manual_seed(0)
    module = Drawn(code, returns, draw_inputs(0))
    assert_equals_pytorch(module, [draw_inputs(1), draw_inputs(2), draw_inputs(3, special=True)], fold=fold)
