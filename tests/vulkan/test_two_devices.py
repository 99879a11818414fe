"""Two devices in one process: each computes what PyTorch does, at the same time and with weights of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from transpiler import transpile

pytestmark = pytest.mark.usefixtures("device")
# Lavapipe's file; the loader makes a device of every copy.
LAVAPIPE = "/usr/share/vulkan/icd.d"
SCRIPT = """
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from couple import Model

folder = sys.argv[1]
x, other = np.load(folder + "/x.npy"), dict(np.load(folder + "/other.npz"))
models = [Model(device="vulkan:0"), Model(device="vulkan:1")]
models[1].load_weights(other)
with ThreadPoolExecutor(4) as pool:
    calls = [(index % 2, pool.submit(models[index % 2], x)) for index in range(24)]
results = [{call.result().tobytes() for number, call in calls if number == device} for device in (0, 1)]
assert [len(items) for items in results] == [1, 1], "calls of one device differ"
models[0].close()
again = models[1](x)
assert results[1] == {again.tobytes()}, "the second device changed with the first one"
np.save(folder + "/first.npy", np.frombuffer(results[0].pop(), np.float32).reshape(again.shape))
np.save(folder + "/second.npy", again)
print([model.device for model in models], "ran")
"""


def devices(environment: dict[str, str]) -> int:
    made = "vk.vkCreateInstance(vk.VkInstanceCreateInfo(), None)"
    code = f"import vulkan as vk; print(len(vk.vkEnumeratePhysicalDevices({made})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return int(done.stdout.split()[-1])


def test_two_devices_at_once(tmp_path: Path) -> None:
    environment = dict(os.environ)
    if devices(environment) < 2:
        found = sorted(Path(LAVAPIPE).glob("lvp_icd*.json"))
        if not found:
            pytest.skip("one Vulkan device, and no lavapipe that could be another")
        copy = tmp_path / "second.json"
        copy.write_text(json.dumps(json.loads(found[0].read_text())))
        both = os.pathsep.join([str(found[0]), str(copy)])
        environment |= {"VK_DRIVER_FILES": both, "VK_ICD_FILENAMES": both}
    torch.manual_seed(6)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(1), nn.Linear(8 * 14 * 14, 11)).eval()
    x = torch.randn(2, 3, 16, 16)
    package = transpile(module, (x,), target="vulkan", name="couple", out=tmp_path)
    environment["PYTHONPATH"] = str(package.path / "src")
    with torch.no_grad():
        first = module(x).numpy()
        state = {name: value + 0.125 for name, value in module.state_dict().items()}
        module.load_state_dict(state)
        second = module(x).numpy()
    np.save(tmp_path / "x.npy", x.numpy())
    np.savez(tmp_path / "other.npz", **{name: value.numpy() for name, value in state.items()})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("ran")
    assert np.abs(first - second).max() > 1, "no test of whose weights were used"
    # Inputs and weights have a fixed seed; sums of 1568 terms, 27 of them within each.
    np.testing.assert_allclose(np.load(tmp_path / "first.npy"), first, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.load(tmp_path / "second.npy"), second, rtol=1e-4, atol=1e-3)
