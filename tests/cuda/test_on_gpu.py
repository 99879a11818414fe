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

from tests.conformance.kernels import op_group
from tests.cuda import on_gpu
from tests.cuda.gpu.emulated import files_with_kernels, in_parts, recording
from tests.cuda.gpu.kernels import family, keep, kept
from tests.cuda.gpu.library import write
from tests.cuda.gpu.model_times import AsUsed, faded
from tests.cuda.gpu.page import BARS, BEGIN, END, geometric_mean, page, write_page
from tests.cuda.gpu.results import Part, read
from tests.cuda.gpu.tile_times import write_table
from tests.cuda.library import CudaLibrary, other
from transpiler.ops.softmax import Softmax
from transpiler.schedule import schedule
from transpiler.target import load_target

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
    assert found["tiny.bfloat16"]["units"]["mma.sync"] == found["tiny.bfloat16"]["kernels"] == 2
    assert results(work, "check.suites") == {"mlp": {"problems": []}}
    found = results(work, "check.sanitizer")
    tools = ("memcheck", "racecheck", "synccheck", "initcheck")
    assert set(found) == {f"{tool} {name}" for tool in tools for name in ("rounding", "tiny.bfloat16")}
    assert all(item["left_out"] == "there is no compute-sanitizer" for item in found.values())
    assert page(work / "results.json").count("passed") == 3


def test_everything_is_timed_that_is_right(driver: Any, work: Path) -> None:
    done = call(work, "time")
    assert done.returncode == 0, done.stdout + done.stderr
    for part in ("products", "convolutions", "attention"):
        found = results(work, f"time.{part}")["tiny"]
        assert found["ours"] > 0
        assert found["flops"] > found["bytes"] > 0
    model = results(work, "time.models")["tiny_b1_bfloat16"]
    assert min(model["ours"], model["load"], model["first_call"]) > 0
    # Of 6-9-4: two multiplications and additions for each weight; weights as half floats at multiples of 256 bytes.
    assert model["flops"] >= 2 * (6 * 9 + 9 * 4)
    assert model["bytes"] >= 4 * (6 + 4)
    done = call(work, "tune", times="s0_1=0.001,s0_=0.002")
    assert done.returncode == 0, done.stdout + done.stderr
    tiles = results(work, "tune.tiles")
    assert set(tiles) == {f"sm_80.{kind}.0" for kind in ("bfloat16", "float32", "tf32")}
    for key, item in tiles.items():
        candidates = json.loads((work / "tiles" / key / "tiles.json").read_text())
        assert item["tiles"] == {"1x24x48x8": candidates["s0_1"][1]}
    table = work / "table.json"
    table.write_text('{"card": null, "tiles": {"sm_80": {"tf32": {"1x24x48x8": null, "1x1x1x1": null}}}}')
    assert write_table(work / "results.json", table) == 1
    content = json.loads(table.read_text())
    assert content["tiles"]["sm_80"]["tf32"] == {**tiles["sm_80.tf32.0"]["tiles"], "1x1x1x1": None}
    assert content["card"]["peers"].startswith("none")


def test_kernels_that_write_nothing_are_found(driver: Any, work: Path, tmp_path: Path) -> None:
    """In the memory of a call there are NaNs, which no kernel that is left out replaces."""
    given = tmp_path / "given.json"
    given.write_text("{}")
    common = ("--results", str(given))
    done = call(work, "check", "--parts", "kernels", "--only", "tiny", *common, times="tiny_bfloat16_1=0.001")
    assert done.returncode == 1, done.stdout + done.stderr
    (said,) = read(given)["check.kernels"]["items"]["tiny.bfloat16"]["problems"]
    assert said.startswith("tiny_bfloat16_1, turn 1: 480 of 480 elements are off")
    done = call(work, "time", "--parts", "products,convolutions,attention", *common, times="tiny=0.001")
    assert done.returncode == 1, done.stdout + done.stderr
    for part in ("products", "convolutions", "attention"):
        item = read(given)[f"time.{part}"]["items"]["tiny"]
        assert "elements are off" in item["problems"][0]
        assert "ours" not in item


def test_other_references_are_found(driver: Any, work: Path, tmp_path: Path) -> None:
    for part, name in (("kernels", "rounding"), ("suites", "mlp")):
        shutil.copytree(work / part / name, tmp_path / part / name)
        file = tmp_path / part / name / "cases.npz"
        arrays = dict(np.load(file))
        # The last set of inputs, which only the hundredth turn has.
        last = max(key.partition("/")[0] for key in arrays) if part == "suites" else "rounding_0/2"
        # What is written of float64 is how far it is from float32.
        words = ("torch", "float64") if part == "suites" else ("single",)
        changed = [key for word in words for key in arrays if key.startswith(f"{last}/{word}/")]
        assert len(changed) == len(words)
        np.savez(file, **{key: array + 1 if key in changed else array for key, array in arrays.items()})
    done = call(tmp_path, "check", "--parts", "kernels,suites")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "rounding_0, turn 100" in str(results(tmp_path, "check.kernels")["rounding"]["problems"])
    assert "call 100" in str(results(tmp_path, "check.suites")["mlp"]["problems"])


def test_what_a_checker_says_belongs_to_a_family(driver: Any, work: Path, tmp_path: Path) -> None:
    checker, given = tmp_path / "compute-sanitizer", tmp_path / "given.json"
    checker.write_text(CHECKER)
    checker.chmod(0o755)
    given.write_text("{}")
    command = ("check", "--parts", "sanitizer", "--results", str(given), "--only")
    done = call(work, *command, "initcheck", sanitizer=str(checker))
    assert done.returncode == 1, done.stdout + done.stderr
    found = read(given)["check.sanitizer"]["items"]
    assert set(found) == {"initcheck rounding", "initcheck tiny.bfloat16"}
    assert found["initcheck tiny.bfloat16"]["problems"] == []
    assert found["initcheck rounding"]["problems"][0] == "Invalid __global__ write of size 4 bytes"
    # A process that ends takes its family with it, not those behind it.
    given.write_text("{}")
    failing = call(work, *command, "memcheck", times="rounding_0=0", sanitizer=str(checker))
    assert failing.returncode == 1
    found = read(given)["check.sanitizer"]["items"]
    assert found["memcheck rounding"]["problems"][0].startswith("the process ended with")
    assert found["memcheck tiny.bfloat16"]["problems"] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "--parts", "nothing"], "check has no part nothing; it has kernels, suites, sanitizer"),
        (["tune", "--parts", "kernels"], "tune has no parts"),
        (["time"], r"has no timed and no models: run `python -m tests.cuda.on_gpu prepare --parts timed,models`"),
        (["report"], r"results\.json is not there"),
        (["check", "--parts", "sanitizer"], "has no kernels"),
    ],
)
def test_wrong_use_is_told(arguments: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=said):
        on_gpu.main([*arguments, "--work", str(tmp_path)])


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, work: Path, driver: Any) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    done = call(work, "check", "--parts", "kernels")
    assert "there is no CUDA device to run on: NVIDIA's driver sees no device" in done.stderr
    monkeypatch.setitem(sys.modules, "tvm", None)
    with pytest.raises(SystemExit, match="prepare needs the package tvm, which makes the kernels"):
        on_gpu.main(["prepare", "--work", str(work), "--tiny"])


def test_files_of_tests_are_found() -> None:
    assert {"emulated.rows", "emulated.hopper", "emulated.tensor_cores"} <= set(files_with_kernels())
    assert "emulated.on_gpu" not in files_with_kernels(), "it would call itself"


def test_kernels_of_tests_over_the_emulator_are_collected(driver: Any, tmp_path: Path) -> None:
    target = load_target("cuda", "sm_80")
    x = np.random.default_rng().standard_normal((40, 33)).astype(np.float32)
    made = schedule(op_group(Softmax(1), [x]), target, "rows")
    with recording() as runs:
        library = CudaLibrary([made])
        library.run("rows", x)
        library.run("rows", x + 1)
        CudaLibrary([made], other("__shfl_down_sync", "__shfl_down_sync")).run("rows", x)
    (run,) = runs
    assert [len(item["input"]) for item in run.sets] == [1, 1]
    (part,), (_, again) = in_parts(runs), in_parts([*runs, *runs])
    assert part == again == {"rows": run}
    write(tmp_path / "k", {"sm_80": {"rows": made}}, [target], {"rows": {"sizes": run.sizes}}, {})
    keep(tmp_path / "k" / "cases.npz", {"rows": run.sets})
    assert family(tmp_path / "k", 4) == []
    run.sets[1]["double"] = run.sets[1]["single"] = [run.sets[1]["single"][0] * np.float32(1.001)]
    keep(tmp_path / "k" / "cases.npz", {"rows": run.sets})
    (said,) = family(tmp_path / "k", 4)
    assert said.startswith("rows, turn 4: off by")


# --- without a device


def test_the_report_has_what_was_found(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_page(tmp_path / "results.json", file)
    text = file.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert "Not measured: the card's rates, products, convolutions, attention, whole models." in text
    assert text.count("| not measured |") == len(BARS)
    (tmp_path / "empty.md").write_text("no marks")
    with pytest.raises(ValueError, match="has no"):
        write_page(tmp_path / "results.json", tmp_path / "empty.md")


def test_the_report_of_made_up_results(tmp_path: Path) -> None:
    kernel = {"ours": 2e-6, "peers": {"cublas": 1.7e-6, "other": 3e-6}, "flops": 4_000_000, "bytes": 1000}
    model = {"ours": 2e-3, "peers": {"eager": 4e-3}, "first_call": 0.25, "load": 1.0, "flops": 10**9, "bytes": 10**6}
    slow = {**model, "ours": 3.8e-3, "first_call": 0.75}
    file = tmp_path / "results.json"
    for name, items in (
        ("time.products", {"square8192": kernel, "bert_b1_up": kernel}),
        ("time.models", {"mlp_b1_float32": model, "resnet50_b1_bfloat16": slow, "gpt2_b1_float32": {"failed": "x"}}),
        ("time.rates", {"copies": {"value": 4000.0, "unit": "GB/s"}, "float32 products": {"value": 50.0, "unit": ""}}),
        ("check.kernels", {"norm": {"problems": ["x"]}, "scan": {"problems": [], "units": {"TMA": 3}}}),
    ):
        Part(file, name).run([(key, lambda item=item: item) for key, item in items.items()], {"date": "today"})
    text = page(file)
    assert text.startswith("date: today.\n")
    assert "| large bf16 GEMM (8192³), speed over cuBLAS | at least 0.85 | 0.85 | met |" in text
    assert "the worst | at least 0.95 | 0.85 | missed |" in text
    assert "the worst | at most 0.9 | 0.95 | missed, 1 measured, 1 not |" in text
    assert "| small models (MLP, LSTM) at batch 1, the same: the worst | at most 0.5 | 0.50 | met |" in text
    assert "| first call after loading, seconds: the worst | at most 0.5 | 0.75 (resnet50_b1_bfloat16) | missed" in text
    assert "| bert_b1_up | 2.0 µs | 1.7 µs | 3.0 µs | 0.85 | 2.0 |  |" in text, "no roofline: the rate is not measured"
    assert "| mlp_b1_float32 | 2.00 ms | 4.00 ms | 0.50 | 1% | 1.00 s | 0.25 s |" in text
    assert "- kernels: 1 passed, 1 failed (norm); kernels with TMA: 3" in text
    assert "Not measured: convolutions, attention." in text
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)


def test_a_part_goes_on_where_it_stopped(tmp_path: Path) -> None:
    done: list[str] = []

    def work(name: str) -> dict[str, str]:
        done.append(name)
        if name == "bad" and len(done) == 2:
            raise ValueError("not yet")
        return {"found": name}

    items = [(name, lambda name=name: work(name)) for name in ("good", "bad")]
    file = tmp_path / "results.json"
    part = Part(file, "part")
    part.run(items)
    assert part.failed == ["bad"]
    again = Part(file, "part")
    again.run(items)
    assert done == ["good", "bad", "bad"]
    assert again.failed == []
    better = Part(file, "part")
    better.again = {"good"}
    better.run(items)
    assert done.pop() == "good"
    late = Part(file, "late", end=0.0)
    late.run(items)
    assert late.left == 2
    assert len(done) == 3
    assert set(read(file)) == {"part"}


def test_sets_of_inputs_are_kept(tmp_path: Path) -> None:
    half = np.arange(3, dtype=np.float32).astype("bfloat16")
    sets = [{"input": [half, np.arange(2)], "single": [half], "double": [half.astype(np.float64)]}] * 2
    keep(tmp_path / "cases.npz", {"k": sets, "none": [{"input": [], "single": [half], "double": [half]}]})
    found = kept(tmp_path / "cases.npz")
    assert [len(item) for item in found.values()] == [2, 1]
    assert found["k"][1].inputs[0].dtype == half.dtype
    assert found["none"][0].inputs == []
    assert found["k"][0].problems("k", [half]) == []
    single = np.array([1.0, np.inf, np.nan, 3e38, 0.1], np.float32)
    double = np.array([1.0 + 1e-9, np.inf, np.nan, 3e38, 0.1])
    keep(tmp_path / "off.npz", {"k": [{"input": [], "single": [single], "double": [double]}]})
    (given,) = kept(tmp_path / "off.npz")["k"]
    np.testing.assert_allclose(given.kept[1][0][[0, 4]], double[[0, 4]], rtol=1e-15)
    assert given.problems("k", [single]) == []
    assert given.problems("k", [single[::-1].copy()]) != []
    assert found["k"][0].problems("k", [half + half]) != []


def test_models_that_fade_are_no_test() -> None:
    found = {"least std of a layer": 0.3, "largest share of denormals": 0.0, "std of the output": 1.0}
    assert faded(found) == []
    assert faded({**found, "least std of a layer": 1e-3, "std of the output": float("nan")}) == [
        "a layer fades: its standard deviation is 0.001", "the result is not finite",
    ]  # fmt: skip


def test_peers_take_and_give_what_packages_do() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2))
    peer = AsUsed(module, torch.bfloat16)
    assert next(peer.parameters()).dtype == torch.bfloat16
    assert peer(torch.randn(4, 3)).dtype == torch.float32
