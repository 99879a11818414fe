"""Machine instructions that CUDA's language has no words for, as functions of the generated text.

Each is one line of text with inline PTX, which TVM writes before the kernels that call it. Shared memory is named by
32-bit addresses, global and private memory by pointers. The emulator of the tests has functions of the same names.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.backend.cuda.op import cuda_func_call
from tvm.tirx.script.builder import ir as T

from ..tir import Buffer
from ..vectors import held

Expr = Any
CHUNK = 16  # bytes that an asynchronous copy moves, and a row of a matrix that ldmatrix loads
# What mma.sync calls the operands' dtypes, and how many elements of the summed dim it takes.
KINDS = {"float16": ("f16", 16), "bfloat16": ("bf16", 16), "tf32": ("tf32", 8)}


def _mma_text(word: str, depth: int) -> str:
    sums, a, b = "{%0, %1, %2, %3}", "{%4, %5, %6, %7}", "{%8, %9}"
    return (
        f"void mma_{word}(float *sum, const unsigned *a, const unsigned *b) {{ "
        f'asm("mma.sync.aligned.m16n8k{depth}.row.col.f32.{word}.{word}.f32 {sums}, {a}, {b}, {sums};" : '
        '"+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), '
        '"r"(b[0]), "r"(b[1])); }'
    )


def _ldmatrix_text(name: str, form: str) -> str:
    return (
        f"void {name}(unsigned *to, unsigned from) {{ "
        f'asm volatile("ldmatrix.sync.aligned.m8n8.x4{form}.shared.b16 {{%0, %1, %2, %3}}, [%4];" : '
        '"=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from) : "memory"); }'
    )


def _sums(count: int) -> tuple[str, str]:
    """Operands of `count` sums that an instruction reads and writes: in its text, and in its list."""
    return ", ".join(f"%{i}" for i in range(count)), ", ".join(f'"+f"(sum[{i}])' for i in range(count))


def _wgmma_text(name: str) -> str:
    """The text of what `wgmma` calls: wgmma_<kind>_<columns>[_across]."""
    _, word, columns, *across = name.split("_")
    sums, operands = _sums(int(columns) // 2)
    count = int(columns) // 2
    # Elements of 32 bits have to lie along the summed dim.
    forms, depth = ("1, 1, 1", 8) if word == "tf32" else (f"1, 1, 1, 0, {len(across)}", 16)
    return (
        f"void {name}(float *sum, unsigned long long a, unsigned long long b) {{ "
        f'asm volatile("wgmma.mma_async.sync.aligned.m64n{columns}k{depth}.f32.{word}.{word} {{{sums}}}, %{count}, '
        f'%{count + 1}, {forms};" : {operands} : "l"(a), "l"(b)); }}'
    )


def _holding_text(name: str) -> str:
    """The text of `wgmma_begin` and `wgmma_wait`, which keep the compiler from moving what touches the sums."""
    _, what, count = name.split("_")
    instruction = {"begin": "wgmma.fence.sync.aligned;", "wait": "wgmma.wait_group.sync.aligned 0;"}[what]
    return f'void {name}(float *sum) {{ asm volatile("{instruction}" : {_sums(int(count))[1]} : : "memory"); }}'


def _pack_text(word: str) -> str:
    return (
        f"unsigned pack_{word}(float low, float high) {{ unsigned x; "
        f'asm("cvt.rn.{word}x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low)); return x; }}'
    )


_TEXTS = {
    "shared_address": "unsigned shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }",
    "copy_async": (
        'void copy_async(unsigned to, const void *from, int bytes) { asm volatile("cp.async.cg.shared.global [%0], '
        '[%1], 16, %2;" : : "r"(to), "l"(from), "r"(bytes) : "memory"); }'
    ),
    "copies_end_group": 'void copies_end_group() { asm volatile("cp.async.commit_group;" : : : "memory"); }',
    "load_matrices": _ldmatrix_text("load_matrices", ""),
    "load_transposed": _ldmatrix_text("load_transposed", ".trans"),
    "round_to_tf32": (
        'void round_to_tf32(unsigned *x) { asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(*x) : "f"(__uint_as_float(*x))); }'
    ),
    "store_shared_pair": (
        'void store_shared_pair(unsigned to, float x, float y) { asm volatile("st.shared.v2.f32 [%0], {%1, %2};" : : '
        '"r"(to), "f"(x), "f"(y) : "memory"); }'
    ),
    "store_shared": (
        'void store_shared(unsigned to, float x) { asm volatile("st.shared.f32 [%0], %1;" : : "r"(to), "f"(x) : '
        '"memory"); }'
    ),
    "load_shared_chunk": (
        'void load_shared_chunk(float *to, unsigned from) { asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : '
        '"=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3]) : "r"(from) : "memory"); }'
    ),
    "load_shared": (
        'float load_shared(unsigned from) { float x; asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(from) : '
        '"memory"); return x; }'
    ),
    "store_shared_long": (
        'void store_shared_long(unsigned to, int64_t x) { asm volatile("st.shared.s64 [%0], %1;" : : "r"(to), "l"(x) : '
        '"memory"); }'
    ),
    "load_shared_long": (
        'int64_t load_shared_long(unsigned from) { int64_t x; asm volatile("ld.shared.s64 %0, [%1];" : "=l"(x) : '
        '"r"(from) : "memory"); return x; }'
    ),
    "move_16": "void move_16(void *to, const void *from) { *(uint4 *)to = *(const uint4 *)from; }",
    "move_4": "void move_4(void *to, const void *from) { *(unsigned *)to = *(const unsigned *)from; }",
    "move_8": "void move_8(void *to, const void *from) { *(uint2 *)to = *(const uint2 *)from; }",
    # Past the first level of the caches, as each is read once; by nobody written meanwhile.
    "stream_16": (
        "void stream_16(void *to, const void *from) { uint4 x; asm volatile("
        '"ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : '
        '"l"(from)); *(uint4 *)to = x; }'
    ),
    "fence_async": 'void fence_async() { asm volatile("fence.proxy.async.shared::cta;" : : : "memory"); }',
    "wgmma_end_group": 'void wgmma_end_group() { asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory"); }',
    "larger": "float larger(float a, float b) { return fmaxf(a, b); }",
    "multiply_add": "float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }",
    "power_of_two": (
        'float power_of_two(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }'
    ),
    "sync_warp": "void sync_warp() { __syncwarp(); }",
    "pack_f16": _pack_text("f16"),
    "pack_bf16": _pack_text("bf16"),
    **{f"mma_{word}": _mma_text(word, depth) for word, depth in KINDS.values()},
}


def _call(name: str, *arguments: Expr, returns: str = "void") -> Expr:
    text = _TEXTS[name] if name in _TEXTS else _text(name)
    return cuda_func_call(name, *arguments, source_code=f"__forceinline__ __device__ {text}\n", return_type=returns)


def _text(name: str) -> str:
    """Of a family that is made when it is needed."""
    if name.startswith("wgmma_"):
        if name.startswith("wgmma_pending_"):
            return f'void {name}() {{ asm volatile("wgmma.wait_group.sync.aligned {name[-1]};" : : : "memory"); }}'
        return _holding_text(name) if name.split("_")[1] in ("begin", "wait") else _wgmma_text(name)
    newest = name.removeprefix("copies_wait_")
    return f'void {name}() {{ asm volatile("cp.async.wait_group {newest};" : : : "memory"); }}'


def shared_address(memory: Any) -> Expr:
    """Where an array of shared memory begins."""
    return _call("shared_address", memory.data, returns="uint32")


def copy_async(to: Expr, source: Buffer, offset: Expr, inside: Expr | None) -> None:
    """16 bytes from `offset` on to the shared address `to`, zeros if not `inside`: begun here, done at a wait."""
    size: Expr = tirx.const(CHUNK, "int32")
    if inside is not None:
        inside = held(tirx.Cast("int32", inside))
        offset, size = tirx.Select(inside != 0, offset, tirx.const(0, "int32")), inside * CHUNK
    T.evaluate(_call("copy_async", to, pointer(source, offset), size))


def copies_end_group() -> None:
    """What this thread has begun to copy since the last one is a group."""
    T.evaluate(_call("copies_end_group"))


def copies_wait(newest: int) -> None:
    """Waits for all groups of this thread but the `newest`. What others copied takes a barrier besides."""
    T.evaluate(_call(f"copies_wait_{newest}"))


def load_matrices(to: Buffer, place: Expr, address: Expr, *, transposed: bool = False) -> None:
    """Four 8 x 8 matrices of 16-bit elements, whose rows are at the addresses of lanes 0-7, 8-15, ...: lane l gets
    elements 2 * (l % 4) and the next of row l // 4 (`transposed`: of column l // 4) of each in a word."""
    name = "load_transposed" if transposed else "load_matrices"
    T.evaluate(_call(name, pointer(to, place), address))


def mma(kind: str, sums: Buffer, place: Expr, a: Buffer, a_place: Expr, b: Buffer, b_place: Expr) -> None:
    """sums[16 x 8] += a[16 x depth] @ b[depth x 8] by a warp, see the PTX ISA for who holds which elements."""
    word, _ = KINDS[kind]
    T.evaluate(_call(f"mma_{word}", pointer(sums, place), pointer(a, a_place), pointer(b, b_place)))


def fence_async() -> None:
    """What this thread wrote to shared memory is seen by what reads it on its own: wgmma."""
    T.evaluate(_call("fence_async"))


def wgmma_begin(sums: Buffer, count: int) -> None:
    """Before products of a warpgroup: its `count` sums are in their registers."""
    T.evaluate(_call(f"wgmma_begin_{count}", pointer(sums, 0)))


def wgmma(kind: str, sums: Buffer, columns: int, left: Expr, right: Expr, *, across: bool) -> None:
    """Begins sums[64 x columns] += left[64 x depth] @ right[depth x columns] by a warpgroup, operands by
    descriptors."""
    name = f"wgmma_{KINDS[kind][0]}_{columns}{'_across' if across else ''}"
    T.evaluate(_call(name, pointer(sums, 0), left, right))


def wgmma_end_group() -> None:
    """What was begun since the last one is a group."""
    T.evaluate(_call("wgmma_end_group"))


def wgmma_pending(newest: int) -> None:
    """Waits for all groups but the `newest`; the sums are still theirs."""
    T.evaluate(_call(f"wgmma_pending_{newest}"))


def wgmma_wait(sums: Buffer, count: int) -> None:
    """Waits for all groups."""
    T.evaluate(_call(f"wgmma_wait_{count}", pointer(sums, 0)))


def pack(kind: str, low: Expr, high: Expr) -> Expr:
    """Two float32 as half floats in a word, rounded to nearest."""
    return _call(f"pack_{KINDS[kind][0]}", low, high, returns="uint32")


def round_to_tf32(words: Buffer, place: Expr) -> None:
    """Rounds the float32 in a word to 10 bits of mantissa, ties away from zero; the hardware would cut them off."""
    T.evaluate(_call("round_to_tf32", pointer(words, place)))


def larger(a: Expr, b: Expr) -> Expr:
    """The larger float32 of two; of a NaN and another number, that."""
    return _call("larger", a, b, returns="float32")


def multiply_add(a: Expr, b: Expr, c: Expr) -> Expr:
    """a * b + c in float32, rounded once."""
    return _call("multiply_add", a, b, c, returns="float32")


def power_of_two(x: Expr) -> Expr:
    """2 ** x in float32, to two units in the last place; 0 below 2 ** -126."""
    return _call("power_of_two", x, returns="float32")


def store_shared_pair(address: Expr, values: Sequence[Expr]) -> None:
    """Two neighbouring float32 in shared memory."""
    T.evaluate(_call("store_shared_pair", address, *values))


def load_shared(address: Expr) -> Expr:
    """A float32 of shared memory."""
    return _call("load_shared", address, returns="float32")


def store_shared(address: Expr, value: Expr) -> None:
    """A float32 in shared memory."""
    T.evaluate(_call("store_shared", address, value))


def load_shared_long(address: Expr) -> Expr:
    """An int64 of shared memory."""
    return _call("load_shared_long", address, returns="int64")


def store_shared_long(address: Expr, value: Expr) -> None:
    """An int64 in shared memory."""
    T.evaluate(_call("store_shared_long", address, value))


def load_shared_chunk(to: Buffer, place: Expr, address: Expr) -> None:
    """Four float32 of shared memory at once."""
    T.evaluate(_call("load_shared_chunk", pointer(to, place), address))


def aligned(address: Expr, alignment: int) -> Expr:
    """An address of shared memory, or the next multiple of `alignment`, a power of two; 0 asks for none."""
    if not alignment:
        return address
    mask = tirx.const((1 << 32) - alignment, "uint32")
    return tirx.bitwise_and(address + tirx.const(alignment - 1, "uint32"), mask)


def moved(address: Expr, offset: Expr) -> Expr:
    """An address of shared memory, `offset` bytes on."""
    return address + tirx.Cast("uint32", offset)


def move(to: Buffer, to_offset: Expr, source: Buffer, offset: Expr, size: int) -> None:
    """4, 8 or 16 bytes at once, both sides aligned to that."""
    T.evaluate(_call(f"move_{size}", pointer(to, to_offset), pointer(source, offset)))


def stream(to: Buffer, to_offset: Expr, source: Buffer, offset: Expr) -> None:
    """16 bytes of global memory that nobody writes while the kernel runs, and nobody reads again."""
    T.evaluate(_call("stream_16", pointer(to, to_offset), pointer(source, offset)))


def shuffle_xor(value: Expr, distance: int) -> Expr:
    """The value of the lane whose number differs by the bit `distance`."""
    everyone = tirx.const(0xFFFFFFFF, "uint32")
    return T.tvm_warp_shuffle_xor(everyone, value, distance, 32, 32)


def sync_warp() -> None:
    """The lanes of a warp have arrived; what they wrote is seen by the others."""
    T.evaluate(_call("sync_warp"))


def pointer(buffer: Buffer, offset: Expr) -> Expr:
    """The address of an element."""
    return tirx.address_of(buffer.handle[buffer.base + offset])


def resident(blocks: int) -> Any:
    """A context within a kernel: so many blocks shall fit on a multiprocessor. Without it, the compiler spills a few
    registers where that makes room for one more."""
    return T.attr({"tirx.launch_bounds_min_blocks_per_sm": blocks})


@contextmanager
def unrolled(count: int) -> Any:
    """A loop that NVRTC unrolls: indices by its variable are constants, so that arrays stay in registers."""
    with T.unroll(0, count, annotations={"pragma_unroll_explicit": False}) as i:
        yield i


@contextmanager
def rolled(count: Any) -> Any:
    """A loop that NVRTC leaves as it is: its body is long enough, and copies of it take time to compile."""
    with T.serial(0, count, annotations={"disable_unroll": True}) as i:
        yield i
