"""Wheels: what is in them, what their tag says, and that pip installs and removes them without a trace."""

import base64
import hashlib
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import save_file

from tests.models.support import FOLDER
from tests.packaging.support import Environment, run, tagger, tool
from transpiler import transpile
from transpiler.api import Package
from transpiler.cli import main
from transpiler.errors import TranspileError, TranspileErrors
from transpiler.target import load_targets
from transpiler.weights import state_arrays

ASK = "import sys, numpy as np; from tagger import Model; {}; np.save('y.npy', model(np.load('ids.npy')))"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    module, ids = tagger()
    return transpile(module, (ids,), name="tagger", out=tmp_path_factory.mktemp("tagger"), isa="baseline")


@pytest.fixture(scope="module")
def wheel(package: Package) -> Path:
    return package.wheel()


@pytest.fixture
def bare(tmp_path: Path) -> Environment:
    """An environment with numpy, and ids.npy in its folder."""
    environment = Environment(tmp_path / "bare")
    np.save(environment.folder / "ids.npy", tagger()[1].numpy())
    return environment


def expected(seed: int = 0) -> np.ndarray:
    module, ids = tagger(seed)
    with torch.no_grad():
        return module(ids).numpy()


def test_it_holds_the_package_and_nothing_else(package: Package, wheel: Path) -> None:
    inside = package.path / "src"
    with zipfile.ZipFile(wheel) as archive:
        files = {entry.filename: archive.read(entry) for entry in archive.infolist()}
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
    info = "tagger-0.1.0.dist-info"
    own = {name: data for name, data in files.items() if not name.startswith(f"{info}/")}
    on_disk = {path.relative_to(inside).as_posix(): path.read_bytes() for path in inside.rglob("*") if path.is_file()}
    assert own == on_disk
    assert all(name.startswith("tagger/") for name in own)
    record = [line.split(",") for line in files[f"{info}/RECORD"].decode().splitlines()]
    assert sorted(name for name, _, _ in record) == sorted(files)
    for name, digest, size in record:
        if name == f"{info}/RECORD":
            assert (digest, size) == ("", "")
            continue
        encoded = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=").decode()
        assert (digest, int(size)) == (f"sha256={encoded}", len(files[name])), name
    assert {mode & 0o777 for name, mode in modes.items() if name.endswith(".so")} == {0o755}
    assert {mode & 0o777 for name, mode in modes.items() if not name.endswith(".so")} == {0o644}


def test_its_tag_is_what_auditwheel_says(wheel: Path, package: Package) -> None:
    match = re.fullmatch(r"tagger-0\.1\.0-py3-none-(manylinux_(\d+)_(\d+)_x86_64)\.whl", wheel.name)
    assert match
    with zipfile.ZipFile(wheel) as archive:
        described = archive.read("tagger-0.1.0.dist-info/WHEEL").decode()
    assert f"Tag: py3-none-{match[1]}\n" in described
    assert package.load().manifest["platform"]["tag"] == match[1]
    found = re.search(r"manylinux_(\d+)_(\d+)_x86_64", tool("auditwheel", "show", wheel, cwd=wheel.parent))
    assert found
    assert (int(found[1]), int(found[2])) == (int(match[2]), int(match[3]))


def test_twine_takes_it(package: Package, tmp_path: Path) -> None:
    package.wheel(tmp_path)
    run(sys.executable, "-c", _SDIST, package.path, tmp_path, cwd=package.path)
    assert len(list(tmp_path.iterdir())) == 2
    assert tool("twine", "check", "--strict", *tmp_path.iterdir(), cwd=tmp_path).count("PASSED") == 2


_SDIST = "import sys; sys.path.insert(0, sys.argv[1]); from wheel_backend import build_sdist as b; b(sys.argv[2])"


def test_pip_makes_the_same_wheel(package: Package, wheel: Path, tmp_path: Path) -> None:
    for number, options in enumerate(((), ("-C", "weights=none"))):
        folder = tmp_path / str(number)
        run(
            sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps", "--no-index",
            "-w", folder, *options, package.path, cwd=tmp_path,
        )  # fmt: skip
        ours = package.wheel(tmp_path / "ours", bundle_weights="none" if options else "embed")
        assert (folder / wheel.name).read_bytes() == ours.read_bytes()
    output = run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "-C", "weights=separate", package.path,
        cwd=tmp_path, fails=True,
    )  # fmt: skip
    assert "give weights=none" in output


def test_pip_installs_and_removes_it(wheel: Path, bare: Environment) -> None:
    before = bare.files()
    bare.install(wheel)
    new = bare.files() - before
    assert new
    assert {name.split("/")[0] for name in new} == {"tagger", "tagger-0.1.0.dist-info"}
    run(bare.python, "-c", ASK.format("model = Model(verify=True)"), cwd=bare.folder)
    np.testing.assert_allclose(np.load(bare.folder / "y.npy"), expected(), atol=1e-5)
    verified = run(bare.python, "-m", "tagger", "verify", cwd=bare.folder, PYTHONDONTWRITEBYTECODE="")
    assert "the sample passed" in verified
    assert (bare.site / "tagger/__pycache__").exists()
    bare.pip("uninstall", "-y", "tagger")
    assert bare.files() == before
    assert not (bare.site / "tagger").exists()


def test_weights_beside_it(package: Package, wheel: Path, bare: Environment) -> None:
    beside = bare.folder / "beside"
    alone = package.wheel(beside, bundle_weights="separate")
    (weights,) = beside.glob("*.safetensors")
    assert weights.name == "tagger-0.1.0.weights.cpu.safetensors"
    with zipfile.ZipFile(alone) as archive:
        assert not [name for name in archive.namelist() if "weights.cpu" in name]
    bare.install(alone)

    def model(text: str, **variables: str) -> np.ndarray:
        run(bare.python, "-c", ASK.format(text), cwd=bare.folder, **variables)
        return np.load(bare.folder / "y.npy")

    np.testing.assert_allclose(model(f"model = Model({str(weights)!r})"), expected(), atol=1e-5)
    np.testing.assert_allclose(model("model = Model(verify=True)", TRANSPILE_WEIGHTS="beside"), expected(), atol=1e-5)
    assert "the sample passed" in run(
        bare.python, "-m", "tagger", "verify", cwd=bare.folder, TRANSPILE_WEIGHTS=str(beside)
    )
    why = run(bare.python, "-c", ASK.format("model = Model()"), cwd=bare.folder, fails=True)
    assert "without its weights, and $TRANSPILE_WEIGHTS names no folder" in why
    assert "Model(weights='tagger-0.1.0.weights.cpu.safetensors')" in why
    why = run(
        bare.python, "-c", ASK.format("model = Model()"), cwd=bare.folder, fails=True, TRANSPILE_WEIGHTS="elsewhere"
    )
    assert "TRANSPILE_WEIGHTS=elsewhere has no tagger-0.1.0.weights.cpu.safetensors" in why
    changed = bytearray(weights.read_bytes())
    changed[-5] ^= 1
    weights.write_bytes(changed)
    ask = ASK.format("model = Model(verify=True)")
    why = run(bare.python, "-c", ask, cwd=bare.folder, fails=True, TRANSPILE_WEIGHTS=str(beside))
    assert "does not hold the weights that this package was built with" in why


def test_no_weights(package: Package, bare: Environment) -> None:
    empty = package.wheel(bare.folder, bundle_weights="none")
    assert not list(bare.folder.glob("*.safetensors"))
    bare.install(empty)
    why = run(bare.python, "-c", ASK.format("model = Model()"), cwd=bare.folder, fails=True)
    assert "WeightsError: tagger was installed without weights; Model(weights='model.safetensors')" in why
    assert "error: tagger was installed without weights" in run(
        bare.python, "-m", "tagger", "verify", cwd=bare.folder, fails=True
    )
    module, _ = tagger(seed=5)
    save_file(state_arrays(module.state_dict()), bare.folder / "new.safetensors")
    run(bare.python, "-c", ASK.format("model = Model('new.safetensors', verify=True)"), cwd=bare.folder)
    np.testing.assert_allclose(np.load(bare.folder / "y.npy"), expected(seed=5), atol=1e-5)


def test_a_changed_package_makes_no_wheel(package: Package, tmp_path: Path) -> None:
    file = package.path / "src/tagger/model.py"
    text = file.read_text()
    try:
        file.write_text(text + "# changed\n")
        with pytest.raises(TranspileError, match=r"model\.py was changed since it was built") as caught:
            package.wheel(tmp_path)
        file.unlink()
        with pytest.raises(TranspileError, match=r"model\.py"):
            package.wheel(tmp_path)
    finally:
        file.write_text(text)
    assert caught.value.code == "package-changed"
    assert not list(tmp_path.iterdir()), "nothing half-written is left"
    wrong: Any = "inside"
    with pytest.raises(ValueError, match="'embed', 'separate' or 'none'"):
        package.wheel(tmp_path, bundle_weights=wrong)


def test_sizes_beyond_two_gigabytes_are_written(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the limit of 32-bit sizes lowered, every larger file takes the 64-bit form, and unzips."""
    plain = package.wheel(tmp_path / "plain")
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 10)
    large = package.wheel(tmp_path / "large")
    monkeypatch.undo()
    assert large.stat().st_size > plain.stat().st_size
    with zipfile.ZipFile(plain) as first, zipfile.ZipFile(large) as second:
        assert second.testzip() is None
        assert second.namelist() == first.namelist()
        assert all(first.read(name) == second.read(name) for name in first.namelist())


@pytest.mark.slow
def test_weights_of_more_than_two_gigabytes(package: Package, tmp_path: Path) -> None:
    """A hole of 2.2 GB stands for the weights: written, hashed, and extracted again."""
    import shutil

    copy = tmp_path / "tagger"
    shutil.copytree(package.path, copy)
    weights = copy / "src/tagger/weights.cpu.safetensors"
    size = 2_200_000_000
    with weights.open("r+b") as file:
        file.truncate(size)
    digest = hashlib.sha256()
    with weights.open("rb") as file:
        while piece := file.read(1 << 24):
            digest.update(piece)
    manifest = copy / "src/tagger/manifest.json"
    facts = json.loads(manifest.read_text())
    facts["files"]["weights.cpu.safetensors"] = digest.hexdigest()
    manifest.write_text(json.dumps(facts))
    wheel = Package(copy, "tagger", package.report).wheel(tmp_path)
    environment = Environment(tmp_path / "bare")
    environment.install(wheel)
    installed = environment.site / "tagger/weights.cpu.safetensors"
    assert installed.stat().st_size == size


@pytest.mark.slow
def test_a_resnet_50_without_weights_is_a_megabyte(tmp_path: Path) -> None:
    """With the kernels of all instruction sets."""
    from transformers import ResNetConfig, ResNetForImageClassification

    module = ResNetForImageClassification(ResNetConfig(return_dict=False)).eval()
    isas = [target.isa.name for target in load_targets("cpu", triple="x86_64-unknown-linux-gnu")]
    package = transpile(module, (torch.zeros(1, 3, 224, 224),), name="resnet50", out=tmp_path, isa=isas)
    with zipfile.ZipFile(package.wheel(bundle_weights="none")) as archive:
        assert sum(name.endswith("/resnet50.so") for name in archive.namelist()) == 3
    assert package.wheel(bundle_weights="none").stat().st_size <= 1_000_000
    assert package.wheel().stat().st_size > 100_000_000


def test_a_version_of_its_own(bare: Environment) -> None:
    """In the wheel's name, its metadata and its bill of materials, in Python and for pkg-config."""
    module, x = torch.nn.Linear(3, 2).eval(), torch.ones(1, 3)
    for version in ("1.0-2", "v1.0", "1.0\n", "", "1.0/../2", "1.01"):
        with pytest.raises(TranspileErrors, match="is no version: expected one such as"):
            transpile(module, (x,), name="lin", version=version, out=bare.folder)
    package = transpile(module, (x,), name="lin", version="2!1.4rc1+cpu.1", out=bare.folder, isa="baseline")
    wheel = package.wheel(bundle_weights="separate")
    assert wheel.name.startswith("lin-2!1.4rc1+cpu.1-py3-none-")
    bare.install(wheel)
    text = (
        "import lin, importlib.metadata as m; print(lin.__version__, m.version('lin'), lin.Model().manifest['version'])"
    )
    got = run(bare.python, "-c", text, cwd=bare.folder, TRANSPILE_WEIGHTS=str(bare.folder))
    assert got.split() == ["2!1.4rc1+cpu.1"] * 3
    inside = bare.site / "lin"
    assert "\nVersion: 2!1.4rc1+cpu.1\n" in (inside / "lib/pkgconfig/lin.pc").read_text()
    assert "lin-2!1.4rc1+cpu.1.weights.cpu.safetensors" in (inside / "include/lin.h").read_text()
    (bill,) = bare.site.glob("lin-*.dist-info/sboms/lin.cdx.json")
    assert json.loads(bill.read_text())["metadata"]["component"]["purl"] == "pkg:pypi/lin@2%211.4rc1%2Bcpu.1"
    bare.pip("uninstall", "-y", "lin")


def test_a_tied_weight_is_stored_once(package: Package) -> None:
    file = package.path / "src/tagger/weights.cpu.safetensors"
    stored = 160 * 48 * 4 + 48 * 48 * 4 + 48 * 4
    assert file.stat().st_size < 1.2 * stored


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [str(FOLDER / "mlp.py"), "--out", str(out), "--isa", "baseline", "--no-test", "--tune", "none"]
    refused = CliRunner().invoke(main, [*command, "--bundle-weights", "none"])
    assert refused.exit_code == 2
    assert "--bundle-weights says what --wheel puts into a wheel" in refused.output
    done = CliRunner().invoke(main, [*command, "--wheel", "--bundle-weights", "separate"])
    assert done.exit_code == 0, done.output
    (wheel,) = out.glob("*.whl")
    (weights,) = out.glob("*.safetensors")
    assert f"  wheel  {wheel}, " in done.output
    assert f"         {weights}, " in done.output
    assert f"pip install {wheel}" in done.output
