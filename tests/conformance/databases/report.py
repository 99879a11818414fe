"""Results as tables: for the terminal and for docs/coverage.md."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from textwrap import shorten

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
    """Codes and operators, or what the error says of one: without the operator's name and its hint."""
    if "unsupported-use" not in result.codes and result.operators:
        return f"{', '.join(result.codes)}: {', '.join(result.operators)}"
    said = re.sub(r"^Unsupported use of '[^']*': ", "", result.reason).partition("; ")[0]
    return f"{', '.join(result.codes)}: {shorten(said, 110, placeholder='...')}"


def markdown(results: Iterable[Result], commit: str, previous: str = "", *, whole: bool = False) -> str:
    """docs/coverage.md. Rows and sections of what `results` has nothing about are kept from the `previous` page.

    `whole` says that every sample was run.
    """
    groups = _groups(results)
    rows = {title: [row] for title, row in _kept_rows(previous)}
    sections = _kept_sections(previous)
    for (database, dtype), group in groups.items():
        rows[f"{database} {dtype}"] = [_summary(database, dtype, group, commit, whole)]
        sections[f"{TITLES[database]}, {dtype}"] = _sections(group, dtype)
    lines = [*_HEAD, ""]
    lines += _markdown_row(_COLUMNS) + _markdown_row(["---"] * len(_COLUMNS))
    lines += [row for title in sorted(rows, key=_place) for row in rows[title]]
    for title in sorted(sections, key=_place):
        lines += ["", f"## {title}", "", sections[title]]
    return "\n".join(lines) + "\n"


def _place(title: str) -> tuple[bool, bool, str]:
    """Where a row or section stands: modules first, float32 first."""
    return title.startswith("op"), not title.endswith("float32"), title


_HEAD = [
    "# Coverage",
    "",
    "<!-- Written by `python -m tests.conformance.databases --write docs/coverage.md`; do not edit. -->",
    "",
    "PyTorch ships databases of sample calls of its modules and operators. Samples (all in float32, one of each name",
    "in the other dtypes) go through the whole of the transpiler; results are compared by the rule of",
    "[ADR 5](adr/0005-tolerance.md), on two calls. A name counts as equal if all its samples that were run and that",
    "`torch.export` takes are; as refused if some of them end in one of our errors; bad are wrong results, crashes and",
    "hangs. Names that are equal are listed for float32 alone.",
]
_COLUMNS = ["database", "dtype", "equal", "refused", "not exportable", "bad", "samples run", "a name", "at"]


def _summary(database: str, dtype: str, group: Sequence[Result], commit: str, whole: bool) -> str:
    by_name = by_entry(group)
    names = Counter(verdict(items) for items in by_name.values())
    most = max(len(items) for items in by_name.values())
    numbers = [names[EQUAL], names[REFUSED], names[NOT_EXPORTABLE], sum(names[bad] for bad in BAD), len(group)]
    return _markdown_row([database, dtype, *map(str, numbers), "all" if whole else f"up to {most}", commit])[0]


def _kept_rows(page: str) -> list[tuple[str, str]]:
    rows = [line for line in page.splitlines() if line.startswith(("| module ", "| op "))]
    return [(" ".join(row.split(" | ")[:2]).strip("| "), row) for row in rows]


def _kept_sections(page: str) -> dict[str, str]:
    parts = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    return {part.partition("\n")[0]: part.partition("\n")[2].strip("\n") for part in parts}


def _sections(group: Sequence[Result], dtype: str) -> str:
    """Equal names are listed for float32 alone: in the other dtypes they are those that are not listed."""
    shown = (*BAD, REFUSED, NOT_EXPORTABLE, *([EQUAL] if dtype == "float32" else []))
    return "\n".join(
        line for outcome in shown for line in _section(outcome, group, fold=outcome == REFUSED and dtype != "float32")
    )


def _section(outcome: str, group: Sequence[Result], *, fold: bool) -> list[str]:
    """Names that are bad or refused with their reasons; the others by name alone, inside a fold."""
    chosen = {id: items for id, items in by_entry(group).items() if verdict(items) == outcome}
    if not chosen:
        return []
    if outcome in (EQUAL, NOT_EXPORTABLE):
        names = ", ".join(f"`{_name(id)}`" for id in chosen)
        return _folded(f"{outcome} ({len(chosen)})", [names])
    lines = [*_markdown_row(["name", "samples", "reason"]), *_markdown_row(["---"] * 3)]
    for id, items in chosen.items():
        concerned = [item for item in items if item.outcome == outcome]
        reasons = dict.fromkeys(reason_of(item) if outcome == REFUSED else item.reason[:160] for item in concerned)
        shown = "; ".join(list(reasons)[:3]).replace("|", "\\|")
        counted = len([item for item in items if item.outcome != NOT_EXPORTABLE])
        lines += _markdown_row([f"`{_name(id)}`", f"{len(concerned)} of {counted}", shown])
    return _folded(f"{outcome} ({len(chosen)})", lines) if fold else [f"### {outcome} ({len(chosen)})", "", *lines, ""]


def _folded(title: str, lines: Sequence[str]) -> list[str]:
    return [f"<details><summary>{title}</summary>", "", *lines, "", "</details>", ""]


def _name(entry: str) -> str:
    return entry.split("/", 2)[2]


def _markdown_row(cells: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(cells) + " |"]
