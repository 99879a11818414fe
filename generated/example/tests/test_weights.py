"""Weights reloaded from a state_dict: the new outputs, the same as PyTorch's; wrong state_dicts are refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from _cases import CASES, FUNCTIONS, expected, same_bits, write_safetensors
from _checks import check

if TYPE_CHECKING:
    from example import Model

RELOAD = CASES.index["reload"]


@pytest.fixture
def fresh(device: str) -> Model:
    """A model of its own for every test, since loading changes it."""
    from example import Model

    return Model(device=device)


def _check_outputs(model: Model) -> None:
    for function in FUNCTIONS:
        reload = function.index["reload"]
        got = function.case(reload["case"]).run(model)
        for entry, array in zip(reload["outputs"], got, strict=True):
            check(expected(entry, function.weight_arrays), array, f"the reloaded weights in {function}")


def test_new_weights_give_the_new_outputs(fresh: Model) -> None:
    fresh.load_weights(CASES.new_state())
    _check_outputs(fresh)


def test_new_weights_from_a_file(fresh: Model, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "new.safetensors", CASES.new_state())
    fresh.load_weights(tmp_path / "new.safetensors")
    _check_outputs(fresh)


def test_weights_given_to_the_constructor(device: str) -> None:
    from example import Model

    _check_outputs(Model(weights=CASES.new_state(), device=device))
    _check_outputs(Model(weights=CASES.new_state(), device=device, native=False))


def test_tied_weights_may_be_given_once(fresh: Model) -> None:
    state = CASES.new_state()
    for alias in RELOAD["aliases"]:
        state.pop(alias, None)
    fresh.load_weights(state)
    _check_outputs(fresh)


def test_other_models_keep_their_weights(model: Model, fresh: Model) -> None:
    inputs = CASES.case(RELOAD["case"]).inputs()
    before = [array.copy() for array in CASES.run(model, inputs)]
    fresh.load_weights(CASES.new_state())
    after = CASES.run(fresh, inputs)
    assert same_bits(CASES.run(model, inputs), before)
    if RELOAD["changes_outputs"]:
        assert not same_bits(after, before), "the new weights changed nothing"


def test_every_wrong_key_is_named(fresh: Model) -> None:
    """One missing, one misshapen (of those that are not tied) and one unexpected: all are named, nothing is loaded."""
    state = CASES.new_state()
    tied = {*RELOAD["aliases"], *RELOAD["aliases"].values()}
    keys = sorted(set(fresh.manifest["weights"]["keys"]) & set(state) - tied)
    for missing in keys[1:2]:
        del state[missing]
    for mismatched in keys[:1]:
        state[mismatched] = np.zeros((*state[mismatched].shape, 2), np.float32)
    state["no.such.key"] = np.zeros((1,), np.float32)
    inputs = CASES.case(RELOAD["case"]).inputs()
    before = [array.copy() for array in CASES.run(fresh, inputs)]
    with pytest.raises(ValueError, match=r"no\.such\.key") as caught:
        fresh.load_weights(state)
    for key in keys[:2]:
        assert key in str(caught.value), f"the error must name {key}"
    assert same_bits(CASES.run(fresh, inputs), before), "a refused state_dict must change nothing"


def test_a_missing_file_is_refused(fresh: Model, tmp_path: Path) -> None:
    with pytest.raises((OSError, ValueError), match=r"none\.safetensors"):
        fresh.load_weights(tmp_path / "none.safetensors")


def test_a_damaged_file_is_refused(fresh: Model, tmp_path: Path) -> None:
    path = tmp_path / "damaged.safetensors"
    write_safetensors(path, CASES.new_state())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged"):
        fresh.load_weights(path)
