"""Compares with live PyTorch: `pytest tests/test_live_torch.py --live MODEL.py` (or LIVE_MODEL=MODEL.py).

MODEL.py (its code is run) builds the model: `MODEL.py:NAME` calls NAME(); else `build_model()`, else the only
nn.Module class in it. Its weights are loaded into the package through `load_weights` before comparing.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from _blocker import unblocked
from _cases import ALL, CASES, Array, Case, Function, nest
from _checks import FACTOR_TORCH, Expected, check, comparable, factor_eps, same_kind, tolerance_of, unit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from example import Model

# What PyTorch says where it has no half-precision form of a layer for this CPU.
NO_HALF = (
    "not implemented for 'Half'",
    "not implemented for 'BFloat16'",
    "could not create a primitive descriptor",
)
DRAWN = [case for case in ALL if case.name == "example" or case.name.startswith("drawn")]


@pytest.fixture(scope="module")
def live(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The PyTorch module, in eval mode."""
    given = request.config.getoption("--live")
    with unblocked():
        if importlib.util.find_spec("torch") is None:
            pytest.skip("torch is not installed")
        torch = importlib.import_module("torch")
        file, _, name = str(given).partition(":")
        with torch.no_grad():
            yield _build(torch, Path(file), name).eval()


def _build(torch: Any, path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location("live_model", path.resolve())
    assert spec is not None and spec.loader is not None, f"{path} is not a Python file"
    source = importlib.util.module_from_spec(spec)
    sys.modules["live_model"] = source
    sys.path.insert(0, str(path.resolve().parent))
    spec.loader.exec_module(source)
    if name or hasattr(source, "build_model"):
        return getattr(source, name or "build_model")()
    classes = [
        item
        for item in vars(source).values()
        if isinstance(item, type) and issubclass(item, torch.nn.Module) and item.__module__ == "live_model"
    ]
    names = ", ".join(item.__name__ for item in classes)
    assert len(classes) == 1, f"{path} has the models {names or 'none'}; choose one with --live {path}:NAME"
    return classes[0]()


def _run(torch: Any, function: Function, module: Any, inputs: list[Array], double: bool) -> list[Array]:
    tensors = [
        torch.from_numpy(array).to(getattr(torch, item.dtype))
        for array, item in zip(inputs, function.arguments, strict=True)
    ]
    if double:
        tensors = [item.double() if item.is_floating_point() else item for item in tensors]
    args, kwargs = nest(function.index["in_structure"], tensors)
    method = getattr(module, str(function), module) if str(function) != "forward" else module
    result = method(*args, **kwargs)
    return [_array(torch, item) for item in _flatten(function.index["out_structure"], result)]


def _single(torch: Any, case: Case, live: Any, precision: str) -> list[Array]:
    """The module's results, by PyTorch's own mixed precision if the package was made with one."""
    half = precision in ("float16", "bfloat16")
    with torch.autocast("cpu", getattr(torch, precision)) if half else contextlib.nullcontext():
        try:
            return _run(torch, case.function, copy.deepcopy(live), case.inputs(), double=False)
        except RuntimeError as error:
            if not half or not any(text in str(error) for text in NO_HALF):
                raise
            pytest.skip(f"PyTorch cannot run the model in {precision}: {error}")


def _array(torch: Any, tensor: Any) -> Array:
    """bfloat16 as float32, which holds it."""
    array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().cpu().numpy()
    return array


def _flatten(structure: Any, value: Any) -> list[Any]:
    match structure:
        case {"leaf": _}:
            return [value]
        case {"tuple": items} | {"list": items}:
            return [leaf for item, part in zip(items, value, strict=True) for leaf in _flatten(item, part)]
        case {"dict": items}:
            return [leaf for key, item in items for leaf in _flatten(item, value[key])]
        case {"record": items} | {"namedtuple": items}:
            return [leaf for key, item in items for leaf in _flatten(item, getattr(value, key))]
    return []


@pytest.fixture(scope="module")
def loaded(live: Any, device: str) -> Model:
    """The package with the live model's weights."""
    from example import Model

    state = {key: _array(sys.modules["torch"], value) for key, value in live.state_dict().items()}
    known = CASES.index["reload"]["weights"] if CASES.index["reload"] else {}
    return Model(weights={key: value for key, value in state.items() if key in known} or None, device=device)


@pytest.mark.parametrize("case", DRAWN, ids=str)
def test_outputs_equal_live_pytorch(live: Any, loaded: Model, case: Case) -> None:
    torch = sys.modules["torch"]
    # Copies: a call may write the module's buffers.
    (precision,) = {item.precision for item in case.outputs()} or {""}
    single = _single(torch, case, live, precision)
    double = _run(torch, case.function, copy.deepcopy(live).double(), case.inputs(), double=True)
    got = case.run(loaded)
    for recorded, one, two, array in zip(case.outputs(), single, double, got, strict=True):
        excluded = int(np.count_nonzero(~comparable(one, two) & ~same_kind(one, two)))
        tolerance = tolerance_of(one, two, recorded.dtype, precision)
        live_value = Expected(
            recorded.name, recorded.dtype, one.shape, one.reshape(-1), two.reshape(-1), tolerance, excluded
        )
        roundings = factor_eps(unit(recorded.dtype, precision))
        check(live_value, array, f"live case {case.name!r} (factors {FACTOR_TORCH} and {roundings})")
