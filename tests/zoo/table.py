"""The results as a page of Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from tests.zoo.entry import Entry
from tests.zoo.run import Result

_HEAD = """# Architectures

Written by `python -m tests.zoo --write docs/architectures.md`. Every architecture has a small configuration and random
weights. It is transpiled for the `cpu` target, run on fresh random inputs, and compared with PyTorch by the rule of
[ADR 5](adr/0005-tolerance.md): "error" is the largest absolute error of the output that came closest to its tolerance.
Seconds are those of `transpile` without the generated tests, on a shared machine.
"""


def table(entries: Sequence[Entry], results: Sequence[Result]) -> str:
    """Grouped by family, refusals with their reason."""
    equal = sum(item.outcome == "equal" for item in results)
    refused = sum(item.outcome == "refused" for item in results)
    rest = len(results) - equal - refused
    lines = [_HEAD, f"{len(results)} architectures: {equal} equal to PyTorch, {refused} refused, {rest} wrong.", ""]
    by_name = {item.name: item for item in results}
    for family in dict.fromkeys(item.family for item in entries):
        lines += [f"## {family[0].upper()}{family[1:]}", ""]
        lines += ["| architecture | library | outcome | error | tolerance | kernels | seconds |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for entry in entries:
            if entry.family == family:
                lines.append(_row(entry, by_name[entry.name]))
        lines.append("")
    return "\n".join(lines)


def _row(entry: Entry, result: Result) -> str:
    if result.outcome != "equal":
        reason = result.reason.replace("|", "\\|")
        return f"| {entry.name} | {entry.library} | {result.outcome}: {reason} | | | | {result.seconds:.1f} |"
    return (
        f"| {entry.name} | {entry.library} | equal | {result.error:.1e} | {result.tolerance:.1e} "
        f"| {result.kernels or ''} | {result.seconds:.1f} |"
    )
