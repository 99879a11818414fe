"""The generated tests: emits them from a recording, and runs them in a clean process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from safetensors.numpy import save

from transpiler import checks, draw, moments
from transpiler.draw import Array
from transpiler.resources import tree
from transpiler.structure import Structure, to_json

if TYPE_CHECKING:
    from transpiler.checks import Expected
    from transpiler.recorded import Recording, Step

FORMAT = 1
_CLEARED = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTEST_ADDOPTS", "PYTEST_PLUGINS", "LIVE_MODEL")


# --- emitting -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FunctionTests:
    """What the tests of a function are made of: its recording, how flat inputs nest in `(args, kwargs)` and flat
    outputs in its result, the module paths that can be tapped (None: all that were recorded), and the sizes that vary,
    as in the manifest."""

    recording: Recording
    in_structure: Structure
    out_structure: Structure
    taps: Collection[str] | None = None
    symbols: Sequence[Mapping[str, Any]] = ()


def emit_tests(
    functions: Sequence[FunctionTests],
    *,
    package: str,
    aliases: Mapping[str, str] | None = None,
    sequence: Sequence[Step] = (),
    targets: Sequence[str] = ("cpu",),
) -> dict[str, bytes]:
    """The folder `tests/` of a package: relative path -> content.

    The first function's data lies in tests/data, that of every other in a folder of its name there.

    Args:
        package: import name of the package.
        aliases: tied state_dict keys -> the key that stores the tensor.
        sequence: calls that carry state from one to the next.
        targets: of the package, each of which is tested.

    Raises:
        ValueError: `package` is no identifier, or a tap was not recorded.
    """
    if not package.isidentifier():
        raise ValueError(f"not an import name: {package!r}")
    stateful = bool(functions[0].recording.state)
    unused = {"test_state.py"} - ({"test_state.py"} if stateful else set())
    unused |= set() if any(item.symbols for item in functions) else {"test_sizes.py"}
    random = any(item.recording.random for item in functions)
    unused |= set() if functions[0].recording.random else {"test_random.py"}
    suite = _suite(functions, targets)
    unused |= (set() if suite.weights else {"test_weights.py"}) | (set() if suite.arguments else {"test_arguments.py"})
    files = {f"tests/{name}": text.encode() for name, text in _render(package, suite).items() if name not in unused}
    # The generator and the comparison are the very code that recorded the data, so that they cannot disagree.
    shared = {"_draw": draw, "_checks": checks, **({"_moments": moments} if random else {})}
    for name, module in shared.items():
        files[f"tests/{name}.py"] = Path(str(module.__file__)).read_bytes()
    others = [item.recording.function for item in functions[1:]]
    for item in functions:
        folder = "tests/data" if item is functions[0] else f"tests/data/{item.recording.function}"
        files.update(_data(item, folder, aliases or {}, others if item is functions[0] else []))
    if stateful:
        files.update(_sequence(sequence))
    return dict(sorted(files.items()))


# Elements that a test may allocate.
_LARGEST = 1 << 24


@dataclass(frozen=True)
class Suite:
    """Which tests apply: those that do not are not emitted. Facts about the first function, but for `arguments` and
    `fixed_sizes`, which any function may have.

    `targets` are the package's. `bounded` are the symbols with an upper bound that a test can afford to exceed;
    `shared_sizes`: a size is that of another dimension.
    """

    arguments: bool
    takes_tensors: bool
    fixed_sizes: bool
    weights: bool
    taps: bool
    bounded: tuple[str, ...]
    shared_sizes: bool
    targets: tuple[str, ...]


def _suite(functions: Sequence[FunctionTests], targets: Sequence[str]) -> Suite:
    first = functions[0]
    arguments = [argument for item in functions for argument in item.recording.arguments]
    own = first.recording.arguments
    varying = [size for argument in own for size in argument.shape if not isinstance(size, int)]
    return Suite(
        arguments=bool(arguments),
        takes_tensors=bool(own),
        fixed_sizes=any(isinstance(size, int) for argument in arguments for size in argument.shape),
        weights=first.recording.reload is not None,
        taps=any(item.recording.taps is not None and (item.taps is None or item.taps) for item in functions),
        bounded=tuple(symbol["name"] for symbol in first.symbols if _can_exceed(symbol, first.recording)),
        shared_sizes=len(varying) > len(first.symbols),
        targets=tuple(targets),
    )


def _can_exceed(symbol: Mapping[str, Any], recording: Recording) -> bool:
    if symbol["high"] is None:
        return False
    shape = recording.cases[0].drawn.arrays[symbol["input"]].shape
    others = [size for axis, size in enumerate(shape) if axis != symbol["dim"]]
    return bool(np.prod(others) * (symbol["scale"] * (symbol["high"] + 1) + symbol["offset"]) <= _LARGEST)


def _render(package: str, suite: Suite) -> dict[str, str]:
    environment = Environment(
        loader=FileSystemLoader(tree("templates") / "tests"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return {
        name.removesuffix(".jinja"): environment.get_template(name).render(package=package, suite=suite)
        for name in sorted(environment.list_templates(extensions=["jinja"]))
    }


def _sequence(steps: Sequence[Step]) -> dict[str, bytes]:
    arrays: dict[str, Array] = {}
    index = [
        {
            "function": step.function,
            "case": step.case,
            "outputs": [_entry(e, f"{number}/{i}", arrays) for i, e in enumerate(step.outputs)],
            "state": [_entry(e, f"{number}/state/{i}", arrays) for i, e in enumerate(step.state)],
        }
        for number, step in enumerate(steps)
    ]
    return {
        "tests/data/sequence.json": (json.dumps(index, indent=1, allow_nan=False) + "\n").encode(),
        "tests/data/sequence.safetensors": _save(arrays),
    }


def _data(function: FunctionTests, folder: str, aliases: Mapping[str, str], others: Sequence[str]) -> dict[str, bytes]:
    recording, taps = function.recording, function.taps
    outputs: dict[str, Array] = {}
    weights: dict[str, Array] = {}
    tapped: dict[str, Array] = {}
    index: dict[str, Any] = {
        "format": FORMAT,
        "function": recording.function,
        "functions": list(others),
        "factors": {"torch": checks.FACTOR_TORCH, "eps": checks.FACTOR_EPS, "eps_half": checks.FACTOR_EPS_HALF},
        "in_structure": to_json(function.in_structure),
        "out_structure": to_json(function.out_structure),
        "state": [item.name.removeprefix("state ") for item in recording.state],
        "inputs": [
            {
                "name": item.name,
                "dtype": item.dtype,
                "shape": [size if isinstance(size, int) else str(size) for size in item.shape],
            }
            for item in recording.arguments
        ],
        "symbols": [dict(item) for item in function.symbols],
        "cases": [
            {
                "name": case.name,
                "inputs": [dict(recipe) for recipe in case.drawn.recipes],
                "shapes": [list(array.shape) for array in case.drawn.arrays],
                "outputs": [_entry(e, f"{case.name}/{i}", outputs) for i, e in enumerate(case.outputs)],
                "state": [_entry(e, f"{case.name}/state/{i}", outputs) for i, e in enumerate(case.state)],
            }
            for case in recording.cases
        ],
        "dropped": list(recording.dropped),
        "reload": None,
        "taps": None,
        "random": recording.random,
    }
    if reload := recording.reload:
        weights.update(reload.state.stored)
        index["reload"] = {
            "case": reload.case,
            "weights": {key: dict(entry) for key, entry in reload.state.recipes.items()},
            "aliases": dict(sorted(aliases.items())),
            "outputs": [_entry(e, f"reload/{i}", weights) for i, e in enumerate(reload.outputs)],
            "changes_outputs": reload.changes_outputs,
            "note": reload.note,
        }
    if recording.taps:
        values = recording.taps.values
        if missing := sorted(set(taps or ()) - set(values)):
            raise ValueError(f"taps that were not recorded: {', '.join(missing)}")
        kept = sorted(values if taps is None else taps)
        index["taps"] = {
            "case": recording.taps.case,
            "values": {path: _entry(values[path], path, tapped) for path in kept},
        }
    return {
        f"{folder}/cases.json": (json.dumps(index, indent=1, allow_nan=False) + "\n").encode(),
        f"{folder}/inputs.safetensors": _save(recording.inputs.stored),
        f"{folder}/outputs.safetensors": _save(outputs),
        f"{folder}/taps.safetensors": _save(tapped),
        f"{folder}/weights.safetensors": _save(weights),
    }


def _entry(expected: Expected, key: str, arrays: dict[str, Array]) -> dict[str, Any]:
    """The JSON entry of a recorded tensor; its arrays are added to `arrays`."""
    arrays[f"{key}/torch"] = expected.torch
    arrays[f"{key}/float64"] = expected.float64
    if expected.norms is not None:
        arrays[f"{key}/norms"] = expected.norms
    return {
        "key": key,
        "name": expected.name,
        "dtype": expected.dtype,
        "shape": list(expected.shape),
        "sample": expected.requested,
        "tolerance": expected.tolerance,
        "excluded": expected.excluded,
        **({"precision": expected.precision} if expected.precision else {}),
    }


def _save(arrays: Mapping[str, Array]) -> bytes:
    return save({key: np.array(arrays[key], order="C") for key in sorted(arrays)})


# --- running ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TestReport:
    """What pytest said. `failures` are test ids; `output` is its whole output."""

    __test__ = False  # not a test class, whatever its name

    passed: int
    failed: int
    skipped: int
    output: str
    seconds: float
    failures: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.failed == 0 and self.passed > 0


def run_generated_tests(
    folder: Path,
    *,
    quiet: bool = True,
    timeout: float = 1800.0,
    arguments: Sequence[str] = (),
    python: Sequence[str] = (sys.executable,),
) -> TestReport:
    """Run `<folder>/tests` in a process of its own that sees `<folder>/src` and site-packages, without
    plugins.

    A crash, a time-out or tests that cannot be collected count as one failure. `arguments` are added for
    pytest; `python` is the command that runs them, such as an emulator's. Unless `quiet`, pytest writes to
    this process's standard output too.
    """
    folder = folder.resolve()
    environment = {key: value for key, value in os.environ.items() if key not in _CLEARED}
    environment |= {
        "PYTHONPATH": str(folder / "src"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [
            *python, "-m", "pytest", "tests", "-q", "--no-header", "-p", "no:cacheprovider",
            f"--rootdir={folder}", f"--junitxml={report}", f"--basetemp={scratch}/tmp", *arguments,
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
            )
            output, code = done.stdout, done.returncode
        except subprocess.TimeoutExpired as error:
            partial = error.stdout or b""
            text = partial.decode(errors="replace") if isinstance(partial, bytes) else partial
            output, code = f"{text}\nstopped after {timeout:.0f} s", -1
        if not quiet:
            sys.stdout.write(output)
        return _read_report(report, output, code, time.monotonic() - started)


def _read_report(path: Path, output: str, code: int, seconds: float) -> TestReport:
    passed = skipped = 0
    failures: list[str] = []
    if path.exists():
        for case in ElementTree.parse(path).getroot().iter("testcase"):
            outcomes = {child.tag for child in case}
            name = f"{case.get('classname', '').removeprefix('tests.')}::{case.get('name', '')}"
            if outcomes & {"failure", "error"}:
                failures.append(name)
            elif "skipped" in outcomes:
                skipped += 1
            else:
                passed += 1
    if code != 0 and not failures:
        failures.append(f"pytest ended with exit code {code}")
    return TestReport(passed, len(failures), skipped, output, seconds, tuple(failures))
