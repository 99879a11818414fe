"""Weights: reading files of them, checking them against a model, ties between them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transpiler.errors import Problem, TranspileError, TranspileErrors, UsageError
from transpiler.ir import Array, Program, Role, TensorType
from transpiler.ops.dtypes import numpy_dtype

if TYPE_CHECKING:
    import torch

_SAFETENSORS_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def load_weights(path: str | Path) -> dict[str, Array]:
    """Read `.safetensors`, or a state_dict saved by torch.save. bfloat16 arrays have ml_dtypes' dtype.

    Raises:
        TranspileError: no such file, damaged or truncated, a dtype the graph does not know, or a pickle that
        needs
            unsafe loading.
    """
    path = Path(path)
    if not path.is_file():
        what = "It is not a file" if path.exists() else "No such file"
        raise TranspileError("no-such-file", f"{what}: {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        return _read_state_dict(path)
    raise TranspileError(
        "unreadable-weights", f"{path.name} is neither .safetensors nor a state_dict (.pt, .pth, .bin)"
    )


def _read_safetensors(path: Path) -> dict[str, Array]:
    def damaged(why: str) -> TranspileError:
        return TranspileError("unreadable-weights", f"{path.name} is not a readable safetensors file: {why}")

    try:
        data = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)
    except OSError as error:
        raise damaged(str(error)) from error
    if data.size < 8:
        raise damaged(f"it has {data.size} bytes")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > min(data.size - 8, 100_000_000):
        raise damaged("its header is longer than the file")
    try:
        header = json.loads(data[8 : 8 + length].tobytes())
    except (ValueError, RecursionError) as error:
        raise damaged(f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise damaged("its header is not an object")
    body = data[8 + length :]
    arrays = {}
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        match entry:
            case {"dtype": str() as dtype, "shape": list() as shape, "data_offsets": [start, end]} if all(
                type(number) is int and 0 <= number < 2**48 for number in (*shape, start, end)
            ):
                pass
            case _:
                raise damaged(f"the entry of {key!r} is malformed")
        if dtype not in _SAFETENSORS_DTYPES:
            raise TranspileError("unsupported-dtype", f"{path.name}: {key!r} has the unsupported dtype {dtype}")
        kind = numpy_dtype(_SAFETENSORS_DTYPES[dtype])
        if end - start != math.prod(shape) * kind.itemsize:
            raise damaged(f"the size of {key!r} does not fit its shape")
        if end > body.size:
            raise damaged(f"the data of {key!r} ends after the file (truncated?)")
        arrays[key] = np.frombuffer(body[start:end].tobytes(), dtype=kind).reshape(shape)
    return arrays


def _read_state_dict(path: Path) -> dict[str, Array]:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        unsafe = "weights_only" in str(error) or "Unsupported" in str(error)
        if not unsafe:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise TranspileError("unreadable-weights", f"{path.name} is not a readable state_dict: {reason}") from error
        raise TranspileError(
            "unsafe-weights",
            f"{path.name} is refused: it holds more than tensors, and opening it could run any code",
            hints=["if you trust it: safetensors.torch.save_file(model.state_dict(), 'm.safetensors')"],
        ) from error
    if isinstance(state, Mapping) and "state_dict" in state and isinstance(state["state_dict"], Mapping):
        state = state["state_dict"]  # the usual checkpoint: {"state_dict": ..., "epoch": ...}
    if not isinstance(state, Mapping) or not all(isinstance(item, torch.Tensor) for item in state.values()):
        raise TranspileError(
            "unreadable-weights",
            f"{path.name} holds no state_dict (a dict of tensors)",
            hints=["save it with torch.save(model.state_dict(), path)"],
        )
    return {str(key): to_numpy(value) for key, value in state.items()}


def given_arrays(given: object) -> dict[str, Array]:
    """The arrays of a mapping of tensors and numpy arrays, as Python code gives it.

    Raises:
        UsageError: it is no mapping.
        TranspileErrors: every value that is no dense array in memory.
    """
    if not isinstance(given, Mapping):
        raise UsageError("bad-weights", f"weights is a {type(given).__name__}, expected a path or a state_dict.")
    faults = {key: _fault(value) for key, value in given.items()}
    problems = [Problem("mismatched-weight", f"Weight {key!r} {fault}") for key, fault in faults.items() if fault]
    if problems:
        raise TranspileErrors(problems)
    tensors = {key: value for key, value in given.items() if hasattr(value, "detach")}
    arrays = {key: value for key, value in given.items() if key not in tensors}
    return {**arrays, **state_arrays(tensors)}


def _fault(value: Any) -> str:
    """Why a value is no array that could be a weight; empty if it is one."""
    if isinstance(value, np.ndarray):
        return "has masked values: fill them" if np.ma.is_masked(value) else ""
    if not hasattr(value, "detach"):
        return f"is a {type(value).__name__}, expected a tensor or an array"
    if value.is_meta or str(value.layout) != "torch.strided":
        return f"is a tensor without dense memory ({value.device}, {value.layout})"
    return ""


def check_weights(
    expected: Mapping[str, TensorType], aliases: Mapping[str, str], given: Mapping[str, Array]
) -> dict[str, Array]:
    """The given weights by stored key. A tied weight may come under any one of its keys.

    Raises:
        TranspileErrors: every missing, unexpected and mismatched key, and ties that are given with different
        values.
    """
    problems: list[Problem] = []
    result: dict[str, Array] = {}
    origin: dict[str, str] = {}
    for key, array in given.items():
        stored = aliases.get(key, key)
        if stored not in expected:
            problems.append(Problem("unexpected-weight", f"Unexpected weight {key!r} ({_describe(array)})"))
            continue
        type_ = TensorType(str(array.dtype), array.shape)
        if type_ != expected[stored]:
            message = f"Weight {key!r} is {type_}, the model has {expected[stored]}"
            problems.append(Problem("mismatched-weight", message))
        elif stored in result and not np.array_equal(_bits(result[stored]), _bits(array)):
            message = f"Weights {origin[stored]!r} and {key!r} are tied in the model, but differ"
            problems.append(Problem("mismatched-weight", message))
        result.setdefault(stored, array)
        origin.setdefault(stored, key)
    for key, type_ in expected.items():
        if key not in result:
            names = [alias for alias, stored in aliases.items() if stored == key]
            also = f" (tied: {', '.join(names)})" if names else ""
            problems.append(Problem("missing-weight", f"Missing weight {key!r}: {type_}{also}"))
    if problems:
        prefix = _prefix(given, expected)
        if prefix:
            hint = f"without the {prefix!r} that their names begin with, they are the model's"
            problems[-1] = replace(problems[-1], hints=(hint,))
        raise TranspileErrors(problems)
    return {key: result[key] for key in expected}


def _prefix(given: Iterable[str], expected: Iterable[str]) -> str:
    """What the weights' names begin with and the model's do not: "module." of DataParallel, "_orig_mod." of
    torch.compile, or the name of the module that the model was a part of; "" if that is not what is wrong."""
    keys = list(expected)
    beginnings = {name.removesuffix(keys[0]) for name in given if name.endswith(f".{keys[0]}")} if keys else set()
    wanted = {name for name in beginnings if {name + key for key in keys} <= set(given)}
    return min(wanted, default="", key=len)


def expected_weights(program: Program) -> dict[str, TensorType]:
    """The state_dict keys that a program stores, with their types."""
    return {
        item.key: item.value.type
        for graph in program.functions.values()
        for item in graph.inputs
        if item.role in (Role.PARAMETER, Role.BUFFER) or (item.role is Role.STATE and item.key not in program.constants)
    }


def storage_aliases(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Tied key -> the first key with the same memory, shape and strides."""
    first: dict[Any, str] = {}
    aliases = {}
    for key, tensor in state.items():
        if tensor.numel() == 0:
            continue
        identity = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if identity in first:
            aliases[key] = first[identity]
        else:
            first[identity] = key
    return aliases


def state_arrays(state: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    """A state_dict as arrays by stored key."""
    aliases = storage_aliases(state)
    return {key: to_numpy(tensor) for key, tensor in state.items() if key not in aliases}


def to_numpy(tensor: torch.Tensor) -> Array:
    """A contiguous numpy array, sharing memory where that is possible."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(numpy_dtype("bfloat16"))
    return tensor.numpy()


def to_torch(array: Array) -> torch.Tensor:
    """Inverse of `to_numpy`; read-only arrays are copied."""
    import torch

    array = np.array(array, order="C", copy=not array.flags.writeable)
    if str(array.dtype) == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _describe(array: Array) -> str:
    return str(TensorType(str(array.dtype), array.shape))


def _bits(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
