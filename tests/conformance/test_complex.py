"""Complex numbers and Fourier transforms inside a model: real in, real out, through the whole of the transpiler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils import _pytree

from tests.conformance.databases.evaluate import Evaluator
from tests.conformance.databases.outcome import EQUAL, REFUSED, Result
from tests.conformance.databases.samples import Call, Entry, Sample
from transpiler import transpile
from transpiler.errors import TranspileErrors
from transpiler.target import Target

Function = Callable[..., torch.Tensor]


def evaluate(function: Function, target: Target, *inputs: torch.Tensor) -> Result:
    """The function as a model: the references and the kernels against PyTorch and float64."""
    leaves, spec = _pytree.tree_flatten((inputs, {}))
    entry = Entry("op", "float32", "function")
    sample = Sample(entry, 0, Call(function, leaves, spec).eval(), inputs)
    (result,) = Evaluator(target, lambda *_: None).run([sample])
    return result


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def pairs(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_complex(x)


def real(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(x.resolve_conj())


def spectrogram(x: torch.Tensor, size: int, hop: int) -> torch.Tensor:
    window = torch.hann_window(size, dtype=x.dtype)
    return torch.stft(x, size, hop, window=window, return_complex=True).abs()


A, B, M, N = draw(3, 5, 2), draw(5, 2), draw(4, 5, 2), draw(2, 5, 3, 2)
FUNCTIONS: dict[str, tuple[Function, tuple[torch.Tensor, ...]]] = {
    "add": (lambda a, b: real(pairs(a) + pairs(b)), (A, B)),
    "add_alpha_real": (lambda a, b: real(torch.add(pairs(a), b[..., 0], alpha=2)), (A, B)),
    "real_minus": (lambda a, b: real(b[..., 0] - pairs(a)), (A, B)),
    "add_number": (lambda a: real(pairs(a) + (1.5 - 2j)), (A,)),
    "mul": (lambda a, b: real(pairs(a) * pairs(b)), (A, B)),
    "mul_real": (lambda a, b: real(b[..., 0] * pairs(a)), (A, B)),
    "mul_number": (lambda a: real(pairs(a) * 1j * 3), (A,)),
    "div": (lambda a, b: real(pairs(a) / pairs(b)), (A, B)),
    "div_real": (lambda a, b: real(pairs(a) / b[..., 0]), (A, B)),
    "real_div": (lambda a, b: real(b[..., 0] / pairs(a)), (A, B)),
    "reciprocal": (lambda a: real(1 / pairs(a)), (A,)),
    "square": (lambda a: real(pairs(a) ** 2), (A,)),
    "neg_conj": (lambda a: real(-pairs(a).conj()), (A,)),
    "abs": (lambda a: pairs(a).abs(), (A,)),
    "angle": (lambda a: pairs(a).angle(), (A,)),
    "real_imag": (lambda a: pairs(a).real - pairs(a).imag, (A,)),
    "exp": (lambda a: real(pairs(a).exp()), (A,)),
    "log": (lambda a: real(pairs(a).log()), (A,)),
    "eq": (lambda a, b: pairs(a) == pairs(b), (A, A[:1])),
    "sum": (lambda a: real(pairs(a).sum(0)), (A,)),
    "mean": (lambda a: real(pairs(a).mean()), (A,)),
    "matmul": (lambda a, m: real(pairs(a) @ pairs(m).mT), (A, M)),
    "matmul_real": (lambda a, m: real(torch.matmul(pairs(a), m[..., 0].T.to(torch.complex64))), (A, M)),
    "einsum": (lambda a, m: real(torch.einsum("ij,kj->ki", pairs(a), pairs(m))), (A, M)),
    "bmm": (lambda n: real(torch.bmm(pairs(n), pairs(n).mH)), (N,)),
    "views": (lambda n: real(pairs(n).permute(2, 0, 1).reshape(6, 5)[1:, ::2].flip(0)), (N,)),
    "joins": (lambda a, b: real(torch.cat([pairs(a), pairs(a) * 2, torch.stack([pairs(b)])], 0)), (A, B)),
    "cat_int": (lambda a: real(torch.cat([pairs(a), torch.ones(1, 5, dtype=torch.int64)], 0)), (A,)),
    "index": (lambda a: real(pairs(a)[:, torch.tensor([3, 0, 0])]), (A,)),
    "where": (lambda a: real(torch.where(a[..., 0] > 0, pairs(a), 1.0)), (A,)),
    "polar": (lambda a: real(torch.polar(a[..., 0].abs(), a[..., 1])), (A,)),
    "complex": (lambda a: real(torch.complex(a[..., 0], a[..., 1])), (A,)),
    "fnet": (lambda x: torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real, (draw(2, 12, 20),)),
    "stft": (lambda x: spectrogram(x, 16, 5), (draw(2, 70),)),
    "stft_long": (lambda x: spectrogram(x, 400, 160) ** 2, (draw(1, 2000),)),
    "spectral_conv": (
        lambda x, w: torch.fft.irfft(torch.einsum("bix,iox->box", torch.fft.rfft(x)[..., :7], pairs(w)), n=32),
        (draw(2, 3, 32), draw(3, 4, 7, 2)),
    ),
    "rotary": (
        lambda x, f: real(pairs(x.reshape(2, 6, 3, 4, 2)) * torch.polar(torch.ones_like(f), f)[:, None]).flatten(3),
        (draw(2, 6, 3, 8), draw(6, 4)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name: str, target: Target) -> None:
    function, inputs = FUNCTIONS[name]
    result = evaluate(function, target, *inputs)
    assert result.outcome == EQUAL, result.reason


@pytest.mark.parametrize("n", [1, 2, 3, 15, 64, 65, 97, 100, 128, 257, 400, 514, 1000, 1024, 1031])
def test_lengths(n: int, target: Target) -> None:
    """Direct, factorised, with a prime factor of any size, and prime."""
    x, z = draw(3, n), draw(3, n, 2)
    half = draw(3, n // 2 + 1, 2)
    for function, argument in (
        (lambda x: real(torch.fft.rfft(x)), x),
        (lambda x: real(torch.fft.fft(x, norm="ortho")), x),
        (lambda z: real(torch.fft.fft(pairs(z))), z),
        (lambda z: real(torch.fft.ifft(pairs(z))), z),
        (lambda z: torch.fft.irfft(pairs(z), n=n), half),
    ):
        result = evaluate(function, target, argument)
        assert result.outcome == EQUAL, result.reason


class Rotary(torch.nn.Module):
    """Llama's rotary embedding, its rotations precomputed as a complex buffer."""

    def __init__(self, persistent: bool) -> None:
        super().__init__()
        angles = torch.outer(torch.arange(16.0), 1e4 ** (-torch.arange(0, 8, 2) / 8))
        self.register_buffer("freqs_cis", torch.polar(torch.ones_like(angles), angles), persistent=persistent)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rotated = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * self.freqs_cis[: x.shape[1], None]
        return torch.view_as_real(rotated).flatten(3)


def test_package_with_complex_buffer(tmp_path: Path) -> None:
    module, x = Rotary(persistent=False), draw(2, 6, 3, 8)
    package = transpile(module, args=(x,), target="cpu", name="rotary", out=tmp_path, quiet=True)
    report = package.test()
    assert report.failed == 0, report.output
    y = draw(2, 6, 3, 8) * 2
    np.testing.assert_allclose(package.load()(y.numpy()), module(y).numpy(), rtol=1e-5, atol=1e-5)


class Complex(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class ComplexWeight(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(x * self.weight)


class ComplexOutput(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.fft(x)


@pytest.mark.parametrize(
    ("module", "x", "text"),
    [
        (Complex(), torch.ones(3, dtype=torch.complex64), "Unsupported dtype complex64 of input 'x'"),
        (ComplexWeight(), torch.ones(3), "Unsupported dtype complex64 of parameter 'weight'"),
        (Rotary(persistent=True), draw(2, 6, 3, 8), "Unsupported dtype complex64 of buffer 'freqs_cis'"),
        (ComplexOutput(), torch.ones(3), "Output 0 is complex"),
    ],
)
def test_complex_at_the_boundary_is_refused(
    module: torch.nn.Module, x: torch.Tensor, text: str, tmp_path: Path
) -> None:
    with pytest.raises(TranspileErrors) as caught:
        transpile(module, args=(x,), target="cpu", name="refused", out=tmp_path, quiet=True)
    problem = caught.value.problems[0]
    assert text in problem.message
    assert problem.hints


def test_unknown_function_of_complex_numbers_is_refused(target: Target) -> None:
    result = evaluate(lambda a: pairs(a).tanh().abs(), target, A)
    assert result.outcome == REFUSED
    assert "of complex numbers" in result.reason
