"""The fastest tiles of products, for the table beside the target's file."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cuda.gpu.calls import Calls
from tests.cuda.gpu.results import Part, read
from tests.cuda.gpu.timing import facts, in_turns


def tiles(work: Path, results: Path, end: float, only: str) -> list[str]:
    """The fastest tile for every size of the table. What failed, by name."""
    part = Part(results, "tune.tiles", end, only)
    folders = sorted(path for path in (work / "tiles").glob("*") if path.is_dir())
    part.run([(folder.name, lambda folder=folder: {"tiles": fastest(folder)}) for folder in folders], facts())
    return part.failed


def fastest(folder: Path) -> dict[str, str]:
    candidates: dict[str, tuple[str, str]] = json.loads((folder / "tiles.json").read_text())
    calls = Calls(folder)
    found = {}
    for sizes in dict.fromkeys(text for text, _ in candidates.values()):
        names = [name for name, (text, _) in candidates.items() if text == sizes and name in calls.names]
        graphs = {name: calls.recorded(name) for name in names}
        try:
            taken = in_turns(
                {name: lambda pair=pair: calls.timer.once(pair[0]) / pair[1] for name, pair in graphs.items()}
            )
        finally:
            for recording, _ in graphs.values():
                recording.free()
        if taken:
            found[sizes] = candidates[min(taken, key=taken.__getitem__)][1]
    return found


def write_table(results: Path, file: Path) -> int:
    """Put what was measured into the table beside the target's file; how many entries."""
    found = read(results).get("tune.tiles", {"items": {}, "facts": {}})
    content = json.loads(file.read_text())
    count = 0
    for key, item in found["items"].items():
        arch, kind, _ = key.split(".")
        for sizes, tile in item.get("tiles", {}).items():
            if sizes in content["tiles"].get(arch, {}).get(kind, {}):
                content["tiles"][arch][kind][sizes] = tile
                count += 1
    if count:
        content["card"] = found["facts"]
        file.write_text(json.dumps(content, indent=1) + "\n")
    return count
