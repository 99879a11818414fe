"""What a package says of its origin: in the manifest, in `info`, and in the bill of materials of its wheel."""

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from safetensors.torch import save_file
from torch import nn

import transpiler
from tests.models.support import FOLDER, load
from tests.packaging.support import tool
from transpiler import transpile
from transpiler.api import Package
from transpiler.provenance import compiler_version, state_hash

NET = """
from layers import MLP, example_inputs

def build_model():
    return MLP()
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("origin")
    shutil.copy(FOLDER / "mlp.py", folder / "layers.py")
    (folder / "net.py").write_text(NET)
    save_file(load("mlp")[0].state_dict(), folder / "weights.safetensors")
    return transpile(
        folder / "net.py", name="mlp", weights=folder / "weights.safetensors", out=folder, isa="baseline", exact=True
    )


@pytest.fixture(scope="module")
def manifest(package: Package) -> dict[str, Any]:
    return json.loads((package.path / "src/mlp/manifest.json").read_text())


def hash_of(state: dict[str, torch.Tensor]) -> str:
    """As `state_hash` documents it, written once more."""
    digest = hashlib.sha256()
    for key, tensor in sorted(state.items()):
        array = tensor.numpy()
        digest.update(f"{key} {array.dtype} {list(array.shape)}\n".encode() + array.tobytes())
    return digest.hexdigest()


def test_the_manifest_says_from_what(package: Package, manifest: dict[str, Any]) -> None:
    assert manifest["source"] == {
        "file": "net.py",
        "sha256": hashlib.sha256(NET.encode()).hexdigest(),
        "entry": "build_model",
        "class": "MLP",
        "imports": {"layers": hashlib.sha256((FOLDER / "mlp.py").read_bytes()).hexdigest()},
    }
    assert manifest["weights"]["sha256"] == hash_of(load("mlp")[0].state_dict())
    assert manifest["options"] == {"target": ["cpu"], "isa": ["baseline"], "tune": "none", "exact": True}
    tools = manifest["tools"]
    assert tools["torch-transpiler"] == transpiler.__version__
    assert tools["torch"] == torch.__version__
    assert tools["numpy"] == np.__version__
    assert any(char.isdigit() for char in tools["cc"])
    text = json.dumps(manifest)
    assert str(package.path.parent) not in text
    assert str(FOLDER) not in text


def test_info_shows_it(package: Package, manifest: dict[str, Any]) -> None:
    output = tool("mlp", "info", cwd=package.path / "src")
    lines = output.splitlines()
    for line in (
        f"source sha256: {manifest['source']['sha256']}",
        f"source imports: layers={manifest['source']['imports']['layers']}",
        f"weights sha256: {manifest['weights']['sha256']}",
        f"tools torch: {torch.__version__}",
        f"tools cc: {manifest['tools']['cc']}",
        "options isa: baseline",
        "options exact: True",
        f"platform: {manifest['platform']['tag']}",
    ):
        assert line in lines


def test_the_hash_is_of_the_content() -> None:
    state = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array(1)}
    again = {"a": np.array(1), "b": np.asfortranarray(state["b"])}
    assert state_hash(again) == state_hash(state)
    for other in ({**state, "a": np.array(2)}, {**state, "a": np.array(1, np.int32)}, {"b": state["b"]}):
        assert state_hash(other) != state_hash(state)


def test_a_compiler_that_says_nothing(tmp_path: Path) -> None:
    script = tmp_path / "cc"
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(0o755)
    assert compiler_version((str(script),)) == compiler_version((str(tmp_path / "none"),)) == "unknown"


def bill(wheel: Path, name: str) -> tuple[str, dict[str, Any]]:
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"{name}-0.1.0.dist-info/sboms/{name}.cdx.json").decode()
    return text, json.loads(text)


def test_the_bill_of_materials(package: Package, manifest: dict[str, Any]) -> None:
    text, document = bill(package.wheel(), "mlp")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert document["metadata"]["component"]["purl"] == "pkg:pypi/mlp@0.1.0"
    assert "timestamp" not in document["metadata"]
    hashes = {item["name"]: item["hashes"][0]["content"] for item in document["components"] if "hashes" in item}
    assert hashes.pop("mlp weights") == manifest["weights"]["sha256"]
    assert "kernels/cpu/baseline/mlp.so" in hashes
    for name, digest in hashes.items():
        assert hashlib.sha256((package.path / "src/mlp" / name).read_bytes()).hexdigest() == digest
    names = {item["name"] for item in document["components"]}
    assert {"numpy", "glibc", "torch-transpiler"} < names
    assert "cephes" not in names
    refs = [item["bom-ref"] for item in document["components"]]
    assert sorted(document["dependencies"][0]["dependsOn"]) == sorted(refs)
    tools = {item["name"]: item["version"] for item in document["metadata"]["tools"]["components"]}
    assert tools == manifest["tools"]
    assert os.sep + "tmp" not in text


class Bessel(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)


def test_the_code_of_others_is_named(tmp_path: Path) -> None:
    package = transpile(Bessel(), (torch.ones(3),), name="bessel", out=tmp_path, isa="baseline")
    text, document = bill(package.wheel(), "bessel")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    (cephes,) = (item for item in document["components"] if item["name"] == "cephes")
    assert cephes["licenses"] == [{"expression": "BSD-3-Clause"}]
    notices = (package.path / "src/bessel/THIRD_PARTY.txt").read_text()
    assert "Copyright (c) 2018, Steven Moshier" in notices
    assert "WARRANTIES" in notices
