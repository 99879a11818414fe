"""Every tile that a product may have: what its machine code takes, and which one is taken."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from transpiler.gpu.cubin import usage
from transpiler.gpu.cuda import cuda_source
from transpiler.gpu.nvrtc import compile_code
from transpiler.group import Lowered, make_group
from transpiler.ir import Node, TensorType, Value
from transpiler.ops.conv import Conv
from transpiler.ops.linalg import Linear
from transpiler.schedule import import_schedule, schedule
from transpiler.target import load_target

REGISTERS = 65536  # of a multiprocessor
# Bytes that a block may have; code for 8.0 runs on 8.6, 8.9 and 12.0 as well, which have less than 8.0.
SHARED = {"sm_80": 101376, "sm_90a": 232448}
LISTS = {
    "sm_80": {"float16": ("MMA",), "tf32": ("MMA",), "float32": ("SIMT",)},
    "sm_90a": dict.fromkeys(("float16", "tf32"), ("SPECIALISED", "CLUSTERED")),
}


def linear(kind: str, rows: int, inner: int, columns: int, arch: str, name: str = "linear") -> Lowered:
    dtype = "float32" if kind == "tf32" else kind
    shapes = ((rows, inner), (columns, inner), (columns,))
    values = tuple(Value(f"x{i}", TensorType(dtype, shape)) for i, shape in enumerate(shapes))
    op = Linear(precision="tf32") if kind == "tf32" else Linear()
    (type_,) = op.infer_types([value.type for value in values])
    result = Value("y", type_)
    return schedule(make_group((Node(op, values, (result,)),), (result,)), load_target("cuda", arch), name)


def with_tiles(kind: str, lists: tuple[str, ...], arch: str) -> Iterator[Lowered]:
    cores = import_schedule("cuda.cores")
    for number, tile in enumerate([tile for name in lists for tile in getattr(cores, name)]):
        with pytest.MonkeyPatch.context() as patch:
            for name in ("MMA_ON_HOPPER", "SPLIT", "CLUSTERED"):
                patch.setattr(cores, name, ())
            patch.setattr(cores, lists[0], (tile,))
            yield linear(kind, 1024, 1024, 1024, arch, f"tile{number}")


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "kind"), [(arch, kind) for arch, kinds in LISTS.items() for kind in kinds])
def test_no_tile_spills(arch: str, kind: str) -> None:
    kernels = list(with_tiles(kind, LISTS[arch][kind], arch))
    source = cuda_source(kernels, load_target("cuda", arch).tvm_target())
    used = usage(compile_code(source.text, arch).cubin)
    resident = 1 if arch == "sm_90a" else 2
    for (launch,) in source.launches.values():
        assert used[launch.entry].stack == 0, launch
        assert used[launch.entry].registers * launch.workgroup[0] * resident <= REGISTERS, launch
        assert (launch.shared_bytes + 1024) * resident <= SHARED[arch], launch


@pytest.mark.parametrize(
    ("arch", "kind", "sizes", "expected"),
    [
        ("sm_80", "float16", (8192, 8192, 8192), (256, 64 * 64)),  # 128 x 128
        ("sm_80", "float32", (4096, 4096, 4096), (256, 32 * 32)),
        ("sm_80", "float16", (128, 768, 768), (256, 4 * 24)),  # few tiles: small ones, four teams of warps
        ("sm_90a", "float16", (8192, 8192, 8192), (384, 132, 2)),  # as many blocks as multiprocessors, in pairs
        ("sm_90a", "bfloat16", (512, 3072, 768), (256, 8 * 12)),  # 64 x 64: parts would be too much to write
        ("sm_90a", "bfloat16", (128, 16384, 768), (384, 12 * 8)),  # 128 x 64, eight parts of the summed dim
        ("sm_90a", "bfloat16", (128, 4096, 4096 * 4), (384, 128)),  # one row of tiles: no pairs
        ("sm_80", "float16", (1, 768, 50257), (128, -(-50257 // 8))),  # a warp for two columns
    ],
)
def test_tiles_by_sizes(arch: str, kind: str, sizes: tuple[int, int, int], expected: tuple[int, ...]) -> None:
    item = linear(kind, *sizes, arch)
    launch, *_ = cuda_source([item], load_target("cuda", arch).tvm_target()).launches["linear"]
    assert (launch.workgroup[0], launch.grid[0], launch.cluster) == (*expected, 1)[:3]


def test_convolutions_with_few_tiles_are_split() -> None:
    """The last stage of a ResNet for one image: 49 columns, 4608 products for each result."""
    op = Conv((1, 1), (1, 1), (1, 1))
    values = tuple(
        Value(f"x{i}", TensorType("float16", shape)) for i, shape in enumerate([(1, 512, 7, 7), (512, 512, 3, 3)])
    )
    (type_,) = op.infer_types([value.type for value in values])
    result = Value("y", type_)
    target = load_target("cuda", "sm_90a")
    item = schedule(make_group((Node(op, values, (result,)),), (result,)), target, "conv")
    *_, product, added = cuda_source([item], target.tvm_target()).launches["conv"]
    assert product.maps
    assert not added.maps
    assert product.grid[0] == 8 * 8  # 64 x 64, eight parts
