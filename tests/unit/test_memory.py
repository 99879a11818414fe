"""Where buffers of known size are placed in the arena."""

from __future__ import annotations

import random

from transpiler import memory
from transpiler.ir import fixed_size


def _block(name: str, size: int, first: int, last: int) -> memory._Block:
    return memory._Block(name, size, first, last)


def test_the_place_that_was_used_last_is_taken() -> None:
    """Two layers of two buffers each: the second layer begins where the first one ended."""
    blocks = [_block("a", 640, 0, 1), _block("b", 640, 1, 2), _block("c", 640, 3, 4), _block("d", 640, 4, 5)]
    assert memory._place(blocks, 64) == 1280
    assert [block.offset for block in blocks] == [0, 640, 640, 0]


def test_the_arena_never_grows_by_that() -> None:
    numbers = random.Random(5)
    fell_back = 0
    for _ in range(300):
        blocks = []
        for name in range(numbers.randrange(2, 14)):
            first = numbers.randrange(12)
            blocks.append(_block(f"b{name:02}", 64 * numbers.randrange(1, 6), first, first + numbers.randrange(5)))
        lowest = memory._placed(blocks, 64, latest=False)
        fell_back += memory._placed(blocks, 64, latest=True) > lowest
        assert memory._place(blocks, 64) <= lowest
        for one in blocks:
            for other in blocks:
                if one is not other and one.first <= other.last and other.first <= one.last:
                    assert (
                        one.offset + fixed_size(one.size) <= other.offset
                        or other.offset + fixed_size(other.size) <= one.offset
                    )
    assert fell_back
