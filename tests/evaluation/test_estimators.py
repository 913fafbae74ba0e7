from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from posttrain.evaluation import estimators as est


def test_avg_and_pass_by_hand():
    scores = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]
    assert est.avg_at_n(scores).tolist() == [0.25, 0.5, 0.0, 1.0]
    # n=4: c=1 -> 1 - C(3,2)/C(4,2) = 1/2; c=2 -> 1 - C(2,2)/C(4,2) = 5/6
    np.testing.assert_allclose(est.pass_at_k(scores, 2), [0.5, 5 / 6, 0, 1])
    assert est.pass_at_k(scores, 4).tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 3), (6, 1, 1), (7, 3, 4), (8, 8, 2), (5, 0, 5)])
def test_pass_at_k_equals_the_share_of_all_subsets(n, c, k):
    row = [1.0] * c + [0.0] * (n - c)
    subsets = list(itertools.combinations(row, k))
    assert est.pass_at_k([row], k)[0] == pytest.approx(sum(any(s) for s in subsets) / len(subsets), abs=1e-12)


def test_pass_at_1_is_avg_and_large_n_does_not_overflow():
    row = [1.0] * 3 + [0.0] * 1997
    assert est.pass_at_k([row], 1)[0] == pytest.approx(est.avg_at_n([row])[0])
    assert est.pass_at_k([row], 1000)[0] == pytest.approx(
        1 - math.comb(1997, 1000) / math.comb(2000, 1000), abs=1e-12
    )


def test_pass_at_k_refuses_more_than_there_are_and_graded_scores():
    with pytest.raises(ValueError, match="n=2"):
        est.pass_at_k([[1, 0]], 3)
    with pytest.raises(ValueError, match="0 and 1"):
        est.pass_at_k([[0.5, 0]], 1)


def test_majority_by_hand():
    scores = [[1, 0, 0], [1, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]]
    classes = [
        ["7", "8", "8"],  # 8 leads, wrong
        ["7", "7", "8"],  # 7 leads, right
        [None, None, "7"],  # those without an answer do not vote
        ["7", "8", None],  # tie of a right and a wrong class
        [None, None, None],
    ]
    assert est.maj_at_n(scores, classes).tolist() == [0, 1, 1, 0.5, 0]


def test_clustered_error_by_hand_and_with_one_sample_a_cluster():
    # mean 0.5, cluster sums of deviations 1 and -1: sqrt(2/1 * 2) / 4
    assert est.clustered_standard_error([1, 1, 0, 0], "aabb") == pytest.approx(0.5)
    # samples taken as independent would claim a much smaller error
    assert est.standard_error([1, 1, 0, 0]) == pytest.approx(math.sqrt(1 / 3) / 2)
    x = [0.0, 1.0, 1.0, 0.3]
    assert est.clustered_standard_error(x, range(4)) == pytest.approx(est.standard_error(x))


def test_clustered_error_of_equal_clusters_is_the_error_of_problem_means():
    rng = np.random.default_rng(0)
    scores = (rng.random((20, 8)) < rng.random((20, 1))).astype(float)
    flat, names = scores.ravel(), np.repeat(np.arange(20), 8).tolist()
    assert est.clustered_standard_error(flat, names) == pytest.approx(
        est.standard_error(est.avg_at_n(scores))
    )


def test_copies_of_samples_buy_no_certainty():
    rng = np.random.default_rng(1)
    scores = (rng.random((30, 4)) < 0.4).astype(float)
    once, thrice = est.estimate(est.avg_at_n(scores)), est.estimate(est.avg_at_n(np.tile(scores, 3)))
    assert (once.low, once.high) == (thrice.low, thrice.high)
    assert once.method == "bootstrap over problems"


def test_wilson_by_hand_and_nothing_right_is_not_certainty():
    low, high = est.wilson_interval(0, 30)
    z2 = 1.959963984540054**2
    assert low == 0.0
    assert high == pytest.approx(z2 / (30 + z2))
    assert est.estimate([0.0] * 30).high == pytest.approx(high)
    assert est.wilson_interval(15, 30) == pytest.approx((0.331, 0.669), abs=1e-3)


def test_bootstrap_equals_the_enumeration_of_all_resamples():
    x = np.array([0.0, 0.25, 0.5, 1.0])
    means = np.sort([np.mean(draw) for draw in itertools.product(x, repeat=4)])
    widen = math.sqrt(4 / 3)
    expected = [x.mean() + (np.quantile(means, q) - x.mean()) * widen for q in (0.1, 0.9)]
    low, high = est.bootstrap_interval(x, confidence=0.8, resamples=100_000, seed=3)
    assert (low, high) == pytest.approx(tuple(expected), abs=0.02)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(5)
    hits = 0
    for trial in range(200):
        p = rng.beta(2, 2, size=40)  # the truth is 0.5
        values = rng.binomial(4, p) / 4
        low, high = est.bootstrap_interval(values, resamples=1000, seed=trial)
        hits += low <= 0.5 <= high
    assert 0.90 <= hits / 200 <= 0.99


def _enumerated_p(d):
    d = np.asarray(d, dtype=float)
    sums = [np.dot(signs, d) for signs in itertools.product((-1, 1), repeat=len(d))]
    return np.mean([abs(s) >= abs(d.sum()) - 1e-9 for s in sums])


@pytest.mark.parametrize(
    "d", [[1, 1, 1, -1, 1], [0.25, -0.5, 0.75, 0.25, 1.0, -0.25], [1 / 3, 2 / 3, -1 / 3], [1, -1], [0.5]]
)
def test_p_value_equals_the_enumeration_of_all_sign_flips(d):
    p, method = est.sign_flip_p_value(d)
    assert method == "exact sign flips"
    assert p == pytest.approx(_enumerated_p(d), abs=1e-12)


def test_p_value_of_right_and_wrong_is_exact_mcnemar():
    first, second = [0] * 9 + [1] * 2 + [1] * 50, [1] * 9 + [0] * 2 + [1] * 50
    result = est.paired_difference(first, second)
    assert result.p_value == pytest.approx(2 * sum(math.comb(11, k) for k in range(3)) / 2**11)
    assert (result.better, result.worse, result.problems) == (9, 2, 61)
    assert result.value == pytest.approx(7 / 61)


def test_p_value_off_the_lattice_is_close_to_the_enumeration():
    d = np.sqrt(np.arange(2, 12)) * np.array([1, 1, -1, 1, 1, 1, -1, 1, 1, 1])
    p, method = est.sign_flip_p_value(d)
    assert "random" in method
    assert p == pytest.approx(_enumerated_p(d), abs=0.005)


def test_difference_has_a_sign_and_pairing_shrinks_it():
    rng = np.random.default_rng(2)
    hard = rng.random(200)
    a = (rng.random((200, 8)) < hard[:, None] * 0.8).mean(1)
    b = (rng.random((200, 8)) < hard[:, None] * 0.9).mean(1)
    diff = est.paired_difference(a, b)
    assert diff.value > 0
    assert est.paired_difference(b, a).value == pytest.approx(-diff.value)
    assert diff.low < diff.value < diff.high
    assert diff.standard_error < math.hypot(est.standard_error(a), est.standard_error(b))


def test_same_run_twice_differs_by_nothing():
    diff = est.paired_difference([0, 1, 1], [0, 1, 1])
    assert (diff.value, diff.p_value, diff.p_method) == (0.0, 1.0, "no problem differs")
    assert diff.low < 0 < diff.high  # three problems prove nothing
    assert est.paired_difference([0.5, 0.5], [0.5, 0.5]).low == 0.0


def paired(both, only_first, only_second, neither):
    first = [1] * both + [1] * only_first + [0] * only_second + [0] * neither
    second = [1] * both + [0] * only_first + [1] * only_second + [0] * neither
    return first, second


# both right, only the first, only the second, neither. (0, 0, 0, 50): Wilson's upper end of 0 in 50, 0.0713, either
# way. (30, 0, 0, 20): Wilson 0.6 -0.1382 +0.1239, phi (600 - 25) / 600, so sqrt(0.1382^2 - 2 phi 0.1382 0.1239
# + 0.1239^2) = 0.0404. (36, 12, 2, 0): more discordant than chance, so phi is negative and uncorrected.
NEWCOMBE = [
    ((36, 12, 2, 0), (0.0569, 0.3404)),
    ((0, 0, 0, 50), (-0.0713, 0.0713)),
    ((30, 0, 0, 20), (-0.0404, 0.0404)),
]


@pytest.mark.parametrize(("cells", "interval"), NEWCOMBE)
def test_interval_of_paired_shares_is_newcombes(cells, interval):
    first, second = paired(*cells)
    low, high = est.paired_shares_interval(second, first)
    assert (low, high) == pytest.approx(interval, abs=1e-4)


def test_refusals():
    with pytest.raises(ValueError, match="same ones"):
        est.paired_difference([1, 0], [1, 0, 1])
    with pytest.raises(ValueError, match="finite"):
        est.avg_at_n([[float("nan")]])
    with pytest.raises(ValueError, match="at least one"):
        est.avg_at_n([[]])
