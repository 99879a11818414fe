"""Which tile a product gets: what was measured on a card, else the rule of tiles.py.

`targets/cuda_tiles.json` has, by architecture and kind of product, the tile for sizes "batches x rows x columns x
chunks of the summed dim". Sizes stand for their class: those that are as large but for an eighth. null: nobody has
measured it, the rule decides. `--tune` asks the user's own card among the same candidates (docs/tuning.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache

from transpiler.choices import choose
from transpiler.resources import tree

from ..sizes import Extent, is_fixed
from .tiles import CARDS, Tile, ranked

TABLE = "cuda_tiles.json"
Sizes = tuple[Extent, Extent, Extent, Extent]  # batches, rows, columns, chunks of the summed dim


def choose_tile(tiles: Sequence[Tile], arch: str, kind: str, sizes: Sizes) -> Tile:
    """One of `tiles` for a product of these sizes; the candidates of the choice point are the rule's, best first."""
    candidates = ranked(tiles, CARDS[arch], kind, *sizes)
    measured = _measured(arch, kind).get(size_class(sizes)) if is_fixed(*sizes) else None
    default = next((tile for tile in candidates if str(tile) == measured), candidates[0])
    return choose("tile", candidates, default)


def size_class(sizes: Sequence[int]) -> tuple[int, ...]:
    """Sizes rounded up to four binary digits: what differs by less than an eighth is alike."""
    return tuple(-(-size // step) * step for size in sizes for step in [1 << max(int(size - 1).bit_length() - 4, 0)])


def parse_sizes(text: str) -> tuple[int, ...]:
    """(batches, rows, columns, chunks) of "1x128x768x96". Raises ValueError."""
    sizes = tuple(map(int, text.split("x")))
    if len(sizes) != 4 or min(sizes) < 1:
        raise ValueError(f"{TABLE}: {text!r} is not batches x rows x columns x chunks")
    return sizes


@cache
def table() -> Mapping[str, Mapping[str, Mapping[str, str | None]]]:
    """By architecture, kind and sizes the text of a tile, or None."""
    found: Mapping[str, Mapping[str, Mapping[str, str | None]]] = json.loads((tree("targets") / TABLE).read_text())[
        "tiles"
    ]
    return found


@cache
def _measured(arch: str, kind: str) -> Mapping[tuple[int, ...], str]:
    """By class of sizes. Float16 and bfloat16 take the same time: one stands for the other where that has none."""
    found: dict[tuple[int, ...], str] = {}
    for name in {"float16": ("bfloat16", "float16"), "bfloat16": ("float16", "bfloat16")}.get(kind, (kind,)):
        for text, tile in table().get(arch, {}).get(name, {}).items():
            if tile is not None:
                found[size_class(parse_sizes(text))] = tile
    return found
