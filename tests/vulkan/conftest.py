"""The device that kernels run on. Without a Vulkan driver, tests that need one are skipped."""

from __future__ import annotations

import shutil

import pytest

from tests.installed import missing
from tests.vulkan.device import Device, require_device


@pytest.fixture(scope="session")
def device() -> Device:
    return require_device()


@pytest.fixture(scope="session")
def validator() -> str:
    found = shutil.which("spirv-val")
    if found is None:
        missing("no spirv-val (Debian: spirv-tools)")
    return found
