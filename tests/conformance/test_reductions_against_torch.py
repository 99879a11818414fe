"""What reductions, scans and sorts mean: importers run against PyTorch's own overloads.

A case is an overload and its arguments; its id is the overload and its position in the table.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.conformance.cases import (
    BRAIN,
    EMPTY,
    HALF,
    I32,
    NANS,
    SCALAR_F,
    U8,
    C,
    Case,
    J,
    Named,
    X,
    cases,
    check,
)
from transpiler.ops.dtypes import numpy_dtype

DIMS: list[Any] = [[0], [1, 2], [-1], []]
REDUCE: list[Case] = [
    *((f"{name}.default", x) for name in ("sum", "prod", "any", "all") for x in (X, J, C, EMPTY, SCALAR_F, U8, I32)),
    *((f"{name}.default", x) for name in ("max", "min", "argmax", "argmin") for x in (X, J, NANS, SCALAR_F)),
    ("max.default", C),
    ("min.default", C),
    *(("sum.dim_IntList", X, dim, keep) for dim in DIMS for keep in (False, True)),
    ("sum.dim_IntList", X, None),
    ("sum.dim_IntList", EMPTY, [0]),
    ("sum.dim_IntList", C, [1]),
    ("sum.dim_IntList", J, [0], False, Named(dtype="float32")),
    ("sum.dim_IntList", HALF, [1]),
    *(("mean.dim", X, dim, keep) for dim in DIMS for keep in (False, True)),
    ("mean.default", X),
    ("mean.dim", HALF, [1]),
    ("mean.dim", BRAIN, [1]),
    ("mean.dim", EMPTY, [0]),
    ("mean.dim", J, [0], Named(dtype="float32")),
    ("mean.dim", SCALAR_F, [0]),
    *(("histc.default", X, *bins) for bins in ((7, -1.3, 2.1), (10, 0, 3), (1, -2, 2))),
    ("prod.dim_int", X, 1),
    ("prod.dim_int", J, 0, True),
    ("prod.dim_int", C, 0),
    *(
        (f"a{name}.default", x, dim, keep)
        for name in ("max", "min")
        for x in (X, NANS, C)
        for dim in ([0], [-1], [])
        for keep in (False, True)
    ),
    *(
        (f"{name}.dim", x, dim, keep)
        for name in ("max", "min")
        for x in (X, NANS, J, C)
        for dim in (0, -1)
        for keep in (False, True)
    ),
    *(
        (f"arg{name}.default", x, dim, keep)
        for name in ("max", "min")
        for x in (X, NANS)
        for dim in (0, -1, None)
        for keep in (False, True)
    ),
    ("argmax.default", np.array([[1, 3, 3], [2, 2, 1]]), 1),
    ("max.dim", SCALAR_F, 0),
    ("argmax.default", SCALAR_F, 0),
    *((f"{name}.dim", x, 1, keep) for name in ("any", "all") for x in (X, C, NANS) for keep in (False, True)),
    ("any.dims", C, [0, 1]),
    ("all.dims", C, [0], True),
    ("any.dim", EMPTY, 0),
    ("all.dim", EMPTY, 0),
    *(
        (f"{name}.correction", X, dim, Named(correction=correction, keepdim=keep))
        for name in ("var", "std", "var_mean", "std_mean")
        for dim in ([0], [1, 2], None)
        for correction in (0, 1, None)
        for keep in (False, True)
    ),
    ("var.default", X),
    ("std.default", X, False),
    ("var.dim", X, [1]),
    ("std.dim", X, [1], False, True),
    ("var_mean.dim", X, [1]),
    ("var.correction", X + 1000, [0], Named(correction=1)),
    ("var.correction", HALF, [0], Named(correction=1)),
    ("var.correction", X[:1], [0], Named(correction=1)),
    ("logsumexp.default", X, [1]),
    ("logsumexp.default", X * 50, [0, 2], True),
    ("logsumexp.default", NANS, [1]),
    ("logsumexp.default", np.full((2, 3), -np.inf, np.float32), [1]),
    *(
        ("linalg_vector_norm.default", X, p, dim, keep)
        for p in (0, 1, 2, 3, 2.5, float("inf"), float("-inf"))
        for dim, keep in (([0], False), ([1, 2], True), (None, False))
    ),
    ("linalg_vector_norm.default", HALF),
    ("linalg_vector_norm.default", HALF, 2, [1], False, Named(dtype="float32")),
    ("norm.Scalar", X),
    ("norm.ScalarOpt_dim", X, 2, [1], True),
    ("norm.ScalarOpt_dim", X, None, [1]),
    ("aminmax.default", X),
    ("aminmax.default", X, Named(dim=1, keepdim=True)),
]


@pytest.mark.parametrize("case", cases(REDUCE))
def test_reductions(case: Case) -> None:
    low = any(getattr(item, "dtype", None) == numpy_dtype("bfloat16") for item in case)
    shifted = case[0] == "var.correction" and float(np.max(case[1])) > 100
    check(case, rtol=1e-2 if low else 1e-4 if shifted else 1e-5)


SCAN: list[Case] = [
    *((f"{name}.default", x, dim) for name in ("cumsum", "cumprod") for x in (X, J, C, I32, NANS) for dim in (0, -1)),
    ("cumsum.default", SCALAR_F, 0),
    ("cumsum.default", HALF, 1),
    ("cumsum.default", C, 1, Named(dtype="int32")),
    *(
        ("sort.stable", x, Named(stable=True, dim=dim, descending=down))
        for x in (X, NANS, J, C, HALF)
        for dim in (0, -1)
        for down in (False, True)
    ),
    ("sort.default", X),
    ("sort.default", X, 1, True),
    ("sort.default", SCALAR_F),
    ("argsort.default", X, 0),
    ("argsort.stable", J, Named(stable=True, dim=0)),
    *(("topk.default", x, 2, dim, largest) for x in (X, NANS) for dim in (1, -1, 0) for largest in (True, False)),
    ("topk.default", X, 0),
    ("topk.default", X, 5, -1),
]


@pytest.mark.parametrize("case", cases(SCAN))
def test_scans_and_sorts(case: Case) -> None:
    check(case)
