"""Damaged and hostile files by the thousand: whatever reads them gives a clear error, and nothing else happens.

`test_in_ci` draws a few hundred inputs; `test_ten_thousand` the rest. A failure names its seed.
"""

import copy
import importlib
import json
import random
import string
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from tests.safety.archives import CONSTANTS, MODEL, WEIGHTS, records, saved, write
from tests.unit import toy
from tests.unit.graphs import everything
from transpiler.elf import ElfError, read_needs
from transpiler.emit import emit_package, write_package
from transpiler.errors import TranspileErrors
from transpiler.exported_file import load_exported_program
from transpiler.loading import load_package
from transpiler.naming import c_comment, c_string, comment, docstring, identifier
from transpiler.prepared import runtime_module
from transpiler.project import read_project
from transpiler.serialize import from_json, to_json
from transpiler.text import print_program
from transpiler.text_parser import parse_program
from transpiler.weights import load_weights

CANARY = "canary"
RUN = f"__import__('pathlib').Path('{CANARY}').touch()"
TEXTS = [
    RUN, f'"); {RUN} #', f"'''\n{RUN}\n'''", f"{{{{ {RUN} }}}}", "{% for x in y %}", "../../etc/passwd", "/etc/passwd",
    "a\nb", "a\x00b", "*/ int main() {", "\\", '"', "'", "\u202e", "x" * 5000, "", " ", "None", "import", "a.b", "..",
    "%s%n", f"${{{RUN}}}", "é", "\U0001d4b3", "\ud800",
]  # fmt: skip
NUMBERS = [0, -1, 1, 2**31, 2**32, 2**48, 2**63, 2**64, -(2**63), 2**70, 10**40, 0.5, float("nan"), float("inf"), 1e308]
JUNK = [*TEXTS, *NUMBERS, None, True, False, [], {}, [[]], [None], {"leaf": -1}, {"dim": "a//0"}, {"dim": RUN}]

Check = Callable[[random.Random, Path], None]


# --- how inputs are damaged ---------------------------------------------------------------------------------


def bent(data: bytes, rng: random.Random) -> bytes:
    """Bytes with a few bits turned, cut off, or with a piece taken out, doubled or replaced."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(changed)) if changed else 0
        match rng.randrange(6):
            case 0 | 1 if changed:
                changed[at] ^= 1 << rng.randrange(8)
            case 2:
                del changed[at:]
            case 3:
                del changed[at : at + rng.randrange(64)]
            case 4:
                changed[at:at] = changed[at : at + rng.randrange(64)]
            case _:
                changed[at : at + 8] = rng.randbytes(8)
    return bytes(changed)


def places(data: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if here:
        yield here
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, item in items:
        yield from places(item, (*here, key))


def twisted(data: Any, known: list[tuple[Any, ...]], rng: random.Random) -> Any:
    """JSON with one or two values, or names of keys, replaced."""
    data = copy.deepcopy(data)
    for _ in range(rng.choice([1, 1, 2])):
        where = rng.choice(known)
        with suppress(KeyError, IndexError, TypeError):  # the first change took the second's place away
            inside = data
            for key in where[:-1]:
                inside = inside[key]
            if isinstance(inside, dict) and rng.random() < 0.15:
                inside[rng.choice(TEXTS)] = inside.pop(where[-1])
            else:
                inside[where[-1]] = rng.choice(JUNK)
    return data


# --- what is read -------------------------------------------------------------------------------------------


@cache
def graph() -> tuple[Any, list[tuple[Any, ...]], dict[str, Any]]:
    program = everything()
    data = json.loads(json.dumps(to_json(program)))
    return data, list(places(data)), dict(program.constants)


def graph_json(rng: random.Random, folder: Path) -> None:
    data, known, constants = graph()
    with suppress(TranspileErrors):
        program = from_json(twisted(data, known, rng), constants)
        assert print_program(program)


def graph_text(rng: random.Random, folder: Path) -> None:
    text = print_program(everything()).encode()
    with suppress(TranspileErrors):
        parse_program(bent(text, rng).decode("utf-8", "replace"), graph()[2])


@cache
def weights_file() -> bytes:
    return save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(4, np.int64)})


def safetensors(rng: random.Random, folder: Path) -> None:
    """Both readers: the transpiler's, and the one in packages."""
    path = folder / "w.safetensors"
    if rng.random() < 0.5:
        content = bent(weights_file(), rng)
    else:
        header = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
        text = json.dumps(twisted(header, list(places(header)), rng)).encode()
        content = len(text).to_bytes(8, "little") + text + bytes(24)
    path.write_bytes(content)
    with suppress(TranspileErrors):
        assert sum(array.nbytes for array in load_weights(path).values()) <= len(content)
    runtime = runtime_module("safetensors")
    with suppress(runtime.FormatError):
        file = runtime.File(path)
        assert sum(np.asarray(file[name]).size for name in file) <= len(content)


@cache
def state_dict() -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save({"a": torch.arange(6.0), "b": {"c": torch.ones(2)}}, buffer)
    return buffer.getvalue()


def pickled(rng: random.Random, folder: Path) -> None:
    path = folder / "w.pt"
    path.write_bytes(bent(state_dict(), rng))
    with suppress(TranspileErrors):
        load_weights(path)


@cache
def program_json(record: str) -> tuple[Any, list[tuple[Any, ...]]]:
    data = json.loads(records()[record])
    return data, list(places(data))


def exported_json(rng: random.Random, folder: Path) -> None:
    record = rng.choice([MODEL, MODEL, MODEL, WEIGHTS, CONSTANTS])
    text = json.dumps(twisted(*program_json(record), rng)).encode()
    with suppress(TranspileErrors):
        load_exported_program(write(folder / "net.pt2", {**records(), record: text}))


def exported_bytes(rng: random.Random, folder: Path) -> None:
    path = folder / "net.pt2"
    path.write_bytes(bent(saved(), rng))
    with suppress(TranspileErrors):
        load_exported_program(path)


def project_toml(rng: random.Random, folder: Path) -> None:
    (folder / "net.py").write_text("")
    good = {"name": "net", "source": "net.py", "tune": "none", "inputs": ["x=1x2"], "init": {"a": 1}, "weights": "w"}
    key = rng.choice(list(good))
    value = rng.choice([item for item in JUNK if isinstance(item, str | int | float | bool)])
    text = json.dumps(value) if isinstance(value, str) else str(value).lower()
    lines = "\n".join(f"{name} = {text if name == key else json.dumps(item)}" for name, item in good.items())
    with suppress(UnicodeEncodeError, TranspileErrors):
        (folder / "pyproject.toml").write_text(f"[[tool.transpile.models]]\n{lines}\n")
        assert not read_project(folder).models, "there is no file of weights"


def names(rng: random.Random, folder: Path) -> None:
    """Text from outside, where it is printed into sources: it stays text, whatever it is."""
    import ast

    alphabet = string.printable + "\u2028\u202e\x85é\U0001d4b3"
    text = rng.choice(TEXTS) + "".join(rng.choices(alphabet, k=rng.randrange(40)))
    assert identifier(text, "value").isidentifier()
    for line in (comment(text), c_comment(text)):
        assert len(line.splitlines()) <= 1
    assert "*/" not in c_comment(text)
    assert "/*" not in c_comment(text)
    assert not c_comment(text).endswith("\\")
    literal = c_string(text)
    inside = literal[1:-1]
    assert literal[0] == literal[-1] == '"'
    assert inside.isascii()
    assert inside.isprintable()
    assert ast.literal_eval(f'b"{inside}"') == text.encode("utf-8", "replace")
    (parsed,) = ast.parse(f'"""{docstring(text)}"""').body
    assert isinstance(parsed, ast.Expr)
    assert isinstance(parsed.value, ast.Constant)


@cache
def package(folder: Path) -> tuple[Path, Any]:
    """The folder of a package that is imported, and its module that reads manifests, loaded while it is whole."""
    made = write_package(emit_package(toy.view()), folder / "package" / "toy")
    runtime = importlib.import_module(f"{load_package(made, 'toy').__name__}.runtime.manifest")
    return made / "src" / "toy", runtime


def package_files(rng: random.Random, folder: Path) -> None:
    """Any change of any file is found; one of the manifest unless it says the same, such as with another blank."""
    inside, runtime = package(folder)
    files = sorted(path for path in inside.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    path = rng.choice(files)
    before = path.read_bytes()
    after = bent(before, rng)
    path.write_bytes(after)
    try:
        if path.name == "manifest.json":
            with suppress(runtime.PackageError):
                assert runtime.read_manifest(inside) == json.loads(before)
        elif after != before:
            manifest = runtime.read_manifest(inside)
            with pytest.raises(runtime.PackageError, match="was changed"):
                runtime.check_files(inside, manifest, lambda file: True)
    finally:
        path.write_bytes(before)


def libraries(rng: random.Random, folder: Path) -> None:
    inside, _ = package(folder)
    (path,) = inside.glob("kernels/cpu/*/*.so")
    with suppress(ElfError):
        read_needs(bent(path.read_bytes(), rng))


# What is read, and how often out of a hundred.
READERS: dict[Check, int] = {
    graph_json: 26, graph_text: 8, safetensors: 14, pickled: 6, exported_json: 10, exported_bytes: 4, project_toml: 6,
    names: 14, package_files: 8, libraries: 4,
}  # fmt: skip


def fuzz(count: int, folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.chdir(folder)
    failures = []
    for check, share in READERS.items():
        for index in range(count * share // 100):
            seed = f"{check.__name__}:{index}"
            try:
                check(random.Random(seed), folder)
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                failures.append(f"{seed}: {type(error).__name__}: {str(error)[:200]} ({where.filename}:{where.lineno})")
            assert not (folder / CANARY).exists(), f"seed {seed}: something in the file was run"
    assert not failures, "\n".join(failures)


def test_in_ci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz(300, tmp_path, monkeypatch)


def test_a_backslash_does_not_end_a_comment() -> None:
    assert c_comment("*\\ int injected; /*") == "* / int injected; / *"


@pytest.mark.slow
def test_ten_thousand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(READERS.values()) == 100
    fuzz(12_000, tmp_path, monkeypatch)
