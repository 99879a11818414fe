"""What PyTorch says: the exported graph run in float32 or float64 with intermediate values, and the user's
module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree

from transpiler.boundary import MUTATIONS, mutated_buffers
from transpiler.capture import Captured, evaluating
from transpiler.checks import EPS
from transpiler.draw import seed_of
from transpiler.ir import Array
from transpiler.model_file import called_as
from transpiler.weights import storage_aliases, to_numpy, to_torch

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Rounding:
    """What a precision may round: the values of these FX nodes, in the PyTorch that a package is compared with.

    `shake`, if not 0, is the seed of noise of up to a spacing of the type that is put upon them: what might come out if
    they were rounded elsewhere.
    """

    precision: str
    nodes: frozenset[str]
    shake: int = 0

    def of(self, name: str, value: Any) -> Any:
        """A float32 tensor of the node `name`, rounded to nearest, ties to even; anything else as it is."""
        if not isinstance(value, torch.Tensor) or value.dtype is not torch.float32:
            return value
        if self.shake:
            generator = torch.Generator().manual_seed(seed_of(f"{self.shake}/{name}"))
            value = value * (1 + EPS[self.precision] * (2 * torch.rand(value.shape, generator=generator) - 1))
        if self.precision != "tf32":
            return value.to(getattr(torch, self.precision)).float()
        bits = value.contiguous().view(torch.int32)
        rounded = (bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF
        return torch.where(value.isfinite(), rounded.view(torch.float32), value)


def example_arrays(captured: Captured) -> tuple[Array, ...]:
    """The captured example's tensors, flat, in the order of the program's user inputs."""
    leaves, _ = _pytree.tree_flatten((tuple(captured.args), dict(_ordered(captured))))
    return tuple(to_numpy(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor))


def run_reference(
    captured: Captured,
    flat_inputs: Sequence[Array],
    *,
    double: bool = False,
    capture_values: Sequence[str] = (),
    weights: Mapping[str, Array] | None = None,
    state: Mapping[str, Array] | None = None,
    given: Mapping[str, Array] | None = None,
    rounding: Rounding | None = None,
) -> tuple[tuple[Array, ...], dict[str, Array]]:
    """Run the exported graph: the user's tensor outputs, and the values of the FX nodes named in
    `capture_values`.

    With `double` every float tensor and every float dtype in the graph is float64: the y64 that tolerances
    are derived from. `weights` (state_dict keys, tied ones under any of their keys) replaces the model's own. `state`
    (buffers that some function of the program writes, by name) does so too; what the run leaves in them follows the
    outputs, in the order of the names. `given` replaces the values of the FX nodes that it names; `rounding` rounds
    float32 values.

    Raises:
        KeyError: a name in `capture_values` that the graph does not have.
    """
    exported = captured.exported_program
    inputs = [_prepared(tensor, double) for tensor in _input_tensors(captured, flat_inputs)]
    replaced = {name: to_torch(array) for name, array in (given or {}).items()}
    interpreter = _Interpreter(exported.graph_module, double, frozenset(capture_values), replaced, rounding)
    with torch.no_grad(), _default_dtype(double):
        flat = interpreter.run(*_graph_inputs(captured, inputs, double, weights, state or {}))
    missing = [name for name in capture_values if name not in interpreter.captured]
    if missing:
        raise KeyError(f"no FX tensor named {', '.join(missing)}")
    specs = exported.graph_signature.output_specs
    outputs = [
        to_numpy(value)
        for value, spec in zip(flat, specs, strict=True)
        if spec.kind is OutputKind.USER_OUTPUT and isinstance(value, torch.Tensor)
    ]
    written = {
        str(spec.target): to_numpy(value) for value, spec in zip(flat, specs, strict=True) if spec.kind in MUTATIONS
    }
    after = [written.get(key, given) for key, given in sorted((state or {}).items())]
    return (*outputs, *after), {name: interpreter.captured[name] for name in capture_values}


def run_eager(
    captured: Captured,
    flat_inputs: Sequence[Array],
    *,
    weights: Mapping[str, Array] | None = None,
    state: Mapping[str, Array] | None = None,
    seed: int | None = None,
) -> tuple[Array, ...]:
    """Run the user's own module (the exported one where there is none) and return its tensor outputs, flat, and after
    them what it leaves in the buffers of `state`, in the order of their names. The module's own stay as they are.

    PyTorch's generator is seeded with `seed`, if given, and left as it was.
    """
    exported = captured.exported_program
    module = captured.module if captured.module is not None else exported.module()
    tensors = iter(_input_tensors(captured, flat_inputs))
    example, spec = _pytree.tree_flatten((tuple(captured.args), dict(_ordered(captured))))
    leaves = [next(tensors) if isinstance(leaf, torch.Tensor) else leaf for leaf in example]
    args, kwargs = _pytree.tree_unflatten(leaves, spec)
    held = {**dict.fromkeys(mutated_buffers(captured)), **(state or {})}
    replaced = _all_keys(captured, weights or {}).items()
    new = {key: to_torch(array) for key, array in replaced if key not in held}
    begin = {key: (weights or {}).get(key) if array is None else array for key, array in held.items()}
    mode: Any = contextlib.nullcontext()
    if captured.module is not None:
        mode = evaluating(module, keep_cache=captured.keeps_cache)
    with torch.no_grad(), mode, called_as(module, captured.function), _holding(module, new), _keeping(module, begin):
        with torch.random.fork_rng(devices=[]):
            if seed is not None:
                torch.manual_seed(seed)
            result = module(*args, **kwargs)
        leaves = [to_numpy(leaf) for leaf in _pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        after = [to_numpy(_buffer(module, key)[0][_buffer(module, key)[1]]) for key in sorted(state or {})]
        # Outputs may be views of the buffers, which are about to change back.
        return tuple(np.array(array) for array in (*leaves, *after))


def _buffer(module: torch.nn.Module, key: str) -> tuple[dict[str, Any], str]:
    """Where a module keeps a buffer or parameter: the dict and the name in it."""
    path, _, name = key.rpartition(".")
    owner = module.get_submodule(path)
    return (owner._parameters if name in owner._parameters else owner._buffers), name


@contextlib.contextmanager
def _keeping(module: torch.nn.Module, begin: Mapping[str, Array | None]) -> Iterator[None]:
    """The buffers that a call may write, with other contents (None: their own), restored afterwards.

    The memory stays the buffer's: a cache object may hold the same tensor under no name.
    """
    saved = []
    try:
        for key, array in begin.items():
            held, name = _buffer(module, key)
            saved.append((held, name, held[name], held[name].detach().clone()))
            if array is not None:
                held[name].copy_(to_torch(array))
        yield
    finally:
        for held, name, tensor, content in saved:
            held[name] = tensor
            tensor.copy_(content)


def _input_tensors(captured: Captured, flat_inputs: Sequence[Array]) -> list[torch.Tensor]:
    """Arrays as tensors of the captured dtypes: bfloat16 may come as float32."""
    leaves, _ = _pytree.tree_flatten((tuple(captured.args), dict(_ordered(captured))))
    dtypes = [leaf.dtype for leaf in leaves if isinstance(leaf, torch.Tensor)]
    return [
        to_torch(array).to(dtype) if dtype is torch.bfloat16 else to_torch(array)
        for array, dtype in zip(flat_inputs, dtypes, strict=True)
    ]


@contextlib.contextmanager
def _holding(module: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """The module with other weights, restored afterwards.

    `torch.func.functional_call` is not used: it leaves the new weights in a submodule that has two names.
    """
    swapped: list[tuple[dict[str, Any], str, Any]] = []
    recurrent = [item for item in module.modules() if isinstance(item, torch.nn.RNNBase)]
    try:
        for prefix, part in module.named_modules():
            for held in (part._parameters, part._buffers):
                for name, old in list(held.items()):
                    key = f"{prefix}.{name}" if prefix else name
                    if old is None or key not in state:
                        continue
                    swapped.append((held, name, old))
                    is_parameter = isinstance(old, torch.nn.Parameter)
                    new = state[key].to(old.dtype)
                    held[name] = torch.nn.Parameter(new, requires_grad=False) if is_parameter else new
        _refresh(recurrent)
        yield
    finally:
        for held, name, old in swapped:
            held[name] = old
        _refresh(recurrent)


def _refresh(modules: Sequence[torch.nn.RNNBase]) -> None:
    """RNNs keep a second list of their weights."""
    for item in modules:
        item._flat_weights = [getattr(item, name, None) for name in item._flat_weights_names]


def _ordered(captured: Captured) -> Mapping[str, Any]:
    """Keyword arguments in the order the program was exported with."""
    spec = captured.exported_program.call_spec.in_spec
    keys = spec.children()[1].context if spec is not None and len(spec.children()) == 2 else None
    return {key: captured.kwargs[key] for key in keys} if keys else captured.kwargs


def _all_keys(captured: Captured, weights: Mapping[str, Array]) -> dict[str, Array]:
    """`weights` with every tied key filled from the one that is given."""
    aliases = storage_aliases(captured.exported_program.state_dict)
    full = dict(weights)
    for alias, stored in aliases.items():
        if stored in weights:
            full.setdefault(alias, weights[stored])
        elif alias in weights:
            full.setdefault(stored, weights[alias])
    for alias, stored in aliases.items():
        if stored in full:
            full.setdefault(alias, full[stored])
    return full


def _graph_inputs(
    captured: Captured,
    inputs: list[torch.Tensor],
    double: bool,
    weights: Mapping[str, Array] | None,
    state: Mapping[str, Array],
) -> Iterator[Any]:
    """The flat arguments of the graph module, in placeholder order."""
    exported = captured.exported_program
    replaced = _all_keys(captured, weights) if weights is not None else {}
    given = iter(inputs)
    nodes = [node for node in exported.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(nodes, exported.graph_signature.input_specs, strict=True):
        target = str(spec.target)
        if spec.kind is InputKind.USER_INPUT:
            is_tensor = isinstance(node.meta.get("val"), torch.Tensor)
            yield next(given) if is_tensor else getattr(spec.arg, "value", None)
        elif target in state:
            yield _prepared(to_torch(state[target]), double)  # in float64 if an earlier call left it so
        else:
            held = (exported.state_dict if target in exported.state_dict else exported.constants)[target]
            new = to_torch(replaced[target]).to(held.dtype) if target in replaced else held
            yield _prepared(new, double)


def _prepared(value: Any, double: bool) -> Any:
    """A tensor as the run wants it; cloned, because the graph may write into buffers."""
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach()
    return value.double() if double and value.dtype in _FLOATS else value.clone()


@contextlib.contextmanager
def _default_dtype(double: bool) -> Iterator[None]:
    before = torch.get_default_dtype()
    if double:
        torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _Interpreter(torch.fx.Interpreter):
    """Keeps the named values; in a double run every float dtype that the graph names becomes float64."""

    def __init__(
        self,
        module: torch.fx.GraphModule,
        double: bool,
        names: frozenset[str],
        given: Mapping[str, torch.Tensor],
        rounding: Rounding | None,
    ) -> None:
        super().__init__(module)
        self.given, self.rounding = given, rounding
        self.double = double
        self.names = names
        self.captured: dict[str, Array] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        value = self.given[n.name] if n.name in self.given else super().run_node(n)
        if self.rounding is not None and n.name in self.rounding.nodes:
            value = self.rounding.of(n.name, value)
        if n.name in self.names and isinstance(value, torch.Tensor):
            self.captured[n.name] = np.array(to_numpy(value))
        return value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if "_assert_tensor_metadata" in str(target):  # it states the dtype of the float32 run
            return None
        if self.double:
            args, kwargs = _pytree.tree_map(_widen, (args, kwargs))
        return super().call_function(target, args, kwargs)


def _widen(item: Any) -> Any:
    return torch.float64 if isinstance(item, torch.dtype) and item in _FLOATS else item
