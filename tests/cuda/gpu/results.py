"""Where results are kept, so that a call that was cut off goes on where it stopped."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

FILE, PREPARED = "results.json", "prepared.json"
Parts = Mapping[str, Mapping[str, Any]]


class Part:
    """The results of a part by item, in a file of all parts that is written after each item. `end`: when to stop
    beginning new ones (`time.monotonic`)."""

    def __init__(self, file: Path, name: str, end: float = math.inf, only: str = "") -> None:
        self.file, self.name, self.end, self.only = file, name, end, only
        self.items: dict[str, Any] = read(file).get(name, {}).get("items", {})
        self.left = 0
        self.again: set[str] = set()  # items that have a result, and are to get a better one

    def run(self, todo: Iterable[tuple[str, Callable[[], Any]]], facts: Mapping[str, Any] | None = None) -> None:
        """Items that have no result yet. An exception is a result, too: {"failed": its text}; it is tried again."""
        todo = list(todo)
        for key, work in todo:
            if not self.open(key):
                continue
            if time.monotonic() > self.end:
                self.left += 1
                continue
            try:
                found = work()
            except Exception as error:
                found = {"failed": f"{type(error).__name__}: {error}"[:2000]}
            self.add(key, found, len(todo), facts)
        if self.left:
            print(f"{self.name}: {self.left} left, call it again", flush=True)

    def open(self, key: str) -> bool:
        """Whether an item is wanted and has no result, or one that failed."""
        known = self.items.get(key)
        return self.only in key and (known is None or "failed" in known or key in self.again)

    def add(self, key: str, found: Any, of: int, facts: Mapping[str, Any] | None = None) -> None:
        """Keep a result; `of`: how many items there are in all."""
        self.items[key] = found
        print(f"{self.name} {key}: {json.dumps(found)[:400]}", flush=True)
        content = read(self.file)
        old = content.get(self.name, {}).get("facts", {})
        content[self.name] = {"facts": {**old, **(facts or {})}, "of": of, "items": self.items}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(content, indent=1) + "\n")
        part.replace(self.file)

    @property
    def failed(self) -> list[str]:
        return [key for key, item in self.items.items() if is_bad(item)]


def read(file: Path) -> dict[str, Any]:
    """By part its facts, its items, and how many there are in all."""
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found


def is_bad(item: Mapping[str, Any]) -> bool:
    return "failed" in item or bool(item.get("problems"))
