"""The shipped choices, measured anew: `python -m tests.benchmarks.choices [--models GLOB]` on an idle machine.

Transpiles the benchmark's models with `--tune full` (or `--mode fast`) and merges what came out into
targets/cpu.choices.json.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.models import MODELS, models_of
from transpiler import transpile
from transpiler.resources import tree


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.choices", description=__doc__)
    parser.add_argument("--models", default="*", help=f"only those that match: {', '.join(models_of('cpu'))}")
    parser.add_argument("--mode", choices=("fast", "full"), default="full")
    parser.add_argument("--isa", default="", help="one instruction set, or native; by default all of this machine")
    options = parser.parse_args()
    path = tree("targets") / "cpu.choices.json"
    choices: dict[str, dict[str, dict[str, str]]] = json.loads(path.read_text())
    for name in models_of("cpu"):
        if not fnmatch.fnmatch(name, options.models):
            continue
        module, args = MODELS[name].build()
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="choices-") as folder:
            transpile(module, args, name=name, out=folder, tune=options.mode, isa=options.isa or ())
            record = Path(folder) / name / "tuning.json"
            found = json.loads(record.read_text())["choices"] if record.is_file() else {}
        for isa, answers in found.items():
            choices.setdefault(isa, {}).update(answers)
        seconds = time.perf_counter() - start
        print(f"{name}: {sum(map(len, found.values()))} choices in {seconds:.0f} s", flush=True)
        path.write_text(
            json.dumps({isa: dict(sorted(choices[isa].items())) for isa in sorted(choices)}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
