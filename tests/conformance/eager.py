"""An `ImportContext` that evaluates at once: an importer's ops run through their numpy references.

`compare("add.Tensor", a, b, alpha=2)` calls the torch overload and the importer on the same inputs and
requires equal dtypes, shapes and numbers. Arguments are numpy arrays, Python numbers, dtype names, and
lists of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch

from transpiler.ir import DTYPES, Array, TensorType, Value
from transpiler.ops import ATEN, Op

# Arguments of the factory functions that say where and how, not what.
_PLACEMENT = {"device", "layout", "pin_memory", "memory_format"}


class EagerContext:
    """Implements `transpiler.ops.base.ImportContext`; `arrays` holds every value by its name."""

    def __init__(self, out_types: Sequence[TensorType] = ()) -> None:
        self.arrays: dict[str, Array] = {}
        self.ops: list[Op] = []
        self._out_types = tuple(out_types)

    def value(self, array: Any) -> Value:
        """A new value that holds `array`."""
        array = np.asarray(array)
        value = Value(f"v{len(self.arrays)}", type_of(array))
        self.arrays[value.name] = array
        return value

    def emit(self, op: Op, *inputs: Value) -> Any:
        types = op.infer_types([value.type for value in inputs])
        with np.errstate(all="ignore"):
            result = op.reference(*(self.arrays[value.name] for value in inputs))
        outputs = [self.value(array) for array in (result if isinstance(result, tuple) else (result,))]
        actual = tuple(value.type for value in outputs)
        assert actual == types, f"{op}: infer gives {types}, reference gives {actual}"
        self.ops.append(op)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def scalar(self, value: float | int | bool, dtype: str) -> Value:
        return self.value(np.array(value).astype(_numpy_dtype(dtype)))

    def array(self, data: Array) -> Value:
        return self.value(data)

    def cast(self, value: Value, dtype: str) -> Value:
        if value.dtype == dtype:
            return value
        return self.value(self.arrays[value.name].astype(_numpy_dtype(dtype)))

    def out_types(self) -> tuple[TensorType, ...]:
        return self._out_types

    def storage(self) -> tuple[tuple[int, ...], int]:
        """The first value is the first argument; numpy's are contiguous."""
        first = np.ascontiguousarray(self.arrays["v0"])
        return tuple(stride // first.itemsize for stride in first.strides), 0

    def unsupported(self, reason: str) -> Exception:
        return NotImplementedError(reason)


def type_of(array: Array) -> TensorType:
    return TensorType(str(array.dtype), tuple(array.shape))


def run_torch(overload: str, *args: Any, **kwargs: Any) -> list[Array]:
    """The outputs of `torch.ops.aten.<overload>` on numpy inputs, flat."""
    name, _, variant = overload.partition(".")
    function = getattr(getattr(torch.ops.aten, name), variant or "default")
    with torch.no_grad():
        result = function(*map(_to_torch, args), **{key: _to_torch(value) for key, value in kwargs.items()})
    return [_to_numpy(item) for item in (result if isinstance(result, list | tuple) else [result])]


def run_import(overload: str, out_types: Sequence[TensorType], *args: Any, **kwargs: Any) -> list[Array]:
    """The outputs of the overload's importer on numpy inputs, flat; those that it leaves out are missing."""
    context = EagerContext(out_types)

    def convert(item: Any) -> Any:
        if isinstance(item, np.ndarray):
            return context.value(item)
        return [convert(entry) for entry in item] if isinstance(item, list | tuple) else item

    given = {key: convert(value) for key, value in kwargs.items() if key not in _PLACEMENT}
    result = ATEN[overload](context, *map(convert, args), **given)
    results = result if isinstance(result, list | tuple) else (result,)
    return [context.arrays[value.name] for value in results if value is not None]


def compare(
    overload: str, *args: Any, rtol: float = 1e-5, atol: float = 1e-6, results: int | None = None, **kwargs: Any
) -> None:
    """Require that importer and torch agree: dtype and shape equal, ints exactly, floats to the tolerance.

    `results` is how many outputs the importer has, if it leaves out the last ones (which serve a gradient).
    """
    expected = run_torch(overload, *args, **kwargs)
    actual = run_import(overload, [type_of(array) for array in expected], *args, **kwargs)
    expected = expected[:results]
    assert len(actual) == len(expected)
    for mine, theirs in zip(actual, expected, strict=True):
        assert type_of(mine) == type_of(theirs), f"{type_of(mine)}, PyTorch gives {type_of(theirs)}"
        if mine.dtype.kind in "biu":
            np.testing.assert_array_equal(mine, theirs)
        else:
            wide = np.float64
            np.testing.assert_allclose(mine.astype(wide), theirs.astype(wide), rtol=rtol, atol=atol)


def _numpy_dtype(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _to_torch(item: Any) -> Any:
    if isinstance(item, np.ndarray):
        if item.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(item.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(np.array(item))
    if isinstance(item, str) and item in DTYPES:
        return getattr(torch, item)
    return [_to_torch(entry) for entry in item] if isinstance(item, list | tuple) else item


def _to_numpy(tensor: torch.Tensor) -> Array:
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
