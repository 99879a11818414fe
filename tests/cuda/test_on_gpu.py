"""The script for machines with a GPU runs to its end over the stand-in, without TVM where there is none, goes on where
it stopped, and its report takes what it found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cuda import on_gpu
from tests.cuda.gpu.results import BEGIN, END, Part, geometric_mean, page, write_page
from tests.cuda.gpu.times import write_table

MISSING = ("tvm", "click", "rich", "timm", "diffusers")
SCRIPT = (
    f"import sys; sys.modules |= dict.fromkeys({MISSING})\n"
    "from tests.cuda.on_gpu import main\nsys.exit(main(sys.argv[1:]))"
)


def call(work: Path, *arguments: str, times: str = "") -> subprocess.CompletedProcess[str]:
    """As on the machine with the GPU; kernels with made-up `times` are not run."""
    command = [sys.executable, "-c", SCRIPT, *arguments, "--work", str(work), "--tiny", "--sanitizer", "none"]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"STANDIN_TIMES": times}
    )


@pytest.fixture(scope="module")
def work(standin_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("on_gpu")
    assert on_gpu.main(["prepare", "--work", str(folder), "--tiny", "--arch", "sm_80"]) == 0
    return folder


def results(work: Path, name: str) -> dict[str, Any]:
    items: dict[str, Any] = json.loads((work / "results" / f"{name}.json").read_text())["items"]
    return items


def test_everything_that_is_prepared_is_checked_and_timed(driver: Any, work: Path) -> None:
    done = call(work, "check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(work, "check.kernels") == {"rounding": {"problems": []}}
    assert results(work, "check.suites") == {"mlp": {"problems": []}}
    assert results(work, "check.sanitizer")["racecheck rounding"] == {"left_out": "there is no compute-sanitizer"}
    done = call(work, "time", times="tiny=0.001")
    assert done.returncode == 0, done.stdout + done.stderr
    for part in ("products", "convolutions", "attention"):
        assert results(work, f"time.{part}")["tiny"]["ours"] > 0
    model = results(work, "time.models")["tiny_b1_bfloat16"]
    assert model["ours"] > 0
    assert model["first_call"] > 0
    done = call(work, "tune", times="s0_1=0.001,s0_=0.002")
    assert done.returncode == 0, done.stdout + done.stderr
    found = results(work, "tune.tiles")
    assert set(found) == {f"sm_80.{kind}.0" for kind in ("bfloat16", "float32", "tf32")}
    for key, item in found.items():
        candidates = json.loads((work / "tiles" / key / "tiles.json").read_text())
        assert item["tiles"] == {"1x24x48x8": candidates["s0_1"][1]}
    table = work / "table.json"
    table.write_text('{"card": null, "tiles": {"sm_80": {"tf32": {"1x24x48x8": null, "1x1x1x1": null}}}}')
    assert write_table(work, table) == 1
    content = json.loads(table.read_text())
    assert content["tiles"]["sm_80"]["tf32"] == {**found["sm_80.tf32.0"]["tiles"], "1x1x1x1": None}
    assert content["card"]["peers"].startswith("none")


def test_the_report_has_what_was_found(work: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_page(work, file)
    text = file.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    (tmp_path / "empty.md").write_text("no marks")
    with pytest.raises(ValueError, match="has no"):
        write_page(work, tmp_path / "empty.md")
    assert "Not measured: whole models." in page(tmp_path)


def test_the_report_of_made_up_results(tmp_path: Path) -> None:
    kernel = {"ours": 2e-6, "peers": {"cublas": 1.7e-6, "other": 3e-6}, "flops": 4_000_000}
    model = {"ours": 2e-3, "peers": {"eager": 4e-3}, "bar": 0.9, "first_call": 0.25}
    for name, items in (
        ("time.products", {"square8192": kernel, "bert_b1_up": kernel}),
        ("time.models", {"mlp_b1_float32": model}),
        ("check.kernels", {"norm": {"problems": ["x"]}, "scan": {"problems": []}}),
    ):
        Part(tmp_path, name).run([(key, lambda item=item: item) for key, item in items.items()], {"date": "today"})
    text = page(tmp_path)
    assert "| square8192 | 2.0 µs | 1.7 µs | 3.0 µs | 0.85 | 2.0 |" in text
    assert "| bert_b1_up | 2.0 µs | 1.7 µs | 3.0 µs | 0.85 (!) | 2.0 |" in text
    assert "| mlp_b1_float32 | 2.00 ms | 4.00 ms | 0.50 | 0.9 | 0.25 s |" in text
    assert "- kernels: 1 passed, 1 failed (norm)" in text
    assert "Not measured: convolutions." in text
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)


def test_a_part_goes_on_where_it_stopped(tmp_path: Path) -> None:
    done: list[str] = []

    def work(name: str) -> dict[str, str]:
        done.append(name)
        if name == "bad" and len(done) == 2:
            raise ValueError("not yet")
        return {"found": name}

    items = [(name, lambda name=name: work(name)) for name in ("good", "bad")]
    part = Part(tmp_path, "part")
    part.run(items)
    assert part.failed == ["bad"]
    again = Part(tmp_path, "part")
    again.run(items)
    assert done == ["good", "bad", "bad"]
    assert again.failed == []
    late = Part(tmp_path, "late", end=0.0)
    late.run(items)
    assert late.left == 2
    assert len(done) == 3


def test_planted_errors_are_found(driver: Any, work: Path, tmp_path: Path) -> None:
    """A wrong reference, and kernels that the device fails at."""
    folder = tmp_path / "kernels" / "rounding"
    shutil.copytree(work / "kernels" / "rounding", folder)
    arrays = dict(np.load(folder / "cases.npz"))
    key = next(name for name, value in arrays.items() if ".double." in name and value.dtype.kind == "f" and value.size)
    for name in (key, key.replace("double", "single")):
        arrays[name] = arrays[name] + 1
    np.savez(folder / "cases.npz", **arrays)
    done = call(tmp_path, "check", "--parts", "kernels")
    assert done.returncode == 1
    assert key.split(".")[0] in str(results(tmp_path, "check.kernels")["rounding"]["problems"])
    with pytest.raises(SystemExit, match="check has no part nothing; it has kernels, suites, sanitizer"):
        on_gpu.main(["check", "--parts", "nothing"])
