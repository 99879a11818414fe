"""Wrong arguments raise an exception that names the argument; they never crash or compute nonsense."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from _cases import CASES, Argument, nest

if TYPE_CHECKING:
    from example import Model

ARGUMENTS = list(enumerate(CASES.arguments))


def _with(index: int, value: Any) -> list[Any]:
    inputs: list[Any] = list(CASES.all[0].inputs())
    inputs[index] = value
    return inputs


@pytest.mark.parametrize(("index", "argument"), ARGUMENTS, ids=[item.name for _, item in ARGUMENTS])
def test_a_wrong_rank_is_refused(model: Model, index: int, argument: Argument) -> None:
    value = CASES.all[0].inputs()[index]
    with pytest.raises(ValueError, match=argument.name) as caught:
        CASES.call(model, _with(index, value[None]))
    assert str(value[None].shape) in str(caught.value), "the message must say what came"
    assert argument.shape_text in str(caught.value), "the message must say what was expected"


@pytest.mark.parametrize(("index", "argument"), ARGUMENTS, ids=[item.name for _, item in ARGUMENTS])
def test_a_wrong_size_is_refused(model: Model, index: int, argument: Argument) -> None:
    fixed = [axis for axis, size in enumerate(argument.shape) if isinstance(size, int)]
    if not fixed:
        pytest.skip(f"{argument.name} has no size that is fixed")
    value = CASES.all[0].inputs()[index]
    grown = np.take(value, [*range(value.shape[fixed[-1]]), 0, 0], axis=fixed[-1])
    with pytest.raises(ValueError, match=argument.name):
        CASES.call(model, _with(index, grown))


@pytest.mark.parametrize(("index", "argument"), ARGUMENTS, ids=[item.name for _, item in ARGUMENTS])
def test_a_wrong_dtype_is_refused(model: Model, index: int, argument: Argument) -> None:
    value = CASES.all[0].inputs()[index]
    with pytest.raises(TypeError, match=argument.name) as caught:
        CASES.call(model, _with(index, value.astype(np.complex128)))
    assert "complex128" in str(caught.value), "the message must say what came"
    assert argument.dtype in str(caught.value), "the message must say what was expected"


@pytest.mark.parametrize(("index", "argument"), ARGUMENTS, ids=[item.name for _, item in ARGUMENTS])
def test_what_is_no_array_is_refused(model: Model, index: int, argument: Argument) -> None:
    with pytest.raises(TypeError, match=argument.name):
        CASES.call(model, _with(index, "not an array"))


def test_a_missing_argument_is_refused(model: Any) -> None:
    if not CASES.arguments:
        pytest.skip("the model takes no tensors")
    with pytest.raises(TypeError):
        model()


def test_an_extra_argument_is_refused(model: Any) -> None:
    args, kwargs = nest(CASES.index["in_structure"], CASES.all[0].inputs())
    extra = [np.zeros((1,), np.float32)] * 32
    with pytest.raises(TypeError):
        model(*args, *extra, **kwargs)


def test_an_unknown_keyword_is_refused(model: Any) -> None:
    args, kwargs = nest(CASES.index["in_structure"], CASES.all[0].inputs())
    with pytest.raises(TypeError, match="no_such_argument"):
        model(*args, **kwargs, no_such_argument=np.zeros((1,), np.float32))


def test_the_model_still_works_after_refusing(model: Model) -> None:
    if not CASES.arguments:
        pytest.skip("the model takes no tensors")
    case = CASES.all[0]
    before = [array.copy() for array in CASES.run(model, case.inputs())]
    with pytest.raises(TypeError):
        CASES.call(model, ["not an array"] * len(CASES.arguments))
    after = CASES.run(model, case.inputs())
    assert [array.tobytes() for array in after] == [array.tobytes() for array in before]
