"""One architecture through `transpile`, its package compared with PyTorch on fresh inputs."""

from __future__ import annotations

import copy
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from tests.models.redraw import redraw
from tests.models.support import convert, fresh, to_double
from tests.zoo.entry import Entry, parameters
from tests.zoo.settle import settle
from transpiler import transpile
from transpiler.capture import evaluating
from transpiler.checks import compare
from transpiler.errors import TranspileErrors
from transpiler.verify import expect

LARGEST = 20_000_000
DRAWS = 2
# A tolerance that is a larger part of an output's scale says nothing: PyTorch's own float32 is that far from float64.
WEAKEST = 1e-3
NOT_EXPORTABLE = {"data-dependent-control-flow", "export-failed"}


@dataclass(frozen=True)
class Result:
    """`outcome` is "equal", "not exportable" (torch.export cannot trace the model), "refused" (it can, and the
    transpiler says no), "mismatch", "crash", "timeout" or "no test"; `reason` is one line, `detail` the whole text.
    `error`, `tolerance` and `scale`, the largest absolute value, are of the output that came closest to its
    tolerance. `size` is the bytes of the compiled kernels."""

    name: str
    outcome: str
    error: float = 0.0
    tolerance: float = 0.0
    scale: float = 0.0
    parameters: int = 0
    kernels: int = 0
    size: int = 0
    seconds: float = 0.0
    reason: str = ""
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Wide(TorchFunctionMode):
    """float64 where a model asks for float32 or float16 by name, so that its float64 run is one throughout."""

    _NARROW = (torch.float32, torch.float16, torch.bfloat16)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double

        def widen(item: Any) -> Any:
            return torch.float64 if isinstance(item, torch.dtype) and item in self._NARROW else item

        args, kwargs = _pytree.tree_map(widen, (args, kwargs or {}))
        return func(*args, **kwargs)


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def prepared(entry: Entry) -> tuple[Any, Any, Any]:
    """The module with the weights that it is tested with, and example inputs that it takes."""
    torch.manual_seed(0)
    module, args, kwargs = entry.build()
    module = module.eval() if entry.own_weights else redraw(module, 1)
    module.requires_grad_(False)
    with evaluating(module), torch.no_grad():
        if not entry.own_weights:
            settle(module, convert(args, torch.clone), convert(kwargs, torch.clone))
        module(*convert(args, torch.clone), **convert(kwargs, torch.clone))
    return module, args, kwargs


def run(entry: Entry) -> Result:
    """Never raises for what the model or the transpiler does."""
    try:
        module, args, kwargs = prepared(entry)
    except Exception as error:
        return Result(entry.name, "no test", reason=_line(error), detail=traceback.format_exc())
    if parameters(module) > LARGEST:
        return Result(entry.name, "no test", reason=f"{parameters(module)} parameters")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="zoo-") as out:
        try:
            package = transpile(module, args, kwargs, name="zoo_" + entry.name, out=Path(out), isa="native", quiet=True)
            seconds = time.perf_counter() - start
            return _compare(entry, package, module, args, kwargs, seconds)
        except TranspileErrors as error:
            outcome = "not exportable" if {item.code for item in error.problems} <= NOT_EXPORTABLE else "refused"
            return Result(entry.name, outcome, parameters=parameters(module), seconds=time.perf_counter() - start,
                          reason=_reason(error), detail=str(error))  # fmt: skip
        except Exception as error:
            return Result(entry.name, "crash", seconds=time.perf_counter() - start, reason=_line(error),
                          detail=traceback.format_exc())  # fmt: skip


def _compare(entry: Entry, package: Any, module: Any, args: Any, kwargs: Any, seconds: float) -> Result:
    worst = (0.0, 0.0, 0.0)
    problem = ""
    for item in package.report.errors.values():  # what the build itself measured: zeros, large numbers, NaN
        problem = problem or item.message
    compared = 0
    with package.load() as model:
        for seed in range(2, 2 + DRAWS):
            source = torch.Generator().manual_seed(seed)
            drawn = fresh(args, source), fresh(kwargs, source)
            try:
                single, double = pytorch(module, *drawn)
            except Exception:  # integers that must fit together, as the corners of a box
                drawn = _fresh_floats(args, source), _fresh_floats(kwargs, source)
                single, double = pytorch(module, *drawn)
            got = model(*convert(drawn[0], _array), **convert(drawn[1], _array))
            ours = [leaf for leaf in _pytree.tree_leaves(_plain(got)) if leaf is not None]
            assert len(ours) == len(single) == len(double), f"{len(ours)} outputs, PyTorch has {len(single)}"
            for index, (one, two, array) in enumerate(zip(single, double, ours, strict=True)):
                expected = expect(f"output {index}", one.dtype.name, one, two, whole=1 << 40, sample=1, parts=1)
                found = compare(expected, np.asarray(array), f"draw {seed}")
                problem = problem or found.message
                compared += one.size - expected.excluded
                if one.dtype.kind == "f":
                    assert np.isfinite(two).all(), f"output {index} is not finite in PyTorch"
                    scale = float(np.abs(two).max(initial=0))
                    assert expected.tolerance <= WEAKEST * scale or not scale, f"output {index} is no test"
                    worst = max(worst, (found.max_error, expected.tolerance, scale), key=_ratio)
    assert compared, "nothing was compared"
    outcome = "mismatch" if problem else "equal"
    size = sum(item.stat().st_size for item in package.path.rglob("kernels/**/*.so"))
    return Result(
        entry.name, outcome, *worst, parameters(module), package.report.kernels, size, seconds, problem, problem
    )


def _fresh_floats(value: Any, source: torch.Generator) -> Any:
    """Fresh floats, and the integers of the example."""
    return convert(value, lambda item: fresh(item, source) if item.is_floating_point() else item.clone())


def pytorch(module: Any, args: Any, kwargs: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """PyTorch's outputs, flat, in float32 and in float64."""
    double = copy.deepcopy(module).double()
    for config in {id(item.config): item.config for item in double.modules() if hasattr(item, "config")}.values():
        if getattr(config, "_experts_implementation", None):
            config._experts_implementation = "eager"  # PyTorch's grouped product has no float64
    with torch.no_grad():
        with evaluating(module):
            single = module(*convert(args, torch.clone), **convert(kwargs, torch.clone))
        with evaluating(double), _default(torch.float64), Wide():
            exact = double(*convert(args, to_double), **convert(kwargs, to_double))
    return _tensors(single), _tensors(exact)


def _tensors(result: Any) -> list[np.ndarray]:
    return [item.numpy() for item in _pytree.tree_leaves(_plain(result)) if isinstance(item, torch.Tensor)]


def _plain(value: Any) -> Any:
    """Containers that pytree does not know, as dicts."""
    if hasattr(value, "items"):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {key: _plain(getattr(value, key)) for key in value.__dataclass_fields__}
    return value


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy().copy()


def _ratio(found: tuple[float, float, float]) -> float:
    return found[0] / found[1] if found[1] else 0.0


def _line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def _reason(error: TranspileErrors) -> str:
    texts = [item.message.splitlines()[0] for item in error.problems]
    return "; ".join(dict.fromkeys(texts))
