"""Packages of lower precision: their own tests pass, errors are no larger than PyTorch's, weights take half."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from torch import nn

from tests.models.precise import MODELS, Perceptron, Transformer
from tests.models.redraw import redraw
from tests.models.support import convert, fresh, pairs, to_double
from tests.vulkan.device import require_device
from transpiler import transpile
from transpiler.api import Package
from transpiler.errors import TranspileErrors

Half = Literal["float16", "bfloat16"]
DTYPES: dict[Half, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# By how much our largest error may be over that of PyTorch's autocast on the same inputs.
FACTOR = 2.0
# PyTorch has no LSTM in float16 for CPUs: the error may be that of some roundings.
NO_AUTOCAST = {("recurrent", "float16")}


def build(name: str, precision: Half | Literal["tf32"], out: Path, **options: Any) -> Package:
    module, args, kwargs = MODELS[name]()
    return transpile(
        redraw(module, 1), args=args, kwargs=kwargs, name=f"{name}_{precision}", out=out, precision=precision,
        **{"isa": "native", **options},
    )  # fmt: skip


def check(name: str, precision: Half, package: Package) -> None:
    """The generated tests, and fresh inputs: as exact as autocast, up to `FACTOR`."""
    report = package.test()
    assert report.failed == 0, report.output
    assert report.passed > 40
    module, args, kwargs = MODELS[name]()
    module = redraw(module, 1).eval()
    generator = torch.Generator().manual_seed(5)
    args, kwargs = fresh(args, generator), fresh(kwargs, generator)
    with torch.no_grad():
        exact = copy.deepcopy(module).double()(*convert(args, to_double), **convert(kwargs, to_double))
        with torch.autocast("cpu", DTYPES[precision], enabled=(name, precision) not in NO_AUTOCAST):
            mixed = module(*args, **kwargs)
    got = package.load()(*convert(args, torch.Tensor.numpy), **convert(kwargs, torch.Tensor.numpy))
    leaves = list(pairs(exact, mixed, got))
    assert leaves
    for two, one, ours in leaves:
        assert ours.dtype == np.float32, "results are as the user had them"
        error, theirs = (np.abs(x.astype(np.float64) - two.numpy()).max() for x in (ours, one.float().numpy()))
        unit = float(torch.finfo(DTYPES[precision]).eps) * float(two.abs().max())
        assert error <= FACTOR * max(theirs, unit)


@pytest.mark.parametrize("precision", sorted(DTYPES))
@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.slow
def test_on_every_instruction_set(name: str, precision: Half, tmp_path: Path) -> None:
    check(name, precision, build(name, precision, tmp_path, isa=()))


def test_on_a_cpu(tmp_path: Path) -> None:
    name, precision = "transformer", cast("Half", "bfloat16")
    package = build(name, precision, tmp_path)
    check(name, precision, package)
    manifest = json.loads((package.path / "src" / package.name / "manifest.json").read_text())
    assert manifest["precision"] == precision
    eps = float(torch.finfo(DTYPES[precision]).eps)
    for entry in manifest["built"]["cpu"]["error"]:
        assert 0 < entry["rms_relative_error"] < 4 * eps
        assert 0 < entry["max_relative_error"] < 8 * eps
        assert entry["tolerance"] < 100 * eps * entry["max_abs_reference"]
    environment = {"PYTHONPATH": str(package.path / "src"), "PATH": ""}
    command = [sys.executable, "-m", package.name, "info"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert f"precision: {precision}: weights are kept in it, sums are float32\n" in said
    assert "; relative: largest " in said


CASES = [(name, precision) for name in sorted(MODELS) for precision in sorted(DTYPES)]


@pytest.mark.parametrize(
    ("name", "precision"),
    [pytest.param(*case, marks=[] if case == ("norms", "float16") else [pytest.mark.slow]) for case in CASES],
)
def test_on_vulkan(name: str, precision: Half, tmp_path: Path) -> None:
    require_device()
    check(name, precision, build(name, precision, tmp_path, target="vulkan", isa=()))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODELS))
def test_tf32_without_units_for_it_is_float32(name: str, tmp_path: Path) -> None:
    package, plain = build(name, "tf32", tmp_path / "a"), build(name, "tf32", tmp_path / "b")
    assert package.test().failed == 0
    texts = [(item.path / "src" / item.name / "model.py").read_text() for item in (package, plain)]
    assert texts[0] == texts[1]


@pytest.fixture(scope="module")
def perceptron(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return build("perceptron", "float16", tmp_path_factory.mktemp("perceptron"))


def _state(scale: float = 1.0) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {key: value * scale for key, value in Perceptron().state_dict().items()}


def test_weights_come_in_any_float_type(perceptron: Package) -> None:
    """float32, the package's own type and another one: the same tensors give the same results."""
    model = perceptron.load()
    x = np.random.default_rng(0).standard_normal((1, 100)).astype(np.float32)
    half = {key: value.half() for key, value in _state().items()}
    results = []
    for state in (half, {key: value.float() for key, value in half.items()}, {k: v.double() for k, v in half.items()}):
        model.load_weights({key: value.numpy() for key, value in state.items()})
        results.append(model(x))
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])
    module = Perceptron()
    module.load_state_dict(half)
    with torch.no_grad():
        exact = module.double()(torch.from_numpy(x).double()).numpy()
    assert np.abs(results[0] - exact).max() < 1e-6 * np.abs(exact).max() * 10


def test_a_weight_out_of_range_is_refused_when_it_is_loaded(perceptron: Package) -> None:
    model = perceptron.load()
    x = np.zeros((1, 100), np.float32)
    before = model(x)
    state = {key: value.numpy() for key, value in _state().items()}
    state["two.weight"][3, 4] = 70000.0
    with pytest.raises(ValueError, match=r"two\.weight: out of the range of float16, which the package keeps it in"):
        model.load_weights(state)
    assert np.array_equal(model(x), before), "refused weights change nothing"
    state["two.weight"][3, 4] = np.inf  # what is infinite in float32 may be so in float16
    model.load_weights(state)


def test_a_weight_out_of_range_is_refused_when_it_is_built(tmp_path: Path) -> None:
    module = Perceptron()
    with torch.no_grad():
        module.one.weight[2, 1] = -1e5
    with pytest.raises(TranspileErrors) as caught:
        transpile(module, args=(torch.zeros(1, 100),), out=tmp_path, precision="float16", isa="native")
    (problem,) = caught.value.problems
    assert problem.message == "one.weight is out of the range of float16: it has 100000."
    assert problem.hints == ("use --precision bfloat16, which has the range of float32",)
    assert not any(tmp_path.iterdir())


def test_a_model_in_another_half_type_is_refused(tmp_path: Path) -> None:
    module = Perceptron().to(torch.bfloat16)
    example = (torch.zeros(1, 100, dtype=torch.bfloat16),)
    with pytest.raises(TranspileErrors, match="the model is in bfloat16 already"):
        transpile(module, args=example, out=tmp_path, precision="float16", isa="native")


def test_weights_take_half_the_room(perceptron: Package, tmp_path: Path) -> None:
    plain = transpile(
        Perceptron(), args=(torch.zeros(1, 100),), name="plain", out=tmp_path, isa="native"
    )  # fmt: skip
    sizes = [
        json.loads((item.path / "src" / item.name / "manifest.json").read_text())["built"]["cpu"]["weights"]["bytes"]
        for item in (perceptron, plain)
    ]
    assert sizes[0] < 0.53 * sizes[1]


class Session(nn.Module):
    """Functions that share weights and a state."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = Transformer()
        self.register_buffer("seen", torch.zeros(32))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.body(ids)

    def remember(self, ids: torch.Tensor) -> torch.Tensor:
        self.seen.add_(self.body.tokens(ids).mean(0))
        return self.body.norms[4](self.seen)


def test_functions_state_and_taps(tmp_path: Path) -> None:
    module = redraw(Session(), 1).eval()
    ids = torch.randint(0, 61, (2, 8), generator=torch.Generator().manual_seed(0))
    package = transpile(
        module, functions={"forward": (ids,), "remember": (ids[0],)}, name="session", out=tmp_path, isa="native",
        precision="bfloat16", taps="body.up.0,body.norms.4",
    )  # fmt: skip
    report = package.test()
    assert report.failed == 0, report.output


def test_a_length_that_varies(tmp_path: Path) -> None:
    module, args, _ = MODELS["transformer"]()
    package = transpile(
        redraw(module, 1), args=args, name="lengths", out=tmp_path, isa="native", precision="float16",
        dynamic=("ids.1=length:1..16",),
    )  # fmt: skip
    report = package.test()
    assert report.failed == 0, report.output


class Decision(nn.Module):
    """The largest of many logits, and what belongs to it."""

    def __init__(self) -> None:
        super().__init__()
        self.logits, self.rows = nn.Linear(32, 200), nn.Embedding(200, 16)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        choice = self.logits(x).argmax(-1)
        return self.rows(choice), choice


def test_positions_that_roundings_decide_are_left_out_and_counted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = torch.randn(64, 32)
    package = transpile(
        Decision(), args=(example,), name="decision", out=tmp_path, isa="native", precision="bfloat16"
    )  # fmt: skip
    report = package.test()
    assert report.failed == 0, report.output
    cases = json.loads((package.path / "tests" / "data" / "cases.json").read_text())["cases"]
    rows, choices = next(case["outputs"] for case in cases if case["name"] == "drawn_3")
    assert 0 < choices["excluded"] < 16, "near ties are few"
    assert 8 * choices["excluded"] < rows["excluded"] <= 16 * choices["excluded"]
