"""Divergence over turns: the recurrence fitted to the curves, what else gives such a fit, the effect of reminders.

The recurrence is that of arXiv 2510.07777: D_{t+1} = D_t + a + b D_t + noise, read there as a restoring force where
b < 0, with the equilibrium D* = -a/b and the contraction lambda = |1 + b|. A negative b is no evidence by itself:
independent noise around a mean gives -1, unbounded growth and a random walk give negative ones too over few turns. So
each fit stands beside what such processes give, simulated with as many conversations and turns, and beside a fit with
the turn as covariate; both are ours, not the paper's.

Shapes: C conversations, T turns; curves are (C, T). Uncertainty is that of drawing other conversations: turns of one
conversation are never resampled. Plain numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posttrain.evaluation.estimators import Difference, paired_difference

Array = NDArray[np.float64]
RESAMPLES = 2_000
SIMULATIONS = 2_000
FEWEST_PAIRS = 3
"""Of (D_t, D_{t+1}): two coefficients and a residual."""
FEWEST_TURNS = 30
"""Below it the processes of `nulls` are hardly told apart; a reader is told."""
_WORST_CONDITION = 1e12


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % bootstrap interval over conversations; no ends for a single conversation."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class RecurrenceFit:
    """Pooled least squares of the change on the value.

    intercept, slope         a and b of the recurrence
    equilibrium              D* = -a/b
    contraction              lambda = |1 + b|; above 1 the fitted recurrence itself runs away
    residual_sd              of the changes, with two degrees of freedom taken off
    spearman                 rank correlation of D_t and its change
    without_equilibrium      share of the resamples with b >= 0
    slope_given_turn         b where the turn's number is a covariate
    turn_effect              its coefficient: the change of the change per turn
    trend                    least-squares slope of D on the turn's number, mean over conversations
    slope_per_conversation   mean of the slopes fitted to single conversations
    pairs                    of a value and its change
    """

    intercept: Interval
    slope: Interval
    equilibrium: Interval
    contraction: Interval
    residual_sd: Interval
    spearman: Interval
    without_equilibrium: float | None
    slope_given_turn: Interval | None
    turn_effect: Interval | None
    trend: Interval
    slope_per_conversation: float | None
    pairs: int


@dataclass(frozen=True)
class Null:
    """The slope b that a process gives when it is simulated with the data's size and moments, and fitted the same way.

    mean, low, high  of the simulated slopes, 95 % between the ends
    p_value          two-sided: how often a simulated slope lies as far out as the data's
    negative         share of simulations with b < 0, which the paper reads as a restoring force
    """

    name: str
    mean: float
    low: float
    high: float
    p_value: float
    negative: float


def fit(curves: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> RecurrenceFit | None:
    """The recurrence fitted to (C, T); None where there are fewer than three pairs, or D never varies.

    Raises ValueError where a value is not finite.
    """
    d = _curves(curves)
    conversations, turns = d.shape
    pairs = conversations * (turns - 1)
    if turns < 2 or pairs < FEWEST_PAIRS or np.ptp(d[:, :-1]) == 0:
        return None
    weights = _weights(conversations, resamples, seed)
    pooled = _coefficients(d, with_turn=False, weights=weights)
    if not np.isfinite(pooled[0]).all():
        return None
    a, b = pooled[..., 0], pooled[..., 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        equilibria = -a / b
    turn = None
    if pairs > FEWEST_PAIRS and turns > 2:
        turn = _coefficients(d, with_turn=True, weights=weights)
        turn = turn if np.isfinite(turn[0]).all() else None
    slopes = _trends(d)
    trends = np.concatenate([[slopes.mean()], weights @ slopes / conversations])
    singles = _coefficients(d[:, None, :], with_turn=False)[..., 1] if turns > 3 else np.array([np.nan])
    return RecurrenceFit(
        intercept=_interval(a, conversations),
        slope=_interval(b, conversations),
        equilibrium=_interval(equilibria, conversations),
        contraction=_interval(np.abs(1 + b), conversations, lowest=0.0),
        residual_sd=_interval(_residual_sds(d, pooled, weights), conversations, lowest=0.0),
        spearman=_interval(_spearmans(d, weights), conversations, lowest=-1.0, highest=1.0),
        without_equilibrium=float((b[1:] >= 0).mean()) if conversations > 1 else None,
        slope_given_turn=None if turn is None else _interval(turn[..., 1], conversations),
        turn_effect=None if turn is None else _interval(turn[..., 2], conversations),
        trend=_interval(trends, conversations),
        slope_per_conversation=float(np.mean(singles)) if np.isfinite(singles).all() else None,
        pairs=pairs,
    )


def pooled_slope(curves: ArrayLike) -> Array:
    """b alone, for data sets side by side. (..., C, T) -> (...)."""
    return _coefficients(np.asarray(curves, dtype=np.float64), with_turn=False)[..., 1]


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Rank correlation, equal values sharing the mean of their ranks; nan where one of the two is constant."""
    ranks = [_ranks(np.asarray(v, dtype=np.float64).ravel()) for v in (x, y)]
    if any(np.ptp(r) == 0 for r in ranks):
        return float("nan")
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


# ---- the least squares


def _curves(curves: ArrayLike) -> Array:
    d = np.asarray(curves, dtype=np.float64)
    if d.ndim != 2 or 0 in d.shape:
        raise ValueError(f"curves are (conversations, turns), not {d.shape}")
    if not np.isfinite(d).all():
        c, t = np.argwhere(~np.isfinite(d))[0]
        raise ValueError(f"the divergence of conversation {c + 1}, turn {t + 1} is not finite")
    return d


def _coefficients(d: Array, *, with_turn: bool, weights: Array | None = None) -> Array:
    """a, b (and the turn's c) of (..., C, T), pooled over C; of the data first, then of each row of `weights`, (R, C).

    nan where the values do not determine them. Computed around the mean in units of the spread: KLs may be 1e-6 or 1e3.
    """
    x, y = d[..., :-1], np.diff(d, axis=-1)
    centre = x.mean(axis=(-2, -1), keepdims=True)
    spread = x.std(axis=(-2, -1), keepdims=True)
    spread = np.where(spread > 0, spread, 1.0)
    columns = [np.ones_like(x), (x - centre) / spread]
    if with_turn:
        turns = np.arange(1.0, x.shape[-1] + 1)
        columns.append(np.broadcast_to((turns - turns.mean()) / turns.std(), x.shape))
    design = np.stack(columns, axis=-1)
    gram = np.einsum("...ti,...tj->...ij", design, design)  # (..., C, k, k)
    right = np.einsum("...ti,...t->...i", design, y / spread)
    found = _solve(gram.sum(axis=-3), right.sum(axis=-2))
    if weights is not None:
        drawn = _solve(np.einsum("rc,cij->rij", weights, gram), weights @ right)
        found = np.concatenate([found[None], drawn])
    centre, spread = centre[..., 0, 0], spread[..., 0, 0]
    out = np.empty_like(found)
    out[..., 1] = found[..., 1]
    out[..., 0] = found[..., 0] * spread - found[..., 1] * centre
    if with_turn:  # back to the change per turn; the intercept is that of turn 0
        out[..., 2] = found[..., 2] * spread / turns.std()
        out[..., 0] -= out[..., 2] * turns.mean()
    return out


def _solve(gram: Array, right: Array) -> Array:
    """(..., k, k), (..., k) -> (..., k), nan where the system is singular."""
    bad = ~(np.linalg.cond(gram) < _WORST_CONDITION)
    safe = np.where(bad[..., None, None], np.eye(gram.shape[-1]), gram)
    found = np.linalg.solve(safe, right[..., None])[..., 0]
    return np.where(bad[..., None], np.nan, found)


def _residual_sds(d: Array, coefficients: Array, weights: Array) -> Array:
    """Of the data, then of each resample, (1 + R,)."""
    x, y = d[:, :-1], np.diff(d, axis=-1)
    counts = np.concatenate([np.ones((1, len(d))), weights])
    a, b = coefficients[:, 0], coefficients[:, 1]
    squares = np.empty(len(counts))
    for row, (count, intercept, slope) in enumerate(zip(counts, a, b, strict=True)):
        squares[row] = count @ ((y - intercept - slope * x) ** 2).sum(axis=1)
    return np.sqrt(squares / (x.size - 2))


def _trends(d: Array) -> Array:
    """Slope on the turn's number of each conversation. (C, T) -> (C,)."""
    turns = np.arange(d.shape[1]) - (d.shape[1] - 1) / 2
    return d @ turns / (turns @ turns)


def _spearmans(d: Array, weights: Array) -> Array:
    x, y = d[:, :-1], np.diff(d, axis=-1)
    drawn = [np.repeat(np.arange(len(d)), count.astype(int)) for count in weights]
    return np.array([spearman(x, y), *(spearman(x[rows], y[rows]) for rows in drawn)])


def _ranks(values: Array) -> Array:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[places]


# ---- uncertainty


def _weights(conversations: int, resamples: int, seed: int) -> Array:
    """How often each conversation is drawn, (R, C); none of a single conversation."""
    if conversations == 1:
        return np.empty((0, 1))
    shares = np.full(conversations, 1 / conversations)
    return np.random.default_rng(seed).multinomial(conversations, shares, size=resamples).astype(np.float64)


def _interval(
    values: Array, conversations: int, *, lowest: float = -np.inf, highest: float = np.inf
) -> Interval:
    """Of values[0], from the resamples behind it: percentiles, widened by the bootstrap's known shortfall for few,
    which must not leave the values' own range."""
    value, drawn = float(values[0]), values[1:][np.isfinite(values[1:])]
    if conversations == 1 or not len(drawn) or not np.isfinite(value):
        return Interval(value, None, None)
    low, high = np.quantile(drawn, [0.025, 0.975])
    widen = np.sqrt(conversations / (conversations - 1))
    low, high = value - (value - low) * widen, value + (high - value) * widen
    return Interval(value, max(float(low), lowest), min(float(high), highest))


# ---- what else gives such a slope


def nulls(curves: ArrayLike, *, seed: int = 0, simulations: int = SIMULATIONS) -> list[Null]:
    """b under processes with the data's size and moments; [] where the data have no fit.

    i.i.d.            independent noise around one mean
    turn means        independent noise around each turn's mean: the script alone (from two conversations on)
    linear trend      unbounded growth, with independent noise
    random walk       no restoring force at all, from the data's first values on
    fitted AR(1)      the fitted recurrence itself: how far the estimate is off where the model is true
    """
    d = _curves(curves)
    if d.shape[1] < 2 or d[:, 1:].size < FEWEST_PAIRS or np.ptp(d[:, :-1]) == 0:
        return []
    observed = _coefficients(d, with_turn=False)
    if not np.isfinite(observed).all():
        return []
    rng = np.random.default_rng(seed)
    shape = (simulations, *d.shape)
    found = []
    for name, process in _processes(d, observed[0], observed[1]).items():
        slopes = pooled_slope(process(rng.standard_normal(shape)))
        slopes = slopes[np.isfinite(slopes)]
        if len(slopes):
            found.append(_null(name, slopes, float(observed[1])))
    return found


def _processes(d: Array, intercept: float, slope: float) -> dict[str, Callable[[Array], Array]]:
    """Name -> standard noise (S, C, T) to curves."""
    conversations, turns = d.shape
    time = np.arange(turns) - (turns - 1) / 2
    trend = d.mean() + _trends(d).mean() * time
    changes = np.diff(d, axis=1)
    residuals = changes - intercept - slope * d[:, :-1]
    made: dict[str, Callable[[Array], Array]] = {
        "i.i.d.": lambda noise: d.mean() + d.std(ddof=1) * noise,
        "linear trend": lambda noise: trend + _sd(d - trend, 2) * noise,
        "random walk": lambda noise: _walk(d[:, 0], 0.0, 0.0, _sd(changes, 0) * noise),
        "fitted AR(1)": lambda noise: _walk(d[:, 0], intercept, slope, _sd(residuals, 2) * noise),
    }
    if conversations > 1:
        means = d.mean(axis=0)
        made["turn means"] = lambda noise: means + _sd(d - means, turns) * noise
    return made


def _sd(residuals: Array, parameters: int) -> float:
    return float(np.sqrt((residuals**2).sum() / max(1, residuals.size - parameters)))


def _walk(start: Array, intercept: float, slope: float, noise: Array) -> Array:
    """The recurrence from the first values (C,) on, with noise (S, C, T), of which the first column is not used."""
    out = np.empty_like(noise)
    out[..., 0] = start
    for t in range(1, noise.shape[-1]):
        out[..., t] = out[..., t - 1] + intercept + slope * out[..., t - 1] + noise[..., t]
    return out


def _null(name: str, slopes: Array, observed: float) -> Null:
    low, high = np.quantile(slopes, [0.025, 0.975])
    # one more than counted: the data are a draw of the process too, and no p value of a simulation is 0
    tail = (min((slopes <= observed).sum(), (slopes >= observed).sum()) + 1) / (len(slopes) + 1)
    return Null(
        name=name,
        mean=float(slopes.mean()),
        low=float(low),
        high=float(high),
        p_value=float(min(1.0, 2 * tail)),
        negative=float((slopes < 0).mean()),
    )


# ---- reminders


@dataclass(frozen=True)
class ReminderEffect:
    """Base minus reminders over some turns, paired by conversation; above 0 the reminders lower the divergence.

    turns       which ones, counted from 1
    difference  mean over conversations, bootstrap interval, p value by sign flips
    relative    change of the mean by the reminders as a share of the base's, as the paper's table; None at a base of 0
    """

    name: str
    turns: tuple[int, ...]
    difference: Difference
    relative: float | None


def reminder_effects(
    base: ArrayLike, reminded: ArrayLike, remind: Sequence[int], *, seed: int = 0
) -> list[ReminderEffect]:
    """Over all turns after the first reminder, and of those the turns with and without one. (C, T) each, same seeds.

    The turn of the first reminder itself is not "after" it; it is shown with the reminded turns.
    """
    before, after = _curves(base), _curves(reminded)
    if before.shape != after.shape:
        raise ValueError(f"{before.shape} and {after.shape}: a paired effect needs the same conversations")
    turns = range(1, before.shape[1] + 1)
    first = min(remind)
    windows = {
        "after the first reminder": [t for t in turns if t > first],
        "of these, turns without one": [t for t in turns if t > first and t not in remind],
        "turns with a reminder": [t for t in turns if t in remind],
    }
    found: list[ReminderEffect] = []
    for name, chosen in windows.items():
        if not chosen or any(one.turns == tuple(chosen) for one in found):
            continue
        at = [t - 1 for t in chosen]
        higher, lower = before[:, at].mean(axis=1), after[:, at].mean(axis=1)
        difference = paired_difference(lower, higher, seed=seed)
        mean = float(higher.mean())
        relative = None if mean == 0 else float(lower.mean() - mean) / mean
        found.append(ReminderEffect(name, tuple(chosen), difference, relative))
    return found
