"""The recurrence fitted to curves: by hand, against numpy's least squares, on processes whose truth is known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from posttrain.evaluation import drift_statistics as statistics
from posttrain.evaluation.drift_results import DriftResult, _of_fit, _of_nulls, _of_size
from posttrain.evaluation.drift_run import DriftSetup
from posttrain.evaluation.drift_statistics import fit, nulls, reminder_effects
from posttrain.evaluation.drift_task import load_drift_task

PUBLISHED = [[3, 5, 4, 6, 5, 5.5, 4.5, 5]]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def ar1(level, phi, shape, seed=0):
    d = np.empty(shape)
    steps = noise(*shape, seed=seed)
    d[:, 0] = level + steps[:, 0] / np.sqrt(1 - phi**2)
    for t in range(1, shape[1]):
        d[:, t] = level + phi * (d[:, t - 1] - level) + steps[:, t]
    return d


def alike(processes):
    return {null.name for null in processes if null.p_value >= 0.05}


def test_a_fit_by_hand():
    # D = 1, 3, 2: changes 2 and -1 at 1 and 3, a line of slope -1.5; with (2, 1) added mean x = 2, mean y = 2/3,
    # Sxy = (-1)(4/3) + (1)(-5/3) + 0 = -3, Sxx = 2, b = -1.5, a = 2/3 + 3 = 11/3
    found = fit([[1, 3, 2, 3]])
    assert found.slope.value == pytest.approx(-1.5)
    assert found.intercept.value == pytest.approx(11 / 3)
    assert found.equilibrium.value == pytest.approx(22 / 9)
    assert found.contraction.value == pytest.approx(0.5)
    # residuals: 2 - 13/6, -1 + 5/6, 1 - 2/3: squares 1/36 + 1/36 + 4/36, one degree of freedom
    assert found.residual_sd.value == pytest.approx(np.sqrt(1 / 6))
    assert found.trend.value == pytest.approx((-1.5 * 1 - 0.5 * 3 + 0.5 * 2 + 1.5 * 3) / 5)
    assert found.slope.low is None  # one conversation says nothing of others


def test_published_vector():
    found = fit(PUBLISHED)
    assert found.intercept.value == pytest.approx(5.993975903614, abs=1e-11)
    assert found.slope.value == pytest.approx(-1.210843373494, abs=1e-11)
    assert found.equilibrium.value == pytest.approx(4.950248756219, abs=1e-11)
    assert found.contraction.value == pytest.approx(0.210843373494, abs=1e-11)
    assert found.pairs == 7


@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e5])
def test_agrees_with_numpy_s_least_squares_at_every_scale(scale):
    d = scale * (3 + noise(6, 9) + 0.2 * np.arange(9))
    found = fit(d, resamples=20)
    x, y = d[:, :-1].ravel(), np.diff(d, axis=1).ravel()
    turn = np.tile(np.arange(1, 9), 6)
    plain = np.linalg.lstsq(np.stack([np.ones_like(x), x], 1), y, rcond=None)
    assert found.intercept.value == pytest.approx(plain[0][0], rel=1e-8)
    assert found.slope.value == pytest.approx(plain[0][1], rel=1e-8)
    assert found.residual_sd.value == pytest.approx(np.sqrt(plain[1][0] / (len(x) - 2)), rel=1e-8)
    timed = np.linalg.lstsq(np.stack([np.ones_like(x), x / scale, turn], 1), y / scale, rcond=None)[0]
    assert found.slope_given_turn.value == pytest.approx(timed[1], rel=1e-8)
    assert found.turn_effect.value == pytest.approx(scale * timed[2], rel=1e-7)
    assert found.trend.value == pytest.approx(np.polyfit(np.arange(9), d.mean(axis=0), 1)[0], rel=1e-8)


def test_a_resample_is_the_fit_of_the_conversations_drawn():
    d = noise(5, 7) + 4
    weights = np.array([[2.0, 0, 1, 1, 1], [0, 5, 0, 0, 0]])
    drawn = statistics._coefficients(d, with_turn=True, weights=weights)
    for row, conversations in zip(drawn[1:], ([0, 0, 2, 3, 4], [1] * 5), strict=True):
        assert row == pytest.approx(statistics._coefficients(d[conversations], with_turn=True))


def test_intervals_are_over_conversations():
    once = noise(1, 12) + 4
    copies = fit(np.repeat(once, 8, axis=0))
    assert copies.slope.low == pytest.approx(
        copies.slope.high
    )  # eight copies are one conversation, eight times
    assert fit(noise(8, 12) + 4).slope.high - fit(noise(8, 12) + 4).slope.low > 0.1


def test_spearman_with_ties_by_hand():
    # ranks 1, 2.5, 2.5, 4 and 4, 3, 2, 1: products of deviations -2.25 + 0 + 0 - 2.25, over sqrt(4.5 * 5)
    assert statistics.spearman([1, 2, 2, 3], [9, 7, 5, 1]) == pytest.approx(-4.5 / np.sqrt(22.5))
    assert np.isnan(statistics.spearman([1, 1, 1], [1, 2, 3]))


@pytest.mark.parametrize("phi", [0.6, -0.4])
def test_a_scripted_ar1_gives_back_its_contraction(phi):
    found = fit(ar1(4.0, phi, (200, 40)), resamples=300)
    assert found.contraction.value == pytest.approx(abs(phi), abs=0.03)
    assert found.slope.value == pytest.approx(phi - 1, abs=0.03)
    assert found.slope.low < phi - 1 < found.slope.high
    assert found.equilibrium.value == pytest.approx(4.0, abs=0.1)
    assert found.residual_sd.value == pytest.approx(1.0, abs=0.03)
    # it differs from every process without memory and without a force
    assert alike(nulls(ar1(4.0, phi, (200, 40)), simulations=200)) == {"fitted AR(1)"}


def test_independent_noise_gives_minus_one_and_is_called_so():
    many = 5 + noise(5000, 8)
    assert float(statistics.pooled_slope(many)) == pytest.approx(-1.0, abs=0.03)
    singles = statistics._coefficients(many[:, None], with_turn=False)[:, 1]
    assert singles.mean() == pytest.approx(-1.15, abs=0.02)  # single curves of eight turns exaggerate
    d = 5 + noise(16, 8, seed=3)
    assert {"i.i.d.", "turn means", "linear trend"} <= alike(nulls(d))
    assert "random walk" not in alike(nulls(d))
    [said] = [text for text in _of_nulls(fit(d), nulls(d)) if "would give" in text]
    assert "i.i.d. noise" in said
    assert "no restoring force is shown" in said


def test_growth_without_bound_has_a_slope_and_an_equilibrium_too():
    d = 5 + 0.5 * np.arange(8) + noise(5000, 8)
    found = fit(d, resamples=50)
    assert found.slope.value == pytest.approx(-0.5, abs=0.03)
    assert found.equilibrium.value == pytest.approx(7.5, abs=0.1)
    assert found.slope_given_turn.value == pytest.approx(-1.0, abs=0.03)  # the covariate unmasks it
    assert found.turn_effect.value == pytest.approx(0.5, abs=0.03)
    few = d[:24]
    assert "linear trend" in alike(nulls(few))
    assert "i.i.d." not in alike(nulls(few))
    said = " ".join(_of_fit(fit(few)))
    assert "grows by 0.5" in said
    assert "with the turn as covariate" in said


def test_a_random_walk_has_no_force_yet_single_curves_show_one():
    d = 5 + np.cumsum(noise(5000, 8), axis=1)
    assert float(statistics.pooled_slope(d)) == pytest.approx(0.0, abs=0.02)
    singles = statistics._coefficients(d[:, None], with_turn=False)[:, 1]
    assert singles.mean() == pytest.approx(-0.54, abs=0.02)
    walk = next(null for null in nulls(d[:12]) if null.name == "random walk")
    assert walk.p_value >= 0.05
    assert 0.4 < walk.negative < 0.95  # so a negative b alone proves nothing


def test_a_contraction_above_one_is_called_unstable():
    d = ar1(0.0, 0.0, (8, 10))
    for t in range(1, 10):
        d[:, t] = -1.3 * d[:, t - 1] + 0.1 * d[:, t]
    found = fit(d)
    assert found.contraction.value == pytest.approx(1.3, abs=0.05)
    assert any("unstable" in text for text in _of_fit(found))


@pytest.mark.parametrize("curves", [[[1.0], [2.0]], [[1.0, 2.0]], [[1.0, 2.0, 1.5]], [[2.0] * 9] * 3])
def test_too_little_gives_no_fit(curves):
    assert fit(curves) is None
    assert nulls(curves) == []


def test_what_is_not_finite_is_named():
    with pytest.raises(ValueError, match="conversation 1, turn 2 is not finite"):
        fit([[1.0, float("inf"), 2.0], [1.0, 2.0, 3.0]])


def test_effect_of_reminders_by_hand():
    base = np.array([[1, 2, 3, 4, 5], [1, 2, 5, 6, 7.0]])
    reminded = np.array([[1, 2, 1, 2, 1], [1, 2, 1, 4, 1.0]])
    after, without, at = reminder_effects(base, reminded, (3, 5))
    assert (after.turns, without.turns, at.turns) == ((4, 5), (4,), (3, 5))
    assert after.difference.value == pytest.approx((3 + 4) / 2)  # (4.5 - 1.5) and (6.5 - 2.5)
    assert after.relative == pytest.approx(-3.5 / 5.5)
    assert without.difference.value == pytest.approx(2.0)
    assert at.difference.value == pytest.approx((3 + 5) / 2)
    assert after.difference.better == 2
    with pytest.raises(ValueError, match="same conversations"):
        reminder_effects(base, reminded[:1], (3,))


def test_few_turns_and_conversations_are_told():
    task = load_drift_task("three_bullets")
    few = DriftSetup(task, 8, (3, 6), 4, task.sampling)
    assert [text.split()[0] for text in _of_size(few)] == ["8", "intervals"]
    assert _of_size(DriftSetup(task, 30, (), 10, task.sampling)) == []


def test_json_has_no_numbers_that_json_lacks():
    result = DriftResult({}, {}, {"base": [float("nan"), 1.0]}, float("inf"), ["x"])
    assert json.loads(json.dumps(result.for_json(), allow_nan=False))["tokens"] == {"base": [None, 1.0]}
