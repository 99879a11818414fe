"""The arithmetic of tests/benchmarks: which engine is best, what a report says, which results count as equal."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks.measure import held
from tests.benchmarks.models import MODELS, models_of, statistics
from tests.benchmarks.report import best_peer, chart, limit, page, ratio, roofline, table
from tests.benchmarks.worker import relative_error, timed


def _result(model: str, threads: int, **medians: float) -> dict[str, Any]:
    timings = {peer: {"median": median, "version": "1.0"} for peer, median in medians.items()}
    result = {"model": model, "threads": threads, "target": "cpu", "timings": timings}
    return {**result, "failures": {"aot": "no such kernel"}}


RESULTS = [
    _result("resnet50", 1, ours=0.09, onnxruntime=0.1, eager=0.2),
    _result("mnist", 1, ours=60e-6, onnxruntime=120e-6, openvino=100e-6),
]


def test_best_peer_and_ratio() -> None:
    assert [best_peer(result) for result in RESULTS] == ["onnxruntime", "openvino"]
    np.testing.assert_allclose([ratio(result) for result in RESULTS], [0.9, 0.6])
    assert ratio(_result("mnist", 1, ours=1.0)) is None


def test_the_table_marks_the_best_peer_and_missed_bars() -> None:
    text = table(RESULTS)
    assert text.index("MNIST") < text.index("ResNet-50"), "in the order of the models"
    assert "| MNIST classifier | 60.0 µs | 120.0 µs | **100.0 µs** |  | 0.60 | 0.75 |  | 75.0 µs |" in text
    assert "| ResNet-50 | 90.00 ms | **100.00 ms** |  | 200.00 ms | 0.90 (!) | 0.75 |  | 75.00 ms |" in text


def test_a_bar_below_the_roofline_is_the_roofline() -> None:
    """0.75 of 100 µs is more than 60 µs and less than 80 µs."""
    slow = _result("mnist", 1, ours=85e-6, openvino=100e-6)
    above, below = ({**slow, "kernels": [{"least": 20e-6}, {"least": rest}]} for rest in (40e-6, 60e-6))
    np.testing.assert_allclose([roofline(item) for item in (above, below)], [60e-6, 80e-6])
    assert roofline(RESULTS[1]) is None
    limits = [limit(item) for item in (above, below)]
    assert [found.is_roofline for found in limits if found] == [False, True]
    np.testing.assert_allclose([found.seconds for found in limits if found], [75e-6, 91e-6])
    assert limit(_result("mnist", 1, ours=1.0)) is None
    assert "| 0.85 | 0.75 | 80.0 µs | 91.0 µs (roofline) |" in table([below])
    faster = {**below, "timings": {**below["timings"], "ours": {"median": 79e-6, "version": "1.0"}}}
    assert "| 0.79 (!) | 0.75 | 80.0 µs | 75.0 µs |" in table([faster]), "a roofline that was passed is none"
    slower = {**below, "timings": {**below["timings"], "ours": {"median": 92e-6, "version": "1.0"}}}
    assert "| 0.92 (!) | 0.75 | 80.0 µs | 91.0 µs (roofline) |" in table([slower])


def test_page_and_chart_hold_what_was_measured() -> None:
    assert "OpenVINO 1.0" in page(RESULTS, "benchmarks")
    (panel,) = chart(RESULTS)["panels"]
    assert [row["title"] for row in panel["rows"]] == ["MNIST classifier", "ResNet-50"]
    np.testing.assert_allclose(panel["rows"][0]["shares"]["ours"], 0.6)


def test_targets_have_tables_of_their_own() -> None:
    vulkan = {**_result("mnist", 2, ours=2e-3, ncnn=4e-3), "target": "vulkan"}
    cpu, rest = page([*RESULTS, vulkan], "benchmarks").split("## Vulkan")
    assert "ncnn" not in cpu
    assert "| MNIST classifier | 2.00 ms | **4.00 ms** | 0.50 | 1 |" in rest
    assert {"mnist", "product"} <= set(models_of("vulkan"))
    assert "product" not in models_of("cpu")


def test_relative_error() -> None:
    one = np.array([1.0, -4.0], np.float32)
    assert relative_error([one], [one]) == 0.0
    assert relative_error([one + 1], [one]) == 0.25
    assert relative_error([one], [one, one]) == float("inf")
    assert relative_error([one], [one[:1]]) == float("inf")


def test_warm_calls_are_not_counted() -> None:
    calls: list[None] = []
    assert len(timed(lambda: calls.append(None), warm=2, calls=3)) == 3
    assert len(calls) == 5


def test_a_lock_is_held_meanwhile(tmp_path: Path) -> None:
    """`held` waits until its command runs, and ends it."""
    log = tmp_path / "log.json"
    text = (
        "import json, subprocess, sys, pathlib; log = pathlib.Path(sys.argv[1]); log.write_text('\"held\"'); "
        "subprocess.run(sys.argv[2:]); log.write_text('\"free\"')"
    )
    with held([sys.executable, "-c", text, str(log)]):
        assert json.loads(log.read_text()) == "held"
    assert json.loads(log.read_text()) == "free"


def test_activations_are_alive() -> None:
    for name in ("mnist", "mlp_b1"):
        found = statistics(*MODELS[name].build())
        assert found["least std of a layer"] > 0.1
        assert found["largest share of denormals"] == 0.0
    faded = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    with torch.no_grad():
        for parameter in faded.parameters():
            parameter.fill_(1e-20)
    found = statistics(faded, (torch.full((1, 4), 1e-20),))
    assert found["largest share of denormals"] == 0.0
    assert found["least std of a layer"] < 1e-3
