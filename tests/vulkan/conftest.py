"""The device that kernels run on. Without a Vulkan driver, tests that need one are skipped."""

from __future__ import annotations

import shutil

import pytest

from tests.vulkan.device import Device, require_device


@pytest.fixture(scope="session")
def device() -> Device:
    return require_device()


@pytest.fixture(scope="session")
def validator() -> str:
    found = shutil.which("spirv-val")
    if found is None:
        pytest.skip("no spirv-val (spirv-tools), which comes with a Vulkan driver's tools")
    return found
