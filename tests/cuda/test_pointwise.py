"""Element-wise groups of large tensors by vectors: numbers by the emulator, with rests, broadcasts and half floats."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import ml_dtypes
import numpy as np
import pytest

from tests.conformance.kernels import array_type
from tests.conformance.selection import OWN
from tests.conformance.test_ops_on_targets import FAMILIES, check_samples, dtypes
from tests.cuda.library import CudaLibrary, other
from transpiler.gpu.cubin import usage
from transpiler.gpu.nvrtc import compile_code
from transpiler.group import Group, Lowered, make_group
from transpiler.ir import Array, Node, Value
from transpiler.ops.base import Elementwise, Op, Sample
from transpiler.ops.compare import Cast, Lt
from transpiler.ops.dtypes import HALF
from transpiler.ops.elementwise import Add, Mul
from transpiler.ops.shape import Slice
from transpiler.schedule import import_schedule, schedule
from transpiler.target import Target, load_target

TARGET = load_target("cuda", "sm_80")
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "flat": ((66000,), (66000,)),
    "rest": ((257, 257), (257, 257)),
    "bias": ((520, 128), (128,)),
    "rows": ((520, 128), (520, 1)),
    "number": ((257, 257), ()),
    "channels": ((2, 40, 8, 104), (40, 1, 1)),
}


def drawn(name: str, dtype: type = np.float32) -> list[Array]:
    g = np.random.default_rng()
    return [np.asarray(g.standard_normal(shape)).astype(dtype) for shape in SHAPES[name]]


def chain(ops: Sequence[tuple[Op, tuple[int, ...]]], inputs: Sequence[Array]) -> Group:
    """Ops one after the other, each of the values of the given numbers: inputs first, then what the ops gave."""
    values = [Value(f"x{i}", array_type(x)) for i, x in enumerate(inputs)]
    nodes = []
    for op, places in ops:
        taken = tuple(values[place] for place in places)
        (type_,) = op.infer_types([value.type for value in taken])
        values.append(Value(f"y{len(nodes)}", type_))
        nodes.append(Node(op, taken, (values[-1],)))
    return make_group(tuple(nodes), (values[-1],))


def scheduled(name: str, ops: Sequence[tuple[Op, tuple[int, ...]]], inputs: Sequence[Array]) -> Lowered:
    return schedule(chain(ops, inputs), TARGET, name)


def test_rests_and_broadcasts() -> None:
    inputs = {name: drawn(name) for name in SHAPES}
    library = CudaLibrary(
        [scheduled(name, [(Add(), (0, 1)), (Mul(), (2, 0))], given) for name, given in inputs.items()]
    )
    for name, (x, y) in inputs.items():
        np.testing.assert_array_equal(library.run(name, x, y)[0], (x + y) * x)
        assert library.launches[name][0].grid[0] == -(-x.size // 512)
    assert all(item.stack == 0 for item in usage(compile_code(library.text, "sm_80").cubin).values())


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_dtypes_of_other_sizes(dtype: type) -> None:
    """Eight half floats come in one load and go in one store; their float32 go in two; of sixteen a bool is a byte."""
    x, y = drawn("bias", dtype)
    wide = [(Cast("float32"), (0,)), (Cast("float32"), (1,)), (Add(), (2, 3))]
    library = CudaLibrary(
        [
            scheduled("halves", [*wide, (Cast(np.dtype(dtype).name), (4,))], [x, y]),
            scheduled("widened", wide, [x, y]),
            scheduled("compared", [*wide, (Lt(), (2, 4))], [x, y]),
        ]
    )
    total = x.astype(np.float32) + y.astype(np.float32)
    np.testing.assert_array_equal(library.run("halves", x, y)[0], total.astype(dtype))
    np.testing.assert_array_equal(library.run("widened", x, y)[0], total)
    np.testing.assert_array_equal(library.run("compared", x, y)[0], x.astype(np.float32) < total)
    # Loads of x and y, and the stores; the function itself.
    assert library.text.count("move_16(") == (2 + 1) + (2 + 2) + (4 + 1) + 1
    assert [library.launches[name][0].grid[0] for name in ("halves", "widened", "compared")] == [65, 65, 33]


def test_every_op(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest sample of each op, as if it were a large tensor."""

    def size(sample: Sample) -> int:
        return sum(array.size for array in sample.inputs)

    samples: dict[str, Sample] = {}
    for sample in itertools.chain.from_iterable(FAMILIES[family] for family in OWN):
        if isinstance(sample.op, Elementwise) and dtypes(sample).isdisjoint(HALF):
            samples[sample.op.name] = max(samples.get(sample.op.name, sample), sample, key=size)
    module = import_schedule("cuda.pointwise")
    apply, taken = module.apply, []

    def counted(group: Group, target: Target, name: str) -> Lowered | None:
        result: Lowered | None = apply(group, target, name)
        taken.append(result is not None)
        return result

    monkeypatch.setattr(module, "LARGE", 1)
    monkeypatch.setattr(module, "apply", counted)
    problems = check_samples(list(samples.values()), TARGET)
    assert not problems, "\n".join(problems)
    assert sum(taken) > 100


def test_small_tensors_have_a_thread_for_each_element() -> None:
    x = np.ones((50, 128), np.float32)
    library = CudaLibrary([scheduled("small", [(Add(), (0, 0))], [x])])
    assert "move_16" not in library.text
    assert library.launches["small"][0].grid[0] == 100


def test_views_are_read_where_they_begin() -> None:
    """A slice begins at no multiple of 16 bytes: it is no case for vectors."""
    x, y = np.random.default_rng().standard_normal((2, 66001)).astype(np.float32)
    ops: list[tuple[Op, tuple[int, ...]]] = [(Slice((1,), (66001,), (1,)), (0,)), (Slice((0,), (66000,), (1,)), (1,))]
    library = CudaLibrary([scheduled("views", [*ops, (Add(), (2, 3))], [x, y])])
    assert "move_16" not in library.text
    np.testing.assert_array_equal(library.run("views", x, y)[0], x[1:] + y[:-1])


def test_a_wrong_place_is_found() -> None:
    x, y = drawn("rest")
    library = CudaLibrary([scheduled("rest", [(Add(), (0, 1))], [x, y])], other("<= 66045", "<= 66048"))
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(library.run("rest", x, y)[0], x + y)
