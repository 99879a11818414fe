"""The script for machines with a GPU runs to its end over the stand-in, without TVM where there is none, finds what is
wrong, goes on where it stopped, says what is missing, and its report takes what it found."""

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
import torch

from tests.cuda import on_gpu
from tests.cuda.gpu.kernels import keep, kept
from tests.cuda.gpu.model_times import AsUsed, faded
from tests.cuda.gpu.page import BARS, BEGIN, END, geometric_mean, page, write_page
from tests.cuda.gpu.results import Part, read
from tests.cuda.gpu.tile_times import write_table

# What is not on the machine with the GPU; what only peers need is there.
MISSING = ("tvm", "click", "rich", "timm", "diffusers", "libcst")
SCRIPT = (
    f"import sys; sys.modules |= dict.fromkeys({MISSING})\n"
    "from tests.cuda.on_gpu import main\nsys.exit(main(sys.argv[1:]))"
)
# A checker that runs what it is given and complains of one family.
CHECKER = f"""#!{sys.executable}
import subprocess, sys
command = sys.argv[sys.argv.index({sys.executable!r}):]
print("========= COMPUTE-SANITIZER")
process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
for line in process.stdout:
    print(line, end="")
    if "begins" in line and "rounding" in line:
        print("========= Invalid __global__ write of size 4 bytes")
        print("=========     at rounding_0_kernel+0x70")
print(f"========= ERROR SUMMARY: {{0 if 'tiny' in sys.argv[-1] else 1}} errors", flush=True)
sys.exit(process.wait())
"""


def call(work: Path, *arguments: str, times: str = "", sanitizer: str = "none") -> subprocess.CompletedProcess[str]:
    """As on the machine with the GPU; kernels with made-up `times` are not run."""
    command = [sys.executable, "-c", SCRIPT, *arguments, "--work", str(work), "--tiny", "--sanitizer", sanitizer]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"STANDIN_TIMES": times}
    )


@pytest.fixture(scope="module")
def work(standin_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("on_gpu")
    assert on_gpu.main(["prepare", "--work", str(folder), "--tiny", "--arch", "sm_80"]) == 0
    return folder


def results(work: Path, name: str) -> dict[str, Any]:
    items: dict[str, Any] = read(work / "results.json")[name]["items"]
    return items


def test_everything_that_is_prepared_is_checked(driver: Any, work: Path, tmp_path: Path) -> None:
    done = call(work, "check")
    assert done.returncode == 0, done.stdout + done.stderr
    found = results(work, "check.kernels")
    assert {name: item["problems"] for name, item in found.items()} == {"rounding": [], "tiny.bfloat16": []}
    assert found["tiny.bfloat16"]["units"]["mma.sync"] == found["tiny.bfloat16"]["kernels"] > 3
    assert results(work, "check.suites") == {"mlp": {"problems": []}}
    assert results(work, "check.sanitizer")["racecheck rounding"]["left_out"] == "there is no compute-sanitizer"
    assert page(work / "results.json").count("passed") == 3
