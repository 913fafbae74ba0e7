"""What a headline rests on: how many problems or steps, and the interval that follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.observe import writer
from posttrain.observe.pairs import read_held_out

PROBLEMS = "problems"
"""Key of an evaluation's results: how many held-out rows it was measured on."""
_Z = 1.959964  # of a two-sided 95 % interval


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of `count` independent problems (Wilson 1927): within 0 and 1, also at the ends."""
    spread = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    centre, scale = share + _Z**2 / (2 * count), 1 + _Z**2 / count
    return (centre - spread) / scale, (centre + spread) / scale


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of a mean, by the normal approximation; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = _Z * math.sqrt(variance / len(values))
    return mean - half, mean + half


def held_out_basis(
    run_dir: Path, metric: str, evaluation: Mapping[str, Mapping[str, float]], ends: tuple[float, float]
) -> str:
    """`256 problems; 95 % intervals 0.31 to 0.42 and 0.82 to 0.91`; as much of it as is known."""
    counts, intervals = [], []
    for when, value in zip(("before", "after"), ends, strict=True):
        rows = read_held_out(run_dir, when)
        count = evaluation.get(when, {}).get(PROBLEMS) or len(rows)
        counts.append(int(count))
        intervals.append(_interval(metric, value, int(count), rows))
    if not all(counts):
        return ""
    if counts[0] != counts[1]:
        words = f"{counts[0]:,} problems before, {counts[1]:,} after"
    else:
        words = f"{counts[0]:,} problem{'' if counts[0] == 1 else 's'}"
    if None in intervals:
        return words
    shown = [f"{ends[0]:.3g} to {ends[1]:.3g}" for ends in intervals if ends is not None]
    return f"{words}; 95 % intervals {' and '.join(shown)}"


def steps_basis(run_dir: Path, averaged: int, logged: int) -> str:
    """What the mean of a curve's end is over."""
    if averaged <= 1:
        return "single steps"
    words = f"means of the first and last {averaged} of {logged:,} logged steps"
    files = writer.completion_files(run_dir)
    if not files:
        return words
    import pyarrow.parquet as pq

    rows = pq.read_metadata(files[max(files)]).num_rows
    return f"{words}; {rows:,} responses per rollout"


def _interval(
    metric: str, value: float, count: int, rows: Sequence[Mapping[str, Any]]
) -> tuple[float, float] | None:
    if count and "accurac" in metric and 0 <= value <= 1 and not metric.startswith("mean_token"):
        return wilson(value, count)
    rewards = [float(row["reward"]) for row in rows if row.get("reward") is not None]
    if metric == "reward" and rewards and math.isclose(sum(rewards) / len(rewards), value, abs_tol=1e-3):
        return mean_interval(rewards)
    return None
