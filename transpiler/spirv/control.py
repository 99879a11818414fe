"""Structured control flow: choices and loops whose values meet in phis."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .arithmetic import Arithmetic, Value
from .dtypes import BOOL, FLOAT16, UINT32, Capability
from .opcodes import Op

Lanes = Sequence[Value]

# The specialization constant that is true where a driver leaves loops after MAX_TURNS of an invocation.
LIMITED = 1


def choose(
    s: Arithmetic, condition: Value, then: Callable[[], Lanes], otherwise: Callable[[], Lanes]
) -> tuple[Value, ...]:
    """Only the chosen side is computed. Both give as many values of the same dtypes, or none (statements)."""
    module = s.module
    labels = module.new_id(), module.new_id()
    merge = module.new_id()
    module.emit(Op.SELECTION_MERGE, merge, 0)
    module.branch_if(condition.id, *labels)
    sides: list[tuple[Lanes, int]] = []
    for label, write in zip(labels, (then, otherwise), strict=True):
        module.begin(label)
        with module.scope():
            values = write()
        sides.append((values, module.block))
        module.branch(merge)
    module.begin(merge)
    (left, left_block), (right, right_block) = sides
    return tuple(_phi(s, x, (x.id, left_block, y.id, right_block)) for x, y in zip(left, right, strict=True))


def _phi(s: Arithmetic, like: Value, incoming: tuple[int, ...]) -> Value:
    if like.dtype == FLOAT16 and not s.module.wide_halves:
        s.module.need(Capability.FLOAT16)  # 16-bit storage alone allows loads, stores and conversions
    type_ = s.module.scalar_type(like.dtype.register)
    return Value(s, s.module.result(Op.PHI, type_, *incoming), like.dtype)


class Loop:
    """The labels that `break` and `continue` go to."""

    def __init__(self, s: Arithmetic) -> None:
        self.header, self.test, self.body, self.next, self.merge = (s.module.new_id() for _ in range(5))


def loop(
    s: Arithmetic,
    stop: Value,
    state: Lanes,
    step: Callable[[Value, Lanes], Lanes],
    *,
    start: Value | None = None,
    stride: Value | None = None,
    entered: Callable[[Loop], None] = lambda _: None,
    most: int | None = None,
    uniform: bool = False,
) -> tuple[Value, ...]:
    """`state` after `for (i = start; i < stop; i += stride) state = step(i, state)`.

    `entered` gets the loop before its body is written; `most` is a bound of its turns, found in literals by
    default; `uniform`: all invocations have as many.
    """
    module = s.module
    if most is None:
        most = _literal_turns(start, stop, stride)
    start = start if start is not None else s.const(0, stop.dtype)
    stride = stride if stride is not None else s.const(1, stop.dtype)
    labels = Loop(s)
    before = module.block
    module.branch(labels.header)
    module.begin(labels.header)
    # The values of the next round have ids before they are written.
    following = [module.new_id() for _ in (start, *state)]
    current = [_phi(s, x, (x.id, before, id_, labels.next)) for x, id_ in zip((start, *state), following, strict=True)]
    module.emit(Op.LOOP_MERGE, labels.merge, labels.next, 0)
    module.branch(labels.test)
    module.begin(labels.test)
    with module.scope(), module.turns.loop(most, uniform=uniform):
        again = _allowed(s, s.compare("lt", current[0], stop))
        module.branch_if(again.id, labels.body, labels.merge)
        module.begin(labels.body)
        entered(labels)
        after = step(current[0], current[1:])
        module.branch(labels.next)
        module.begin(labels.next)
        _count(s)
        type_ = module.scalar_type(start.dtype.register)
        module.emit(Op.I_ADD, type_, following[0], current[0].id, stride.id)
        for id_, value in zip(following[1:], after, strict=True):
            # A copy: the value has an id already. x | x is x, and a loop's state is of ints.
            module.emit(Op.BITWISE_OR, module.scalar_type(value.dtype.register), id_, value.id, value.id)
        module.branch(labels.header)
    module.begin(labels.merge)
    return tuple(current[1:])


def repeat_while(s: Arithmetic, condition: Callable[[], Value], body: Callable[[Loop], None]) -> None:
    module = s.module
    labels = Loop(s)
    module.branch(labels.header)
    module.begin(labels.header)
    module.emit(Op.LOOP_MERGE, labels.merge, labels.next, 0)
    module.branch(labels.test)
    module.begin(labels.test)
    with module.scope(), module.turns.loop(None):
        module.branch_if(_allowed(s, condition()).id, labels.body, labels.merge)
        module.begin(labels.body)
        body(labels)
        module.branch(labels.next)
        module.begin(labels.next)
        _count(s)
        module.branch(labels.header)
    module.begin(labels.merge)


def _literal_turns(start: Value | None, stop: Value, stride: Value | None) -> int | None:
    first = 0 if start is None else start.literal
    step = 1 if stride is None else stride.literal
    if first is None or stop.literal is None or not step:
        return None
    return max(0, -(-int(stop.literal - first) // int(step)))


# --- drivers that stop loops -----------------------------------------------------------------------------------------


def _allowed(s: Arithmetic, again: Value) -> Value:
    """Whether there is another turn: not where the driver would leave the loop in the middle."""
    turns, module = s.module.turns, s.module
    if turns.counter is None:
        return again
    count = Value(s, module.result(Op.LOAD, module.scalar_type(UINT32), turns.counter), UINT32)
    stopped = s.logical_and(limited(s), s.compare("ge", count, s.const(turns.limit, UINT32)))
    return s.logical_and(again, s.logical_not(stopped))


def _count(s: Arithmetic) -> None:
    """A turn, and the ends of the loops in it."""
    turns, module = s.module.turns, s.module
    if turns.counter is not None:
        type_ = module.scalar_type(UINT32)
        count = Value(s, module.result(Op.LOAD, type_, turns.counter), UINT32)
        module.emit(Op.STORE, turns.counter, (count + s.const(1 + turns.inside, UINT32)).id)


def limited(s: Arithmetic) -> Value:
    """Whether the driver stops loops."""
    return Value(s, s.module.flag(LIMITED, "loops_are_limited"), BOOL)
