"""Memory plan: liveness of every buffer, one arena with offsets, results written over inputs that die."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from transpiler.dims import Dim
from transpiler.ir import fixed_size
from transpiler.passes.fusion import FusedStep, GroupStep, ViewStep
from transpiler.plan import Block

ALIGNMENT = 64
# Buffers that are looked at to find the place that was used last.
LATEST_TRIED = 8


def aligned(size: int, alignment: int = ALIGNMENT) -> int:
    """`size` rounded up to the alignment of buffers."""
    return -(-size // alignment) * alignment


@dataclass(frozen=True)
class Arena:
    """Offsets in bytes by root buffer and by step (workspaces), and the bytes of the whole.

    If any size is symbolic, the offsets are the numbers of `blocks` instead, which the runtime places.
    """

    offsets: Mapping[str, int]
    workspaces: Mapping[int, int]
    size: int
    blocks: tuple[Block, ...] = ()


@dataclass
class _Block:
    name: str
    size: Dim
    first: int
    last: int
    offset: int = -1
    width: int = 1


def roots(steps: Sequence[FusedStep]) -> dict[str, str]:
    """Value -> the buffer whose bytes it is: itself, or what it is a view of."""
    root: dict[str, str] = {}
    for step in steps:
        if isinstance(step, ViewStep):
            source = step.node.inputs[0].name
            root[step.node.output.name] = root.get(source, source)
    return root


def plan_arena(
    steps: Sequence[FusedStep],
    workspaces: Mapping[int, Dim],
    outside: frozenset[str],
    kept: Collection[str] = (),
    alignment: int = ALIGNMENT,
) -> Arena:
    """Place every buffer that a group writes and that is not `outside` (an input, a weight, an output).

    Buffers live from the step that writes them to the last step that reads them or a view of them, those that are
    `kept` to the end; a workspace lives for its step. Placement is greedy by size: the largest buffer first, where it
    overlaps no buffer that is alive at the same time (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural
    Net Inference", 2020, greedy by size). Of several such places it takes the one that was used last, unless the
    lowest ones make a smaller arena: what all threads read a moment ago, such as the input of a convolution, is then
    written by a kernel that computes long for each byte, and not by one that waits until the other cores gave the bytes
    up, such as a depthwise convolution.
    """
    root = roots(steps)
    blocks: dict[str, _Block] = {}
    shared: dict[str, str] = {}  # written in place over this buffer

    def home(name: str) -> str:
        name = root.get(name, name)
        while name in shared:
            name = shared[name]
        return name

    last_read = _last_reads(steps, root) | {root.get(name, name): len(steps) for name in kept}
    for position, step in enumerate(steps):
        if not isinstance(step, GroupStep):
            continue
        for value in step.group.outputs:
            if value.name in outside:
                continue
            donor = _donor(step, position, value.name, last_read, root, outside)
            if donor is not None:
                shared[value.name] = donor
            else:
                width = value.type.item_bytes
                blocks[value.name] = _Block(value.name, value.type.bytes, position, position, width=width)
        for value in (*step.group.inputs, *step.group.outputs):
            block = blocks.get(home(value.name))
            if block is not None:
                block.last = max(block.last, position)
    for name in kept:
        if (block := blocks.get(home(name))) is not None:
            block.last = len(steps)
    for position, size in workspaces.items():
        if size:
            blocks[f"workspace of step {position}"] = _Block("", size, position, position)
    symbolic = any(not isinstance(block.size, int) for block in blocks.values())
    total = _number(list(blocks.values())) if symbolic else _place(list(blocks.values()), alignment)
    offsets = {name: block.offset for name, block in blocks.items() if block.name}
    for name in shared:
        if home(name) in offsets:
            offsets[name] = offsets[home(name)]
    places = {position: blocks[f"workspace of step {position}"].offset for position, size in workspaces.items() if size}
    if not symbolic:
        return Arena(offsets, places, total)
    call_of = _calls_before(steps)
    numbered = tuple(
        Block(name, block.size, block.width, call_of[block.first], call_of[block.last])
        for name, block in blocks.items()
    )
    return Arena(offsets, places, 0, numbered)


def _calls_before(steps: Sequence[FusedStep]) -> list[int]:
    """For every step, and the end, how many calls come before it: views are no steps for the runtime."""
    return list(accumulate((int(isinstance(step, GroupStep)) for step in steps), initial=0))


def _number(blocks: list[_Block]) -> int:
    for number, block in enumerate(blocks):
        block.offset = number
    return 0


def _last_reads(steps: Sequence[FusedStep], root: Mapping[str, str]) -> dict[str, int]:
    last: dict[str, int] = {}
    for position, step in enumerate(steps):
        if isinstance(step, GroupStep):
            for value in step.group.inputs:
                last[root.get(value.name, value.name)] = position
    return last


def _donor(
    step: GroupStep,
    position: int,
    output: str,
    last_read: Mapping[str, int],
    root: Mapping[str, str],
    outside: frozenset[str],
) -> str | None:
    """An input that dies in this step and whose bytes the result may overwrite.

    Only one that the group may overlay, and that is read by no other name.
    """
    if output in outside:
        return None
    homes = [root.get(value.name, value.name) for value in step.group.inputs]
    for value in step.group.overlaid:
        place = root.get(value.name, value.name)
        if place not in outside and last_read.get(place) == position and homes.count(place) == 1:
            return place
    return None


def _place(blocks: list[_Block], alignment: int) -> int:
    """Offsets for blocks of known size, and the bytes of the whole."""
    lowest = _placed(blocks, alignment, latest=False)
    offsets = [block.offset for block in blocks]
    latest = _placed(blocks, alignment, latest=True)
    if latest <= lowest:
        return latest
    for block, offset in zip(blocks, offsets, strict=True):
        block.offset = offset
    return lowest


def _placed(blocks: Sequence[_Block], alignment: int, *, latest: bool) -> int:
    placed: list[_Block] = []
    total = 0
    sizes = {id(block): aligned(fixed_size(block.size), alignment) for block in blocks}

    def end(block: _Block) -> int:
        return block.offset + sizes[id(block)]

    for block in sorted(blocks, key=lambda item: (-sizes[id(item)], item.first, item.name)):
        size = sizes[id(block)]
        alive = sorted(
            (other for other in placed if other.first <= block.last and block.first <= other.last),
            key=lambda item: item.offset,
        )
        offset = 0
        for other in alive:
            if offset + size <= other.offset:
                break
            offset = max(offset, end(other))
        if latest:
            offset = _latest(block, size, placed, alive, sizes, total, offset)
        block.offset = offset
        placed.append(block)
        total = max(total, end(block))
    return total


def _latest(
    block: _Block,
    size: int,
    placed: Sequence[_Block],
    alive: Sequence[_Block],
    sizes: Mapping[int, int],
    total: int,
    lowest: int,
) -> int:
    """Where the buffer lies whose use ended last before this one's begins, if there is room; else `lowest`."""
    ended = sorted((other for other in placed if other.last < block.first), key=lambda item: -item.last)
    for place in ended[:LATEST_TRIED]:
        first, end = place.offset, place.offset + size
        if end <= total and all(end <= item.offset or item.offset + sizes[id(item)] <= first for item in alive):
            return first
    return lowest
