"""One metric of a run's lines, over its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.settings.run import series

__all__ = ["edges", "metric_names", "series", "width_of_edge"]

_EDGE = 5  # steps averaged at either end of a curve


def metric_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Numeric metrics that appear anywhere in the run, sorted."""
    names = {k for row in rows for k, v in row.items() if isinstance(v, int | float)}
    return sorted(names - {"step", "epoch", "time_s"})


def edges(values: Sequence[float]) -> tuple[float, float]:
    """Mean of the first and of the last few values; a short curve is halved so that they do not overlap."""
    width = width_of_edge(values)
    return sum(values[:width]) / width, sum(values[-width:]) / width


def width_of_edge(values: Sequence[float]) -> int:
    """How many values `edges` averages at either end."""
    return max(1, min(_EDGE, len(values) // 2))
