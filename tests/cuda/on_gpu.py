"""What only a GPU can show: prepared without one, carried there, and called in parts of at most ten minutes.

    python -m tests.cuda.on_gpu prepare [--parts kernels,suites,timed,models,tiles]   # needs the transpiler, no GPU
    python -m tests.cuda.on_gpu check   [--parts kernels,suites,sanitizer]            # numbers, replays, memory
    python -m tests.cuda.on_gpu time    [--parts rates,products,convolutions,attention,models]
    python -m tests.cuda.on_gpu tune                                                  # the fastest tiles
    python -m tests.cuda.on_gpu report  [--write docs/benchmarks.md] [--table targets/cuda_tiles.json]

`check`, `time` and `tune` need numpy, cuda-bindings and PyTorch (with CUDA for what is compared with it), not TVM.
Every item is written to --work when it is done; a call begins no new ones after --seconds, and goes on where the last
one stopped. Exit code 1: something failed. README.md beside this has the calls for a machine lent for half an hour.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PARTS = {
    "prepare": ("kernels", "suites", "timed", "models", "tiles"),
    "check": ("kernels", "suites", "sanitizer"),
    "time": ("rates", "products", "convolutions", "attention", "models"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cuda.on_gpu", description=__doc__)
    parser.add_argument("command", choices=[*PARTS, "tune", "report", "family", "first"])
    parser.add_argument("--work", type=Path, default=Path("generated/on_gpu"), help="folder of what is carried")
    parser.add_argument("--parts", default="", help="by default all")
    parser.add_argument("--only", default="", help="items whose name contains this")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin nothing after so many")
    parser.add_argument("--arch", default="sm_90a", help="of what is prepared, with commas")
    parser.add_argument("--tiny", action="store_true", help="next to nothing, to try the script itself")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes minutes")
    parser.add_argument("--sanitizer", default=shutil.which("compute-sanitizer"), help="its path; none: left out")
    parser.add_argument("--write", type=Path, nargs="+", default=[], help="pages that take over the report")
    parser.add_argument("--table", type=Path, help="table that takes over the tiles")
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
    if unknown := set(parts) - set(PARTS.get(command, parts)):
        raise SystemExit(f"{command} has no part {', '.join(sorted(unknown))}; it has {', '.join(PARTS[command])}")
    if command == "prepare":
        from tests.cuda.gpu.prepare import prepare

        return prepare(work, parts, options.arch.split(","), only, tiny=options.tiny)
    if command == "check":
        from tests.cuda.gpu.checks import checks

        return checks(work, parts, end, only, None if options.sanitizer == "none" else options.sanitizer)
    if command == "family":
        from tests.cuda.gpu.checks import family

        return family(work / "kernels" / only, 1)
    if command == "report":
        return _report(work, options.write, options.table)
    from tests.cuda.gpu import times

    if command == "first":
        print(json.dumps(times.first(work, only)))
        return []
    if command == "tune":
        return times.tiles(work, end, only)
    return times.times(work, parts, end, only, tiny=options.tiny, compiled=not options.no_compile)


def _report(work: Path, pages: Sequence[Path], table: Path | None) -> list[str]:
    from tests.cuda.gpu.results import page, write_page

    print(page(work))
    for file in pages:
        write_page(work, file)
    if table is not None:
        from tests.cuda.gpu.times import write_table

        print(f"{write_table(work, table)} entries of {table} are measured")
    return []


if __name__ == "__main__":
    sys.exit(main())
