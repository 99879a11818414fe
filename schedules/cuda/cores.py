"""Which units compute a product, in tiles of which size."""

from __future__ import annotations

from transpiler.target import Target

from ..gpu.workgroup import workgroups
from ..sizes import ceil_div
from . import gemv, hopper, ptx
from .epilogue import RunEpilogue
from .mma import MmaBlock
from .product import DEPTHS, Block, Destination, Product
from .simt import SimtBlock
from .table import choose_tile
from .tiles import CARDS, CLUSTERED, MMA, MMA_ON_HOPPER, SIMT, SPECIALISED, SPLIT, WGMMA, Tile
from .wgmma import WgmmaBlock

HOPPER = "sm_90a"


def emit(product: Product, epilogue: RunEpilogue, target: Target) -> None:
    """A kernel at the root of the function."""
    if gemv.takes(product):
        gemv.emit(product, epilogue)
        return
    forms = _forms(product, target, may_split=epilogue.builder.can_append)
    chunks = ceil_div(product.inner, DEPTHS[product.kind])
    sizes = (product.batches, product.rows, product.columns, chunks)
    tile = choose_tile([*forms], target.gpu.arch, product.kind, sizes)
    form = forms[tile]
    if form is None:
        hopper.emit(product, tile, epilogue, CARDS[target.gpu.arch].processors)
        return
    with workgroups(product.blocks(tile), tile.threads) as (number, thread), ptx.resident(form.resident):
        form(product, tile, epilogue, number, thread).emit()


def emit_plain(product: Product, destination: Destination, target: Target, rows: int) -> None:
    """A kernel for float32 at the root of the function, whose sums go where no epilogue is. `rows` of all its products
    choose the tile: a function has one."""
    sizes = (product.batches, rows, product.columns, ceil_div(product.inner, DEPTHS[product.kind]))
    tile = choose_tile(SIMT, target.gpu.arch, product.kind, sizes)
    with workgroups(product.blocks(tile), tile.threads) as (number, thread), ptx.resident(SimtBlock.resident):
        SimtBlock(product, tile, destination, number, thread).emit()


def _forms(product: Product, target: Target, *, may_split: bool) -> dict[Tile, type[Block] | None]:
    """What can compute a product: the form by its tile; None: that of `hopper`."""
    if product.kind == "float32":
        return dict.fromkeys(SIMT, SimtBlock)
    if target.gpu.arch != HOPPER:
        return dict.fromkeys(MMA, MmaBlock)
    forms: dict[Tile, type[Block] | None] = dict.fromkeys(MMA_ON_HOPPER, MmaBlock)
    if hopper.takes(product):
        return forms | dict.fromkeys([*SPECIALISED, *CLUSTERED, *(SPLIT if may_split else ())])
    # wgmma would cut off what TF32 has to round.
    if product.kind != "tf32":
        forms |= dict.fromkeys(WGMMA, WgmmaBlock)
    return forms
