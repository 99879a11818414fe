"""What the element-wise ops mean: importers run through the numpy references, against PyTorch's overloads.

A case is an overload and its arguments; its id is the overload and its position in the table.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.conformance.cases import (
    BRAIN,
    DOUBLE,
    EMPTY,
    FINITE_RATIOS,
    HALF,
    I8,
    I32,
    ROW,
    SCALAR_F,
    SCALAR_I,
    U8,
    B,
    C,
    Case,
    F,
    G,
    J,
    K,
    Named,
    cases,
    check,
)
from transpiler.ops.dtypes import CORNERS, corner_pairs, numpy_dtype

BINARY: list[Case] = [
    (f"{name}.Tensor", a, b)
    for name in ("add", "sub", "mul", "div", "fmod", "remainder", "rsub")
    for a, b in (
        (F, G),
        (K, J),
        (F, J),
        (I32, J),
        (HALF, HALF),
        (BRAIN, BRAIN),
        (HALF, BRAIN),
        (G, DOUBLE),
        (G, SCALAR_I),
        (J, SCALAR_F),
        (I8, J),
        (I8, I8 | 1),
        (U8, U8 | 1),
        (I32, I8 | 1),
        (SCALAR_F, SCALAR_F),
        (EMPTY, ROW),
        FINITE_RATIOS if name in ("fmod", "remainder") else corner_pairs(),
    )
]
ARITHMETIC: list[Case] = [
    *BINARY,
    ("add.Tensor", B, C),
    ("mul.Tensor", B, C),
    ("add.Tensor", B, J),
    ("mul.Tensor", B, F),
    ("div.Tensor", B, C),
    ("add.Tensor", F, G, Named(alpha=2)),
    ("add.Tensor", K, J, Named(alpha=-3)),
    ("add.Scalar", F, 2.5),
    ("add.Scalar", F, 2, 0.5),
    ("sub.Tensor", F, G, Named(alpha=0.5)),
    ("sub.Scalar", J, 3),
    ("rsub.Scalar", F, 1),
    ("rsub.Scalar", J, 1),
    ("add.Scalar", J, 2.5),
    ("mul.Scalar", HALF, 1e5),
    ("mul.Scalar", BRAIN, 0.1),
    ("mul.Scalar", J, 2.5),
    ("mul.Scalar", B, 3),
    ("div.Scalar", J, 2),
    ("div.Scalar", F, 3),
    ("add.Tensor", F, 2),
    ("mul.Tensor", K, 2.0),
    ("mul.Tensor", HALF, SCALAR_F),
    ("add.Tensor", I32, SCALAR_I),
    *(
        (f"div.{kind}_mode", a, b, Named(rounding_mode=mode))
        for mode in ("floor", "trunc", None)
        for kind, a, b in (
            ("Tensor", K, J),
            ("Tensor", K, -J),
            ("Tensor", F, G),
            ("Tensor", F, -G),
            ("Tensor", *corner_pairs()),
            ("Scalar", J, 3),
            ("Scalar", -J, 4),
            ("Scalar", F, 0.3),
        )
    ),
    ("floor_divide.default", K, J),
    ("floor_divide.default", F, G),
    ("fmod.Scalar", F, 1.5),
    ("fmod.Scalar", K, 4),
    ("fmod.Scalar", K, -4),
    ("remainder.Scalar", K, -4),
    ("remainder.Scalar", F, -1.5),
    ("remainder.Scalar_Tensor", 7, J),
    ("pow.Tensor_Tensor", abs(F), G),
    ("pow.Tensor_Tensor", *corner_pairs()),
    ("pow.Tensor_Tensor", J, G),
    *(("pow.Tensor_Scalar", F, e) for e in (0, 1, 2, 3, 4, -1, -2, -3, 2.0)),
    *(("pow.Tensor_Scalar", abs(F), e) for e in (0.5, -0.5, 1.7, 0.0)),
    *(("pow.Tensor_Scalar", K, e) for e in (0, 1, 2, 5, 13, 2.0, 2.5)),
    ("pow.Tensor_Scalar", CORNERS, 0.5),
    ("pow.Scalar", 2.0, F),
    ("pow.Scalar", 2, J),
    ("pow.Scalar", 1, J),
    ("pow.Scalar", 3.0, J),
    ("pow.Scalar", 10000.0, F),
    ("pow.Scalar", 2, np.array([0, 1, 62, 63])),
    *(
        (f"{name}.default", a, b)
        for name in ("maximum", "minimum")
        for a, b in ((F, G), (K, J), (B, C), (K, SCALAR_F), corner_pairs())
    ),
    ("max.other", F, G),
    ("min.other", K, J),
    ("atan2.default", F, G),
    ("atan2.default", *corner_pairs()),
    ("atan2.default", J, J),
    ("add.Tensor", B, C, Named(alpha=False)),
    ("add.Tensor", B, C, Named(alpha=True)),
    *(
        (f"{name}.default", *pair)
        for name in ("fmax", "fmin", "hypot", "nextafter")
        for pair in ((F, G), corner_pairs())
    ),
    ("fmax.default", J, J),
    *(("copysign.Tensor", *pair) for pair in ((F, G), corner_pairs(), (J, F), (HALF, HALF))),
    ("copysign.Scalar", F, -1.0),
    ("lerp.Scalar", G, G + 1, 0.3),
    ("lerp.Tensor", G, G + 1, ROW),
    ("addcmul.default", G, G, ROW, Named(value=0.5)),
    ("addcdiv.default", G, G, ROW),
    ("addcdiv.default", G, ROW, G, Named(value=2)),
    ("frac.default", F),
    ("square.default", F),
    ("square.default", K),
]


@pytest.mark.parametrize("case", cases(ARITHMETIC))
def test_arithmetic(case: Case) -> None:
    low = any(getattr(item, "dtype", None) == numpy_dtype("bfloat16") for item in case)
    with np.errstate(all="ignore"):
        check(case, rtol=1e-2 if low else 1e-5)


FLOAT_FUNCTIONS = [
    "exp",
    "exp2",
    "expm1",
    "log",
    "log2",
    "log10",
    "log1p",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "asinh",
    "acosh",
    "atanh",
    "erf",
]
UNARY: list[Case] = [
    *((f"{name}.default", x) for name in FLOAT_FUNCTIONS for x in (F, CORNERS, J, C, EMPTY, SCALAR_F)),
    *(
        (f"{name}.default", x)
        for name in ("neg", "abs", "sign", "ceil", "floor", "round", "trunc")
        for x in (F, CORNERS, K, I32, U8, HALF, EMPTY, np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32))
    ),
    ("sign.default", C),
    *((f"{name}.default", x) for name in ("isnan", "isinf", "isfinite") for x in (CORNERS, J, C, HALF)),
    *((f"{name}.default", x) for name in ("signbit", "angle") for x in (CORNERS, F, J, C)),
    *(("frexp.Tensor", x) for x in (CORNERS, F, HALF, EMPTY, np.array([1e-45, -3e38, 1e-38, 0.5], np.float32))),
    *(("round.decimals", 1e3 * F, Named(decimals=decimals)) for decimals in (0, 1, 3, -2)),
    ("clamp.default", F, -1.0, 2.0),
    ("clamp.default", CORNERS, -1, 1),
    ("clamp.default", F, None, 0.5),
    ("clamp.default", F, 0),
    ("clamp.default", K, -2, 3),
    ("clamp.default", K, -1.5, 2.5),
    ("clamp.default", F, 2, -1),
    ("clamp.default", HALF, -1.0, 2.0),
    ("clamp_min.default", F, 0.5),
    ("clamp_max.default", K, 2),
    ("clamp.Tensor", G, ROW, ROW + 1),
    ("clamp.Tensor", G, Named(max=ROW)),
    ("clamp_min.Tensor", G, ROW),
    ("clamp_max.Tensor", G, ROW),
    ("clamp.Tensor", CORNERS, SCALAR_F),
]


@pytest.mark.parametrize("case", cases(UNARY))
def test_unary(case: Case) -> None:
    check(case)


COMPARE: list[Case] = [
    *(
        (f"{name}.Tensor", a, b)
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
        for a, b in ((F, G), (K, J), (B, C), (K, G), (J, SCALAR_F), (I32, J), corner_pairs(), (HALF, G))
    ),
    *(
        (f"{name}.Scalar", a, b)
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
        for a, b in ((F, 1), (K, 2), (K, 2.5), (C, 1), (C, True), (HALF, 0.1), (CORNERS, 0.0), (U8, -1))
    ),
    *((f"logical_{name}.default", a, b) for name in ("and", "or", "xor") for a, b in ((B, C), (K, J), (F, G), (F, C))),
    ("logical_not.default", C),
    ("logical_not.default", K),
    ("logical_not.default", CORNERS),
    *((f"bitwise_{name}.Tensor", a, b) for name in ("and", "or", "xor") for a, b in ((B, C), (K, J), (I32, J), (C, J))),
    *((f"bitwise_{name}.Scalar", a, b) for name in ("and", "or", "xor") for a, b in ((J, 6), (C, True), (U8, 3))),
    ("__and__.Tensor", B, C),
    ("__or__.Tensor", B, C),
    ("__xor__.Tensor", K, J),
    ("bitwise_not.default", K),
    ("bitwise_not.default", U8),
    ("bitwise_not.default", C),
    ("bitwise_left_shift.Tensor", K, J),
    ("bitwise_right_shift.Tensor", K, J),
    ("bitwise_left_shift.Tensor_Scalar", K, 3),
    ("__lshift__.Scalar", I32, 2),
    ("__rshift__.Scalar", K, 1),
    ("bitwise_left_shift.Tensor", np.array([1, -1, 5, 3]), np.array([-1, 64, 63, 70])),
    ("bitwise_right_shift.Tensor", np.array([1, -1, -5, 2**62]), np.array([-1, 64, 63, 62])),
    ("where.self", B, F, G),
    ("where.self", B, K, G),
    ("where.self", C, SCALAR_F, J),
    ("where.ScalarOther", C, G, 0.0),
    ("where.ScalarOther", C, J, 2),
    ("where.ScalarSelf", C, 1, G),
    ("where.ScalarSelf", C, 1.5, J),
    ("masked_fill.Scalar", F, B, float("-inf")),
    ("masked_fill.Scalar", J, C, 7),
    ("masked_fill.Tensor", G, C, SCALAR_I),
    *(
        ("_to_copy.default", x, Named(dtype=dtype))
        for x in (G, J, C, HALF, BRAIN, U8)
        for dtype in ("float32", "float16", "bfloat16", "int64", "int32", "bool", "float64", "int8")
    ),
    ("to.dtype", G, "int64"),
    ("type_as.default", G, J),
]


@pytest.mark.parametrize("case", cases(COMPARE))
def test_comparison_logic_and_casts(case: Case) -> None:
    check(case)
