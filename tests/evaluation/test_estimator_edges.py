"""Corners of the estimators: one problem, constant scores, scores outside [0, 1], equal sums, blocks of resamples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from posttrain.evaluation import estimators as est


def test_shares_get_wilsons_interval_and_so_do_constant_scores() -> None:
    shares = est.estimate([0, 1, 1, 0, 1])
    assert shares.method == "wilson"
    assert (shares.low, shares.high) == est.wilson_interval(3, 5)
    constant = est.estimate([0.25] * 8)
    assert constant.method == "wilson"
    assert (constant.low, constant.high) == est.wilson_interval(2, 8)
    assert constant.low < 0.25 < constant.high
    beyond = est.estimate([3.0] * 8)  # no share of anything: a point is all there is to say
    assert (beyond.method, beyond.low, beyond.high) == ("bootstrap over problems", 3.0, 3.0)


def test_one_problem_has_no_error() -> None:
    assert math.isnan(est.standard_error([0.3]))
    assert all(math.isnan(end) for end in est.bootstrap_interval([0.3]))
    assert math.isnan(est.clustered_standard_error([1, 0, 1], "aaa"))
    assert not math.isnan(est.clustered_standard_error([1, 0, 1], "aab"))


def test_a_widened_interval_stays_where_scores_live_and_is_not_held_elsewhere() -> None:
    low, high = est.bootstrap_interval([1.0, 1.0, 1.0, 0.5])
    assert high == 1.0
    assert low > 0
    low, high = est.bootstrap_interval([0.0, 0.0, 0.0, 0.5])
    assert low == 0.0
    low, high = est.bootstrap_interval([-2.0, 3.0, 3.0, 3.0])
    assert low < -0.5
    assert high > 3.0  # the largest mean a resample can have, and the widening beyond it


@pytest.mark.parametrize(("successes", "trials"), [(0, 3), (0, 1000), (3, 3), (1000, 1000), (1, 7)])
def test_wilson_is_within_zero_and_one(successes: int, trials: int) -> None:
    low, high = est.wilson_interval(successes, trials)
    assert 0.0 <= low <= successes / trials <= high <= 1.0


def test_resamples_are_drawn_in_blocks_and_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    generator = np.random.default_rng(0)

    class Recorded:
        def multinomial(self, n: int, shares: Any, size: int) -> Any:
            sizes.append(size)
            return generator.multinomial(n, shares, size=size)

    monkeypatch.setattr(est.np.random, "default_rng", lambda seed: Recorded())
    values = np.linspace(0, 1, 2500)
    est.bootstrap_interval(values, resamples=4000)
    assert sizes == [1600, 1600, 800]  # 4 million numbers at once


def test_a_paired_difference_of_shares_that_vary_is_resampled() -> None:
    first, second = [0, 0, 1, 1, 0, 1], [1, 0, 1, 0, 1, 1]
    found = est.paired_difference(first, second, seed=3)
    d = np.array(second) - np.array(first)
    low, high = est.bootstrap_interval((d + 1) / 2, seed=3)
    assert (found.low, found.high) == (2 * low - 1, 2 * high - 1)


def test_differences_beyond_one_are_not_squeezed() -> None:
    first, second = np.zeros(6), np.array([5.0, -1.0, 4.0, 6.0, 3.0, 5.0])
    found = est.paired_difference(first, second, seed=1)
    assert (found.low, found.high) == est.bootstrap_interval(second, seed=1)
    assert found.low > 1


def test_constant_graded_differences_are_a_point() -> None:
    found = est.paired_difference([0.25, 0.5], [0.5, 0.75])
    assert (found.low, found.high) == pytest.approx((0.25, 0.25))


@pytest.mark.parametrize(
    ("sizes", "step"),
    [
        ([1.0, 2.0], 1.0),
        ([1 / 7, 3 / 7], 1 / 7),
        ([1 / 512], 1 / 512),
        ([1 / 513], None),
        ([math.sqrt(2)], None),
    ],
)
def test_the_step_of_a_lattice(sizes: list[float], step: float | None) -> None:
    assert est._lattice_step(np.array(sizes)) == (None if step is None else pytest.approx(step))


def test_equal_sums_count_off_the_lattice() -> None:
    # all of one sign: only the sum itself and its mirror image are as far out, 2 of 4
    p, method = est.sign_flip_p_value([math.sqrt(2), math.sqrt(3)])
    assert "random" in method
    assert p == pytest.approx(0.5, abs=0.01)


def test_a_sampled_p_value_is_never_zero() -> None:
    p, _ = est.sign_flip_p_value(np.sqrt(np.arange(2, 60)))
    assert p == 1 / (est.SIGN_FLIPS + 1)


def test_what_the_shares_have_in_common_is_corrected_to_nothing_and_not_below() -> None:
    # both 10, neither 9, only one 9 each way: 90 - 81 = 9 is less than 37 / 2
    first = [1] * 10 + [1] * 9 + [0] * 9 + [0] * 9
    second = [1] * 10 + [0] * 9 + [1] * 9 + [0] * 9
    low1, high1 = est.wilson_interval(19, 37)
    share = 19 / 37
    half = math.hypot(share - low1, high1 - share)
    assert est.paired_shares_interval(first, second) == pytest.approx((-half, half))


def test_a_difference_of_shares_is_within_minus_one_and_one() -> None:
    ones, zeros = [1] * 5, [0] * 5
    low, high = est.paired_shares_interval(ones, zeros)
    assert low == -1.0
    assert -1 < high < 0
    low, high = est.paired_shares_interval(zeros, ones)
    assert high == 1.0


def test_lengths_that_do_not_agree() -> None:
    with pytest.raises(ValueError, match="3 values but 2 cluster names"):
        est.clustered_standard_error([1, 0, 1], "ab")
    with pytest.raises(ValueError, match="2 scores but 1 answer classes"):
        est.maj_at_n([[1, 0]], [["7"]])
