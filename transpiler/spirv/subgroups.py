"""What the invocations of a subgroup do together. A call that is not in uniform control flow of the workgroup has no
meaning: schedules keep to that.

Nothing is taken for granted of a subgroup: how many invocations it has, whether it is full, which of the workgroup's
they are.
"""

from __future__ import annotations

from typing import Any

from .arithmetic import Value
from .dtypes import BOOL, FLOAT32, INT32, UINT32, Capability, unsupported
from .expressions import Expressions, Lanes
from .opcodes import EXCLUSIVE_SCAN, REDUCE, SUBGROUP_SCOPE, BuiltIn, Op


class Subgroups(Expressions):
    """The calls `subgroup_*` of schedules/gpu/subgroups.py."""

    def _call_subgroup_number(self, node: Any) -> Lanes:
        """Which of the workgroup's subgroups this invocation is in."""
        return (self._builtin(BuiltIn.SUBGROUP_ID),)

    def _call_subgroup_count(self, node: Any) -> Lanes:
        """How many subgroups the workgroup has."""
        return (self._builtin(BuiltIn.NUM_SUBGROUPS),)

    def _call_subgroup_lanes(self, node: Any) -> Lanes:
        """How many invocations the subgroup has."""
        return (self._together(Op.GROUP_NON_UNIFORM_I_ADD, self.s.const(1, INT32)),)

    def _call_subgroup_lane(self, node: Any) -> Lanes:
        """How many of them stand before this one."""
        return (self._together(Op.GROUP_NON_UNIFORM_I_ADD, self.s.const(1, INT32), EXCLUSIVE_SCAN),)

    def _call_subgroup_first(self, node: Any) -> Lanes:
        """Whether this is the first one."""
        module = self.s.module
        module.need(Capability.GROUP_NON_UNIFORM)
        scope = module.constant(SUBGROUP_SCOPE, UINT32)
        id_ = module.result(Op.GROUP_NON_UNIFORM_ELECT, module.scalar_type(BOOL), scope)
        return (self.s.cast(Value(self.s, id_, BOOL), INT32),)

    def _call_subgroup_sum(self, node: Any, x: Any) -> Lanes:
        """The sum of all invocations' `x`, in an order that the device chooses."""
        value = self.scalar(x)
        ops = {FLOAT32: Op.GROUP_NON_UNIFORM_F_ADD, INT32: Op.GROUP_NON_UNIFORM_I_ADD}
        if value.dtype not in ops:
            raise unsupported(f"the sum of {value.dtype} over a subgroup")
        return (self._together(ops[value.dtype], value),)

    def _call_subgroup_max(self, node: Any, x: Any) -> Lanes:
        """The largest of all invocations' `x`; any of them, or NaN, where some are NaN."""
        value = self.scalar(x)
        if value.dtype != FLOAT32:
            raise unsupported(f"the largest {value.dtype} of a subgroup")
        return (self._together(Op.GROUP_NON_UNIFORM_F_MAX, value),)

    def _together(self, op: Op, value: Value, operation: int = REDUCE) -> Value:
        module = self.s.module
        module.need(Capability.GROUP_NON_UNIFORM)
        module.need(Capability.GROUP_NON_UNIFORM_ARITHMETIC)
        scope = module.constant(SUBGROUP_SCOPE, UINT32)
        # Not `pure`: what it gives depends on who comes along.
        id_ = module.result(op, module.scalar_type(value.dtype), scope, operation, value.id)
        return Value(self.s, id_, value.dtype)

    def _builtin(self, which: BuiltIn) -> Value:
        self.s.module.need(Capability.GROUP_NON_UNIFORM)
        return self.s.cast(self.memory.builtin_scalar(which), INT32)
