"""Values that a model makes from nothing but shapes and constants, known while it is traced.

torch.export traces with tensors that have no values, so `if mask.any():` cannot be traced even where `mask` is
`torch.ones(...)` because the caller gave none. Such a value is the same in every call: it is computed beside the trace,
and what the model asks about it is answered. Nothing that depends on an input, a weight or a buffer of the state_dict
is ever known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree
from torch.utils._python_dispatch import _disable_current_modes

from transpiler.export_errors import is_data_dependent

LARGEST = 1 << 20  # elements: a larger constant is not computed beside the trace

# What makes a tensor of arguments that are no tensors, and what does of the shape of its first one.
_MAKERS = frozenset({"arange", "eye", "full", "linspace", "ones", "tensor", "tril_indices", "triu_indices", "zeros"})
_MAKERS_LIKE = frozenset({"full_like", "new_full", "new_ones", "new_tensor", "new_zeros", "ones_like", "zeros_like"})
# What asks for values: Python numbers, bools and lists come back.
_QUESTIONS = frozenset(
    {"__bool__", "__complex__", "__contains__", "__float__", "__index__", "__int__", "allclose", "equal", "is_nonzero"}
    | {"item", "tolist"}
)
# What has a result whose shape depends on values.
_SHAPED_BY_VALUES = frozenset(
    {"argwhere", "bincount", "masked_select", "nonzero", "repeat_interleave", "unique", "unique_consecutive", "where"}
)
# What takes sizes, which may be tensors without dimensions.
_TAKES_SIZES = frozenset(
    {
        "empty",
        "expand",
        "full",
        "interpolate",
        "narrow",
        "new_empty",
        "new_full",
        "new_ones",
        "new_zeros",
        "ones",
        "pad",
    }
    | {"multinomial", "repeat", "reshape", "split", "unflatten", "view", "zeros"}
)
_INDEXING = frozenset({"__getitem__", "__setitem__"})
_NUMBERS = (torch.SymInt, torch.SymFloat, torch.SymBool)
_OPERATORS_IN_PLACE = frozenset(
    f"__i{name}__"
    for name in (
        "add",
        "and",
        "div",
        "floordiv",
        "lshift",
        "mod",
        "mul",
        "or",
        "pow",
        "rshift",
        "sub",
        "truediv",
        "xor",
    )
)
# What may give memory that nothing has written, or memory of something else.
_UNDEFINED = frozenset(
    {"empty_like", "new", "new_empty", "new_empty_strided", "resize", "resize_as_", "resize_", "set_"}
)
# What writes more than its first argument, of which the tensors' versions tell nothing.
_WRITES_STATISTICS = frozenset({"batch_norm", "instance_norm", "native_batch_norm"})


class KnownValues(TorchFunctionMode):
    """Computes every function of known tensors a second time, with values, and answers questions about them.

    `constants` are buffers that no state_dict has. They are known too, as long as the model does not write them:
    `read` has the names of those that were needed.
    """

    def __init__(self, constants: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.read: set[str] = set()
        self._buffers = list(_constant_buffers(constants)) if constants is not None else []
        # By id: a tensor of the trace (kept alive, so that its id stays its own), its value, its version.
        self._known: dict[int, tuple[torch.Tensor, torch.Tensor, int]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.OpOverload):  # the tracer's own
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _INDEXING and len(args) > 1:
            args = (args[0], self._without_masks(args[1]), *args[2:])
        elif name in _TAKES_SIZES:
            args = (*args[:1], *_pytree.tree_map(self._number, tuple(args[1:])))
            kwargs = _pytree.tree_map(self._number, kwargs)
        computed = self._computed(func, name, args, kwargs)
        if computed is None:
            self._forget_written(name, args, kwargs)
            return func(*args, **kwargs)
        if name in _QUESTIONS:
            return computed[0]
        if name in _SHAPED_BY_VALUES and _shaped_by_values(name, args, kwargs):
            return _pytree.tree_map(self._constant, computed[0])
        result = func(*args, **kwargs)
        self._remember(result, computed[0])
        if _writes(name) and id(args[0]) in self._known:  # the value was written too
            self._remember(args[0], self._known[id(args[0])][1])
        return result

    def _value(self, tensor: Any) -> torch.Tensor | None:
        known = self._known.get(id(tensor))
        if known is None:
            for name, owner, key, value in self._buffers:
                held = owner._buffers.get(key)
                if held is not None and held is tensor:
                    self.read.add(name)
                    self._known[id(held)] = (held, value, held._version)
                    return value
            return None
        return known[1] if known[2] == tensor._version else None  # else written by something that was not seen

    def _computed(self, func: Any, name: str, args: Any, kwargs: Any) -> tuple[Any] | None:
        """The result with values, in a tuple of one; None if it cannot be known."""
        leaves, spec = _pytree.tree_flatten((args, kwargs))
        if name in _UNDEFINED or any(map(_varies, leaves)):
            return None
        values = {id(item): self._value(item) for item in leaves if isinstance(item, torch.Tensor)}
        if name in _MAKERS_LIKE and args and _is_small(args[0]) and sum(item is args[0] for item in leaves) == 1:
            values[id(args[0])] = _zeros(args[0])
        elif name not in _MAKERS and not values:
            return None
        if any(value is None for value in values.values()):
            return None
        with _disable_current_modes():
            leaves = [values[id(item)] if isinstance(item, torch.Tensor) else item for item in leaves]
            args, kwargs = _pytree.tree_unflatten(leaves, spec)
            state = torch.get_rng_state()
            try:
                result = func(*args, **kwargs)
            except Exception:  # then the trace says what is wrong
                return None
            if not torch.equal(state, torch.get_rng_state()):  # random
                torch.set_rng_state(state)
                return None
        return (result,)

    def _remember(self, result: Any, computed: Any) -> None:
        pairs = zip(_tensors(result), _tensors(computed), strict=True)
        for tensor, value in pairs:
            if value.numel() <= LARGEST and tensor.dtype == value.dtype and tuple(tensor.shape) == tuple(value.shape):
                self._known[id(tensor)] = (tensor, value, tensor._version)

    def _forget_written(self, name: str, args: Sequence[Any], kwargs: Any) -> None:
        """What is written with values that are not known, and every view of it, is known no longer."""
        flagged = "inplace" in kwargs or any(item is True for item in args)
        written: Any = args[:1] if _writes(name) or flagged else ()
        if name in _WRITES_STATISTICS:
            written = (args, kwargs)
        for tensor in _tensors((written, kwargs.get("out"))):
            known = self._known.get(id(tensor))
            if known is not None:
                memory = known[1].untyped_storage().data_ptr()
                for key, (_, value, _) in tuple(self._known.items()):
                    if value.untyped_storage().data_ptr() == memory:
                        del self._known[key]

    def _number(self, item: Any) -> Any:
        """A size that is a known tensor as a Python number."""
        value = self._value(item) if isinstance(item, torch.Tensor) and item.ndim == 0 else None
        if value is None or value.is_floating_point() or value.is_complex():
            return item
        with _disable_current_modes():
            return value.item()

    def _without_masks(self, index: Any) -> Any:
        """An index whose known masks are the positions of what they keep."""
        parts = index if isinstance(index, tuple) else (index,)
        found: list[Any] = []
        for part in parts:
            if isinstance(part, slice):
                found.append(slice(*map(self._number, (part.start, part.stop, part.step))))
                continue
            value = self._value(part) if isinstance(part, torch.Tensor) and part.dtype == torch.bool else None
            if value is None or value.ndim == 0:
                found.append(part)
            else:
                with _disable_current_modes():
                    positions = value.nonzero(as_tuple=True)
                found.extend(map(self._constant, positions))
        return tuple(found) if isinstance(index, tuple) or len(found) > 1 else found[0]

    def _constant(self, value: Any) -> Any:
        """A tensor of the trace that has this value."""
        if not isinstance(value, torch.Tensor):
            return value
        with _disable_current_modes():
            listed = value.tolist()
        tensor = torch.tensor(listed, dtype=value.dtype).reshape(tuple(value.shape))
        self._remember(tensor, value)
        return tensor


def _constant_buffers(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, str, torch.Tensor]]:
    """(name, owner, name in the owner, a copy of the value) of the buffers that are in no state_dict."""
    for path, owner in module.named_modules(remove_duplicate=False):
        for key in sorted(owner._non_persistent_buffers_set):
            value = owner._buffers.get(key)
            if value is not None and _is_small(value):
                yield f"{path}.{key}".lstrip("."), owner, key, value.detach().clone()


def _shaped_by_values(name: str, args: Sequence[Any], kwargs: Any) -> bool:
    """`where` with three arguments and `repeat_interleave` by a number have the shape of their arguments."""
    if name == "where":
        return len(args) + len(kwargs) == 1
    if name == "repeat_interleave":
        return any(isinstance(item, torch.Tensor) for item in (*args[1:], kwargs.get("repeats")))
    return True


def _writes(name: str) -> bool:
    """Whether a function writes its first argument, or the tensors in it: `add_`, `__iadd__`, `__setitem__`; the
    `__set__` of an attribute, such as `data`."""
    return (
        name in ("__setitem__", "__set__")
        or (name.endswith("_") and not name.endswith("__"))
        or name in _OPERATORS_IN_PLACE
    )


def _varies(item: Any) -> bool:
    """Whether an argument holds a size that varies, a tensor where it is not looked for, or is a source of random
    numbers."""
    if isinstance(item, slice):
        return any(isinstance(part, torch.Tensor) or _varies(part) for part in (item.start, item.stop, item.step))
    if isinstance(item, tuple | list):
        return any(map(_varies, item))
    return isinstance(item, (*_NUMBERS, torch.Generator))


def _is_small(tensor: Any) -> bool:
    if not isinstance(tensor, torch.Tensor) or _varies(tuple(tensor.shape)):
        return False
    return tensor.numel() <= LARGEST


def _zeros(tensor: torch.Tensor) -> torch.Tensor:
    """With values, for a function to which only shape and dtype matter."""
    with _disable_current_modes():
        return torch.zeros(tuple(tensor.shape), dtype=tensor.dtype)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    return (item for item in _pytree.tree_leaves(value) if isinstance(item, torch.Tensor))


def decided(trace: Callable[[], ExportedProgram], constants: torch.nn.Module | None) -> ExportedProgram:
    """What `trace` gives. If values decide something in it, or fail it, it is traced once more with those known that
    do not depend on any input; buffers of `constants` too that are in no state_dict. Raises what `trace` raises."""

    def with_known_values() -> ExportedProgram | None:
        """None if it took for a constant what the model writes."""
        with KnownValues(constants) as known:
            program = trace()
        return None if known.read & set(program.graph_signature.buffers_to_mutate.values()) else program

    try:
        exported = trace()
    except Exception as error:
        if is_data_dependent(error) and (program := with_known_values()) is not None:
            return program
        raise
    if _depends_on_values(exported):
        with contextlib.suppress(Exception):
            return with_known_values() or exported
    return exported


def _depends_on_values(exported: ExportedProgram) -> bool:
    """Whether the graph has a number or a size that depends on values."""
    values = (node.meta.get("val") for node in exported.graph.nodes if node.op == "call_function")
    leaves = (leaf for value in values for leaf in _pytree.tree_leaves(value))
    return any(free_unbacked_symbols(leaf) for leaf in leaves if isinstance(leaf, (torch.Tensor, *_NUMBERS)))
