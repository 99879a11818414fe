"""Operators from outside: what a user's `torch.library` operator means, told from model.py or by an installed package.

See docs/custom_operators.md. A package registers its operators by an entry point of the group `transpiler.ops`, which
names a module; it is imported before the first model is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import metadata
from typing import Any

from transpiler.ops.base import ATEN, Op, import_default, register_aten

ENTRY_POINTS = "transpiler.ops"


def register_op(name: str, meaning: type[Op] | Callable[..., Any]) -> None:
    """Say what the operator `name` of PyTorch ("mylib::smooth", or "mylib::smooth.overload") is.

    Args:
        meaning: a subclass of `Elementwise`, `Injective` or `Reduce` (of `transpiler.ops.base`), or of `CustomKernel`
            (of `transpiler.ops.custom`), whose inputs are the operator's tensors in order and whose fields are its
            other arguments in order; or a function `f(context, *args, **kwargs)` that composes it of existing ops
            with `context.emit`.

    Raises:
        ValueError: no qualified name, an operator of PyTorch's own, or one that has another meaning already.
    """
    namespace, found, operator = name.partition("::")
    if not found or not namespace.isidentifier() or not operator:
        raise ValueError(f"{name!r} is no qualified name: expected 'namespace::operator'")
    if namespace == "aten":
        raise ValueError(f"{name}: PyTorch's own operators are in transpiler/ops (see CONTRIBUTING.md)")
    overload = f"{namespace}.{operator}" if "." in operator else f"{namespace}.{operator}.default"
    if isinstance(meaning, type):
        op: type[Op] = meaning
        if not op.name:
            raise ValueError(f"{op.__name__} needs a name: class {op.__name__}(Elementwise, name=...)")

        def function(context: Any, *args: Any, **kwargs: Any) -> Any:
            return import_default(context, op, args, kwargs)
    else:
        function = meaning
    if overload in ATEN and name not in _BY_USERS:
        raise ValueError(f"{name} has a meaning already")
    ATEN.pop(overload, None)  # model.py was run again
    register_aten(overload, function)
    _BY_USERS.add(name)


_BY_USERS: set[str] = set()


@cache
def load_installed() -> None:
    """Import the modules that installed packages name under the entry point group `transpiler.ops`."""
    for entry in sorted(metadata.entry_points(group=ENTRY_POINTS), key=lambda item: item.name):
        entry.load()
