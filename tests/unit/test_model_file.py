"""A model.py as it is run."""

from pathlib import Path

import torch

from tests.models.support import FOLDER
from transpiler.model_file import load_model_file


def test_weights_that_a_file_draws_are_the_same_every_time(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text((FOLDER / "mlp.py").read_text())
    before = torch.random.get_rng_state()
    first = load_model_file(path).module.state_dict()
    torch.rand(3)
    second = load_model_file(path).module.state_dict()
    assert first
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(tensor.abs().max() > 0 for tensor in first.values())
    torch.random.set_rng_state(before)
    load_model_file(path)
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's generator is left alone"
