"""Which device of a machine is taken: by number, by name, and by what it can do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.vulkan.emitted import runtime

pytestmark = pytest.mark.usefixtures("device")
CARDS = ("llvmpipe (LLVM 19.1.7, 256 bits)", "NVIDIA GeForce RTX 4090", "AMD Radeon RX 7900 XTX")


def test_the_best_device_is_taken() -> None:
    found = runtime("vulkan.device").Found
    devices = [found(number, kind, kind, (1, 3), None) for number, kind in enumerate(("cpu", "integrated", "discrete"))]
    choose = runtime("vulkan.device").choose
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VULKAN_DEVICE", raising=False)
        assert choose(devices, None).kind == "discrete"
        assert choose(devices[:2], None).kind == "integrated"
        assert choose(devices, "vulkan:0").kind == "cpu"
        patch.setenv("VULKAN_DEVICE", "integ")
        assert choose(devices, None).kind == "integrated"
        assert choose(devices, "vulkan:2").kind == "discrete"


@pytest.mark.parametrize(
    ("wanted", "number"),
    [("7900", 2), ("vulkan:nvidia", 1), ("nvidia", 1), ("vulkan:1", 1), ("2", 2), ("Vulkan:4090", 1), ("LLVM 19", 0)],
)
def test_numbers_are_those_of_the_list_or_parts_of_names(wanted: str, number: int) -> None:
    choice = runtime("vulkan.device")
    found = [choice.Found(index, name, "discrete", (1, 3), None) for index, name in enumerate(CARDS)]
    assert choice.choose(found, wanted).number == number


@pytest.mark.parametrize("wanted", ["7", "vulkan:19", "8000", "vulkan:", "cuda"])
def test_a_name_that_no_device_has(wanted: str) -> None:
    choice = runtime("vulkan.device")
    found = [choice.Found(index, name, "discrete", (1, 3), None) for index, name in enumerate(CARDS)]
    with pytest.raises(RuntimeError, match=f"there is no Vulkan device '{wanted}'; there are: vulkan:0 "):
        choice.choose(found, wanted)


def test_the_next_device_is_taken_where_the_best_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    choice, variants, fault = runtime("vulkan.device"), runtime("vulkan.variants"), runtime("errors").PackageError
    kinds = ("cpu", "discrete", "integrated", "discrete")
    found = [choice.Found(index, f"card {index}", kind, (1, 3), None) for index, kind in enumerate(kinds)]
    able = {0, 2}

    def opened(wanted: str | None, *, alone: bool) -> Any:
        device = choice.choose(found, wanted)
        if device.number == 1:
            raise fault(f"{device} has Vulkan 1.0; 1.1 is needed")
        return SimpleNamespace(found=device, alone=alone)

    monkeypatch.delenv("VULKAN_DEVICE", raising=False)
    monkeypatch.setattr(variants, "Device", opened)
    monkeypatch.setattr(variants, "available", lambda *, alone: found)
    monkeypatch.setattr(variants, "faults", lambda device, _: [] if device.found.number in able else ["no memory"])
    lists = {"base": SimpleNamespace(kinds=())}
    device, variant, passed_over = variants.open_able(None, lists, alone=True)
    assert (device.found.number, device.alone, variant) == (2, True, "base")
    assert passed_over == {
        "vulkan:1 (card 1, discrete)": "has Vulkan 1.0; 1.1 is needed",
        "vulkan:3 (card 3, discrete)": "cannot run this package: no memory",
    }
    for name in ("vulkan:3", "card 3"):
        with pytest.raises(RuntimeError, match=r"^vulkan:3 .card 3, discrete. cannot run this package: no memory$"):
            variants.open_able(name, lists)
    able.clear()
    with pytest.raises(RuntimeError, match="no Vulkan device of this machine can run this package: ") as caught:
        variants.open_able(None, lists)
    for name, why in (*passed_over.items(), ("vulkan:0 (card 0, cpu)", "cannot run this package: no memory")):
        assert f"{name}: {why}" in str(caught.value)
    monkeypatch.setattr(variants, "available", lambda *, alone: found[1:2])
    with pytest.raises(RuntimeError, match=r"^vulkan:1 .card 1, discrete. has Vulkan 1.0; 1.1 is needed$"):
        variants.open_able(None, lists)


def test_drivers_that_give_no_list_are_not_called_missing() -> None:
    import vulkan

    def fail(_: object) -> None:
        raise vulkan.VkErrorInitializationFailed

    vk = SimpleNamespace(**vars(vulkan) | {"vkEnumeratePhysicalDevices": fail})
    with pytest.raises(RuntimeError, match="the devices of Vulkan's drivers cannot be listed: VkErrorInitializationF"):
        runtime("vulkan.device").list_devices(vk, None)
    vk.vkEnumeratePhysicalDevices = lambda _: []
    with pytest.raises(RuntimeError, match="this machine has no Vulkan driver"):
        runtime("vulkan.device").list_devices(vk, None)
