"""The same inputs give the same bits: in every call, in every thread, natively and kernel by kernel."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from _cases import ALL, CASES, FUNCTIONS, Case, Function, same_bits

if TYPE_CHECKING:
    from example import Model

each_function = pytest.mark.parametrize("function", FUNCTIONS, ids=str)


@each_function
def test_second_and_tenth_call_equal_the_first(model: Model, function: Function) -> None:
    inputs = function.all[0].inputs()
    calls = [[array.copy() for array in function.run(model, inputs)] for _ in range(10)]
    assert same_bits(calls[1], calls[0])
    assert same_bits(calls[9], calls[0])


def test_two_threads_equal_one(model: Any) -> None:
    """Two threads run two different cases at once, several times; each gets what one thread alone gets."""
    first, last = ALL[0], ALL[-1]
    alone = [[array.copy() for array in case.run(model)] for case in (first, last)]

    def repeat(case: Case) -> list[list[np.ndarray]]:
        # Calls that draw random numbers have an order: each thread then has a session of its own.
        owner = model.session() if CASES.index["random"] else model
        inputs = case.inputs()
        return [case.function.run(owner, inputs) for _ in range(5)]

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(repeat, (first, last)))
    for want, calls in zip(alone, together, strict=True):
        assert len(calls) == 5
        assert all(same_bits(got, want) for got in calls)


@each_function
def test_kernels_are_timed_in_order(model: Model, function: Function) -> None:
    events = model.timeline(*function.all[0].inputs(), function=str(function))
    times = [time for event in events for time in (event.start, event.end)]
    assert times == sorted(times)
    assert {event.kernel for event in events} <= model.manifest["kernels"].keys()


@pytest.mark.parametrize("case", ALL, ids=str)
def test_native_equals_kernel_by_kernel(model: Model, kernel_by_kernel: Model, case: Case) -> None:
    native = case.run(model)
    stepwise = case.run(kernel_by_kernel)
    assert same_bits(native, stepwise)


@each_function
def test_a_later_call_leaves_earlier_outputs_alone(model: Model, function: Function) -> None:
    owner = function.fresh(model)
    earlier = function.run_on(owner, function.all[0].inputs())
    kept = [array.copy() for array in earlier]
    for case in function.all[1:4]:
        if function.state:
            owner.reset()
        function.run_on(owner, case.inputs())
    assert same_bits(earlier, kept)


@pytest.mark.parametrize("case", [case for function in FUNCTIONS for case in function.all[:2]], ids=str)
def test_inputs_are_not_modified(model: Model, case: Case) -> None:
    inputs = case.inputs()
    case.function.run(model, inputs)
    assert same_bits(inputs, case.inputs())


@each_function
def test_strided_and_read_only_inputs_give_the_same(model: Model, function: Function) -> None:
    inputs = function.all[0].inputs()
    want = [array.copy() for array in function.run(model, inputs)]
    strided = [np.repeat(array[..., None], 2, axis=-1)[..., 0] for array in inputs]
    for array in inputs:
        array.flags.writeable = False
    assert same_bits(function.run(model, strided), want)
    assert same_bits(function.run(model, inputs), want)
