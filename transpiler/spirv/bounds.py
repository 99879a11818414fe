"""What is known of a loop of TIR before it runs: its turns at most, and whether all threads have as many."""

from __future__ import annotations

from typing import Any

from tvm import ir, sym, tirx

_ENDLESS = 1 << 24  # what follows of a dtype's range alone
_OPERATORS = frozenset(("Add", "Sub", "Mul", "FloorDiv", "FloorMod", "Div", "Mod", "Min", "Max"))


class Bounds:
    """Of one function; loops are asked for from the outside to the inside."""

    def __init__(self) -> None:
        self._analyzer = sym.Analyzer()
        self._threads: set[Any] = set()

    def thread(self, variable: Any, extent: Any) -> None:
        """A thread axis."""
        self._threads.add(variable)
        if isinstance(extent, tirx.IntImm):
            self._analyzer.bind(variable, ir.Range(0, extent), allow_override=True)

    def most(self, node: Any) -> int | None:
        """A bound of a loop's turns; None if there is none."""
        known = self._analyzer.const_int_bound(node.extent)
        most = max(int(known.max_value), 0)
        if most >= _ENDLESS:
            return None
        first = self._analyzer.const_int_bound(node.min)
        if abs(int(first.min_value)) < _ENDLESS and abs(int(first.max_value)) < _ENDLESS:
            low, high = int(first.min_value), int(first.max_value)
            self._analyzer.bind(node.loop_var, ir.Range(low, max(high + most, low + 1)), allow_override=True)
        return most

    def uniform(self, node: Any) -> bool:
        """Whether all threads have the same turns: of sizes and loops that have."""
        same = self._same(node.min) and self._same(node.extent)
        if not same:
            self._threads.add(node.loop_var)
        return same

    def _same(self, expression: Any) -> bool:
        kind = type(expression).__name__
        if kind == "IntImm":
            return True
        if kind == "Var":
            return expression not in self._threads
        if kind == "Cast":
            return self._same(expression.value)
        return kind in _OPERATORS and self._same(expression.a) and self._same(expression.b)


def is_innermost(body: Any) -> bool:
    """Whether a loop's body has no loop and no way out of it."""
    match type(body).__name__:
        case "SeqStmt":
            return all(map(is_innermost, body.seq))
        case "IfThenElse":
            return is_innermost(body.then_case) and (body.else_case is None or is_innermost(body.else_case))
        case "AttrStmt":
            return is_innermost(body.body)
        case "BufferStore" | "Bind" | "AllocBuffer" | "DeclBuffer":
            return True
        case "Evaluate":
            name = getattr(getattr(body.value, "op", None), "name", "")
            return not name.endswith(("break_loop", "continue_loop"))
    return False
