"""The results as a page of Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from tests.zoo.entry import Entry
from tests.zoo.expected import OUT_OF_SCOPE
from tests.zoo.run import Result

_HEAD = """# Architectures

Written by `python -m tests.zoo --write docs/architectures.md`. Every architecture has a small configuration and random
weights. It is transpiled for the `cpu` target, run on fresh random inputs, and compared with PyTorch by the rule of
[ADR 5](adr/0005-tolerance.md). "Scale" is the largest absolute value of an output, "error" its largest difference from
PyTorch in float64, "of tolerance" the error as a part of what is allowed: each of the output that came closest to its
tolerance. An output whose tolerance is more than a thousandth of its scale is no test, and fails. Parameters are
counted in thousands, and the compiled kernels measured in kilobytes (for AVX-512).

Every model with batch norms has statistics that fit what the norms are given, so that no output explodes or vanishes.

"Refused" is a model that the transpiler says no to; "not exportable" one that torch.export cannot trace, for its
Python looks at the values of tensors or does something else while it is traced: the transpiler shows the line.
"""
_COLUMNS = ("architecture", "library", "outcome", "error", "of tolerance", "scale", "parameters", "kernels", "size")


def table(entries: Sequence[Entry], results: Sequence[Result]) -> str:
    """Grouped by family, refusals with their reason."""
    by_name = {item.name: item for item in results}
    lines = [_HEAD, *_summary(results), ""]
    for family in dict.fromkeys(item.family for item in entries):
        lines += [f"## {family[0].upper()}{family[1:]}", ""]
        lines += [f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}"]
        lines += [_row(entry, by_name[entry.name]) for entry in entries if entry.family == family]
        lines.append("")
    return "\n".join(lines)


def _summary(results: Sequence[Result]) -> list[str]:
    counts = {name: sum(item.outcome == name for item in results) for name in ("equal", "refused", "not exportable")}
    rest = len(results) - sum(counts.values())
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    within = [item for item in results if item.name not in OUT_OF_SCOPE]
    share = sum(item.outcome == "equal" for item in within) / max(1, len(within))
    exportable = [item for item in within if item.outcome != "not exportable"]
    of_those = sum(item.outcome == "equal" for item in exportable) / max(1, len(exportable))
    earlier = ["", "Rows without a scale were measured before it was recorded."] if any(map(_is_older, results)) else []
    return [
        f"{len(results)} architectures: {said}, {rest} wrong.",
        f"Equal to PyTorch: {share:.1%} of all, {of_those:.1%} of those that torch.export traces",
        f"(both without {', '.join(sorted(OUT_OF_SCOPE))}, which is here to be refused).",
        *earlier,
    ]


def _is_older(result: Result) -> bool:
    """Whether it comes from a file that an earlier version wrote."""
    return result.outcome == "equal" and result.parameters == 0


def _row(entry: Entry, result: Result) -> str:
    first = f"| {entry.name} | {entry.library} | {result.outcome}"
    if result.outcome != "equal":
        reason = result.reason.replace("|", "\\|")
        return f"{first}: {reason} |{' |' * (len(_COLUMNS) - 3)}"
    part = result.error / result.tolerance if result.tolerance else 0.0
    if _is_older(result):
        return f"{first} | {result.error:.1e} | {part:.2f} | | | {result.kernels or ''} | |"
    cells = (f"{result.error:.1e}", f"{part:.2f}", f"{result.scale:.2g}", _thousands(result.parameters))
    return f"{first} | {' | '.join((*cells, str(result.kernels), _thousands(result.size)))} |"


def _thousands(count: int) -> str:
    return f"{count / 1000:.0f}" if count >= 10_000 else f"{count / 1000:.1f}"
