"""Intermediate values by PyTorch module path equal PyTorch's: a fixed sample of elements, and the norm of the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from _cases import CASES, FUNCTIONS, Function, expected
from _checks import check

if TYPE_CHECKING:
    from example import Model


def test_every_tap_is_recorded(model: Any) -> None:
    assert sorted(model.taps) == sorted(CASES.taps)
    for function in FUNCTIONS[1:]:
        assert model.taps_of(str(function)) == sorted(function.taps)


TAPS = [(function, path) for function in FUNCTIONS for path in sorted(function.taps)]
LABELS = [path if function is CASES else f"{function}-{path}" for function, path in TAPS]


@pytest.mark.parametrize(("function", "path"), TAPS, ids=LABELS)
def test_tap_equals_pytorch(model: Model, function: Function, path: str) -> None:
    inputs = function.case(function.index["taps"]["case"]).inputs()
    got = function.tap(model, path, inputs)
    check(expected(function.taps[path], function.tap_arrays), got, f"tap {path!r}")


def test_an_unknown_tap_is_refused(model: Model) -> None:
    with pytest.raises(KeyError, match=r"no\.such\.module"):
        model.tap("no.such.module")
