"""`own_turns` gives every thread local buffers of its own; shared ones would make results depend on chance."""

import re

import numpy as np
import pytest

from tests.conformance.kernels import op_group
from transpiler.compile import lower_kernels
from transpiler.ops.base import Op
from transpiler.ops.packed import LinearPacked
from transpiler.ops.rnn import GruScan, LstmScan
from transpiler.schedule import schedule
from transpiler.target import load_target


@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
@pytest.mark.parametrize(
    ("rule", "op", "shapes"),
    [
        ("linear", LinearPacked(512), [(1, 256), (32, 256, 16)]),
        ("rnn", LstmScan(), [(3, 1, 512), (1, 128), (1, 128), (512, 128)]),
        ("rnn", GruScan(), [(3, 1, 480), (1, 160), (480, 160), (480,)]),
    ],
    ids=["matrix_vector", "lstm", "gru"],
)
def test_no_buffer_of_the_kernel_is_written_by_all_threads(
    rule: str, op: Op, shapes: list[tuple[int, ...]], isa: str
) -> None:
    target = load_target("cpu", isa)
    item = schedule(op_group(op, [np.zeros(shape, np.float32) for shape in shapes]), target, rule)
    text = str(lower_kernels([item], target)[item.kernel.name].script())
    before, region = text.split("pragma_parallel_launch_point", 1)
    shared = set(re.findall(r"(\w+) = T\.alloc_buffer", before))
    written = set(re.findall(r"(\w+)\[[^=\n]*\] = ", region))
    assert re.findall(r"(\w+) = T\.alloc_buffer", region), "a thread counts its turns in a buffer"
    assert not shared & written
