"""The command: `python -m tests.properties --graphs 1500 --seed 7`; failures are printed as they are found, made small.

Graphs are compiled a bundle at a time; every bundle's number is printed first, so that one that kills the process is
known (`--only NUMBER` repeats it).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import argparse
import sys
import time
from collections import Counter

from tests.properties.generate import bundles
from tests.properties.verdicts import EQUAL, REFUSED, judge, judge_small


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.properties", description=__doc__)
    parser.add_argument("--graphs", type=int, default=300, help="how many graphs")
    parser.add_argument("--seed", type=int, default=0, help="of the codes")
    parser.add_argument("--first", type=int, default=0, help="the first bundle")
    parser.add_argument("--only", type=int, help="one bundle")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after about so long")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    refusals: Counter[str] = Counter()
    started = time.monotonic()
    for number, (graphs, fold) in enumerate(bundles(options.graphs, options.seed)):
        if number < options.first or (options.only is not None and number != options.only):
            continue
        if time.monotonic() - started > options.seconds:
            print(f"stopped before bundle {number}")
            break
        print(f"bundle {number}: {len(graphs)} graphs", flush=True)
        for verdict in judge(graphs, fold=fold):
            counts[verdict.outcome] += 1
            functions.update(call.function for call in verdict.graph.calls)
            if verdict.failed:
                print(judge_small(verdict.graph, fold=fold).text() + f"\n(fold={fold})\n", flush=True)
            if verdict.outcome == REFUSED:
                refusals[verdict.reason] += 1
    for reason, count in refusals.most_common():
        print(f"refused {count}: {reason}")
    print(
        f"{dict(counts)} in {time.monotonic() - started:.0f} s; {len(functions)} functions, {functions.total()} calls"
    )
    return 0 if set(counts) <= {EQUAL, REFUSED} else 1


if __name__ == "__main__":
    sys.exit(main())
