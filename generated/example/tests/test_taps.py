"""Intermediate values by PyTorch module path equal PyTorch's: a fixed sample of elements, and the norm of the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from _cases import CASES, expected
from _checks import check

if TYPE_CHECKING:
    from example import Model


def test_every_tap_is_recorded(model: Model) -> None:
    assert sorted(model.taps) == sorted(CASES.taps)


@pytest.mark.parametrize("path", sorted(CASES.taps))
def test_tap_equals_pytorch(model: Model, path: str) -> None:
    args_of = CASES.case(CASES.index["taps"]["case"]).inputs()
    got = CASES.call(model.tap(path), args_of)
    check(expected(CASES.taps[path], CASES.tap_arrays), got, f"tap {path!r}")


def test_an_unknown_tap_is_refused(model: Model) -> None:
    with pytest.raises(KeyError, match=r"no\.such\.module"):
        model.tap("no.such.module")
