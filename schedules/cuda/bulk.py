"""What compute capability 9.0 has to copy tensors to shared memory without a thread's work: the copy unit (TMA),
barriers in shared memory that count bytes (mbarrier), and registers that warpgroups give each other.

As those of `ptx`, each is one line of generated text; the emulator of the tests has functions of the same names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.backend.cuda.op import cuda_func_call
from tvm.tirx.script.builder import ir as T

Expr = Any

_TEXTS = {
    "barrier_init": (
        'void barrier_init(unsigned barrier, unsigned count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" '
        ': : "r"(barrier), "r"(count) : "memory"); }'
    ),
    "barriers_ready": (
        'void barriers_ready() { asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory"); }'
    ),
    "barrier_expect": (
        "void barrier_expect(unsigned barrier, unsigned bytes) { asm volatile("
        '"mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" : : "r"(barrier), "r"(bytes) : "memory"); }'
    ),
    "barrier_arrive": (
        'void barrier_arrive(unsigned barrier) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" : : '
        '"r"(barrier) : "memory"); }'
    ),
    "barrier_arrive_at": (
        'void barrier_arrive_at(unsigned barrier, int rank) { asm volatile("{ .reg .b32 there; '
        "mapa.shared::cluster.u32 there, %0, %1; mbarrier.arrive.shared::cluster.b64 _, [there]; }"
        '" : : "r"(barrier), "r"(rank) : "memory"); }'
    ),
    "cluster_meets": (
        'void cluster_meets() { asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" : : : '
        '"memory"); }'
    ),
    "store_shared_at": (
        'void store_shared_at(unsigned to, int rank, float x) { asm volatile("{ .reg .b32 there; '
        "mapa.shared::cluster.u32 there, %0, %1; st.shared::cluster.f32 [there], %2; }"
        '" : : "r"(to), "r"(rank), "f"(x) : "memory"); }'
    ),
    "barrier_wait": (
        'void barrier_wait(unsigned barrier, int parity) { asm volatile("{ .reg .pred done; AGAIN: '
        'mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @!done bra AGAIN; }" : : "r"(barrier), "r"(parity) : '
        '"memory"); }'
    ),
}


def _text(name: str) -> str:
    """Of a family that is made when it is needed: registers_<up|down>_<number>,
    tensor_copy_<rank>[_pixels][_multicast]."""
    parts = name.split("_")
    if parts[0] == "registers":
        form = {"up": "inc", "down": "dec"}[parts[1]]
        return f'void {name}() {{ asm volatile("setmaxnreg.{form}.sync.aligned.u32 {parts[2]};"); }}'
    rank, pixels, multicast = int(parts[2]), "pixels" in parts, "multicast" in parts
    places, taps = [f"c{i}" for i in range(rank)], [f"o{i}" for i in range(rank - 2)] if pixels else []
    parameters = ", ".join(f"int {item}" for item in (*places, *taps))
    coordinates = ", ".join(f"%{3 + i}" for i in range(rank))
    offsets = f", {{{', '.join(f'%{3 + rank + i}' for i in range(rank - 2))}}}" if pixels else ""
    operands = ", ".join(['"r"(to)', '"l"(map)', '"r"(barrier)', *(f'"r"({item})' for item in places)])
    operands += "".join(f', "h"((unsigned short){item})' for item in (*taps, *(["mask"] if multicast else [])))
    form = ".im2col" if pixels else ".tile"
    blocks, mask = (".multicast::cluster", f", %{3 + rank + len(taps)}") if multicast else ("", "")
    parameters += ", int mask" if multicast else ""
    return (
        f"void {name}(unsigned to, unsigned long long map, unsigned barrier, {parameters}) {{ asm volatile("
        f'"cp.async.bulk.tensor.{rank}d.shared::cluster.global{form}.mbarrier::complete_tx::bytes{blocks} [%0], [%1, '
        f'{{{coordinates}}}], [%2]{offsets}{mask};" : : {operands} : "memory"); }}'
    )


def _call(name: str, *arguments: Expr) -> None:
    text = f"__forceinline__ __device__ {_TEXTS.get(name) or _text(name)}\n"
    T.evaluate(cuda_func_call(name, *arguments, source_code=text, return_type="void"))


def barrier_init(barrier: Expr, count: int) -> None:
    """A barrier at an address of shared memory, whose phases end when `count` have arrived and all bytes have."""
    _call("barrier_init", barrier, tirx.const(count, "uint32"))


def barriers_ready() -> None:
    """What this thread has initialised is seen by the copy unit; by other threads after a barrier of the block."""
    _call("barriers_ready")


def barrier_expect(barrier: Expr, count: int) -> None:
    """Arrives, and `count` more bytes have to in this phase."""
    _call("barrier_expect", barrier, tirx.const(count, "uint32"))


def barrier_arrive(barrier: Expr) -> None:
    """Arrives. What this thread has done before is done for those who wait."""
    _call("barrier_arrive", barrier)


def barrier_arrive_at(barrier: Expr, rank: Expr) -> None:
    """Arrives at the barrier that lies at this address in the block `rank` of the cluster: what this thread read may
    be written again. What it has written is not seen there: that would take a fence of the whole device each time."""
    _call("barrier_arrive_at", barrier, rank)


def barrier_wait(barrier: Expr, parity: Expr) -> None:
    """Waits for the end of the phase of a parity, 0 for the first one. That before the first has ended."""
    _call("barrier_wait", barrier, parity)


def tensor_copy(
    to: Expr, descriptor: Expr, barrier: Expr, places: Sequence[Expr], rank: int, blocks: int | None = None
) -> None:
    """Begins a copy of a box of a tensor to a shared address, whose bytes arrive at a barrier. `places` are `rank`
    coordinates, and for pixels the offsets of a filter's tap. `blocks`: the ranks in the cluster, a bit for each, of
    blocks that get the box at these addresses; by default this one."""
    name = f"tensor_copy_{rank}" + ("_pixels" if len(places) > rank else "")
    mask = [] if blocks is None else [tirx.const(blocks, "int32")]
    _call(name + ("_multicast" if mask else ""), to, tirx.address_of(descriptor), barrier, *places, *mask)


def cluster_meets() -> None:
    """All threads of the cluster arrive before one goes on; what they did before is seen."""
    _call("cluster_meets")


def store_shared_at(address: Expr, rank: Expr, value: Expr) -> None:
    """A float32 at this address in the block `rank` of the cluster, which sees it when the cluster has met."""
    _call("store_shared_at", address, rank, value)


@contextmanager
def clusters(size: int) -> Iterator[None]:
    """Around a kernel: `size` neighbouring blocks run at the same time, and reach each other's shared memory."""
    if size == 1:
        yield
        return
    with T.launch_thread("clusterCtaIdx.x", size):
        yield


def registers(number: int, *, more: bool) -> None:
    """All threads of the warpgroup have `number` registers each from here on; for more, others have to give up some."""
    _call(f"registers_{'up' if more else 'down'}_{number}")
