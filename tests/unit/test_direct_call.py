"""Calls that go from the interpreter to the library without ctypes: what they take, and that they keep nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit import toy
from tests.unit.alone import runs
from transpiler.emit import emit_package, write_package

COUNTED = """
from toy.runtime.arguments import TensorSpec
converted, take = [], TensorSpec.take
TensorSpec.take = lambda spec, value: converted.append(spec.name) or take(spec, value)
model = Model()
expected = model([x], ids=ids).hidden
assert not converted, converted
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(emit_package(toy.view()), tmp_path_factory.mktemp("out") / "toy")


def test_arrays_that_fit_are_taken_as_they_are_and_others_converted(package: Path) -> None:
    runs(
        package,
        COUNTED
        + """
class Own(np.ndarray):
    pass
fixed = x.copy()
fixed.flags.writeable = False
assert (model([fixed], ids=ids).hidden == expected).all() and not converted
strided = np.repeat(x, 2, axis=-1)[..., ::2]
for value in (x.view(Own), np.asfortranarray(x), strided):
    converted.clear()
    assert (model([value], ids=ids).hidden == expected).all() and "x" in converted
raises(TypeError, "x: expected dtype float32, got float64", model, [x.astype(np.float64)], ids=ids)
raises(TypeError, "x: expected dtype float32, got int32", model, [x.view(np.int32)], ids=ids)
raises(TypeError, "x: expected dtype float32, got >f4", model, [x.astype(">f4")], ids=ids)
raises(ValueError, "x: expected shape", model, [x[None]], ids=ids)
raises(ValueError, "x: expected shape", model, [x.reshape(-1)], ids=ids)
raises(TypeError, "x: expected an array, got NoneType", model, [None], ids=ids)
raises(IndexError, "", model, [x], ids=ids + 10**6)
assert (model([x], ids=ids).hidden == expected).all()
""",
    )


def test_nothing_is_kept_of_a_call(package: Path) -> None:
    runs(
        package,
        COUNTED
        + """
import gc, sys, weakref
def counts():
    return [sys.getrefcount(value) for value in (x, ids, np.ndarray, -1, 0)]
other = x.astype(np.float64)
def many():
    for _ in range(500):
        model([x], ids=ids)
        try:
            model([other], ids=ids)
        except TypeError:
            pass
many()
before = counts()
many()
assert all(abs(now - then) < 20 for now, then in zip(counts(), before)), (counts(), before)
result = model([x], ids=ids).hidden
dead = weakref.ref(result)
del result
assert dead() is None
x.resize(x.shape, refcheck=False)  # no buffer of it is held
session = weakref.ref(model._session)
model.close()
gc.collect()
assert session() is None
""",
    )
