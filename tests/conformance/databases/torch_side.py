"""What PyTorch says about a sample: its results, the same in float64, and the tolerance between the two."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import numpy as np
import torch

from tests.conformance.databases.samples import FLOATS, Sample
from transpiler.checks import Expected, comparable, compare, tolerance_of
from transpiler.ir import Array
from transpiler.weights import to_numpy

# Their elements are whatever the memory held: only dtype and shape mean anything.
UNINITIALISED = frozenset({"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"})


def input_arrays(sample: Sample) -> list[Array]:
    return [to_numpy(x) for x in sample.inputs]


def expected(sample: Sample) -> list[Expected]:
    """PyTorch's results. Raises whatever the call raises."""
    single = _run(sample.module, sample.inputs)
    if sample.entry.name in UNINITIALISED:
        return [_expected(index, array, np.full(array.shape, np.nan), False) for index, array in enumerate(single)]
    double = _run_double(sample, single)
    return [_expected(i, *pair, True) for i, pair in enumerate(zip(single, double, strict=True))]


def _expected(index: int, single: Array, double: Array, defined: bool) -> Expected:
    dtype = str(single.dtype)
    flat, exact = single.reshape(-1), double.reshape(-1)
    if dtype == "bfloat16":
        flat = flat.astype(np.float32)
    if not defined:
        # NaN on one side and a number on the other: nothing is compared.
        flat, exact = np.zeros(flat.shape, np.float32), np.full(exact.shape, np.nan)
    with np.errstate(all="ignore"):
        tolerance = tolerance_of(flat, exact, dtype)
        excluded = int(flat.size - np.count_nonzero(comparable(flat, exact)))
    return Expected(f"output{index}", dtype, tuple(single.shape), flat, exact, tolerance, excluded)


def _run(module: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> list[Array]:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [to_numpy(x.clone()) for x in module(*copy.deepcopy(list(inputs)))]


def _run_double(sample: Sample, single: list[Array]) -> list[Array]:
    """The call in float64; where it cannot be, PyTorch's own result: the strictest choice."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        double = _run(sample.module.double(), [x.double() if x.dtype in FLOATS else x for x in sample.inputs])
    except Exception:
        double = []
    finally:
        torch.set_default_dtype(before)
    if [x.shape for x in double] != [x.shape for x in single]:
        return [x.astype(np.float64) if x.dtype.kind not in "biu" else x for x in single]
    return double


def exported_differs(sample: Sample, wanted: Sequence[Expected]) -> bool:
    """Whether torch.export's own graph, untouched, gives other results than the call: nothing of ours is at fault then.

    One known cause: a TransformerEncoder in eval mode takes a fused path in eager, which zeroes padded positions.
    """
    with torch.no_grad():
        graph = torch.export.export(sample.module, sample.inputs).module()
    return bool(differences(wanted, _run(graph, sample.inputs)))


def differences(wanted: Sequence[Expected], got: Sequence[Array]) -> str:
    """What is wrong with our outputs; empty if nothing is."""
    if len(wanted) != len(got):
        return f"{len(got)} outputs, PyTorch has {len(wanted)}"
    messages = []
    for item, array in zip(wanted, got, strict=True):
        if str(array.dtype) != item.dtype:
            messages.append(f"{item.name!r}: dtype {array.dtype}, PyTorch has {item.dtype}")
            continue
        message = compare(item, array).message
        if message:
            messages.append(message)
    return "; ".join(messages)
