"""How numbers spread: percentiles by nearest rank, a histogram, and the interval of a share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

BINS = 30
Z_95 = 1.959963984540054
"""Of the normal distribution, two-sided."""


@dataclass(frozen=True)
class Spread:
    """Percentiles by nearest rank: p90 is the smallest value that at least 90 % of the values do not exceed.

    edges, counts  a histogram, the last bin closed: a bin a number for a few whole ones, logarithmic bins where the
                   largest is over twenty times the median
    """

    count: int
    mean: float
    smallest: float
    median: float
    p90: float
    p99: float
    largest: float
    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class ShareOf:
    """`hits` of `trials`, with Wilson's 95 % interval (Wilson 1927)."""

    hits: int
    trials: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.hits / self.trials if self.trials else 0.0


def spread(values: Sequence[float]) -> Spread | None:
    """None without values."""
    if not values:
        return None
    ordered = sorted(values)
    edges = _edges(ordered)
    return Spread(
        len(ordered),
        math.fsum(ordered) / len(ordered),
        ordered[0],
        percentile(ordered, 0.5),
        percentile(ordered, 0.9),
        percentile(ordered, 0.99),
        ordered[-1],
        tuple(edges),
        tuple(_counts(ordered, edges)),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest rank: the smallest value with at least `share` of the values at or below it."""
    # 0.9 * 10 is 9.000000000000002 for some shares: a rank must not jump for that
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


def share_of(hits: int, trials: int) -> ShareOf:
    """Wilson's score interval: centre (p + z^2/2n) / (1 + z^2/n), never outside 0 to 1."""
    if not trials:
        return ShareOf(0, 0, 0.0, 1.0)
    p, z2 = hits / trials, Z_95**2 / trials
    centre = (p + z2 / 2) / (1 + z2)
    half = Z_95 * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials)) / (1 + z2)
    return ShareOf(hits, trials, max(0.0, centre - half), min(1.0, centre + half))


def _edges(ordered: Sequence[float]) -> list[float]:
    low, high = float(ordered[0]), float(ordered[-1])
    if low == high:
        return [low, high]
    if high - low < BINS and all(float(value).is_integer() for value in ordered):
        return [low - 0.5 + i for i in range(int(high - low) + 2)]
    if low >= 0 and high > 20 * max(percentile(ordered, 0.5), 1):
        start = max(low, 1.0)
        bins = [start * (high / start) ** (i / BINS) for i in range(BINS)]
        return [low, *bins[1:], high] if low >= 1 else [low, *bins, high]
    return [low + (high - low) * i / BINS for i in range(BINS)] + [high]


def _counts(ordered: Sequence[float], edges: Sequence[float]) -> list[int]:
    counts, bin_ = [0] * (len(edges) - 1), 0
    for value in ordered:
        while bin_ < len(counts) - 1 and value >= edges[bin_ + 1]:
            bin_ += 1
        counts[bin_] += 1
    return counts
