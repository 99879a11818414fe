"""`own_turns`: threads have buffers of their own, and how the turns are dealt to them changes no bit of a result."""

import re

import numpy as np
import pytest

from tests.conformance.kernels import KernelLibrary, op_group
from transpiler.compile import lower_kernels
from transpiler.group import Lowered
from transpiler.ir import Array
from transpiler.ops.base import Op
from transpiler.ops.packed import LinearPacked
from transpiler.ops.rnn import GruScan, LstmScan
from transpiler.ops.strassen import LinearStrassen
from transpiler.ops.strassen_conv import ConvStrassen
from transpiler.schedule import schedule
from transpiler.target import Target, load_target

CASES: dict[str, tuple[str, Op, list[tuple[int, ...]]]] = {
    "17_panels": ("linear", LinearPacked(272), [(1, 256), (17, 256, 16)]),
    "6_panels": ("linear", LinearPacked(90), [(1, 1024), (6, 1024, 16), (90,)]),
    "strassen": ("linear_strassen", LinearStrassen(272), [(70, 64), (9, 226, 16)]),
    "strassen_conv": (
        "conv_strassen",
        ConvStrassen(192, 64, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
        [(1, 4, 13, 15, 16), (6, 7 * 32 + 2, 16)],
    ),
    "lstm": ("rnn", LstmScan(), [(3, 1, 512), (1, 128), (1, 128), (512, 128)]),
    "gru": ("rnn", GruScan(), [(3, 1, 480), (1, 160), (480, 160), (480,)]),
}
ISAS = ["avx512", "avx2", "baseline"]


def scheduled(case: str, target: Target) -> tuple[Lowered, list[Array]]:
    rule, op, shapes = CASES[case]
    rng = np.random.default_rng(1)
    inputs = [rng.standard_normal(shape, np.float32) for shape in shapes]
    return schedule(op_group(op, inputs), target, rule), inputs


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES)
def test_no_buffer_of_the_kernel_is_written_by_all_threads(case: str, isa: str) -> None:
    target = load_target("cpu", isa)
    item, _ = scheduled(case, target)
    text = str(lower_kernels([item], target)[item.kernel.name].script())
    before, after = text.split("pragma_parallel_launch_point", 1)
    depth = len(before) - before.rindex("\n") - 1 - len(before.rsplit("\n", 1)[1].lstrip())
    region = re.split(rf"\n {{0,{depth}}}(?=\S)", after, maxsplit=1)[0]
    own = set(re.findall(r"(\w+) = T\.alloc_buffer", region))
    assert own, "a thread counts its turns in a buffer"
    assert set(re.findall(r"data=(\w+)\.data", region)) <= own
    # Names are used again: what a region makes, or another name of it, is not what was there before.
    own |= set(re.findall(r"(\w+) = T\.decl_buffer", region))
    shared = set(re.findall(r"(\w+) = T\.alloc_buffer", before)) - own
    assert not shared & set(re.findall(r"(\w+)\[[^=\n]*\] = ", region))


@pytest.mark.parametrize("case", CASES)
def test_the_number_of_threads_changes_no_bit(case: str) -> None:
    """A call that finds the pool taken runs alone: it must give what it gives with all threads."""
    target = load_target("cpu", "baseline")
    item, inputs = scheduled(case, target)
    library = KernelLibrary([item], target)
    alone = library.run(item.kernel.name, *inputs, threads=1)
    for threads in (2, 3, 7):
        together = library.run(item.kernel.name, *inputs, threads=threads)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(together, alone, strict=True)), threads
