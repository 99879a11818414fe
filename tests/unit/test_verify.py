"""Drawing, recording and comparing: pinned values, tolerances, NaN and Inf, reloaded weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from tests.unit.numpy_package import recording
from transpiler import verify
from transpiler.cases import Argument, draw_inputs, draw_state
from transpiler.checks import FACTOR_EPS, FACTOR_TORCH, Expected, check, compare, tolerance_of
from transpiler.draw import (
    Array,
    integers,
    make,
    normal,
    random_bits,
    sample_positions,
    seed_of,
    uniform,
)
from transpiler.measuring import measure, worst_errors
from transpiler.recorded import OutputSpec
from transpiler.verify import expect, record

EPS = 2.0**-23
INF, NAN = np.inf, np.nan


# --- the generator ------------------------------------------------------------------------------------------


def test_splitmix64_reference_values() -> None:
    """The first outputs for seed 1234567, as published with the algorithm."""
    assert random_bits(1234567, 5).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_a_seed_is_the_start_of_a_sha256() -> None:
    assert seed_of("drawn_1/x") == 5522476112129168893


def test_drawn_values_are_pinned() -> None:
    assert uniform(1, 2).tolist() == [0.5665615751722809, 0.7457817572627011]
    assert normal(1, 2).tolist() == [-0.6175135365488568, 1.0724623068528165]
    assert integers(1, 6, -2, 3).tolist() == [3, -1, -2, 3, 1, 0]


def test_normal_and_uniform_have_their_moments() -> None:
    sample = normal(3, 200_000)
    assert abs(sample.mean()) < 0.01
    assert abs(sample.std() - 1) < 0.01
    drawn = make({"kind": "uniform", "seed": 5, "mean": 2.0, "std": 0.5, "low": None}, "float32", (100_000,), {})
    assert abs(drawn.mean() - 2) < 0.01
    assert abs(drawn.std() - 0.5) < 0.01


def test_sampled_positions_are_distinct_sorted_and_hold_both_ends() -> None:
    positions = sample_positions(1, 10**6, 64)
    assert positions[0] == 0
    assert positions[-1] == 10**6 - 1
    assert (np.diff(positions) > 0).all()
    assert 48 < len(positions) <= 64
    assert sample_positions(1, 5, 64).tolist() == [0, 1, 2, 3, 4]


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown recipe kind 'magic'"):
        make({"kind": "magic"}, "float32", (1,), {})


# --- the drawn inputs ---------------------------------------------------------------------------------------


def _draw(arguments: Sequence[Argument], *examples: Array) -> dict[str, tuple[Array, ...]]:
    return {case.name: case.arrays for case in draw_inputs(arguments, examples).cases}


def test_float_cases() -> None:
    example = normal(9, 600).astype(np.float32).reshape(2, 300) * 3 + 5
    cases = _draw([Argument("x", "float32", (2, 300))], example)
    assert list(cases) == [
        "example", "drawn_1", "drawn_2", "drawn_3", "zeros", "large", "denormal",
        "nan_in_x", "plus_inf_in_x", "minus_inf_in_x",
    ]  # fmt: skip
    assert np.array_equal(cases["example"][0], example)
    assert abs(cases["drawn_1"][0].mean() - 5) < 0.5
    assert abs(cases["drawn_1"][0].std() - 3) < 0.5
    assert not np.array_equal(cases["drawn_1"][0], cases["drawn_2"][0])
    assert not cases["zeros"][0].any()
    assert 5e3 < cases["large"][0].std() < 2e4
    assert 0 < np.abs(cases["denormal"][0]).max() < np.finfo(np.float32).tiny
    for name, value in (("nan_in_x", NAN), ("plus_inf_in_x", INF), ("minus_inf_in_x", -INF)):
        odd = ~np.isfinite(cases[name][0])
        assert odd.sum() == 1
        assert np.array_equal(cases[name][0][odd], [value], equal_nan=True)
        assert np.array_equal(cases[name][0][~odd], example[~odd])
    assert all(array.dtype == np.float32 for arrays in cases.values() for array in arrays)


def test_a_constant_example_is_drawn_standard_normal() -> None:
    drawn = _draw([Argument("x", "float32", (1000,))], np.zeros(1000, np.float32))["drawn_1"][0]
    assert abs(drawn.std() - 1) < 0.1


def test_a_non_negative_example_stays_non_negative() -> None:
    example = uniform(2, 1000).astype(np.float32)
    assert _draw([Argument("x", "float32", (1000,))], example)["drawn_1"][0].min() >= 0


def test_an_additive_mask_with_infinities_is_kept() -> None:
    mask = np.triu(np.full((4, 4), -INF, np.float32), 1)
    cases = _draw([Argument("mask", "float32", (4, 4)), Argument("x", "float32", (3,))], mask, np.ones(3, np.float32))
    assert all(np.array_equal(cases[name][0], mask) for name in ("drawn_1", "zeros", "large"))


def test_integers_stay_in_their_bounds() -> None:
    ids = Argument("ids", "int64", (2, 500), (0, 29))
    cases = _draw([ids], np.zeros((2, 500), np.int64))
    assert set(np.unique(cases["drawn_1"][0]).tolist()) == set(range(30))
    assert set(cases["lowest"][0].ravel().tolist()) == {0}
    assert set(cases["highest"][0].ravel().tolist()) == {29}
    unbounded = _draw([Argument("n", "int32", (500,))], np.arange(500, dtype=np.int32) % 7 + 3)["drawn_1"][0]
    assert set(np.unique(unbounded).tolist()) == set(range(3, 10))
    assert unbounded.dtype == np.int32


@pytest.mark.parametrize("dtype", ["int64", "bool"])
def test_masks_keep_the_first_element_of_every_row(dtype: str) -> None:
    drawn = _draw([Argument("mask", dtype, (3, 40))], np.ones((3, 40), dtype))["drawn_1"][0]
    assert drawn.dtype == np.dtype(dtype)
    assert (drawn[:, 0] == 1).all()
    assert 0 < drawn.sum() < drawn.size


def test_an_integer_mask_with_zeros_keeps_the_first_element_too() -> None:
    example = np.ones((3, 40), np.int64)
    example[:, 30:] = 0
    drawn = _draw([Argument("mask", "int64", (3, 40))], example)["drawn_1"][0]
    assert (drawn[:, 0] == 1).all()
    assert set(np.unique(drawn).tolist()) == {0, 1}


def test_a_padding_mask_of_falses_is_drawn_the_other_way_round() -> None:
    drawn = _draw([Argument("mask", "bool", (3, 40))], np.zeros((3, 40), bool))["drawn_1"][0]
    assert not drawn[:, 0].any()
    assert 0 < drawn.sum() < drawn.size


def test_a_mixed_bool_keeps_what_is_true() -> None:
    example = np.tril(np.ones((8, 8), bool))
    drawn = _draw([Argument("mask", "bool", (8, 8))], example)["drawn_1"][0]
    assert drawn[example].all()
    assert drawn[~example].any()


def test_a_fixed_scalar_leaves_only_the_example() -> None:
    assert list(_draw([Argument("n", "int64", ())], np.asarray(3))) == ["example"]


# --- tolerance and comparison -------------------------------------------------------------------------------


def _expected(torch: Sequence[float], exact: Sequence[float], dtype: str = "float32", **sizes: int) -> Expected:
    sizes = {"whole": 1000, "sample": 10, "parts": 1} | sizes
    return expect("y", dtype, np.asarray(torch, dtype), np.asarray(exact), **sizes)


def _f32(*values: float) -> Array:
    return np.asarray(values, np.float32)


def test_the_tolerance_is_the_formula() -> None:
    torch, exact = _f32(1.0, -3.5, 2.0), np.asarray([1.25, -4.0, 2.0])
    assert tolerance_of(torch, exact, "float32") == FACTOR_TORCH * 0.5 + FACTOR_EPS * EPS * 4.0
    assert (FACTOR_TORCH, FACTOR_EPS) == (4, 128)


def test_the_tolerance_does_not_sink_below_the_spacing_of_subnormals() -> None:
    assert tolerance_of(_f32(0.0), np.zeros(1), "float32") == pytest.approx(128 * 2.0**-149)


def test_within_and_beyond_the_tolerance() -> None:
    expected = _expected([1.0, 2.0], [1.0, 2.0])
    step = 128 * EPS * 2
    check(expected, _f32(1.0, 2.0 + 0.9 * step))
    message = compare(expected, _f32(1.0, 2.0 + 1.1 * step), "case 'drawn_1'").message
    assert message.startswith("'y' of case 'drawn_1': 1 of 2 compared elements are off; worst at [1]: got 2.0000")
    assert "PyTorch 2.0, in float64 2.0, error 3.3617e-05 > tolerance 3.05176e-05" in message


def test_nan_and_infinities_must_be_the_same() -> None:
    expected = _expected([NAN, INF, -INF, 1.0], [NAN, INF, -INF, 1.0])
    assert expected.excluded == 0
    check(expected, _f32(NAN, INF, -INF, 1.0))
    for wrong in ([0, INF, -INF, 1], [NAN, NAN, -INF, 1], [NAN, INF, INF, 1], [NAN, INF, -INF, NAN]):
        assert "1 of 4 compared elements are off" in compare(expected, _f32(*wrong)).message


def test_positions_where_pytorch_disagrees_with_itself_are_excluded() -> None:
    expected = _expected([INF, NAN, 1.0, INF], [1e39, 2.0, NAN, -INF])
    assert expected.excluded == 4
    assert expected.tolerance == 0
    check(expected, _f32(5.0, 6.0, 7.0, NAN))


def test_a_non_finite_value_is_never_within_tolerance() -> None:
    assert compare(_expected([1.0], [1.0]), _f32(NAN)).message
    assert compare(_expected([1.0], [1.0]), _f32(INF)).message


def test_integers_are_exact_and_ties_are_excluded() -> None:
    expected = _expected([1, 2, 3], [1, 2, 9], "int64")
    assert (expected.tolerance, expected.excluded) == (0.0, 1)
    check(expected, np.asarray([1, 2, 9]))
    check(expected, np.asarray([1, 2, 3]))
    assert compare(expected, np.asarray([1, 3, 3])).message


def test_shape_dtype_and_type_are_checked() -> None:
    expected = _expected([1.0, 2.0], [1.0, 2.0])
    assert "expected shape (2,), got (2, 1)" in compare(expected, _f32(1, 2)[:, None]).message
    assert "expected dtype float32, got float64" in compare(expected, np.asarray([1.0, 2.0])).message
    assert "expected a numpy array, got list" in compare(expected, [1.0, 2.0]).message


def test_a_large_output_is_checked_outside_the_sample_by_its_norms() -> None:
    values = normal(4, 5000).astype(np.float32)
    expected = _expected(values.tolist(), values.astype(np.float64).tolist(), whole=100, sample=50, parts=20)
    assert expected.torch.size <= 50
    check(expected, values)
    unsampled = int(np.setdiff1d(np.arange(5000), expected.positions)[1234])
    wrong = values.copy()
    wrong[unsampled] += 1.0
    message = compare(expected, wrong).message
    assert f"part {unsampled // 250} of 20" in message
    wrong[unsampled] = NAN
    assert "1 parts are off" in compare(expected, wrong).message


def test_a_part_with_excluded_positions_has_no_norm() -> None:
    torch = np.ones(1000)
    torch[3] = INF
    expected = _expected(torch.tolist(), np.ones(1000).tolist(), whole=100, sample=50, parts=4)
    assert expected.norms is not None
    assert np.isnan(expected.norms).tolist() == [True, False, False, False]


# --- recording ----------------------------------------------------------------------------------------------


def test_a_recording_measures_its_own_reference_as_right() -> None:
    recorded = recording()
    by_case = {tuple(array.tobytes() for array in case.drawn.arrays): case for case in recorded.cases}

    def run(inputs: Sequence[Array]) -> list[Array]:
        case = by_case[tuple(array.tobytes() for array in inputs)]
        return [item.torch.reshape(item.shape) for item in case.outputs]

    errors = measure(recorded, run)
    assert len(errors) == 2 * len(recorded.cases)
    assert not any(error.message for error in errors)
    worst = worst_errors(errors)
    assert sorted(worst) == ["hidden", "total"]
    assert all(error.max_abs_error <= error.tolerance / FACTOR_TORCH for error in worst.values())


def _identity(
    flat_inputs: Sequence[Array], *, weights: Mapping[str, Array] | None, state: Mapping[str, Array] | None
) -> list[Array]:
    if not np.isfinite(flat_inputs[0]).all():
        raise RuntimeError("not finite\nsecond line")
    return [flat_inputs[0] * np.float32(1)]


def _wide(
    flat_inputs: Sequence[Array],
    *,
    double: bool,
    capture_values: Sequence[str],
    weights: Mapping[str, Array] | None,
    state: Mapping[str, Array] | None,
) -> tuple[list[Array], dict[str, Array]]:
    return [flat_inputs[0].astype(np.float64)], {}


def test_cases_that_pytorch_refuses_are_dropped_with_the_reason() -> None:
    arguments, outputs = [Argument("x", "float32", (4,))], [OutputSpec("y", "float32")]
    good = record(arguments, [_f32(1, 2, 3, 4)], outputs, eager=_identity, reference=_wide, state={})
    assert good.dropped == tuple(f"{name}_in_x: RuntimeError: not finite" for name in ("nan", "plus_inf", "minus_inf"))
    assert "nan_in_x" not in [case.name for case in good.cases]
    assert good.reload is None
    with pytest.raises(RuntimeError, match="not finite"):
        record(arguments, [_f32(1, 2, 3, NAN)], outputs, eager=_identity, reference=_wide, state={})


def test_weights_that_cannot_matter_are_said_so() -> None:
    arguments, outputs = [Argument("x", "float32", (4,))], [OutputSpec("y", "float32")]
    state = {"unused": _f32(1, 2)}
    recorded = record(arguments, [_f32(1, 2, 3, 4)], outputs, eager=_identity, reference=_wide, state=state)
    assert recorded.reload is not None
    assert not recorded.reload.changes_outputs
    assert recorded.reload.note == "the new weights give the same outputs"


# --- reloaded weights ---------------------------------------------------------------------------------------


def test_new_weights_keep_the_statistics_and_come_from_them_alone() -> None:
    weight = (normal(11, 20_000).astype(np.float32) * 0.3 + 0.1).reshape(100, 200)
    drawn = draw_state({"w": weight}, {})
    new = drawn.arrays()["w"]
    assert new.shape == weight.shape
    assert new.dtype == np.float32
    assert abs(new.mean() - weight.mean()) < 0.01
    assert abs(new.std() - weight.std()) < 0.01
    assert not np.array_equal(new, weight)
    entry = json.loads(json.dumps(drawn.recipes["w"]))
    assert np.array_equal(make(entry["recipe"], entry["dtype"], entry["shape"], {}), new)


def test_running_variances_stay_above_their_minimum() -> None:
    variance = (uniform(12, 1000) + 0.5).astype(np.float32)
    new = draw_state({"bn.running_var": variance}, {}).arrays()["bn.running_var"]
    assert new.min() >= variance.min() > 0


def test_constant_tensors_change() -> None:
    state = {"bias": np.zeros(50, np.float32), "weight": np.full(50, 2.0, np.float32)}
    new = draw_state(state, {}).arrays()
    assert new["bias"].std() > 0.01
    assert new["weight"].std() > 0.01
    assert new["weight"].min() >= 2


def test_integers_and_non_finite_tensors_are_kept_once() -> None:
    ids, mask = np.arange(5), np.asarray([0, -INF], np.float32)
    drawn = draw_state({"a.ids": ids, "b.ids": ids.copy(), "mask": mask}, {})
    assert sorted(drawn.stored) == ["kept/a.ids", "kept/mask"]
    new = drawn.arrays()
    assert np.array_equal(new["b.ids"], ids)
    assert np.array_equal(new["mask"], mask)


def test_tied_weights_stay_tied() -> None:
    weight = normal(1, 30).astype(np.float32)
    new = draw_state({"wte.weight": weight, "lm_head.weight": weight}, {"lm_head.weight": "wte.weight"}).arrays()
    assert np.array_equal(new["lm_head.weight"], new["wte.weight"])


def test_torch_is_not_imported_here() -> None:
    assert not hasattr(verify, "torch")
