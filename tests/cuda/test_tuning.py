"""`--tune` with a device: made-up times of the stand-in decide, what was measured is kept, what fails is left out; and
the table and the rule for tiles where there is none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.conformance.kernels import op_group
from transpiler import transpile, tuning
from transpiler.gpu import timing
from transpiler.ops.linalg import Linear
from transpiler.pipeline import _untimed
from transpiler.request import Request
from transpiler.resources import tree
from transpiler.schedule import import_schedule, schedule
from transpiler.target import load_target, load_targets

TARGET = load_target("cuda", "sm_80")


@pytest.fixture
def group() -> Any:
    return op_group(Linear(), [np.zeros(shape, np.float32) for shape in ((24, 64), (48, 64), (48,))])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRANSPILE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "MIN_FLOPS", 0)
    return tmp_path / "cache"


def build(folder: Path, tune: Any = "fast") -> dict[str, str]:
    """The choices that differ from the schedules' own, of a model with one product."""
    torch.manual_seed(0)
    module = nn.Linear(64, 48).eval()
    package = transpile(module, (torch.zeros(24, 64),), target="cuda", arch="sm_80", name="tiny", out=folder, tune=tune)
    x = np.random.default_rng(1).standard_normal((24, 64), np.float32)
    with package.load() as model:
        np.testing.assert_allclose(model(x), module(torch.from_numpy(x)).detach(), rtol=0, atol=1e-5)
    file = package.path / "tuning.json"
    found = json.loads(file.read_text())["choices"]["sm_80"] if file.exists() else {}
    return next(iter(found.values()), {})


def candidates() -> list[str]:
    tiles = import_schedule("cuda.tiles")
    return [str(tile) for tile in tiles.ranked(tiles.SIMT, tiles.CARDS["sm_80"], "float32", 1, 24, 48, 16)]


def test_the_fastest_on_the_card_is_taken_and_kept(
    driver: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    monkeypatch.setenv("STANDIN_TIMES", "variant2=0.001,variant=0.002")
    assert build(tmp_path / "first") == {"tile": candidates()[2]}
    (file,) = own_cache.rglob("*.json")
    assert json.loads(file.read_text())["mode"] == "fast"

    def again(*arguments: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(timing, "measure", again)
    assert build(tmp_path / "second") == {"tile": candidates()[2]}
    assert build(tmp_path / "third", tune="none") == {}


def measured(group: Any) -> list[float]:
    """Of the first four candidates, each as a variant of its number."""
    (times,) = tuning.measure([group], [[{"tile": text} for text in candidates()[:4]]], TARGET)
    return times


def test_what_fails_on_the_device_is_left_out(
    driver: Any, group: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The context of the process that measures is lost with it; the others are measured by another."""
    monkeypatch.setenv("STANDIN_TIMES", "variant1=0,variant3=0.001,variant=0.002")
    assert measured(group) == pytest.approx([0.002, math.inf, 0.002, 0.001])
    monkeypatch.setenv("STANDIN_TIMES", "variant=0")
    assert measured(group) == [math.inf] * 4
    tuner = tuning.Tuner(TARGET, "fast")
    tuner.schedule(group, TARGET, "linear")
    monkeypatch.setattr(tuning, "measure", lambda groups, variants, target: [[math.inf] * 4])
    assert not tuner.sweep()


def test_what_cannot_be_built_is_left_out(driver: Any, group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_kernels, schedule = timing.compile_kernels, tuning.schedule

    def refusing(kernels: Any, targets: Any) -> Any:
        if any("variant1" in item.kernel.name for items in kernels.values() for item in items):
            raise timing.TranspileError("cuda-compiler", "NVRTC refuses the kernels")
        return compile_kernels(kernels, targets)

    def failing(group: Any, target: Any, name: str, answers: Any) -> Any:
        if "variant2" in name:
            raise AssertionError("no such tile")
        return schedule(group, target, name, answers)

    monkeypatch.setattr(timing, "compile_kernels", refusing)
    monkeypatch.setattr(tuning, "schedule", failing)
    monkeypatch.setenv("STANDIN_TIMES", "variant3=0.001,variant=0.002")
    assert measured(group) == pytest.approx([0.002, math.inf, math.inf, 0.001])


def test_kernels_run_as_they_are(driver: Any, group: Any) -> None:
    """The emulator's clock gives a microsecond to each; what could not be made takes forever."""
    item = schedule(group, TARGET, "variant")
    ((taken, missing),) = timing.measure([group], [[item, None]], TARGET, tuning.plan_of_calls, 30.0)
    assert 0.9e-6 < taken < 2e-6
    assert missing == math.inf


def test_without_a_device_it_is_said() -> None:
    groups = {"cuda": load_targets("cuda"), "cpu": load_targets("cpu"), "vulkan": load_targets("vulkan")}
    run_here: dict[str, Any] = {"cuda": [], "cpu": groups["cpu"], "vulkan": []}
    request = Request(model=nn.Identity(), tune="fast")
    (note,) = _untimed(groups, run_here, request)
    assert note.startswith("no device for CUDA here: nothing is timed")
    assert _untimed(groups, run_here, Request(model=nn.Identity())) == []


# --- the table and the rule -------------------------------------------------------------------------------------


def test_the_table_names_sizes_and_tiles_that_there_are() -> None:
    table, tiles = import_schedule("cuda.table"), import_schedule("cuda.tiles")
    lists = [value for value in vars(tiles).values() if isinstance(value, tuple)]
    texts = {str(tile) for value in lists for tile in value if isinstance(tile, tiles.Tile)}
    assert str(tiles.SIMT[0]) in texts
    content = json.loads((tree("targets") / table.TABLE).read_text())
    measured = 0
    for arch, kinds in content["tiles"].items():
        assert arch in tiles.CARDS
        for kind, entries in kinds.items():
            assert kind in ("float16", "bfloat16", "tf32", "float32")
            for sizes, tile in entries.items():
                table.parse_sizes(sizes)
                assert tile is None or tile in texts, tile
                measured += tile is not None
    assert (measured > 0) == (content["card"] is not None)


def test_a_measured_tile_is_taken_for_sizes_like_it(monkeypatch: pytest.MonkeyPatch) -> None:
    table, tiles = import_schedule("cuda.table"), import_schedule("cuda.tiles")
    other = str(tiles.MMA[3])
    monkeypatch.setattr(table, "table", lambda: {"sm_80": {"bfloat16": {"1x4096x4096x512": other}}})
    table._measured.cache_clear()
    try:
        for kind in ("bfloat16", "float16"):
            assert str(table.choose_tile(tiles.MMA, "sm_80", kind, (1, 4000, 4096, 512))) == other
        for kind, sizes in (("bfloat16", (1, 2048, 4096, 512)), ("tf32", (1, 4096, 4096, 512))):
            assert str(table.choose_tile(tiles.MMA, "sm_80", kind, sizes)) != other
    finally:
        table._measured.cache_clear()
    for wrong in ("1x2x3", "1x2x3x0", "1xax3x4"):
        with pytest.raises(ValueError, match=r"cuda_tiles|invalid literal"):
            table.parse_sizes(wrong)
    assert table.size_class((1, 16, 17, 197)) == (1, 16, 18, 208)


def test_the_rule_fills_the_card() -> None:
    """More tiles where a few large ones would leave processors idle, and the large ones where there are enough."""
    tiles = import_schedule("cuda.tiles")

    def best(arch: str, names: Any, *sizes: int) -> Any:
        return tiles.ranked(names, tiles.CARDS[arch], "float16", *sizes)[0]

    large, small = best("sm_80", tiles.MMA, 1, 8192, 8192, 1024), best("sm_80", tiles.MMA, 1, 128, 768, 96)
    assert (large.rows, large.columns) == (128, 128)
    assert small.rows * small.columns < 64 * 64
    wide = best("sm_90a", tiles.WGMMA, 1, 8192, 8192, 1024)
    assert (wide.rows, wide.columns) == (128, 256)
    for tile in (*tiles.MMA, *tiles.WGMMA, *tiles.SIMT):
        assert tiles.resident(tile, tiles.CARDS["sm_90a"]) >= 1
    # A round more costs as much as a round, however few blocks it has.
    card, tile = tiles.CARDS["sm_80"], tiles.MMA[0]
    full = tiles.cycles(tile, card, "float16", card.processors, 128, 128, 64)
    one_more = tiles.cycles(tile, card, "float16", card.processors + 1, 128, 128, 64)
    assert one_more - full == 128 * 128 * 64 / card.products("float16")
