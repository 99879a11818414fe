"""Real architectures against PyTorch: a dozen of the most varied in CI, all of the zoo under `-m slow`."""

import re

import pytest

from tests.zoo.entry import Entry
from tests.zoo.expected import REFUSALS, REFUSED
from tests.zoo.registry import entries
from tests.zoo.run import run

CI = (
    "bert",
    "llama",
    "mamba",
    "mixtral",
    "t5",
    "convnext",
    "swin",
    "whisper",
    "patchtst",
    "unet_2d_condition",
    "graph_convolution",
    "gru_stacked",
    "yolo",
)
ENTRIES = {item.name: item for item in entries()}


def check(entry: Entry) -> None:
    result = run(entry)
    if entry.name in REFUSED:
        assert result.outcome in REFUSALS, result.detail
        assert re.search(REFUSED[entry.name], result.reason)
    else:
        assert result.outcome == "equal", result.detail


@pytest.mark.parametrize("name", CI)
def test_architecture(name: str) -> None:
    check(ENTRIES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ENTRIES) - set(CI)))
def test_every_architecture(name: str) -> None:
    check(ENTRIES[name])


def test_expected_refusals_are_of_architectures_that_exist() -> None:
    assert set(REFUSED) <= set(ENTRIES)
