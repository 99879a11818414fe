"""Results as tables: for the terminal and for docs/coverage.md."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from tests.conformance.databases.outcome import BAD, EQUAL, NOT_EXPORTABLE, OUTCOMES, REFUSED, Result

SHOWN = 3
TITLES = {"module": "torch.nn modules (`module_db`)", "op": "operators (`op_db`)"}


def verdict(results: Sequence[Result]) -> str:
    """An entry in one word: the worst of its samples, leaving out those that torch.export itself refuses."""
    found = {result.outcome for result in results}
    for outcome in (*reversed(BAD), REFUSED, EQUAL):
        if outcome in found:
            return outcome
    return NOT_EXPORTABLE


def by_entry(results: Iterable[Result]) -> dict[str, list[Result]]:
    grouped: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda item: (item.entry, item.number)):
        grouped.setdefault(result.entry, []).append(result)
    return grouped


def _groups(results: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    """By database and dtype."""
    grouped: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        database, dtype, *_ = result.id.split("/")
        grouped.setdefault((database, dtype), []).append(result)
    return grouped


def counts(results: Iterable[Result]) -> list[list[str]]:
    """Rows: database, dtype, what is counted, then a number per outcome."""
    rows = []
    for (database, dtype), group in sorted(_groups(results).items()):
        entries = Counter(verdict(items) for items in by_entry(group).values())
        samples = Counter(item.outcome for item in group)
        rows.append([database, dtype, "names", *(str(entries[outcome]) for outcome in OUTCOMES)])
        rows.append([database, dtype, "samples", *(str(samples[outcome]) for outcome in OUTCOMES)])
    return rows


def text(results: Iterable[Result], *, refused: bool = True) -> str:
    """Counts, then every bad sample, then what is refused by operator."""
    results = list(results)
    table = [["", "dtype", "of", *OUTCOMES], *counts(results)]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    for entry, items in by_entry(item for item in results if item.outcome in BAD).items():
        numbers = ", ".join(str(item.number) for item in items)
        lines.append(f"{verdict(items)} {entry}/{numbers}")
        lines += [f"    {item.outcome} {item.number} ({item.stage}): {item.reason}" for item in _different(items)]
    if refused:
        lines += ["", "refused, by reason (names, samples):"]
        lines += [f"{names:5d} {count:6d}  {reason}" for reason, names, count in refusals(results)]
    return "\n".join(lines)


def _different(items: Sequence[Result]) -> list[Result]:
    """A few that fail in different ways: the first of each, numbers in the text set aside."""
    first: dict[str, Result] = {}
    for item in items:
        first.setdefault(item.outcome + item.stage + re.sub(r"[\d.e+-]+", "#", item.reason)[:60], item)
    return list(first.values())[:SHOWN]


def refusals(results: Iterable[Result]) -> list[tuple[str, int, int]]:
    """Reason (its codes and operators), names and samples that it concerns, most names first."""
    names: dict[str, set[str]] = {}
    samples: Counter[str] = Counter()
    for result in results:
        if result.outcome == REFUSED:
            reason = reason_of(result)
            names.setdefault(reason, set()).add(result.entry)
            samples[reason] += 1
    rows = [(reason, len(found), samples[reason]) for reason, found in names.items()]
    return sorted(rows, key=lambda row: (-row[1], -row[2], row[0]))


def reason_of(result: Result) -> str:
    what = ", ".join(result.operators) if "unsupported-use" not in result.codes else result.reason[:110]
    return f"{', '.join(result.codes)}: {what or result.reason[:110]}"


def markdown(results: Iterable[Result]) -> str:
    """docs/coverage.md."""
    results = list(results)
    lines = [
        "# Coverage",
        "",
        "<!-- Written by `python -m tests.conformance.databases --write docs/coverage.md`; do not edit. -->",
        "",
        "PyTorch ships databases of sample calls of its modules and operators. Samples (all of a module's, some of an",
        "operator's, evenly spread) go through the whole of the transpiler; results are compared by the rule of",
        "[ADR 5](adr/0005-tolerance.md), on two calls. A name counts as equal if all its samples that `torch.export`",
        "takes are; as refused if some of them end in one of our errors.",
        "",
    ]
    lines += _markdown_row(["database", "dtype", "of", *OUTCOMES])
    lines += _markdown_row(["---"] * (3 + len(OUTCOMES)))
    for row in counts(results):
        lines += _markdown_row(row)
    for (database, dtype), group in sorted(_groups(results).items()):
        lines += ["", f"## {TITLES[database]}, {dtype}", ""]
        for outcome in (*BAD, REFUSED, NOT_EXPORTABLE, EQUAL):
            lines += _section(outcome, group)
    return "\n".join(lines) + "\n"


def _section(outcome: str, group: Sequence[Result]) -> list[str]:
    chosen = {id: items for id, items in by_entry(group).items() if verdict(items) == outcome}
    if not chosen:
        return []
    lines = [f"### {outcome} ({len(chosen)})", ""]
    if outcome in (EQUAL, NOT_EXPORTABLE):
        names = ", ".join(f"`{_name(id)}`" for id in chosen)
        return [*lines, names, ""]
    lines += _markdown_row(["name", "samples", "reason"]) + _markdown_row(["---"] * 3)
    for id, items in chosen.items():
        concerned = [item for item in items if item.outcome == outcome]
        reasons = dict.fromkeys(reason_of(item) if outcome == REFUSED else item.reason[:160] for item in concerned)
        shown = "; ".join(list(reasons)[:3]).replace("|", "\\|")
        counted = len([item for item in items if item.outcome != NOT_EXPORTABLE])
        lines += _markdown_row([f"`{_name(id)}`", f"{len(concerned)} of {counted}", shown])
    return [*lines, ""]


def _name(entry: str) -> str:
    return entry.split("/", 2)[2]


def _markdown_row(cells: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(cells) + " |"]
