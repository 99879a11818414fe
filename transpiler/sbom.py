"""The bill of materials of a package: CycloneDX 1.6 in JSON (https://cyclonedx.org/docs/1.6/json/).

A wheel carries it in `<name>.dist-info/sboms`, where PEP 770 looks for it. It names what is in the package (the
runtime, the libraries of kernels, the weights), what it needs where it runs (numpy, glibc) and the tools that made it.
The same package has the same document: no date, and a serial number that is derived from the content.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from transpiler.artifacts import NUMPY
from transpiler.resources import tree

FILE = "sbom.cdx.json"
SPEC = "1.6"
NOTICES = "THIRD_PARTY.txt"
# Code of others that a library may contain: name -> (what it is, its license by SPDX).
THIRD_PARTY = {"cephes": ("Rational approximations from the Cephes Mathematical Library", "BSD-3-Clause")}
# What targets need from PyPI.
LICENSES = {"vulkan": "Apache-2.0", "cuda-bindings": "LicenseRef-NVIDIA-SOFTWARE-LICENSE"}
SOURCES = {"cephes": "special_cephes.h"}
PYPI = frozenset({"torch", "apache-tvm", "apache-tvm-ffi", "numpy", "torch-transpiler"})


def bill_of_materials(manifest: Mapping[str, Any], files: Mapping[str, str]) -> bytes:
    """The document of a package.

    Args:
        manifest: of the package, without its hashes.
        files: the package's files, relative to its folder -> their SHA-256.
    """
    name, version = manifest["name"], manifest["version"]
    own = _pypi("library", name.replace("_", "-"), version) | {"description": manifest["summary"]}
    components = [
        _library("numpy", "numpy >= 1.26", "Apache-2.0 AND BSD-3-Clause", purl="pkg:pypi/numpy"),
        *(
            _library(name, item, LICENSES.get(name, "NOASSERTION"), purl=f"pkg:pypi/{name}")
            for name, item in _requirements(manifest).items()
        ),
        _pypi("library", "torch-transpiler", manifest["tools"].get("torch-transpiler", "unknown"))
        | {"description": "The package's runtime, in Python and C", "licenses": [{"license": {"id": "Apache-2.0"}}]},
        *(_library(part, *THIRD_PARTY[part]) for part in manifest["third_party"]),
        *(
            _file(path, digest)
            for path, digest in sorted(files.items())
            if path.endswith((".so", ".spv", ".safetensors"))
        ),
        _weights(name, manifest["weights"]),
    ]
    glibc = manifest["platform"].get("glibc")
    if glibc:
        components.append(_library("glibc", f"glibc >= {glibc}, of the system", "LGPL-2.1-or-later"))
    document = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "build"}],
            "tools": {"components": [_tool(*item) for item in sorted(manifest["tools"].items())]},
            "component": own,
        },
        "components": components,
        "dependencies": [
            {"ref": own["bom-ref"], "dependsOn": sorted(item["bom-ref"] for item in components)},
        ],
    }
    content = json.dumps(document, sort_keys=True)
    serial = uuid.uuid5(uuid.NAMESPACE_URL, content)
    text = json.dumps({**document, "serialNumber": f"urn:uuid:{serial}"}, indent=1, sort_keys=True)
    return f"{text}\n".encode()


def _requirements(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Name on PyPI -> requirement, of what some target needs besides numpy."""
    items = {item for built in manifest["built"].values() for item in built["requires"]} - {NUMPY}
    return {re.split(r"[<>=!~\[ ;]", item)[0]: item for item in sorted(items)}


def notices(parts: Sequence[str]) -> bytes:
    """The license texts of what the libraries hold of others, as their authors ask for in binaries."""
    texts = []
    for part in parts:
        source = (tree("templates") / "runtime" / "cpu" / SOURCES[part]).read_text(encoding="utf-8")
        comment = source[source.index("Copyright") : source.index("*/")]
        lines = [line.strip().removeprefix("*").strip() for line in comment.splitlines()]
        texts.append("\n".join([THIRD_PARTY[part][0], "", *lines]).rstrip() + "\n")
    return "\n".join(texts).encode()


def _pypi(kind: str, name: str, version: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{quote(version)}"
    return {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _library(name: str, description: str, license: str, purl: str | None = None) -> dict[str, Any]:
    entry = {
        "type": "library",
        "bom-ref": purl or name,
        "name": name,
        "description": description,
        "licenses": [{"expression": license}],
    }
    return entry | ({"purl": purl} if purl else {})


def _tool(name: str, version: str) -> dict[str, Any]:
    if name in PYPI:
        return {**_pypi("application", name, version), "bom-ref": f"tool:{name}"}
    return {"type": "application", "bom-ref": f"tool:{name}", "name": name, "version": version}


def _file(path: str, digest: str) -> dict[str, Any]:
    return {"type": "file", "bom-ref": path, "name": path, "hashes": [{"alg": "SHA-256", "content": digest}]}


def _weights(name: str, weights: Mapping[str, Any]) -> dict[str, Any]:
    """The trained weights, whatever file they come in."""
    entry: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": "weights",
        "name": f"{name} weights",
        "description": f"{len(weights['keys'])} tensors of a PyTorch state_dict",
    }
    if weights.get("sha256"):
        entry["hashes"] = [{"alg": "SHA-256", "content": weights["sha256"]}]
    return entry
