"""The text of several architectures: what they share is written once, and nothing is lost."""

from __future__ import annotations

from tests.cuda.test_tiles import linear
from transpiler.gpu.cuda import FILE, TEXT, compile_kernels, cuda_source
from transpiler.gpu.cuda_text import shared_text
from transpiler.target import load_targets

HEAD = "#include <cuda_fp16.h>\ntypedef int t;\n"


def machine(name: str) -> str:
    return f"__forceinline__ __device__ void {name}() {{ asm({name!r}); }}\n"


def kernel(name: str, body: str) -> tuple[str, str]:
    start = f'extern "C" __global__ void __launch_bounds__(32, 2) {name}_kernel(float* __restrict__ x, int (n))'
    return f"{start};\n", f"{start} {{\n  {body}\n}}\n\n"


def text(head: str, machines: str, *kernels: tuple[str, str]) -> str:
    return head + "".join(map(machine, machines)) + "".join(k[0] for k in kernels) + "".join(k[1] for k in kernels)


def test_what_is_alike_is_written_once() -> None:
    same, one, other, alone = kernel("same", "a();"), kernel("k", "b();"), kernel("k", "c();"), kernel("alone", "d();")
    shared, own = shared_text({"x": text(HEAD, "ab", same, one), "y": text(HEAD, "acd", same, other, alone)})
    assert shared == text(HEAD, "a", same)
    assert own == {"x": text("", "b", one), "y": text("", "cd", other, alone)}
    # All alike, one alone, and texts that begin in another way.
    assert shared_text({"x": text(HEAD, "ab", same, one)}) == (text(HEAD, "ab", same, one), {"x": ""})
    assert shared_text({"x": text(HEAD, "a", same), "y": text(HEAD, "a", same)})[1] == {"x": "", "y": ""}
    texts = {"x": text(HEAD, "a", same), "y": text(f"{HEAD}typedef long u;\n", "a", same)}
    assert shared_text(texts) == ("", texts)


def test_kernels_of_both_architectures() -> None:
    """The product in half floats differs, the small one in float32 does not."""
    targets = load_targets("cuda")
    kernels = {
        target.variant.name: [
            linear("float16", 4096, 4096, 256, target.gpu.arch, "large"),
            linear("float32", 3, 5, 7, target.gpu.arch, "small"),
        ]
        for target in targets
    }
    compiled = compile_kernels(kernels, targets)
    files = {name: data for item in compiled.values() for name, data in item.files.items()}
    assert set(files) == {FILE, TEXT, "kernels.sm_80.cu", "kernels.sm_90a.cu"}
    assert b"small_kernel(" in files[TEXT]
    assert b"large_kernel(" not in files[TEXT]
    for target in targets:
        own = files[f"kernels.{target.variant.name}.cu"]
        assert b"small_kernel(" not in own
        whole = cuda_source(kernels[target.variant.name], target.tvm_target()).text
        # In another order, the very same lines.
        assert sorted((files[TEXT] + own).decode().splitlines()) == sorted(whole.splitlines())
    again = compile_kernels(kernels, targets)
    assert files == {name: data for item in again.values() for name, data in item.files.items()}
