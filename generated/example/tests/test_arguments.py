"""Wrong arguments raise an exception that names the argument; they never crash or compute nonsense."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from _cases import FUNCTIONS, Argument, Array, Function, nest

if TYPE_CHECKING:
    from example import Model

ARGUMENTS = [(function, index) for function in FUNCTIONS for index in range(len(function.arguments))]


def _each(arguments: list[tuple[Function, int]]) -> pytest.MarkDecorator:
    names = [(function, function.arguments[index].name) for function, index in arguments]
    labels = [name if len(FUNCTIONS) == 1 else f"{function}-{name}" for function, name in names]
    return pytest.mark.parametrize(("function", "index"), arguments, ids=labels)


each_argument = _each(ARGUMENTS)
# The arguments that have a size that is fixed.
SIZED = [
    item for item in ARGUMENTS if any(isinstance(size, int) for size in item[0].arguments[item[1]].shape)
]
TAKING = [function for function in FUNCTIONS if function.arguments]
each_function = pytest.mark.parametrize("function", FUNCTIONS, ids=str)
each_taking = pytest.mark.parametrize("function", TAKING, ids=str)


def _given(function: Function, index: int) -> tuple[Argument, Array]:
    return function.arguments[index], function.all[0].inputs()[index]


def _with(function: Function, index: int, value: Any) -> list[Any]:
    inputs: list[Any] = list(function.all[0].inputs())
    inputs[index] = value
    return inputs


@each_argument
def test_a_wrong_rank_is_refused(model: Model, function: Function, index: int) -> None:
    argument, value = _given(function, index)
    with pytest.raises(ValueError, match=argument.name) as caught:
        function.call(model, _with(function, index, value[None]))
    assert str(value[None].shape) in str(caught.value), "the message must say what came"
    assert argument.shape_text in str(caught.value), "the message must say what was expected"


@_each(SIZED)
def test_a_wrong_size_is_refused(model: Model, function: Function, index: int) -> None:
    argument, value = _given(function, index)
    fixed = [axis for axis, size in enumerate(argument.shape) if isinstance(size, int)]
    grown = np.take(value, [*range(value.shape[fixed[-1]]), 0, 0], axis=fixed[-1])
    with pytest.raises(ValueError, match=argument.name):
        function.call(model, _with(function, index, grown))


@each_argument
def test_a_wrong_dtype_is_refused(model: Model, function: Function, index: int) -> None:
    argument, value = _given(function, index)
    with pytest.raises(TypeError, match=argument.name) as caught:
        function.call(model, _with(function, index, value.astype(np.complex128)))
    assert "complex128" in str(caught.value), "the message must say what came"
    assert argument.dtype in str(caught.value), "the message must say what was expected"


@each_argument
def test_what_is_no_array_is_refused(model: Model, function: Function, index: int) -> None:
    argument, value = _given(function, index)
    with pytest.raises(TypeError, match=argument.name):
        function.call(model, _with(function, index, "not an array"))


@each_taking
def test_a_missing_argument_is_refused(model: Any, function: Function) -> None:
    with pytest.raises(TypeError):
        function.of(model)()


@each_function
def test_an_extra_argument_is_refused(model: Any, function: Function) -> None:
    args, kwargs = nest(function.index["in_structure"], function.all[0].inputs())
    extra = [np.zeros((1,), np.float32)] * 32
    with pytest.raises(TypeError):
        function.of(model)(*args, *extra, **kwargs)


@each_function
def test_an_unknown_keyword_is_refused(model: Any, function: Function) -> None:
    args, kwargs = nest(function.index["in_structure"], function.all[0].inputs())
    with pytest.raises(TypeError, match="no_such_argument"):
        function.of(model)(*args, **kwargs, no_such_argument=np.zeros((1,), np.float32))


@each_taking
def test_the_model_still_works_after_refusing(model: Model, function: Function) -> None:
    case = function.all[0]
    before = [array.copy() for array in case.run(model)]
    with pytest.raises(TypeError):
        function.call(model, ["not an array"] * len(function.arguments))
    after = case.run(model)
    assert [array.tobytes() for array in after] == [array.tobytes() for array in before]
