"""What each FX value is to the user: the output of which module, made on which line, called what."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from transpiler.errors import Location
from transpiler.frames import Files, Frame, frames_of_trace
from transpiler.source import Statement


@dataclass(frozen=True)
class Origin:
    """Where an FX node comes from. `hint` is the user's variable, `label` the name to use where there is
    none."""

    module: str
    location: Location | None
    hint: str | None = None
    label: str | None = None


def module_paths(node: Node) -> tuple[str, ...]:
    """The module calls a node was made in, outermost first, without the root: `layer1`, `layer1.0`,
    `fc#2`."""
    paths = []
    for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
        if path:
            _, _, call = key.partition("@")
            paths.append(f"{path}#{int(call) + 1}" if call.isdigit() else path)
    return tuple(paths)


def is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def module_outputs(nodes: Sequence[Node]) -> dict[str, Node]:
    """Module path (with `#k` for call k) -> the one tensor made in it that is used outside of it.

    A module whose call makes no value (Identity), or hands out several, has no entry.
    """
    members: dict[str, list[Node]] = {}
    for node in nodes:
        if node.op == "call_function":
            for path in module_paths(node):
                members.setdefault(path, []).append(node)
    outputs = {}
    for path, inside in members.items():
        known = set(inside)
        leaving = [node for node in inside if is_tensor(node) and any(user not in known for user in node.users)]
        if len(leaving) == 1:
            outputs[path] = leaving[0]
    return outputs


def origins(nodes: Sequence[Node], files: Files) -> dict[str, Origin]:
    """FX node name -> its origin, for every call."""
    calls = [node for node in nodes if node.op == "call_function"]
    frames = [frames_of_trace(node.meta.get("stack_trace")) for node in calls]
    keys = [tuple(_statement_key(frame, files) for frame in trace) for trace in frames]
    ends = {node: path for path, node in module_outputs(nodes).items()}
    found = {}
    for position, node in enumerate(calls):
        following = _next_key(calls, keys, position)
        targets = _targets(frames[position], keys[position], following, files)
        count = _output_count(node)
        index = _getitem_index(node)
        paths = module_paths(node)
        location = files.location(frames[position][-1], paths[-1] if paths else "") if frames[position] else None
        hint = None
        if len(targets) == 1 and count == 1:
            hint = targets[0]
        elif index is not None and len(targets) == _output_count(node.args[0]):
            hint = targets[index]
        label = _module_label(ends[node]) if node in ends else None
        found[node.name] = Origin(paths[-1] if paths else "", location, hint, label)
    return found


def _statement_key(frame: Frame, files: Files) -> tuple[str, int]:
    statement = files.statement(frame)
    return frame.file, statement.first if statement else frame.line


def _next_key(
    calls: Sequence[Node], keys: Sequence[tuple[tuple[str, int], ...]], position: int
) -> tuple[tuple[str, int], ...]:
    """The statements of the next call that is no element access."""
    for at in range(position + 1, len(calls)):
        if _getitem_index(calls[at]) is None:
            return keys[at]
    return ()


def _targets(
    frames: tuple[Frame, ...],
    key: tuple[tuple[str, int], ...],
    following: tuple[tuple[str, int], ...],
    files: Files,
) -> tuple[str, ...]:
    """The variables that the value is assigned to.

    Only the last value of a statement is what it assigns; one that is returned is assigned by the caller's
    statement.
    """
    for depth in range(len(frames), 0, -1):
        if following[:depth] == key[:depth]:
            return ()
        statement: Statement | None = files.statement(frames[depth - 1])
        if statement is None or not statement.returns:
            return statement.targets if statement is not None else ()
    return ()


def _output_count(node: object) -> int:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return len(value) if isinstance(value, tuple | list) else 1


def _getitem_index(node: Node) -> int | None:
    if getattr(node.target, "__name__", "") == "getitem" and isinstance(node.args[1], int):
        return node.args[1]
    return None


def _module_label(path: str) -> str:
    """`layer1.0.conv1` -> `conv1`, `features.3` -> `features_3`."""
    parts = path.partition("#")[0].split(".")
    named = [index for index, part in enumerate(parts) if not part.isdigit()]
    return "_".join(parts[named[-1] :]) if named else f"layer_{'_'.join(parts)}"


_RESERVED = frozenset(keyword.kwlist) | frozenset(keyword.softkwlist) | frozenset(dir(builtins)) | {"np", "self"}


class Names:
    """Hands out unique, valid identifiers: `x`, `x_2`, `x_3`; Python's own names get a trailing
    underscore."""

    def __init__(self) -> None:
        self.taken: set[str] = set()

    def unique(self, wish: str) -> str:
        base = re.sub(r"\W", "_", wish, flags=re.ASCII)
        if not base or base[0].isdigit():
            base = f"v{base}"
        if base in _RESERVED:
            base += "_"
        name, count = base, 1
        while name in self.taken:
            count += 1
            name = f"{base.rstrip('_')}_{count}"
        self.taken.add(name)
        return name


def innermost(taps: Mapping[str, Node]) -> dict[Node, str]:
    """Node -> the deepest module path whose output it is."""
    best: dict[Node, str] = {}
    for path, node in taps.items():
        if node not in best or path.count(".") > best[node].count("."):
            best[node] = path
    return best
