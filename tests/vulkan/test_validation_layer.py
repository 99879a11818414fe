"""Kernels and the runner are clean under the Khronos validation layer, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LAYER = "VK_LAYER_KHRONOS_validation"
ROOT = Path(__file__).parents[2]
SCRIPT = f"""
import numpy as np
import vulkan as vk
from tests.vulkan.device import Device
from tests.vulkan.test_kernels import kernels

if {LAYER!r} not in [layer.layerName for layer in vk.vkEnumerateInstanceLayerProperties()]:
    print("no layer")
    raise SystemExit
device = Device(layers=[{LAYER!r}])
x, y = np.ones(256, np.int8), np.zeros(256, np.int8)
device.run(kernels()["reverse"], [x, y])
a, b, c = (np.ones(shape, np.float16) for shape in ((65, 50), (50, 70), (65, 70)))
named = {{"a_ptr": a, "b_ptr": b, "out_ptr": c}}
kernel = kernels()["matmul_float16"]
device.run(kernel, [named[binding.name] for binding in kernel.buffers])
WRONG
print("ran", int(y.sum()), float(c[0, 0]))
"""


def run(script: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    if "no layer" in done.stdout:
        pytest.skip(f"{LAYER} is not installed")
    return done.stdout + done.stderr


@pytest.mark.usefixtures("device")
def test_kernels_are_clean() -> None:
    output = run(SCRIPT.replace("WRONG", ""))
    assert "ran 256 50.0" in output
    assert "Validation" not in output, output


@pytest.mark.usefixtures("device")
def test_what_is_wrong_is_reported() -> None:
    """The layer is there and heard: a buffer of no bytes."""
    wrong = "vk.vkCreateBuffer(device.device, vk.VkBufferCreateInfo(size=0, usage=32), None)"
    assert "VUID-VkBufferCreateInfo-size-00912" in run(SCRIPT.replace("WRONG", wrong))
