"""Scores of a model on a benchmark, with intervals, in plain numpy.

Every estimator first gives one value per problem, (P,), and its uncertainty is that of drawing other problems:
samples of one problem are not independent evidence, so nothing here resamples them. Shapes: P problems,
n samples of a problem; ragged n is a list of arrays.

Sources: pass@k, Chen et al. 2021, https://arxiv.org/abs/2107.03374, eq. 1. Clustered standard errors and
paired comparison, Miller 2024, https://arxiv.org/abs/2411.00640. Wilson 1927 for shares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
SIGN_FLIPS = 100_000


@dataclass(frozen=True)
class Estimate:
    """A mean over problems: value, standard error, confidence interval, and how the interval was made."""

    value: float
    standard_error: float
    low: float
    high: float
    method: str
    problems: int


@dataclass(frozen=True)
class Difference:
    """Second run minus first, paired by problem; `p_value` is two-sided."""

    value: float
    standard_error: float
    low: float
    high: float
    p_value: float
    p_method: str
    problems: int
    better: int
    worse: int


def avg_at_n(scores: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """Mean score of each problem's samples. P arrays (n,) -> (P,)."""
    return np.array([np.mean(_samples(row)) for row in scores], dtype=np.float64)


def pass_at_k(scores: Sequence[ArrayLike], k: int) -> NDArray[np.float64]:
    """Chance that k of a problem's n samples, drawn without replacement, hold a right one. P arrays -> (P,).

    Unbiased: 1 - C(n - c, k) / C(n, k) with c right samples. A sample is right when its score is 1.
    """
    return np.array([_pass_at_k(_samples(row), k) for row in scores], dtype=np.float64)


def _pass_at_k(row: NDArray[np.float64], k: int) -> float:
    n = len(row)
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs between 1 and n samples of every problem; a problem has n={n}")
    if not np.isin(row, (0.0, 1.0)).all():
        raise ValueError("pass@k needs right or wrong: scores of 0 and 1")
    wrong = n - int(row.sum())
    if wrong < k:
        return 1.0
    # a product of ratios below 1: binomials of hundreds of samples overflow
    return 1.0 - float(np.prod((wrong - np.arange(k)) / (n - np.arange(k))))


def maj_at_n(
    scores: Sequence[ArrayLike], classes: Sequence[Sequence[Hashable | None]]
) -> NDArray[np.float64]:
    """Score of the most frequent answer of each problem. P arrays (n,), P lists of n classes -> (P,).

    `None` is a sample without an answer: it does not vote; where nobody votes the problem scores 0. Classes
    that tie for the lead share it: the value is what drawing one of them at random would give on average.
    """
    return np.array(
        [_majority(_samples(s), list(c)) for s, c in zip(scores, classes, strict=True)], dtype=np.float64
    )


def _majority(row: NDArray[np.float64], classes: list[Hashable | None]) -> float:
    if len(row) != len(classes):
        raise ValueError(f"{len(row)} scores but {len(classes)} answer classes for one problem")
    votes = Counter(c for c in classes if c is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    leaders = [c for c, count in votes.items() if count == most]
    return float(
        np.mean([np.mean([s for s, c in zip(row, classes, strict=True) if c == x]) for x in leaders])
    )


def _samples(row: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(row, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError("every problem needs at least one sample, as a flat list of scores")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite; leave out a sample that could not be judged and count it")
    return values


def estimate(values: ArrayLike, *, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """Mean over problems (P,) with its interval.

    Shares (every value 0 or 1) and constant values get Wilson's interval, since a bootstrap of 30 failures
    says [0, 0]; everything else resamples problems.
    """
    x = _samples(values)
    se = standard_error(x)
    if np.isin(x, (0.0, 1.0)).all():
        low, high = wilson_interval(float(x.sum()), len(x), confidence=confidence)
        return Estimate(float(x.mean()), se, low, high, "wilson", len(x))
    if np.ptp(x) == 0 and 0 <= x[0] <= 1:
        low, high = wilson_interval(float(x.sum()), len(x), confidence=confidence)
        return Estimate(float(x.mean()), se, low, high, "wilson", len(x))
    low, high = bootstrap_interval(x, confidence=confidence, seed=seed)
    return Estimate(float(x.mean()), se, low, high, "bootstrap over problems", len(x))


def standard_error(values: ArrayLike) -> float:
    """Standard error of a mean over independent problems; NaN for a single one."""
    x = _samples(values)
    return float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else float("nan")


def clustered_standard_error(values: ArrayLike, clusters: Sequence[Hashable]) -> float:
    """Standard error of the mean of samples (N,) that are correlated within clusters.

    sqrt(C / (C - 1) * sum over clusters of (sum of deviations)^2) / N, with C clusters (Miller 2024, eq. 4,
    and the usual small-sample factor). With one sample a cluster this is `standard_error`; NaN for one
    cluster.
    """
    x = _samples(values)
    if len(clusters) != len(x):
        raise ValueError(f"{len(x)} values but {len(clusters)} cluster names")
    index = {c: i for i, c in enumerate(dict.fromkeys(clusters))}
    if len(index) < 2:
        return float("nan")
    sums = np.bincount([index[c] for c in clusters], weights=x - x.mean(), minlength=len(index))
    count = len(index)
    return float(np.sqrt(count / (count - 1) * np.square(sums).sum()) / len(x))


def wilson_interval(successes: float, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * np.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    # at none and all right an end is the share itself, which rounding would leave outside
    return float(min(max(0.0, centre - half), p)), float(max(min(1.0, centre + half), p))


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean when problems (P,) are drawn again with replacement.

    Widened by sqrt(P / (P - 1)), the bootstrap's known shortfall: it matters for the 30 problems of an AIME.
    """
    x = _samples(values)
    if len(x) == 1:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    # multinomial counts instead of index draws: (resamples, P) at once, in blocks to bound memory
    block = max(1, 4_000_000 // len(x))
    shares = np.full(len(x), 1 / len(x))
    means = np.concatenate(
        [
            rng.multinomial(len(x), shares, size=min(block, resamples - start)) @ x / len(x)
            for start in range(0, resamples, block)
        ]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    widen = np.sqrt(len(x) / (len(x) - 1))
    centre = x.mean()
    low, high = centre - (centre - low) * widen, centre + (high - centre) * widen
    # widening must not leave [0, 1] where the scores live there
    if x.min() >= 0 and x.max() <= 1:
        low, high = max(low, 0.0), min(high, 1.0)
    return float(low), float(high)


def paired_difference(
    first: ArrayLike, second: ArrayLike, *, confidence: float = 0.95, seed: int = 0
) -> Difference:
    """Mean of second - first over the same problems, (P,) each, in the same order.

    Interval: bootstrap over problems; where every problem differs alike it would be a point, and right/wrong gets
    Newcombe's (`paired_shares_interval`). p value: the share of sign flips of the differences with a mean at
    least as far from zero; exact for scores on a lattice (any avg@n), McNemar's exact test for right/wrong.
    """
    a, b = _samples(first), _samples(second)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} problems: a paired difference needs the same ones")
    d = b - a
    p_value, method = sign_flip_p_value(d, seed=seed)
    shares = np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all()
    if shares and np.ptp(d) == 0:
        low, high = paired_shares_interval(a, b, confidence=confidence)
    else:
        low, high = _shifted_bootstrap(d, confidence, seed)
    return Difference(
        value=float(d.mean()),
        standard_error=standard_error(d),
        low=low,
        high=high,
        p_value=p_value,
        p_method=method,
        problems=len(d),
        better=int((d > 0).sum()),
        worse=int((d < 0).sum()),
    )


def paired_shares_interval(
    first: ArrayLike, second: ArrayLike, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of the difference of two paired shares, second - first. Problems right or wrong, (P,) each.

    Newcombe 1998, https://doi.org/10.1002/(SICI)1097-0258(19981130)17:22<2635::AID-SIM954>3.0.CO;2-C, method 10:
    each share's Wilson interval, squares added, less what the two have in common (their phi coefficient, with
    his continuity correction).
    """
    a, b = _samples(first), _samples(second)
    n = len(a)
    both, only_b, only_a = float((a * b).sum()), float(((1 - a) * b).sum()), float((a * (1 - b)).sum())
    neither = n - both - only_a - only_b
    margins = (both + only_b) * (only_a + neither) * (both + only_a) * (only_b + neither)
    product = both * neither - only_a * only_b
    if product > 0:
        product = max(product - n / 2, 0.0)
    phi = product / np.sqrt(margins) if margins else 0.0
    p1, p2 = float(a.mean()), float(b.mean())
    low1, high1 = wilson_interval(p1 * n, n, confidence=confidence)
    low2, high2 = wilson_interval(p2 * n, n, confidence=confidence)
    below = _joined(p2 - low2, high1 - p1, phi)
    above = _joined(high2 - p2, p1 - low1, phi)
    return max(-1.0, p2 - p1 - below), min(1.0, p2 - p1 + above)


def _joined(x: float, y: float, phi: float) -> float:
    return float(np.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y)))


def _shifted_bootstrap(d: NDArray[np.float64], confidence: float, seed: int) -> tuple[float, float]:
    """Differences live in [-1, 1]; halve and shift them into [0, 1] so that the interval stays in range."""
    if np.abs(d).max() > 1:
        return bootstrap_interval(d, confidence=confidence, seed=seed)
    low, high = bootstrap_interval((d + 1) / 2, confidence=confidence, seed=seed)
    return 2 * low - 1, 2 * high - 1


def sign_flip_p_value(differences: ArrayLike, *, seed: int = 0) -> tuple[float, str]:
    """Two-sided p value of a mean difference of zero, and its method. (P,)

    Under the null hypothesis each problem's difference is as likely to have the other sign. Exact when all
    are multiples of one step, by convolving the P two-point distributions; else Monte Carlo with a fixed
    seed.
    """
    d = _samples(differences)
    d = d[d != 0]
    if not len(d):
        return 1.0, "no problem differs"
    step = _lattice_step(np.abs(d))
    if step is not None:
        return _exact_sign_flips(
            np.rint(np.abs(d) / step).astype(int), round(d.sum() / step)
        ), "exact sign flips"
    rng = np.random.default_rng(seed)
    observed = abs(d.sum()) * (1 - 1e-12)  # equal sums must count as equal in floating point
    block = max(1, 4_000_000 // len(d))
    hits = sum(
        int((np.abs(rng.choice((-1.0, 1.0), (min(block, SIGN_FLIPS - s), len(d))) @ d) >= observed).sum())
        for s in range(0, SIGN_FLIPS, block)
    )
    return (hits + 1) / (SIGN_FLIPS + 1), f"{SIGN_FLIPS} random sign flips"


def _lattice_step(sizes: NDArray[np.float64]) -> float | None:
    """The largest 1/m (m <= 512) of which all sizes are multiples, or None."""
    for m in range(1, 513):
        scaled = sizes * m
        if np.abs(scaled - np.rint(scaled)).max() < 1e-9 * m:
            return 1 / m
    return None


def _exact_sign_flips(sizes: NDArray[np.int64], total: int) -> float:
    """P(|sum of sizes with random signs| >= |total|)."""
    # the sum of the positive picks S determines the signed sum: 2 S - sum(sizes)
    distribution = np.ones(1)
    for size in sizes:
        grown = np.zeros(len(distribution) + int(size))
        grown[: len(distribution)] += 0.5 * distribution
        grown[int(size) :] += 0.5 * distribution
        distribution = grown
    signed = 2 * np.arange(len(distribution)) - int(sizes.sum())
    return float(min(1.0, distribution[np.abs(signed) >= abs(total)].sum()))
