"""Collects every reason why a model cannot be imported, so that they are shown at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from transpiler.errors import Location, Problem, TranspileErrors, UsageError
from transpiler.ir import Program

# What to do about operators that are often asked for; the longest matching prefix counts.
HINTS = {
    "aten.item": "a tensor's value cannot steer the program; use torch.where, or shapes",
    "aten._local_scalar_dense": "a tensor's value cannot steer the program; use torch.where",
    "aten.nonzero": "its result's size depends on the data; use torch.where(mask, a, b)",
    "aten.masked_select": "its result's size depends on the data; use torch.where(mask, x, 0)",
    "aten.unique": "its result's size depends on the data",
    "aten.linalg_eig.": "its results are complex; torch.linalg.eigh serves symmetric matrices",
    "aten.linalg_lstsq": "solve with torch.linalg.pinv(a) @ b, or by torch.linalg.qr and solve_triangular",
    "aten.linalg_ldl": "use torch.linalg.lu_factor, or torch.linalg.cholesky if it is positive definite",
    "cond": "torch.cond is not supported; compute both sides and choose with torch.where",
    "while_loop": "loops whose length depends on data are not supported",
}
_OTHERWISE = "write it with other operators, or add the operator in transpiler/ops (see CONTRIBUTING.md)"
_CUSTOM = "say what it means with transpiler.extension.register_op (see docs/custom_operators.md)"
_SHOWN = 5


class NotImported(TranspileErrors):
    """A model cannot be imported. `understood` computes, as outputs, all that does not depend on what is wrong."""

    def __init__(self, problems: Sequence[Problem], understood: Program) -> None:
        super().__init__(problems)
        self.understood = understood


class Refusals:
    """What targets refuse, collected so that all of it is told. If there are `several`, messages name the targets."""

    def __init__(self, several: bool) -> None:
        self._several = several
        self.found: dict[Problem, list[str]] = {}

    @contextmanager
    def of(self, target: str) -> Iterator[None]:
        """Collects what is raised, but for wrong usage."""
        try:
            yield
        except UsageError:
            raise
        except TranspileErrors as error:
            for problem in error.problems:
                targets = self.found.setdefault(problem, [])
                targets += [target] if target not in targets else []

    def problems(self, known: Sequence[Problem] = ()) -> list[Problem]:
        """In the order they were found, without those that are `known`."""
        return [
            replace(problem, message=f"{', '.join(targets)}: {problem.message}") if self._several else problem
            for problem, targets in self.found.items()
            if problem not in known
        ]

    def raise_all(self) -> None:
        """Raises TranspileErrors if there is anything."""
        if self.found:
            raise TranspileErrors(self.problems())


class ProblemList:
    """Problems in the order they were found; uses of one operator become one problem."""

    def __init__(self) -> None:
        self._problems: dict[tuple[str, str], list[Location]] = {}
        self._hints: dict[tuple[str, str], tuple[str, ...]] = {}
        self._counts: dict[tuple[str, str], int] = {}

    def add(self, code: str, message: str, location: Location | None = None, *, hint: str | None = None) -> None:
        key = code, message
        places = self._problems.setdefault(key, [])
        self._counts[key] = self._counts.get(key, 0) + 1
        if hint is not None:
            self._hints[key] = (hint,)
        if location is not None and location not in places:
            places.append(location)

    def add_operator(self, target: str, location: Location | None) -> None:
        prefixes = sorted((prefix for prefix in HINTS if target.startswith(prefix)), key=len)
        otherwise = _OTHERWISE if target.startswith("aten.") else _CUSTOM
        hint = HINTS[prefixes[-1]] if prefixes else otherwise
        self.add("unsupported-operator", f"Unsupported operator '{target}'", location, hint=hint)

    def extend(self, error: TranspileErrors, location: Location | None = None) -> None:
        for problem in error.problems:
            hint = problem.hints[0] if problem.hints else None
            self.add(problem.code, problem.message, (*problem.locations, location)[0], hint=hint)

    def found(self) -> list[Problem]:
        return [self._problem(key) for key in self._problems]

    def _problem(self, key: tuple[str, str]) -> Problem:
        code, message = key
        places, count = self._problems[key], self._counts[key]
        if code == "unsupported-operator":
            message += f" ({count} use{'s' if count > 1 else ''})"
        notes = (f"and {len(places) - _SHOWN} more places",) if len(places) > _SHOWN else ()
        return Problem(code, message, tuple(places[:_SHOWN]), notes, self._hints.get(key, ()))
