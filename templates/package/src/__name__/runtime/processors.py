"""How many processors this process may use: affinity, the quota of its control group, the environment."""

from __future__ import annotations

import operator
import os
from pathlib import Path


def default_threads() -> int:
    """Threads of a model that is not told: the processors of this process, at most $TRANSPILE_THREADS.

    More threads than the quota of a container would be stopped in the middle of a call.

    Raises:
        ValueError: $TRANSPILE_THREADS is no number.
    """
    count = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    if quota is not None:
        count = min(count, max(1, int(quota)))
    limit = os.environ.get("TRANSPILE_THREADS", "")
    if limit and not (limit.isascii() and limit.isdecimal()):
        raise ValueError(f"TRANSPILE_THREADS={limit}: expected a number of threads")
    return max(1, min(count, int(limit))) if limit else count


def cpu_quota(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> float | None:
    """Processors' worth of time per period that control groups leave this process; None: no limit.

    The least quota of its group and of all groups above it counts: cpu.max in version 2, cpu.cfs_quota_us
    and cpu.cfs_period_us in version 1. Inside of a container the group's path is often that of the host; its
    own group is then at `root`.
    """
    quotas = [
        _quota(folder) for group, path in _groups(membership) for folder in _folders(root / group, path)
    ]
    return min((quota for quota in quotas if quota is not None), default=None)


def _groups(membership: Path) -> list[tuple[str, str]]:
    """(folder of the hierarchy, path of the group in it) of the hierarchies that can limit processors."""
    groups = []
    for line in _text(membership).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            groups.append((".", path))
        elif "cpu" in controllers.split(","):
            groups += [(controllers, path), ("cpu", path)]  # one is a link to the other
    return groups or [(".", "/")]


def _folders(hierarchy: Path, path: str) -> list[Path]:
    """The folder of a group and those of the groups above it, up to the root of the hierarchy."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [hierarchy.joinpath(*parts[:length]) for length in range(len(parts) + 1)]


def _quota(folder: Path) -> float | None:
    words = _text(folder / "cpu.max").split()
    if not words:
        words = [*_text(folder / "cpu.cfs_quota_us").split(), *_text(folder / "cpu.cfs_period_us").split()]
    try:
        quota, period = map(int, words)
    except ValueError:  # "max", or no such file
        return None
    return quota / period if quota > 0 and period > 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def checked_threads(threads: int | None) -> int:
    """How many threads a call may use. Raises TypeError or ValueError for what is no such number."""
    if threads is None:
        return default_threads()
    if isinstance(threads, bool) or not hasattr(threads, "__index__"):
        raise TypeError(f"threads: expected an int, got {type(threads).__name__}")
    count = operator.index(threads)
    if not 1 <= count < 2**31:
        raise ValueError(f"threads: expected at least 1 and less than 2**31, got {count}")
    return count
