"""Order statistics, running extremes and searches, against PyTorch's own overloads."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conformance.cases import HALF, NANS, ROW, SCALAR_F, C, Case, F, J, N, Named, X, cases, check

EDGES = np.array([-3.0, -1.0, -1.0, 0.5, 2.0, 7.0], np.float32)
ASKED = np.array([[-9, -3, -1, 0.5], [0.6, 7, 8, np.nan]], np.float32)
ROWS = np.sort(X, axis=-1)

ORDER: list[Case] = [
    ("kthvalue.default", X, 2, 1),
    ("kthvalue.default", X, 5, -1, True),
    ("kthvalue.default", SCALAR_F, 1),
    ("kthvalue.default", HALF, 2, 0),
    *((f"{name}.dim", x, axis) for name in ("median", "nanmedian") for x in (X, NANS, F) for axis in (0, -1)),
    *((f"{name}.dim", X, 1, True) for name in ("median", "nanmedian")),
    *((f"{name}.default", x) for name in ("median", "nanmedian") for x in (X, N, NANS, SCALAR_F, HALF)),
    ("nanmedian.default", np.full(3, np.nan, np.float32)),
    ("median.default", np.zeros(0, np.float32)),
    ("mode.default", np.array([[3, 1, 3, 1, 2], [5, 5, 4, 4, 4]])),
    ("mode.default", np.array([[1, 2], [1, 3], [0, 2]], np.float32), 0, True),
    ("mode.default", np.array([np.nan, 1, np.nan, 2], np.float32)),
    *((f"{name}.default", x, axis) for name in ("cummax", "cummin") for x in (X, NANS, J, C) for axis in (0, -1)),
    *((f"{name}.default", SCALAR_F, 0) for name in ("cummax", "cummin")),
    *(("logcumsumexp.default", x, axis) for x in (X, HALF, NANS) for axis in (0, 1)),
    *(("searchsorted.Tensor", EDGES, ASKED, Named(right=right)) for right in (False, True)),
    ("searchsorted.Tensor", ROWS, X, Named(side="right")),
    ("searchsorted.Tensor", EDGES[::-1].copy(), ASKED, Named(sorter=np.arange(5, -1, -1))),
    ("searchsorted.Tensor", np.arange(9), N, Named(out_int32=True)),
    ("searchsorted.Scalar", EDGES, 0.5),
    *(("searchsorted.Tensor", np.append(EDGES, np.float32(np.nan)), ASKED, Named(right=r)) for r in (False, True)),
    *(("searchsorted.Tensor", ROW, ASKED, Named(right=right)) for right in (False, True)),
    ("bucketize.Tensor", ASKED, EDGES),
    ("bucketize.Tensor", ROW, EDGES, Named(right=True, out_int32=True)),
]


@pytest.mark.parametrize("case", cases(ORDER))
def test_order(case: Case) -> None:
    check(case)
