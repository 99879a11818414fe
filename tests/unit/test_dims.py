import ast
import operator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transpiler.dims import dim_max, dim_min, evaluate, floordiv, free_symbols, mod, parse_dim, symbol

POINTS = ({"a": 1, "b": 2, "c": 3}, {"a": 7, "b": 5, "c": 11}, {"a": 64, "b": 3, "c": 8})

sizes: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.integers(-9, 9), st.sampled_from([symbol(name) for name in "abc"])),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from([operator.add, operator.sub, operator.mul]), inner, inner).map(
            lambda t: t[0](t[1], t[2])
        ),
        st.tuples(st.sampled_from([floordiv, mod]), inner, st.integers(1, 5)).map(lambda t: t[0](t[1], t[2])),
        st.tuples(st.sampled_from([dim_min, dim_max]), inner, inner).map(lambda t: t[0](t[1], t[2])),
    ),
    max_leaves=6,
)


@given(sizes)
def test_text_parses_back(size: Any) -> None:
    assert parse_dim(str(size)) == size


@given(sizes)
def test_text_means_what_python_says(size: Any) -> None:
    names = {node.id for node in ast.walk(ast.parse(str(size))) if isinstance(node, ast.Name)} - {
        "min",
        "max",
    }
    assert names == set(free_symbols(size))
    for point in POINTS:
        assert evaluate(size, point) == eval(str(size), {"min": min, "max": max}, dict(point))


@given(sizes, sizes)
def test_arithmetic_is_pointwise(left: Any, right: Any) -> None:
    for point in POINTS:
        a, b = evaluate(left, point), evaluate(right, point)
        assert evaluate(left + right, point) == a + b
        assert evaluate(left - right, point) == a - b
        assert evaluate(left * right, point) == a * b
        assert evaluate(dim_min(left, right), point) == min(a, b)


@given(sizes, st.integers(1, 9))
def test_division_is_pointwise(left: Any, right: int) -> None:
    for point in POINTS:
        assert evaluate(floordiv(left, right), point) == evaluate(left, point) // right
        assert evaluate(mod(left, right), point) == evaluate(left, point) % right


def test_canonical() -> None:
    a, b = symbol("a"), symbol("b")
    assert (a + b) * (a + b) == a * a + 2 * a * b + b * b
    assert a - a == 0
    assert floordiv(4 * a, 2) == 2 * a
    assert mod(4 * a, 2) == 0
    assert floordiv(a * b, b) == a


@pytest.mark.parametrize("text", ["", "a.b", "f(a)", "a/b", "a if b else c", "'a'", "1.5", "a//0", "a;b", "a" * 2000])
def test_refused(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_dim(text)
