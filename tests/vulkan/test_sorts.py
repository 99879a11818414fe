"""Sort and top-k in shared memory, the form for graphics cards: equal to the references, with ties and NaN."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.conformance.kernels import op_group
from tests.conformance.test_ops_on_targets import FAMILIES, check_half_samples, check_samples
from tests.conformance.ties import many_ties
from tests.vulkan.barriers import barriers
from tests.vulkan.device import Device
from tests.vulkan.test_scans import library_of, several, varying
from tests.vulkan.test_schedules import DIRECT, STAGED
from transpiler.dims import symbol
from transpiler.gpu.vulkan import compile_kernel
from transpiler.ops.base import Op
from transpiler.ops.scan import Sort, Topk
from transpiler.schedule import import_schedule, schedule

# A tile has 2048 elements, of 64-bit dtypes 1024. Op, shape, dtype, launches.
CASES: dict[str, tuple[Op, tuple[int, ...], Any, int]] = {
    "short": (Sort(1), (70, 9), np.float32, 1),
    "column": (Sort(0, True), (40, 9), np.float64, 1),
    "merged": (Sort(1, True), (2, 5000), np.float32, 3),
    "experts": (Topk(2, 1), (90, 8), np.float32, 1),
    "words": (Topk(5, 1), (2, 9000), np.float32, 2),
    "smallest": (Topk(400, 0, False), (3000, 2), np.int64, 3),
}
SLOW: dict[str, tuple[Op, tuple[int, ...], Any, int]] = {
    "halves": (Sort(1), (4, 100), np.float16, 1),
    "bools": (Sort(1, True), (4, 100), np.bool_, 1),
    "merged_wide": (Sort(0), (2100, 2), np.float64, 3),
    "whole": (Sort(1), (2, 1024), np.int64, 1),
    "one": (Sort(1), (3, 1), np.int32, 1),
    "two": (Sort(1), (3, 2), np.int8, 1),
    "below": (Sort(1), (3, 2047), np.float32, 1),
    "above": (Sort(1), (3, 2049), np.float32, 2),
    "above_wide": (Sort(1, True), (3, 1025), np.float64, 2),
    "bfloat16": (Sort(1, True), (4, 100), ml_dtypes.bfloat16, 1),
    "bytes": (Sort(1, True), (4, 3000), np.uint8, 2),
    "shorts": (Sort(1), (600, 17), np.int16, 1),
    "middle": (Sort(1), (3, 300, 5), np.float32, 1),
    "long": (Sort(1), (1, 50_000), np.float32, 6),
    "half_of_it": (Topk(2500, 1), (1, 5000), np.int32, 3),
    "one_of_many": (Topk(1, 1), (1, 100_000), np.float32, 2),
    "all": (Topk(700, 0), (700, 3), np.float64, 1),
}


def check(device: Device, case: tuple[Op, tuple[int, ...], Any, int]) -> None:
    op, *_, count = case
    x = many_ties(*case[1:3])
    group = op_group(op, [x])
    library = library_of(device, [schedule(group, STAGED, "kernel")])
    launches = library.launches["kernel"]
    assert len(launches) == count
    assert max(launch.shared_bytes for launch in launches) <= STAGED.gpu.shared_bytes / 2
    # Nothing of the device that the plain form does not need, but for float32, where halves are compared.
    plain, _ = compile_kernel(schedule(group, DIRECT, "kernel"), DIRECT)
    needed = {feature for launch in launches for feature in launch.features if not feature.endswith("Float32")}
    assert needed <= {feature for launch in plain for feature in launch.features}
    expected: Any = op.reference(x)
    for _ in range(2):
        values, positions = library.run("kernel", x)
        np.testing.assert_array_equal(positions, expected[1])
        # By their bits: zeros have signs.
        assert values.tobytes() == np.ascontiguousarray(expected[0]).tobytes()
    library.close()


@pytest.mark.parametrize("name", CASES)
def test_equal_to_the_reference(name: str, device: Device) -> None:
    check(device, CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_more_lengths_and_dtypes(name: str, device: Device) -> None:
    check(device, SLOW[name])


def test_rows_that_vary(device: Device) -> None:
    item = schedule(varying(Topk(100, 1), (symbol("n"), 3000), "float32"), STAGED, "few")
    # Every step of the network has one, besides one before and one behind; tiles of 2048, and rows of 200.
    assert barriers(item, STAGED) == [3, 3]
    library = library_of(device, [item])
    for rows in (1, 5):
        x = np.random.default_rng().standard_normal((rows, 3000)).astype(np.float32)
        for one, expected in zip(library.run("few", x, sizes={"n": rows}), Topk(100, 1).reference(x), strict=True):
            np.testing.assert_array_equal(one, expected)
    library.close()


@pytest.mark.parametrize(
    ("op", "shape", "shared"),
    [
        (Sort(1), (400, 312), False),
        (Sort(1), (2, 313), True),
        (Topk(5, 1), (400, 451), False),
        (Topk(5, 1), (2, 452), True),
        (Topk(2, 1), (1000, 64), False),
    ],
)
def test_what_processors_sort_by_threads(op: Op, shape: tuple[int, ...], shared: bool, device: Device) -> None:
    """As many turns of a thread's loops as Mesa's driver allows; no numbers take more than those in order."""
    upwards = np.broadcast_to(np.arange(shape[1], dtype=np.float32), shape)
    library = library_of(device, [schedule(varying(op, shape, "float32"), DIRECT, "kernel")], DIRECT)
    assert (library.launches["kernel"][0].shared_bytes > 0) == shared
    for x in (upwards, -upwards, np.random.default_rng().standard_normal(shape).astype(np.float32)):
        np.testing.assert_array_equal(library.run("kernel", x)[1], several(op, x)[1])
    library.close()


def test_lengths_that_vary_are_left_to_threads() -> None:
    group = varying(Sort(1), (3, symbol("n")), "float32")
    plain, staged = (schedule(group, target, "kernel").function.script() for target in (DIRECT, STAGED))
    assert plain == staged


def test_a_barrier_that_is_missing_is_found(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_schedule("vulkan.sort"), "barrier", lambda: None)
    with pytest.raises(AssertionError):
        check(device, (Sort(1, True), (2, 600), np.int32, 1))


@pytest.mark.slow
def test_samples(device: Device) -> None:
    chosen = [sample for sample in FAMILIES["scan"] if sample.op.name in ("sort", "topk")]
    problems = check_samples(chosen, STAGED) + check_half_samples("scan", STAGED)
    assert not problems, "\n".join(problems)
