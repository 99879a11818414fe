"""Philox4x32-10: one loop over blocks of four words, split over the threads.

A block is 20 multiplications of 32 by 32 bits in a chain of 10 rounds; the four words of the counter and the two of the
key stay in registers. The kernel is limited by the multiplications, not by memory.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from transpiler.group import Group, Lowered
from transpiler.ops.random import MULTIPLIERS, ROUNDS, WEYL, Philox
from transpiler.target import Target

from ..fuse import lowered
from ..scalar import Tir
from ..tir import KernelBuilder, local, loop, when

Expr = Any
WORD = "uint64"  # holds a product of two 32-bit words
PARALLEL_BLOCKS = 512


def apply(group: Group, target: Target, name: str) -> Lowered | None:
    if len(group.nodes) != 1 or not isinstance(group.nodes[0].op, Philox):
        return None
    op, output = group.nodes[0].op, group.outputs[0].type
    size = math.prod(output.static_shape())
    per_block = 4 // op.words
    blocks = -(-size // per_block)
    builder = KernelBuilder(name, [group.inputs[0].type], [output])
    with builder:
        if size:
            with loop(blocks, parallel=blocks >= PARALLEL_BLOCKS) as block:
                words = _block(builder, op.stream, block)
                for position in range(per_block):
                    place = block * per_block + position
                    inside = place < size if size % per_block and position else None
                    with when(inside):
                        builder.outputs[0].store(place, T.Cast("int64", _element(words, position, op)))
    return lowered(group, builder, flops=blocks * ROUNDS * 8)


def _const(value: int) -> Expr:
    return tirx.const(value, WORD)


def _low(x: Expr) -> Expr:
    return T.bitwise_and(x, _const(0xFFFFFFFF))


def _high(x: Expr) -> Expr:
    return T.shift_right(x, _const(32))


def _block(builder: KernelBuilder, stream: int, block: Expr) -> Any:
    """The four words of a block, in a local buffer."""
    s = Tir()
    seed, call = (T.Cast(WORD, builder.inputs[0][position]) for position in (0, 1))
    words, key = local(4, WORD), local(2, WORD)
    for place, value in enumerate((T.Cast(WORD, block), _const(stream), _low(call), _high(call))):
        words.store(place, value)
    key.store(0, _low(seed))
    key.store(1, _high(seed))
    for number in range(ROUNDS):
        first = s.bind(words[0] * _const(MULTIPLIERS[0]))
        second = s.bind(words[2] * _const(MULTIPLIERS[1]))
        left = s.bind(T.bitwise_xor(T.bitwise_xor(_high(second), words[1]), key[0]))
        right = s.bind(T.bitwise_xor(T.bitwise_xor(_high(first), words[3]), key[1]))
        for place, value in enumerate((left, _low(second), right, _low(first))):
            words.store(place, value)
        if number + 1 < ROUNDS:
            for place, step in enumerate(WEYL):
                key.store(place, _low(key[place] + _const(step)))
    return words


def _element(words: Any, position: int, op: Philox) -> Expr:
    """The upper bits of one word, or of two."""
    if op.words == 1:
        return T.shift_right(words[position], _const(32 - op.bits))
    high = T.shift_left(words[2 * position], _const(32))
    return T.shift_right(T.bitwise_or(high, words[2 * position + 1]), _const(64 - op.bits))
