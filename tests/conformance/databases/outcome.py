"""What became of a sample, and the file that remembers it."""

from __future__ import annotations

import json
import os
import re
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path

from transpiler.errors import TranspileErrors

EQUAL, REFUSED, NOT_EXPORTABLE = "equal", "refused", "not exportable"
MISMATCH, CRASH, HANG = "MISMATCH", "CRASH", "HANG"
OUTCOMES = (EQUAL, REFUSED, NOT_EXPORTABLE, MISMATCH, CRASH, HANG)
BAD = (MISMATCH, CRASH, HANG)
_MESSAGE = 400


@dataclass(frozen=True)
class Result:
    """The outcome of one sample. `stage` is where it was decided, `codes` and `operators` say what was refused."""

    id: str
    outcome: str
    stage: str = ""
    reason: str = ""
    codes: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()

    @property
    def entry(self) -> str:
        return self.id.rpartition("/")[0]

    @property
    def number(self) -> int:
        return int(self.id.rpartition("/")[2])


def refusal(id: str, stage: str, error: TranspileErrors, outcome: str = REFUSED) -> Result:
    codes = tuple(dict.fromkeys(problem.code for problem in error.problems))
    messages = [problem.message for problem in error.problems]
    operators = tuple(dict.fromkeys(re.findall(r"'(aten\.[\w.]+|[a-z_]+\.[\w.]+)'", " ".join(messages))))
    return Result(id, outcome, stage, "; ".join(messages)[:_MESSAGE], codes, operators)


def crash(id: str, stage: str, error: BaseException) -> Result:
    """An exception that no user should see, with the last line of ours that it went through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    text = " ".join(str(error).split())
    return Result(id, CRASH, stage, f"{type(error).__name__}{where}: {text}"[:_MESSAGE])


@dataclass
class Results:
    """Results by sample id, kept in a JSON file (None: in memory)."""

    path: Path | None = None
    by_id: dict[str, Result] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path | None) -> Results:
        results = cls(path)
        if path is not None and path.exists():
            for item in json.loads(path.read_text()):
                given = {key: tuple(value) if isinstance(value, list) else value for key, value in item.items()}
                results.add(Result(**given))
        return results

    def add(self, result: Result) -> None:
        self.by_id[result.id] = result

    def save(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(json.dumps(asdict(self.by_id[key])) for key in sorted(self.by_id))
        scratch = self.path.with_suffix(".tmp")
        scratch.write_text(f"[\n{lines}\n]\n")
        os.replace(scratch, self.path)
