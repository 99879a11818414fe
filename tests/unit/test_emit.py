"""The emitted package of a hand-made plan: its form, and what it does in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.unit import toy
from tests.unit.alone import python, runs
from transpiler.emit import emit_package, write_package
from transpiler.errors import TranspileError
from transpiler.prepared import runtime_module

TOOLS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(emit_package(toy.view()), tmp_path_factory.mktemp("out") / "toy")


def test_it_is_formatted_and_clean(package: Path) -> None:
    for command in (["ruff", "format", "--check", "--no-cache", "."], ["ruff", "check", "--no-cache", "."]):
        done = subprocess.run(
            [TOOLS / command[0], *command[1:]], cwd=package, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_it_passes_mypy_strict(package: Path, tmp_path: Path) -> None:
    command = [TOOLS / "mypy", "--cache-dir", tmp_path]
    done = subprocess.run(command, cwd=package, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_emitting_is_deterministic(package: Path) -> None:
    files = emit_package(toy.view())
    assert files == emit_package(toy.view())
    assert {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()} == set(files)


def test_forward_reads_like_the_source(package: Path) -> None:
    text = (package / "src/toy/model.py").read_text()
    assert "        # toy.py:13  rows = self.emb(ids)\n        rows = k.take_rows(w.table, ids)  # [2, 2]\n" in text
    assert "h = k.fc_relu(x_2, w.fc_weight_packed, w.fc_bias_shifted)  # [6, 4]" in text
    assert "def __call__(self, states: list[ArrayLike], arg1: None = None, *, ids: ArrayLike) -> Result:" in text


def test_native_and_stepwise_agree_bit_by_bit(package: Path) -> None:
    hidden, rows = toy.expected(*toy.inputs(), toy.state())
    np.savez(package.parent / "case.npz", x=toy.inputs()[0], ids=toy.inputs()[1], h=hidden, rows=rows)
    runs(
        package,
        f"""
case = np.load({str(package.parent / "case.npz")!r})
a = Model(threads=2)([case["x"]], ids=case["ids"])
b = Model(native=False)([case["x"]], ids=case["ids"])
assert a.hidden.tobytes() == b.hidden.tobytes() and a[1][0].tobytes() == b["parts"][0].tobytes()
np.testing.assert_allclose(a.hidden, case["h"], rtol=1e-5, atol=1e-6)
np.testing.assert_array_equal(a.parts[0], case["rows"])
np.testing.assert_array_equal(a.parts[1], case["x"])
assert a[0] is a.hidden and list(a) == ["hidden", "parts"]
""",
    )


def test_arguments_are_checked(package: Path) -> None:
    runs(
        package,
        """
model = Model()
raises(TypeError, "missing 1 required", model, [x])
raises(TypeError, "no_such", model, [x], ids=ids, no_such=1)
raises(TypeError, "states: expected a tuple or list of 1, got ndarray", model, x, ids=ids)
raises(ValueError, "states: expected 1 items, got 2", model, [x, x], ids=ids)
raises(TypeError, "x: expected dtype float32, got float64", model, [x.astype(float)], ids=ids)
raises(ValueError, "ids: expected shape (2,), got (3,)", model, [x], ids=np.zeros(3, np.int64))
raises(TypeError, "x: expected an array, got str", model, ["x"], ids=ids)
raises(TypeError, "x: expected an array, got list", model, [[1.0]], ids=ids)
raises(ValueError, "arg1: was fixed to None", model, [x], True, ids=ids)
raises(IndexError, "kernel take_rows (toy.py:13  rows = self.emb(ids))", model, [x], ids=np.array([0, 5]))
raises(IndexError, "toy.py:13", Model(native=False), [x], ids=np.array([0, 5]))
raises(ValueError, "device", Model, device="cuda")
raises(ValueError, "threads", Model, threads=0)
expected = model([x], ids=ids).hidden
assert (model([np.asfortranarray(x)], ids=ids).hidden == expected).all()
class Dlpack:
    def __dlpack__(self, **kwargs): return x.__dlpack__(**kwargs)
    def __dlpack_device__(self): return x.__dlpack_device__()
assert (model([Dlpack()], ids=ids).hidden == expected).all()
Dlpack.__dlpack_device__ = lambda self: (2, 0)
raises(TypeError, "x: expected an array in CPU memory", model, [Dlpack()], ids=ids)
model.threads = 3
assert model.threads == 3
with model:
    pass
raises(RuntimeError, "closed", model, [x], ids=ids)
""",
    )


def test_load_weights(package: Path, tmp_path: Path) -> None:
    new = {key: value * 2 for key, value in toy.state().items()}
    path = tmp_path / "new.safetensors"
    path.write_bytes(runtime_module("safetensors").encode(new))
    hidden, rows = toy.expected(*toy.inputs(), new)
    np.savez(tmp_path / "case.npz", x=toy.inputs()[0], ids=toy.inputs()[1], h=hidden, rows=rows)
    runs(
        package,
        f"""
case = np.load({str(tmp_path / "case.npz")!r})
x, ids = case["x"], case["ids"]
from toy.runtime.safetensors import File
path = {str(path)!r}
state = dict(File(path))
tied = dict(state)
tied["tied.weight"] = tied.pop("emb.weight")
tied["bn.num_batches_tracked"] = np.array(7)
old = Model()([x], ids=ids)
for weights in (path, state, tied):
    for model in (Model(), Model(native=False)):
        model.load_weights(weights)
        result = model([x], ids=ids)
        np.testing.assert_allclose(result.hidden, case["h"], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(result.parts[0], case["rows"])
np.testing.assert_allclose(Model(weights=path)([x], ids=ids).hidden, case["h"], rtol=1e-5, atol=1e-6)

wrong = dict(state, extra=x)
del wrong["fc.bias"]
wrong["fc.weight"] = np.zeros((4, 4), np.float32)
model = Model()
mismatched = "mismatched: fc.weight: expected float32[4, 3], got float32[4, 4]"
for fault in ("missing: fc.bias float32[4]", mismatched, "unexpected: extra"):
    raises(WeightsError, fault, model.load_weights, wrong)
assert (model([x], ids=ids).hidden == old.hidden).all()
raises(FileNotFoundError, "none.safetensors", model.load_weights, "none.safetensors")
raises(WeightsError, "safetensors.torch.save_file", model.load_weights, "model.pt")
model.load_weights({{"emb.weight": state["emb.weight"], "extra": x}}, strict=False)
result = model([x], ids=ids)
assert (result.hidden == old.hidden).all() and (result.parts[0] == case["rows"]).all()
""",
    )


def test_taps(package: Path) -> None:
    runs(
        package,
        """
model = Model()
assert model.taps == ["emb", "fc"]
result = model([x], ids=ids)
assert (model.tap("fc")([x], ids=ids) == result.hidden).all()
assert (model.tap("emb")([x], None, ids=ids) == result.parts[0]).all()
raises(KeyError, "'relu' was fused with its neighbours; the nearest value is 'fc'", model.tap, "relu")
raises(TapError, "the model has no value 'fcc'; close: 'fc'", model.tap, "fcc")
""",
    )


def test_weights_are_swapped_under_running_calls(package: Path) -> None:
    runs(
        package,
        """
from concurrent.futures import ThreadPoolExecutor
from toy.runtime.safetensors import File
model = Model(threads=2)
w = {"fc.weight": np.ones((4, 3), "f"), "fc.bias": np.zeros(4, "f"), "emb.weight": np.zeros((5, 2), "f")}
states = [w, {key: value + 1 for key, value in w.items()}]
answers = []
for state in states:
    model.load_weights(state)
    answers.append(model([x], ids=ids).hidden.tobytes())
def load(i):
    for _ in range(100): model.load_weights(states[i])
def call(i):
    for _ in range(500): assert model([x], ids=ids).hidden.tobytes() in answers
with ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda job: job[0](job[1]), [(load, 0), (load, 1), (call, 0), (call, 1)]))
""",
    )


@pytest.mark.parametrize("command", ["info", "verify", "bench -n 5 --threads 2", "profile -n 3"])
def test_command_line(package: Path, command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-B", "-m", "toy", *command.split()],
        env={**os.environ, "PYTHONPATH": str(package / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {
        "info": "ids: int64[2]  in 0..4",
        "verify": "the sample passed",
        "bench": "median",
        "profile": "take_rows",
    }[command.split()[0]] in done.stdout


def test_profile_writes_a_trace(package: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    done = subprocess.run(
        [sys.executable, "-B", "-m", "toy", "profile", "-n", "3", "--threads", "1", "--each", "--trace", path],
        env={**os.environ, "PYTHONPATH": str(package / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of roofline" in done.stdout
    *events, lane = json.loads(path.read_text())["traceEvents"]
    assert (lane["ph"], lane["tid"], lane["args"]) == ("M", 0, {"name": "thread 0"})
    assert [event["name"] for event in events] == ["fc_relu", "take_rows"]
    assert all(event["ph"] == "X" and event["dur"] >= 0 for event in events)
    assert events[0]["ts"] == 0
    assert events[1]["ts"] >= events[0]["dur"]
    assert events[0]["args"]["computes"]


def test_a_trace_has_a_lane_per_thread(package: Path) -> None:
    text = runs(
        package,
        """
from toy.runtime.profile import Event, trace
facts = {"kernels": {"fc": {"summary": "linear", "flops": 2, "bytes": 8}}}
print(trace([Event("fc", 1e-6, 5e-6, "fc.py:1", {2: (2e-6, 4e-6)})], facts, {}))
""",
    )
    items = json.loads(text)["traceEvents"]
    spans = [(item["tid"], item["ts"], item["dur"]) for item in items if item["ph"] == "X"]
    np.testing.assert_allclose(spans, [(0, 1, 4), (2, 2, 2)])
    assert [item["tid"] for item in items if item["ph"] == "M"] == [0, 2]


def test_the_least_time_of_a_kernel(package: Path) -> None:
    """Weights come from where all of the model's lie, again from where the kernel's do; a line per step of the sum."""
    text = runs(
        package,
        """
from toy.runtime.profile import Event, Rates, kernel_times
rates = Rates(1e9, ((1000, 8e9), (10000, 4e9), (100000, 2e9), (0, 1e9)))
fc = {"flops": 64, "bytes": 1500, "weight_bytes": 1000}
scan = {"flops": 64, "bytes": 5500, "weight_bytes": 5000, "reread_bytes": 20000}
facts = {"kernels": {"fc": fc, "scan": scan}, "weights": {"bytes": 60000}}
run = [Event("fc", 0.0, 1e-6, "m.py:1"), Event("scan", 1e-6, 9e-6, "m.py:2")]
for time in kernel_times([run], facts, {}, rates):
    print(time.kernel, time.bytes, f"{time.arithmetic * 1e9:.4f} {time.memory * 1e9:.4f} {time.least * 1e9:.4f}")
""",
    )
    # 1000 / 2 + 500 / 8, and 5000 / 2 + 500 / 8 + 20000 / 4
    assert text.split("\n")[:2] == ["fc 1500 64.0000 562.5000 562.5000", "scan 25500 64.0000 7562.5000 7562.5000"]


def test_damage_is_noticed(package: Path, tmp_path: Path) -> None:
    files = {str(path.relative_to(package)): path.read_bytes() for path in package.rglob("*") if path.is_file()}
    for name, complaint in (
        ("src/toy/kernels/cpu/baseline/toy.so", "was changed"),
        ("src/toy/model.py", "was changed"),
        ("src/toy/weights.cpu.safetensors", "the header describes"),
        ("src/toy/manifest.json", "damaged"),
    ):
        content = files[name] + b"# changed\n" if name.endswith(".py") else files[name][:-1]
        if name.endswith(".json"):
            content = files[name][:-10]
        broken = write_package({**files, name: content}, tmp_path / name.replace("/", "_") / "toy")
        done = python(broken, "Model()")
        assert done.returncode == 1
        assert complaint in done.stderr, done.stderr
        assert Path(name).name in done.stderr
    changed = bytearray(files["src/toy/weights.cpu.safetensors"])
    changed[-1] ^= 1
    broken = write_package({**files, "src/toy/weights.cpu.safetensors": bytes(changed)}, tmp_path / "weights" / "toy")
    assert python(broken, "Model()").returncode == 0
    assert "was changed" in python(broken, "Model(verify=True)").stderr


def test_the_environment_chooses(package: Path) -> None:
    assert runs(package, "print(Model().isa, Model().threads)", TRANSPILE_THREADS="1") == "baseline 1\n"
    assert "has no kernels for avx2, only for baseline" in python(package, "Model()", TRANSPILE_ISA="avx2").stderr


def test_a_wheel_is_built_without_a_network(package: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        tmp_path,
        package,
    ]
    subprocess.run(command, check=True)
    assert (tmp_path / "toy" / "manifest.json").is_file()
    assert not (tmp_path / "tests").exists()
    done = subprocess.run(
        [sys.executable, "-m", "toy", "verify"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "the sample passed" in done.stdout, done.stdout + done.stderr


# --- writing -----------------------------------------------------------------


def test_only_our_folders_are_replaced(package: Path, tmp_path: Path) -> None:
    files = emit_package(toy.view())
    write_package({**files, "old.txt": b""}, tmp_path / "toy")
    write_package(files, tmp_path / "toy")
    assert not (tmp_path / "toy" / "old.txt").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious.txt").write_text("precious")
    with pytest.raises(TranspileError, match="not made by transpile") as caught:
        write_package(files, other)
    assert caught.value.code == "output-not-ours"
    assert [path.name for path in other.iterdir()] == ["precious.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "toy"]


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = emit_package(toy.view())
    write_package(files, tmp_path / "toy")
    before = (tmp_path / "toy/src/toy/manifest.json").read_bytes()
    with pytest.raises(ValueError, match="not a path inside"):
        write_package({**files, "zz/../../escape": b""}, tmp_path / "toy")

    def interrupted(source: object, target: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_package(files, tmp_path / "toy")
    assert (tmp_path / "toy/src/toy/manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
