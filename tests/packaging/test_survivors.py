"""Packages of earlier days: every one in `survivors` is loaded, run and verified by today's Python and numpy."""

import json
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.packaging.support import tool
from tests.packaging.survivor import FOLDER, expected, rows, weights
from transpiler.loading import load_package
from transpiler.manifest import FORMAT

WHEELS = sorted(FOLDER.glob("format_*.whl"))


def test_today_s_format_has_a_survivor() -> None:
    """A new format: `python -m tests.packaging.make_survivor`, and check the file in."""
    assert FOLDER / f"format_{FORMAT}.whl" in WHEELS
    assert all(wheel.stat().st_size < 120_000 for wheel in WHEELS)


@pytest.fixture(scope="module", params=WHEELS, ids=lambda wheel: wheel.stem)
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that has the unpacked package in `src`."""
    folder: Path = tmp_path_factory.mktemp("survivor")
    with zipfile.ZipFile(request.param) as archive:
        archive.extractall(folder / "src")
    return folder


@pytest.fixture(scope="module")
def package(installed: Path) -> ModuleType:
    module: ModuleType = load_package(installed, "survivor")
    return module


def test_it_verifies(installed: Path) -> None:
    assert "the sample passed" in tool("survivor", "verify", cwd=installed / "src")
    assert "source" in tool("survivor", "info", cwd=installed / "src")


@pytest.mark.parametrize("native", [True, False])
def test_it_computes_what_it_did(package: ModuleType, native: bool) -> None:
    with package.Model(native=native, verify=True) as model:
        for count in (1, 2, 33):
            y, seen = model(rows(count))
            np.testing.assert_allclose(y, expected(weights(1), rows(count)), atol=1e-5)
        assert seen == 36
        model.reset()
        assert model(rows(2))[1] == 2
        with pytest.raises(ValueError, match=r"allowed 1\.\.64"):
            model(rows(65))


def test_its_weights_can_be_exchanged(package: ModuleType, tmp_path: Path) -> None:
    save_file(weights(5), tmp_path / "new.safetensors")
    with package.Model() as model:
        for source in (tmp_path / "new.safetensors", weights(5)):
            model.load_weights(weights(1))
            model.load_weights(source)
            np.testing.assert_allclose(model(rows(3))[0], expected(weights(5), rows(3)), atol=1e-5)
    np.testing.assert_allclose(package.Model(weights=weights(6))(rows(3))[0], expected(weights(6), rows(3)), atol=1e-5)


def test_its_taps_and_state(package: ModuleType) -> None:
    with package.Model() as model:
        assert "out" in model.taps
        np.testing.assert_allclose(model.tap("out")(rows(4)), expected(weights(1), rows(4)), atol=1e-5)
        model(rows(4))
        assert dict(model.state)["seen"] == 4


@pytest.mark.parametrize(
    ("format", "why"),
    [(FORMAT + 1, "was made by a newer version of transpile"), (2, "is not of this package"), ("4", "is not of this")],
)
def test_another_format_is_refused(installed: Path, tmp_path: Path, format: Any, why: str) -> None:
    import shutil

    shutil.copytree(installed / "src", tmp_path / "src")
    file = tmp_path / "src/survivor/manifest.json"
    manifest = json.loads(file.read_text())
    if manifest["format"] == format:
        pytest.fail("choose another format")
    file.write_text(json.dumps({**manifest, "format": format}))
    package = load_package(tmp_path, "survivor")
    with pytest.raises(package.PackageError, match=why) as caught:
        package.Model()
    assert f"it has format {format}" in str(caught.value)
