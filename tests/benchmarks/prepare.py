"""Everything that takes long and is no timing: environments, exports, compilations, packages. What exists is kept."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.benchmarks.environments import python_of

ROOT = Path(__file__).parents[2]
# What a package is made from: another content is another package.
CACHES = {"__pycache__", ".ruff_cache"}
SOURCES = ("transpiler", "schedules", "targets", "templates")
PEERS_OF = {"cpu": ("onnxruntime", "openvino", "compile", "aot", "eager"), "vulkan": ("ncnn", "iree")}
STEPS_OF: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("onnx",),
    "openvino": ("onnx",),
    "compile": ("compile",),
    "aot": ("aot",),
    "eager": (),
    "ncnn": ("ncnn",),
    "iree": ("onnx", "iree"),
}
ENVIRONMENT_OF = {"onnxruntime": "onnxruntime", "openvino": "openvino", "ncnn": "ncnn", "iree": "iree"}
ENVIRONMENT_OF |= dict.fromkeys(("ours", "compile", "aot", "eager"), "torch")


def sources_hash() -> str:
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and not CACHES.intersection(path.parts):
                digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def package_folder(work: Path, name: str, target: str = "cpu") -> Path:
    suffix = "" if target == "cpu" else f"-{target}"
    return work / "models" / name / f"package-{sources_hash()}{suffix}" / name


def environment(work: Path, threads: int) -> dict[str, str]:
    """Variables of every process: as many threads as asked for, caches inside of the work folder."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
        "HF_HUB_OFFLINE": "1",
    }


def _run(work: Path, step: str, name: str, folder: Path, threads: int, limit: float) -> None:
    python = python_of("torch", work / "environments")
    command: list[str | Path] = [python, "-m", "tests.benchmarks.steps", step, name, folder, "--threads", str(threads)]
    start = time.perf_counter()
    log = work / "models" / name / f"{step}.{threads}.log"
    with log.open("w") as output:
        done = subprocess.run(
            command, cwd=ROOT, env=environment(work, threads), stdout=output, stderr=output, timeout=limit, check=False
        )
    if done.returncode:
        raise RuntimeError(f"{name}: {step} failed; see {log}")
    print(f"{name}: {step}, {threads} threads: {time.perf_counter() - start:.1f} s", flush=True)


def prepare(
    work: Path,
    name: str,
    peers: Sequence[str],
    threads: Sequence[int],
    *,
    target: str = "cpu",
    package: bool = True,
    limit: float = 3600.0,
) -> list[str]:
    """Do the steps of a model that are not done yet. A peer that cannot take it is reported, not fatal.

    Returns what failed.
    """
    folder = work / "models" / name
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [("reference", 1)]
    wanted += [
        (step, count)
        for peer in peers
        for step in STEPS_OF[peer]
        for count in (threads if step in ("aot", "compile") else (1,))
    ]
    failed = []
    for peer in peers:
        python_of(ENVIRONMENT_OF[peer], work / "environments")
    for step, count in dict.fromkeys(wanted):
        stamp = folder / f"{step}.{count}.done"
        if stamp.exists():
            continue
        try:
            _run(work, step, name, folder, count, limit)
            stamp.touch()
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(error, file=sys.stderr, flush=True)
            failed.append(f"{name}: {step}")
    if package:
        _package(work, name, target, limit)
    return failed


def _package(work: Path, name: str, target: str, limit: float) -> None:
    folder = package_folder(work, name, target)
    if folder.is_dir():
        return
    old = sorted((work / "models" / name).glob("package-*"), key=lambda path: path.stat().st_mtime)
    for path in old[:-4]:  # several checkouts may share the folder
        shutil.rmtree(path)
    step = "package" if target == "cpu" else f"package_{target}"
    _run(work, step, name, folder.parent, len(os.sched_getaffinity(0)), limit)
