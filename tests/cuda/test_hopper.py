"""Products of blocks whose warpgroups share their work out (compute capability 9.0): numbers by the emulator, machine
code, errors to be found, and what the driver is told of tensors."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.conformance.kernels import op_group
from tests.cuda import standin
from tests.cuda.emulator import EmulationError
from tests.cuda.library import CudaLibrary, other
from tests.cuda.test_tensor_cores import drawn, fused, wrong
from tests.vulkan.emitted import runtime
from transpiler import transpile
from transpiler.dims import Dim, evaluate, symbol
from transpiler.gpu.cubin import operations, usage
from transpiler.gpu.cuda import cuda_source
from transpiler.gpu.nvrtc import compile_code
from transpiler.group import Lowered, make_group
from transpiler.ir import Array, Node, TensorType, Value
from transpiler.ops.activation import Gelu
from transpiler.ops.base import Op
from transpiler.ops.channels_last import ConvLast
from transpiler.ops.conv import Conv
from transpiler.ops.linalg import Linear, Matmul
from transpiler.schedule import import_schedule, schedule
from transpiler.target import load_target

ARCH = "sm_90a"
TARGET = load_target("cuda", ARCH)
SHARED = 232448
# (op, shapes, dtype, number of the tile, multiprocessors): both ways for the right operand to lie, less than a step and
# many more than stages, one tile and more than there are blocks, rests, operands that have to be packed first.
CASES: Mapping[str, tuple[Op, list[tuple[int, ...]], str, int, int]] = {
    "linear": (Linear(), [(150, 200), (300, 200), (300,)], "float16", 0, 132),
    "linear_many_tiles": (Linear(), [(7, 20, 520), (140, 520)], "bfloat16", 1, 2),
    "linear_small": (Linear(), [(9, 8), (5, 8), (5,)], "float16", 4, 132),
    "linear_odd": (Linear(), [(33, 35), (21, 35)], "bfloat16", 4, 132),
    "tf32": (Linear(precision="tf32"), [(130, 300), (70, 300), (70,)], "float32", 3, 2),
    "matmul": (Matmul(), [(2, 70, 136), (2, 136, 200)], "bfloat16", 2, 3),
    "matmul_broadcast": (Matmul(), [(2, 1, 20, 24), (3, 24, 40)], "float16", 4, 4),
    "matmul_transposed": (Matmul(True), [(3, 33, 40), (3, 30, 40)], "float16", 4, 2),
    "conv_3x3": (Conv((1, 1), (1, 1), (1, 1)), [(2, 64, 5, 6), (40, 64, 3, 3), (40,)], "float16", 4, 1),
    "conv_tf32": (Conv((2, 2), (2, 2), (2, 2), 2, "tf32"), [(2, 64, 9, 8), (20, 32, 3, 3)], "float32", 3, 2),
    "conv_1d": (Conv((2,), (3,), (1,)), [(3, 128, 19), (24, 128, 4)], "bfloat16", 4, 2),
    "conv_3d": (Conv((1, 2, 1), (1, 1, 1), (1, 1, 1)), [(1, 64, 3, 5, 4), (18, 64, 3, 3, 3)], "float16", 4, 132),
    "split": (Linear(), [(70, 1000), (72, 1000), (72,)], "float16", 4, 3),
    "split_batch": (Matmul(), [(2, 33, 832), (2, 832, 40)], "bfloat16", 4, 132),
    "split_odd": (Linear("tf32"), [(40, 456), (21, 456), (21,)], "float32", 4, 132),
    "last_3x3": (ConvLast((1, 1), (1, 1), (1, 1)), [(2, 5, 6, 64), (40, 3, 3, 64), (40,)], "float16", 4, 1),
    "last_stride": (ConvLast((2, 2), (0, 0), (1, 1)), [(3, 9, 8, 128), (40, 1, 1, 128)], "bfloat16", 3, 2),
    "last_1x1": (ConvLast((1, 1), (0, 0), (1, 1)), [(3, 5, 6, 40), (70, 1, 1, 40), (70,)], "float16", 3, 2),
    "split_pixels": (Conv((1, 1), (1, 1), (1, 1)), [(2, 64, 5, 6), (40, 64, 3, 3), (40,)], "float16", 4, 132),
    "split_packed": (Linear(), [(33, 397), (21, 397), (21,)], "bfloat16", 4, 3),
    "conv_1x1": (Conv((1, 1), (0, 0), (1, 1)), [(3, 24, 4, 6), (70, 24, 1, 1), (70,)], "float16", 3, 2),
    # Clusters: an odd number of tiles along the rows, more tiles than clusters; both ways for the shared operand.
    "cluster": (Linear(), [(300, 520), (140, 520), (140,)], "bfloat16", 1, 4),
    "cluster_across": (Matmul(), [(2, 130, 72), (2, 72, 264)], "float16", 0, 5),
    "cluster_pixels": (Conv((1, 1), (1, 1), (1, 1)), [(2, 64, 9, 8), (140, 64, 3, 3)], "float16", 1, 132),
}  # fmt: skip

SPLITS = {"split": 4, "split_batch": 2, "split_odd": 4, "split_pixels": 3, "split_packed": 2}  # of the summed dim
CLUSTERS = {"cluster": 2, "cluster_across": 2, "cluster_pixels": 2}  # blocks


def scheduled(name: str, op: Op, inputs: list[Array], tile: int, processors: int) -> Lowered:
    """With one tile to choose from, for a device of some multiprocessors."""
    cores = import_schedule("cuda.cores")
    with pytest.MonkeyPatch.context() as patch:
        own = replace(cores.SPECIALISED[tile], splits=SPLITS.get(name, 1), cluster=CLUSTERS.get(name, 1))
        patch.setattr(cores, "SPECIALISED", (own,))
        patch.setattr(cores, "CLUSTERED", ())
        patch.setattr(cores, "SPLIT", ())
        patch.setattr(cores, "MMA_ON_HOPPER", ())
        patch.setattr(cores, "CARDS", {ARCH: replace(cores.CARDS[ARCH], processors=processors)})
        return schedule(op_group(op, inputs), TARGET, name)


@cache
def kernels() -> dict[str, tuple[Lowered, tuple[Array, ...]]]:
    found = {}
    for name, (op, shapes, dtype, tile, processors) in CASES.items():
        inputs = drawn(name, shapes, dtype)
        found[name] = scheduled(name, op, inputs, tile, processors), tuple(inputs)
    return found


def rounded(x: Array) -> Array:
    """float32 as the copy unit makes TF32 of them: to nearest, ties to even."""
    words = x.view(np.uint32)
    return ((words + np.uint32(0xFFF) + (words >> 13 & 1)) & np.uint32(0xFFFFE000)).view(np.float32)


def exact(op: Op, inputs: tuple[Array, ...]) -> Array:
    operands = [rounded(x) if x.dtype == np.float32 else x for x in inputs[:2]]
    result = op.reference(*(x.astype(np.float64) for x in (*operands, *inputs[2:])))
    assert isinstance(result, np.ndarray)
    return result


def test_products() -> None:
    library = CudaLibrary([item for item, _ in kernels().values()], target=TARGET)
    for name, (item, inputs) in kernels().items():
        (got,) = library.run(item.kernel.name, *inputs)
        assert wrong(got, exact(CASES[name][0], inputs)) < 1, name


def test_epilogue() -> None:
    group, inputs = fused("bfloat16")
    cores = import_schedule("cuda.cores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cores, "MMA_ON_HOPPER", ())
        library = CudaLibrary([schedule(group, TARGET, "fused")], target=TARGET)
    assert "tensor_copy" in library.text
    (got,) = library.run("fused", *inputs)
    x, weight, residual, bias = (array.astype(np.float64) for array in inputs)
    assert wrong(got, np.asarray(Gelu().reference(x @ weight.T + bias)) + residual) < 1


def test_sizes_that_vary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and the summed dim, which may be empty: operands as they lie and such as are packed, alone and in pairs."""
    n, k = symbol("n"), symbol("k")
    shapes: dict[str, tuple[Op, list[tuple[Dim, ...]]]] = {
        "products": (Matmul(), [(2, n, k), (2, k, 72)]),
        "rows": (Linear(), [(n, k), (40, k), (40,)]),
    }
    cores = import_schedule("cuda.cores")
    items = []
    for cluster in (1, 2):
        tile = replace(cores.SPECIALISED[1 if cluster == 2 else 4], cluster=cluster)
        for name, value in {"SPECIALISED": (tile,), "CLUSTERED": (), "SPLIT": (), "MMA_ON_HOPPER": ()}.items():
            monkeypatch.setattr(cores, name, value)
        for name, (op, types) in shapes.items():
            values = tuple(Value(f"x{i}", TensorType("bfloat16", shape)) for i, shape in enumerate(types))
            (type_,) = op.infer_types([value.type for value in values])
            result = Value("y", type_)
            group = make_group((Node(op, values, (result,)),), (result,))
            items.append((op, types, schedule(group, TARGET, f"{name}_{cluster}")))
        monkeypatch.undo()
    library = CudaLibrary([item for *_, item in items], target=TARGET)
    for sizes in ({"n": 3, "k": 5}, {"n": 150, "k": 200}, {"n": 70, "k": 0}):
        for op, types, item in items:
            inputs = drawn(item.kernel.name, [tuple(evaluate(x, sizes) for x in shape) for shape in types], "bfloat16")
            (launch,) = [launch for launch in library.launches[item.kernel.name] if launch.maps]
            assert launch.cluster == int(item.kernel.name[-1])
            (got,) = library.run(item.kernel.name, *inputs, sizes=sizes)
            assert wrong(got, exact(op, tuple(inputs))) < 1, (item.kernel.name, sizes)


def test_machine_code() -> None:
    source = cuda_source([item for item, _ in kernels().values()], TARGET.tvm_target())
    cubin = compile_code(source.text, ARCH).cubin
    used, found = usage(cubin), operations(cubin)
    hopper = import_schedule("cuda.hopper")
    assert hopper.GROUP * (hopper.FEW_REGISTERS + 2 * hopper.MANY_REGISTERS) <= 65536
    for name, (*_, tile, _) in CASES.items():
        launch = source.launches[name][-1 if name not in SPLITS else -2]
        columns = import_schedule("cuda.tiles").SPECIALISED[tile].columns
        assert used[launch.entry].stack == 0, name
        assert used[launch.entry].registers * launch.workgroup[0] <= 65536, name
        assert launch.shared_bytes <= SHARED - 1024, name
        counted = found[launch.entry]
        # A step is 128 bytes of the summed dim, 32 in an instruction.
        assert counted["HGMMA"] == 4, name
        across = name in ("matmul", "matmul_broadcast", "split_batch", "conv_1x1", "cluster_across")
        cluster = CLUSTERS.get(name, 1)
        right = columns // 64 // cluster if across else 1
        assert counted["UTMALDG"] == 1 + right, name
        assert launch.cluster == cluster, name
        assert counted["UTMALDG.MULTICAST"] == (right if cluster > 1 else 0), name
        # All threads of a cluster arrive and wait at the start and at the end: the fences of the device are theirs.
        assert counted["UCGABAR"] == counted["MEMBAR"] == (4 if cluster > 1 else 0), name
        assert counted["USETMAXREG"] == (2 if launch.workgroup[0] == 384 else 0), name
        # Nobody copies by hand, and one barrier of the block is enough.
        assert counted["SYNCS"] > 0, name
        assert counted["BAR"] == cluster, name
        assert counted["HMMA"] == counted["LDSM"] == counted["LDGSTS"] == 0, name


@pytest.mark.parametrize(
    ("rows", "columns", "dtype", "expected"),
    [(4096, 4096, "float16", "HGMMA"), (32, 768, "float16", "HMMA"), (4096, 4096, "float32", "FFMA")],
)
def test_large_products_are_those_of_warpgroups(rows: int, columns: int, dtype: str, expected: str) -> None:
    inputs = [np.zeros((size, 64), dtype) for size in (rows, columns)]
    text = cuda_source([schedule(op_group(Linear(), inputs), TARGET, "product")], TARGET.tvm_target()).text
    (found,) = operations(compile_code(text, ARCH).cubin).values()
    assert {name for name in ("HGMMA", "HMMA", "FFMA") if found[name] > 3} == {expected}


ERRORS: Mapping[str, Callable[[str], str]] = {
    "no wait for copies": other(r"barrier_wait\((?![^;]*\^ 1)[^;]*\);", ""),
    "no wait for readers": other(r"barrier_wait\([^;]*\^ 1\)+;", ""),
    "another phase": other(r"barrier_wait\(([^;]*), (_ptr_\d+\[1\])\);", r"barrier_wait(\1, 1 - \2);"),
    "the phase never turns": other(r"\[1\] = \([^;]*\^[^;]*\);", "[1] = 0;"),
    "too many bytes": other(r"(barrier_expect\([^;]*, \(uint\))(\d+)\);", r"\1(\2 + 16));"),
    "too few bytes": other(r"(barrier_expect\([^;]*, \(uint\))(\d+)\);", r"\1(\2 - 128));"),
    "the copy unit may not see barriers": other(r"barriers_ready\(\);", ""),
    "no barrier of the block": other(r"__syncthreads\(\);", ""),
    "released before it was read": other(r"wgmma_pending_1\(\);", ""),
    "no wait for products": other(r"wgmma_wait_\d+\([^;]*;", ""),
    "no end of a group": other(r"wgmma_end_group\(\);", ""),
    "too far along the line": other(r"\+ \(uint64_t\)2ULL\)", "+ (uint64_t)4ULL)"),
    "no meeting of the lanes": other(r"sync_warp\(\);", ""),
    "arrives twice": other(r"(barrier_arrive\([^;]*;)", r"\1 \1"),
}
CLUSTER_ERRORS: Mapping[str, Callable[[str], str]] = {
    "nobody tells the other block": other(r"(barrier_arrive_at\([^;]*), [^,;]*\);", r"\1, blockIdx.x & 1);"),
    "arrives at one block": other(r"if \([^{;]* < 2\) \{(\s*barrier_arrive_at)", r"if ((threadIdx.x & 31) < 1) {\1"),
    "counts its own warps": other(r"barrier_init\(([^;]*), \(uint\)16\);", r"barrier_init(\1, (uint)8);"),
    "copies for itself": other(r"(_multicast\([^;]*), 3\);", r"\1, 1 << (blockIdx.x & 1));"),
    "copies for the other block": other(r"(_multicast\([^;]*), 3\);", r"\1, 2 >> (blockIdx.x & 1));"),
    "copies for a third block": other(r"(_multicast\([^;]*), 3\);", r"\1, 7);"),
    "the other block may not have begun": other(r"\A([^;]*;.*?)cluster_meets\(\);", r"\1__syncthreads();"),
    "the other block may have ended": other(r"cluster_meets\(\);(?!.*cluster_meets)", ""),
    "no cluster": other(r"\Z", ""),
}
BROKEN = {"linear_many_tiles": ERRORS, "cluster": CLUSTER_ERRORS}


@cache
def broken(kernel: str) -> CudaLibrary:
    """The kernel with every one of the errors, which tells itself from the others by a number behind its name."""
    item, _ = kernels()[kernel]

    def edit(text: str) -> str:
        changed = [change(text).split('extern "C"', 1)[1] for change in BROKEN[kernel].values()]
        named = [part.replace(f"{kernel}_kernel", f"{kernel}_kernel_{number}") for number, part in enumerate(changed)]
        return 'extern "C"'.join([text, *named])

    return CudaLibrary([item], edit, TARGET)


@pytest.mark.parametrize(
    ("kernel", "name"), [(kernel, name) for kernel, errors in BROKEN.items() for name in ("", *errors)]
)
def test_planted_errors_are_found(kernel: str, name: str) -> None:
    item, inputs = kernels()[kernel]
    library, key = broken(kernel), item.kernel.name
    (launch,) = library.launches[key]
    number = f"_{[*BROKEN[kernel]].index(name)}" if name else ""
    cluster = 1 if name == "no cluster" else CLUSTERS.get(kernel, 1)
    library.launches[key] = (replace(launch, entry=f"{key}_kernel{number}", cluster=cluster),)
    try:
        (got,) = library.run(key, *inputs)
    except (AssertionError, EmulationError):
        assert name
        return
    assert (wrong(got, exact(Linear(), inputs)) < 1) == (not name)


def test_tensors_that_no_copy_unit_takes(standin_log: Path) -> None:
    """The driver refuses them, and the runtime says so."""
    device = open_device()
    good = runtime("launches").TensorMap("uint16", 0, (72, 40, 2), (144, 5760), (64, 8, 1), (1, 1, 1), (), ())
    pixels = replace(good, sizes=(64, 9, 7, 2), strides=(128, 1152, 8064), box=(64, 16), steps=(1, 2, 2, 1),
                     lower=(-1, -1), upper=(0, 0))  # fmt: skip
    for tensor in (good, pixels):
        assert runtime("cuda.tensor_maps").Descriptor(device, "a tensor", tensor, 256).address % 64 == 0
    assert standin.faults() == ""
    wrongs: list[tuple[Any, dict[str, Any], str]] = [
        (good, {"offset": 8}, "the address"), (good, {"strides": (140, 5760)}, "a stride"),
        (good, {"box": (72, 8, 1)}, "a box"), (good, {"box": (64, 257, 1)}, "a box"),
        (good, {"sizes": (72, 0, 2)}, "a size"),
        (good, {"steps": (1, 9, 1)}, "a step"), (pixels, {"lower": (-129, -1)}, "a corner"),
        (pixels, {"upper": (-9, 0), "lower": (0, 0)}, "an empty space"),
    ]  # fmt: skip
    for tensor, change, said in wrongs:
        with pytest.raises(RuntimeError, match="failed at describing a tensor of kernel k"):
            runtime("cuda.tensor_maps").Descriptor(
                device, "describing a tensor of kernel k", replace(tensor, **change), 256
            )
        assert said in standin.faults()


def open_device() -> Any:
    return runtime("cuda.device").open_device(None)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(72, 136), nn.Linear(136, 72)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x))) @ x.transpose(-1, -2) @ x


def test_a_package(driver: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptors of weights, inputs and values between, clusters, with sizes that vary, through the whole runtime."""
    monkeypatch.setenv("STANDIN_CAPABILITY", "9.0")
    cores = import_schedule("cuda.cores")
    tile = cores.SPECIALISED[3]
    pair = replace(tile, rate=99.0, cluster=2)
    tiles = {"MMA_ON_HOPPER": (), "SPLIT": (), "SPECIALISED": (tile,), "CLUSTERED": (pair,)}
    for name, value in tiles.items():
        monkeypatch.setattr(cores, name, value)
    torch.manual_seed(1)
    model, x = Layers().eval(), torch.randn(2, 24, 72)
    package = transpile(
        model, (x,), target="cuda", arch=ARCH, name="layers", out=tmp_path, precision="float16",
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=9), 1: torch.export.Dim("length", min=1, max=50)},),
    )  # fmt: skip
    listed = json.loads((package.path / "src/layers/kernels/cuda/launches.sm_90a.json").read_text())
    launches = [launch for kernel in listed["kernels"].values() for launch in kernel["launches"]]
    assert sum("maps" in launch and launch.get("cluster") == 2 for launch in launches) == 4
    report = package.test()
    assert report.failed == 0, report.output
    with package.load() as loaded:
        for batch, length in ((2, 24), (9, 3), (1, 41)):
            x = torch.randn(batch, length, 72)
            with torch.no_grad():
                expected = model(x).numpy()
            assert np.abs(loaded(x.numpy()) - expected).max() < 0.02 * np.abs(expected).max()
        assert len(loaded.profile(x.numpy())) > 0  # kernel by kernel, without the graph
    gc.collect()
