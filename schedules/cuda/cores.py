"""Which units compute a product, in tiles of which size."""

from __future__ import annotations

from ..gpu.workgroup import workgroups
from . import gemv
from .epilogue import RunEpilogue
from .mma import MmaBlock
from .product import Block, Product
from .simt import SimtBlock
from .tiles import MMA, SIMT, tile_for


def emit(product: Product, epilogue: RunEpilogue) -> None:
    """A kernel at the root of the function."""
    if gemv.takes(product):
        gemv.emit(product, epilogue)
        return
    form: type[Block] = SimtBlock if product.kind == "float32" else MmaBlock
    tiles = SIMT if product.kind == "float32" else MMA
    tile = tile_for(tiles, product.batches, product.rows, product.columns)
    with workgroups(product.blocks(tile), tile.threads) as (number, thread):
        form(product, tile, epilogue, number, thread).emit()
