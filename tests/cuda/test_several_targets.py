"""One package for processors, GPUs of NVIDIA and devices with a Vulkan driver."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.packaging.test_several_targets import assert_runs, tally
from tests.vulkan.device import require_device
from transpiler import transpile

pytestmark = pytest.mark.usefixtures("driver")
ALL = ("cuda", "cpu", "vulkan")


def test_three_targets_share_what_they_can(tmp_path: Path) -> None:
    require_device()
    package = transpile(
        tally(1), (torch.arange(6).reshape(2, 3),), target=ALL, name="tally", arch="sm_80", isa="native",
        dynamic=["ids.0=rows:1..40"], out=tmp_path,
    )  # fmt: skip
    assert set(package.report.by_target) == set(ALL)
    manifest = json.loads((package.path / "src/tally/manifest.json").read_text())
    places = {
        target: {item["offset"] for item in built["weights"]["prepared"].values()}
        for target, built in manifest["built"].items()
    }
    assert places["cuda"] == places["vulkan"]
    shared = places["cuda"] & places["cpu"]
    assert len(shared) >= 4
    # What a target reads is one range of the file: no other target's tensors are copied to a device.
    assert max(places["cpu"] - shared) < min(shared)
    assert max(shared) < min(places["cuda"] - shared)
    for target in ALL:
        with package.load(device=target) as model:
            assert model.device == target
            assert_runs(model, tally(1))
            model.load_weights({key: value.numpy() for key, value in tally(2).state_dict().items()})
            assert_runs(model, tally(2))
