"""What only a GPU can show: prepared without one, carried there, and called in parts of at most ten minutes.

    python -m tests.cuda.on_gpu prepare [--parts kernels,suites,timed,models,tiles]   # needs the transpiler, no GPU
    python -m tests.cuda.on_gpu check   [--parts kernels,suites,sanitizer]            # numbers, replays, memory, races
    python -m tests.cuda.on_gpu time    [--parts rates,products,convolutions,attention,models]
    python -m tests.cuda.on_gpu tune                                                  # the fastest tiles
    python -m tests.cuda.on_gpu report  [--write docs/benchmarks.md] [--table targets/cuda_tiles.json]

`check`, `time` and `tune` need numpy and cuda-bindings, `time` PyTorch (with CUDA for what is compared with it), none
of them TVM. Every item is kept when it is done, in --results (by default results.json in --work); a call begins no new
ones after --seconds, and goes on where the last one stopped. Exit code 1: something failed. README.md beside this has
the calls for a machine lent for half an hour.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.cuda.gpu.results import FILE

PARTS = {
    "prepare": ("kernels", "suites", "timed", "models", "tiles"),
    "check": ("kernels", "suites", "sanitizer"),
    "time": ("rates", "products", "convolutions", "attention", "models"),
}
# What a command cannot do without, and why.
NEEDS = {
    "prepare": {"tvm": "which makes the kernels"},
    "check": {"cuda.bindings": "through which packages reach the driver", "pytest": "which generated tests need"},
    "time": {"cuda.bindings": "through which packages reach the driver", "torch": "which is what is compared with"},
    "tune": {"cuda.bindings": "through which packages reach the driver", "torch": "whose version is a fact"},
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cuda.on_gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=[*PARTS, "tune", "report", "family"])
    parser.add_argument("--work", type=Path, default=Path("generated/on_gpu"), help="folder of what is carried")
    parser.add_argument("--results", type=Path, help="file of results, which begins as what --work has")
    parser.add_argument("--parts", default="", help="by default all")
    parser.add_argument("--only", default="", help="items whose name contains this")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin nothing after so many")
    parser.add_argument("--arch", default="sm_90a", help="of what is prepared, with commas")
    parser.add_argument("--tiny", action="store_true", help="next to nothing, to try the script itself")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes minutes")
    parser.add_argument("--sanitizer", default=shutil.which("compute-sanitizer"), help="its path; none: left out")
    parser.add_argument("--write", type=Path, nargs="+", default=[], help="pages that take over the report")
    parser.add_argument("--table", type=Path, help="table that takes over the tiles")
    parser.add_argument("--names", default="", help="of `family`, which the checkers run: the folders, with commas")
    parser.add_argument("--no-poison", action="store_true", help="of `family`: memory stays as it was allocated")
    options = parser.parse_args(arguments)
    failed = run(options, time.monotonic() + options.seconds)
    for name in failed:
        print(f"FAILED {name}", flush=True)
    return int(bool(failed))


def run(options: argparse.Namespace, end: float) -> list[str]:
    """What failed, by name."""
    work: Path = options.work.resolve()
    command, only = options.command, options.only
    parts = options.parts.split(",") if options.parts else PARTS.get(command, ())
    if parts and command not in PARTS:
        raise SystemExit(f"{command} has no parts")
    if unknown := set(parts) - set(PARTS.get(command, ())):
        raise SystemExit(f"{command} has no part {', '.join(sorted(unknown))}; it has {', '.join(PARTS[command])}")
    _check_needs(command)
    if command == "prepare":
        from tests.cuda.gpu.prepare import prepare

        return prepare(work, parts, options.arch.split(","), only, tiny=options.tiny)
    results = _results(work, options.results)
    if command == "report":
        return _report(results, options.write, options.table)
    _check_work(work, command, parts)
    if command == "family":
        from tests.cuda.gpu.kernels import families

        return [
            text for found in families(work, options.names.split(","), poisoned=not options.no_poison) for text in found
        ]
    _check_device()
    if command == "check":
        from tests.cuda.gpu.checks import checks

        return checks(work, results, parts, end, only, None if options.sanitizer == "none" else options.sanitizer)
    if command == "tune":
        from tests.cuda.gpu.tile_times import tiles

        return tiles(work, results, end, only)
    from tests.cuda.gpu.times import times

    return times(work, results, parts, end, only, tiny=options.tiny, compiled=not options.no_compile)


def _results(work: Path, given: Path | None) -> Path:
    """The file of results; what was found before is taken over where it is a new one."""
    own = work / FILE
    if given is None:
        return own
    if own.exists() and not given.exists():
        given.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(own, given)
    return given.resolve()


def _check_needs(command: str) -> None:
    """Raises SystemExit: a package is missing."""
    lacking = [(name, why) for name, why in NEEDS.get(command, {}).items() if not _is_there(name)]
    if lacking:
        raise SystemExit(f"{command} needs " + ", ".join(f"the package {name}, {why}" for name, why in lacking))


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _check_work(work: Path, command: str, parts: Sequence[str]) -> None:
    """Raises SystemExit: something was not prepared, or not carried."""
    folders = {"family": ["kernels"], "tune": ["tiles"]}.get(command, [])
    if command == "check":
        folders = list(dict.fromkeys("suites" if part == "suites" else "kernels" for part in parts))
    if command == "time":
        folders = list(dict.fromkeys("models" if part == "models" else "timed" for part in parts if part != "rates"))
    if lacking := [name for name in folders if not (work / name).is_dir()]:
        raise SystemExit(
            f"{work} has no {' and no '.join(lacking)}: run `python -m tests.cuda.on_gpu prepare --parts "
            f"{','.join(lacking)}` where the transpiler is, and carry the folder here"
        )


def _check_device() -> None:
    """Raises SystemExit: there is no device."""
    from transpiler.gpu.runtime import import_runtime

    try:
        import_runtime("cuda.device").open_device(None)
    except RuntimeError as error:
        raise SystemExit(f"there is no CUDA device to run on: {error}") from None


def _report(results: Path, pages: Sequence[Path], table: Path | None) -> list[str]:
    from tests.cuda.gpu.page import page, write_page

    if not results.exists():
        raise SystemExit(f"{results} is not there: no results to report; --results says where they are")
    print(page(results))
    for file in pages:
        write_page(results, file)
    if table is not None:
        from tests.cuda.gpu.tile_times import write_table

        print(f"{write_table(results, table)} entries of {table} are measured")
    return []


if __name__ == "__main__":
    sys.exit(main())
