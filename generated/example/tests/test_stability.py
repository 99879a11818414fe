"""The same inputs give the same bits: in every call, in every thread, natively and kernel by kernel."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from _cases import CASES, Case, same_bits

if TYPE_CHECKING:
    from example import Model


def test_second_and_tenth_call_equal_the_first(model: Model) -> None:
    inputs = CASES.all[0].inputs()
    calls = [[array.copy() for array in CASES.run(model, inputs)] for _ in range(10)]
    assert same_bits(calls[1], calls[0])
    assert same_bits(calls[9], calls[0])


def test_two_threads_equal_one(model: Model) -> None:
    """Two threads run two different cases at once, several times; each gets what one thread alone gets."""
    first, last = CASES.all[0], CASES.all[-1]
    alone = [[array.copy() for array in CASES.run(model, case.inputs())] for case in (first, last)]

    def repeat(case: Case) -> list[list[np.ndarray]]:
        inputs = case.inputs()
        return [CASES.run(model, inputs) for _ in range(5)]

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(repeat, (first, last)))
    for want, calls in zip(alone, together, strict=True):
        assert len(calls) == 5
        assert all(same_bits(got, want) for got in calls)


@pytest.mark.parametrize("case", CASES.all, ids=str)
def test_native_equals_kernel_by_kernel(model: Model, kernel_by_kernel: Model, case: Case) -> None:
    native = CASES.run(model, case.inputs())
    stepwise = CASES.run(kernel_by_kernel, case.inputs())
    assert same_bits(native, stepwise)


def test_a_later_call_leaves_earlier_outputs_alone(model: Model) -> None:
    earlier = CASES.run(model, CASES.all[0].inputs())
    kept = [array.copy() for array in earlier]
    for case in CASES.all[1:4]:
        CASES.run(model, case.inputs())
    assert same_bits(earlier, kept)


@pytest.mark.parametrize("case", CASES.all[:2], ids=str)
def test_inputs_are_not_modified(model: Model, case: Case) -> None:
    inputs = case.inputs()
    CASES.run(model, inputs)
    assert same_bits(inputs, case.inputs())


def test_strided_and_read_only_inputs_give_the_same(model: Model) -> None:
    inputs = CASES.all[0].inputs()
    want = [array.copy() for array in CASES.run(model, inputs)]
    strided = [np.repeat(array[..., None], 2, axis=-1)[..., 0] for array in inputs]
    for array in inputs:
        array.flags.writeable = False
    assert same_bits(CASES.run(model, strided), want)
    assert same_bits(CASES.run(model, inputs), want)
