"""Type rules and importers keep symbolic sizes: no case needs a number."""

from __future__ import annotations

from typing import Any

import pytest

from transpiler.dims import symbol
from transpiler.ir import Array, TensorType, Value
from transpiler.ops import ATEN, Op
from transpiler.ops.reduce import Argmax, ReduceMean
from transpiler.ops.shape import Concat, Reshape, Slice

BATCH, SEQ = symbol("batch"), symbol("seq")
X = TensorType("float32", (BATCH, SEQ, 8))


class TypeContext:
    """An `ImportContext` that infers types only."""

    def __init__(self, *out_types: TensorType) -> None:
        self._out_types = out_types

    def emit(self, op: Op, *inputs: Value) -> Any:
        outputs = tuple(Value("v", kind) for kind in op.infer_types([value.type for value in inputs]))
        return outputs[0] if len(outputs) == 1 else outputs

    def scalar(self, value: float | int | bool, dtype: str) -> Value:
        return Value("v", TensorType(dtype, ()))

    def array(self, data: Array) -> Value:
        return Value("v", TensorType(str(data.dtype), tuple(data.shape)))

    def cast(self, value: Value, dtype: str) -> Value:
        return Value("v", value.type.with_dtype(dtype))

    def out_types(self) -> tuple[TensorType, ...]:
        return self._out_types

    def unsupported(self, reason: str) -> Exception:
        return NotImplementedError(reason)


def shaped(*shape: Any, dtype: str = "float32") -> TensorType:
    return TensorType(dtype, shape)


CASES: list[tuple[str, list[Any], TensorType]] = [
    ("view.default", [X, [BATCH * SEQ, 8]], shaped(BATCH * SEQ, 8)),
    ("slice.Tensor", [X, 1, 1, 2**63 - 1], shaped(BATCH, SEQ - 1, 8)),
    ("slice.Tensor", [X, 1, -1, 2**63 - 1], shaped(BATCH, 1, 8)),
    ("slice.Tensor", [X, 1, 0, -2], shaped(BATCH, SEQ - 2, 8)),
    ("slice.Tensor", [X, 1, 0, 2**63 - 1, 2], shaped(BATCH, (SEQ + 1) // 2, 8)),
    ("select.int", [X, 1, -1], shaped(BATCH, 8)),
    ("cat.default", [[X, X], 1], shaped(BATCH, 2 * SEQ, 8)),
    ("repeat.default", [X, [1, 3, 1]], shaped(BATCH, 3 * SEQ, 8)),
    ("expand.default", [shaped(1, SEQ, 8), [BATCH, -1, -1]], shaped(BATCH, SEQ, 8)),
    ("roll.default", [X, [2], [1]], X),
    ("roll.default", [X, [2]], X),
    ("flip.default", [X, [1]], X),
    ("constant_pad_nd.default", [X, [0, 0, 1, 2]], shaped(BATCH, SEQ + 3, 8)),
    ("slice_scatter.default", [X, shaped(BATCH, 1, 8), 1, -1, 2**63 - 1], X),
    ("unfold.default", [X, 1, 3, 1], shaped(BATCH, SEQ - 2, 8, 3)),
    ("arange.start_step", [0, SEQ], shaped(SEQ, dtype="int64")),
    ("full.default", [[BATCH, SEQ], SEQ], shaped(BATCH, SEQ, dtype="int64")),
    ("eye.default", [SEQ], shaped(SEQ, SEQ)),
    ("add.Tensor", [X, SEQ], X),
    ("mean.dim", [X, [1]], shaped(BATCH, 8)),
    ("var.correction", [X, [1]], shaped(BATCH, 8)),
    ("argmax.default", [X], shaped(dtype="int64")),
    ("logsumexp.default", [X, [1]], shaped(BATCH, 8)),
    ("cumsum.default", [X, 1], X),
    ("topk.default", [X, 2, 1], shaped(BATCH, 2, 8)),
    ("index.Tensor", [X, [None, shaped(4, dtype="int64")]], shaped(BATCH, 4, 8)),
    ("index_put.default", [X, [None, shaped(4, dtype="int64")], shaped(BATCH, 4, 8)], X),
    ("repeat_interleave.self_int", [X, 2, 1], shaped(BATCH, 2 * SEQ, 8)),
]


@pytest.mark.parametrize(("overload", "arguments", "out"), CASES, ids=[case[0] for case in CASES])
def test_importer(overload: str, arguments: list[Any], out: TensorType) -> None:
    def convert(item: Any) -> Any:
        if isinstance(item, TensorType):
            return Value("x", item)
        return [convert(entry) for entry in item] if isinstance(item, list) else item

    result = ATEN[overload](TypeContext(*_all_outputs(overload, out)), *map(convert, arguments))
    first = result[0] if isinstance(result, tuple) else result
    assert first.type == out


def _all_outputs(overload: str, out: TensorType) -> tuple[TensorType, ...]:
    return (out, out.with_dtype("int64")) if overload.startswith("topk") else (out,)


def test_type_rules() -> None:
    assert Reshape((BATCH, SEQ * 8)).infer(X) == shaped(BATCH, SEQ * 8)
    assert Concat(0).infer(X, X) == shaped(2 * BATCH, SEQ, 8)
    assert Slice((0, 1, 0), (BATCH, SEQ, 8), (1, 1, 2)).infer(X) == shaped(BATCH, SEQ - 1, 4)
    assert ReduceMean((0, 2), True).infer(X) == shaped(1, SEQ, 1)
    assert Argmax(1).infer(X) == shaped(BATCH, 8, dtype="int64")
