"""Special functions: the importers against PyTorch, and the C code against PyTorch in float64 and against mpmath."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import torch

from tests.conformance.cases import DOUBLE, EMPTY, SCALAR_F, U8, Case, F, G, J, cases, check
from transpiler.c_compiler import c_compiler
from transpiler.ir import Array
from transpiler.link import COMPILE, SPECIAL_FILES
from transpiler.ops.base import rng
from transpiler.ops.dtypes import CORNERS, corner_pairs
from transpiler.resources import tree

UNARY = [
    "i0", "erfc", "erfinv", "lgamma", "digamma",
    *(f"special_{name}" for name in (
        "bessel_j0", "bessel_j1", "bessel_y0", "bessel_y1", "modified_bessel_i0", "modified_bessel_i1",
        "modified_bessel_k0", "modified_bessel_k1", "scaled_modified_bessel_k0", "scaled_modified_bessel_k1",
        "i0e", "i1", "i1e", "spherical_bessel_j0", "airy_ai", "erfcx", "ndtr", "log_ndtr", "ndtri",
    )),
]  # fmt: skip
POLYNOMIALS = [
    f"special_{name}" for name in (
        *(f"{prefix}chebyshev_polynomial_{kind}" for prefix in ("", "shifted_") for kind in "tuvw"),
        "hermite_polynomial_h", "hermite_polynomial_he", "laguerre_polynomial_l", "legendre_polynomial_p",
    )
]  # fmt: skip
A, B = corner_pairs()
# x is NaN nowhere: PyTorch returns an uninitialised number there. Powers of 1e30 are another infinity in float64.
X = np.clip(np.where(np.isnan(A), 0.25, A), -3.5, 3.5).astype(np.float32)
N = np.where(np.abs(B) > 1e4, 9, B).astype(np.float32)
CASES: list[Case] = [
    *((f"{name}.default", x) for name in UNARY for x in (F, CORNERS, J, U8, EMPTY, SCALAR_F, DOUBLE)),
    *((f"{name}.default", x, n) for name in POLYNOMIALS for x, n in ((F / 4, np.trunc(G)), (X, N), (J, J))),
    *((f"{name}.x_scalar", 0.75, J) for name in POLYNOMIALS),
    *((f"{name}.n_scalar", F / 4, 4) for name in POLYNOMIALS),
    *((f"{name}.default", abs(F), abs(G)) for name in ("igamma", "igammac", "special_zeta")),
    *((f"{name}.default", np.where(np.float32(1e-40) == A, 7, A), B) for name in ("igamma", "igammac")),
    ("special_zeta.default", A, np.where(np.abs(B) > 1e4, 2, B).astype(np.float32)),
    ("special_zeta.other_scalar", abs(F) + 1, 2.5),
    ("special_zeta.self_scalar", 3.5, abs(F)),
    *(("polygamma.default", n, x) for n in range(5) for x in (abs(F), J)),
    *(("polygamma.default", n, CORNERS[CORNERS > -1]) for n in range(4)),
    ("mvlgamma.default", abs(F) + 3, 5),
    ("mvlgamma.default", J + 3, 2),
]


@pytest.mark.parametrize("case", cases(CASES))
def test_importers(case: Case) -> None:
    check(case, rtol=2e-5, atol=4e-6)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("special") / "special.so"
    sources = [str(tree("templates") / "runtime" / "cpu" / file) for file in SPECIAL_FILES]
    options = [option for option in COMPILE if "visibility" not in option]
    subprocess.run([*c_compiler().command, *options, "-shared", *sources, "-o", path, "-lm"], check=True)
    return ctypes.CDLL(str(path))


def call(library: ctypes.CDLL, name: str, *x: Array | float) -> Array:
    function = getattr(library, f"tp_math_{name}")
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_double] * len(x)
    return np.array([function(*map(float, row)) for row in zip(*np.broadcast_arrays(*x), strict=True)])


def uniform(low: float, high: float, count: int = 600) -> Array:
    return rng(f"{low} {high}").uniform(low, high, count)


S = torch.special
Torch = Callable[..., torch.Tensor]
# Name, PyTorch's function, arguments.
AGAINST_TORCH: list[tuple[str, Torch, tuple[Any, ...]]] = [
    *((f"bessel_{name}", getattr(S, f"bessel_{name}"), (uniform(0.01, 30),)) for name in ("j0", "j1", "y0", "y1")),
    *((f"bessel_{name}", getattr(S, f"modified_bessel_{name}"), (uniform(-15, 15),)) for name in ("i0", "i1")),
    *((f"bessel_{name}e", getattr(S, f"{name}e"), (uniform(-50, 50),)) for name in ("i0", "i1")),
    *((f"bessel_{name}", getattr(S, f"modified_bessel_{name}"), (uniform(0.01, 15),)) for name in ("k0", "k1")),
    *((f"bessel_{name}e", getattr(S, f"scaled_modified_bessel_{name}"), (uniform(0.01, 50),)) for name in ("k0", "k1")),
    ("spherical_bessel_j0", S.spherical_bessel_j0, (uniform(-20, 20),)),
    ("airy_ai", S.airy_ai, (uniform(-10, 10),)),
    ("erfcx", S.erfcx, (uniform(-2, 100),)),
    ("ndtr", S.ndtr, (uniform(-6, 6),)),
    ("log_ndtr", S.log_ndtr, (uniform(-30, 6),)),
    ("erfinv", S.erfinv, (uniform(-1, 1),)),
    ("ndtri", S.ndtri, (uniform(0, 1),)),
    ("lgamma", torch.lgamma, (uniform(0.01, 50),)),
    ("digamma", torch.digamma, (uniform(-10, 50),)),
    ("polygamma", lambda n, x: torch.polygamma(int(n[0]), x), (np.full(600, 1.0), uniform(0.1, 20))),
    ("polygamma", lambda n, x: torch.polygamma(int(n[0]), x), (np.full(600, 3.0), uniform(0.1, 20))),
    ("zeta", S.zeta, (uniform(1.1, 20), uniform(0.1, 30))),
    ("igamma", torch.igamma, (uniform(0, 300), uniform(0, 310))),
    ("igamma", torch.igamma, (uniform(0.01, 1), uniform(0, 3))),
    ("igammac", torch.igammac, (uniform(0, 300), uniform(0, 310))),
    ("igammac", torch.igammac, (uniform(1e5, 3e5), uniform(1e5, 3e5) + uniform(-900, 900))),
    *(
        (f"{prefix}chebyshev_{kind}", getattr(S, f"{prefix}chebyshev_polynomial_{kind}"),
         (uniform(-1.5, 1.5), np.round(uniform(-1, 20))))
        for prefix in ("", "shifted_") for kind in "tuvw"
    ),
    ("laguerre_l", S.laguerre_polynomial_l, (uniform(-2, 6), np.round(uniform(-1, 20)))),
    ("legendre_p", S.legendre_polynomial_p, (uniform(-2, 2), np.round(uniform(-1, 20)))),
]  # fmt: skip


@pytest.mark.parametrize("row", AGAINST_TORCH, ids=[f"{row[0]}-{number}" for number, row in enumerate(AGAINST_TORCH)])
def test_float64_is_pytorch_s(row: tuple[str, Torch, tuple[Any, ...]], library: ctypes.CDLL) -> None:
    """Within the rule that packages are held to, in float64."""
    name, function, arguments = row
    theirs = function(*map(torch.tensor, arguments)).numpy()
    ours = call(library, name, *arguments)
    assert np.isfinite(theirs).all()
    assert np.abs(ours - theirs).max() <= 128 * np.finfo(np.float64).eps * np.abs(theirs).max()


@pytest.mark.parametrize("kind", ["h", "he"])
def test_hermite_in_float64_is_pytorch_s(kind: str, library: ctypes.CDLL) -> None:
    x, n = uniform(-2, 2), np.round(uniform(-1, 20))
    theirs = getattr(S, f"hermite_polynomial_{kind}")(torch.tensor(x), torch.tensor(n)).numpy()
    ours = call(library, f"hermite_{kind}", x, n, 512.0)
    assert np.abs(ours - theirs).max() <= 128 * np.finfo(np.float64).eps * np.abs(theirs).max()


# Name, the truth, arguments, bound of the relative error in units of 2^-52. Bessel functions of the first and second
# kind, Ai and trigamma are not here: they share PyTorch's error of up to 3e-6.
BOUNDS: list[tuple[str, Callable[[Any], Any], Array, float]] = [
    ("bessel_i0e", lambda x: mp.exp(-abs(x)) * mp.besseli(0, x), uniform(-60, 60), 6),
    ("bessel_i1e", lambda x: mp.exp(-abs(x)) * mp.besseli(1, x), uniform(-60, 60), 12),
    ("bessel_k0e", lambda x: mp.exp(x) * mp.besselk(0, x), uniform(0.01, 60), 8),
    ("bessel_k1e", lambda x: mp.exp(x) * mp.besselk(1, x), uniform(0.01, 60), 8),
    ("erfcx", lambda x: mp.exp(x * x) * mp.erfc(x), uniform(0, 80), 20),
    ("erfinv", mp.erfinv, uniform(-1, 1), 4),
    ("ndtri", lambda p: -mp.sqrt(2) * mp.erfinv(1 - 2 * p), np.exp(uniform(-50, -0.7)), 8),
    ("log_ndtr", lambda x: mp.log(mp.ncdf(x)), uniform(-20, 0), 64),
    ("digamma", mp.digamma, uniform(2, 50), 8),
]


@pytest.mark.parametrize("row", BOUNDS, ids=[row[0] for row in BOUNDS])
def test_error_bounds(row: tuple[str, Callable[[Any], Any], Array, float], library: ctypes.CDLL) -> None:
    name, truth, x, bound = row
    x = x[::4]
    with mp.workdps(40):
        exact = np.array([float(truth(mp.mpf(item))) for item in x])
    error = np.abs(call(library, name, x) - exact) / np.abs(exact) / np.finfo(np.float64).eps
    assert error.max() <= bound, f"{name}({x[error.argmax()]!r}) is off by {error.max():.1f}"
