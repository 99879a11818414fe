"""Scripts in processes of their own, with or without the Khronos validation layer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.installed import missing

LAYER = "VK_LAYER_KHRONOS_validation"
SYNCHRONIZATION = "VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT"
ROOT = Path(__file__).parents[2]
INSTALLED = f"""
import vulkan as vk
if {LAYER!r} not in [layer.layerName for layer in vk.vkEnumerateInstanceLayerProperties()]:
    print("no layer")
    raise SystemExit
"""


def in_process(code: str, **environment: str) -> str:
    """What `code` prints in a process of its own."""
    paths = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def validated(code: str, **environment: str) -> tuple[str, set[str]]:
    """What `code` prints under the layer, and the rules that the layer says were broken, among them accesses that do
    not wait for those before. Skips the test without it."""
    layer = {"VK_INSTANCE_LAYERS": LAYER, "VK_LAYER_ENABLES": SYNCHRONIZATION}
    text = in_process(INSTALLED + code, **(layer | environment))
    if "no layer" in text:
        missing(f"{LAYER} is not installed")
    return text, set(re.findall(r"(?:VUID|UNASSIGNED|SYNC)-[\w-]+", text))
