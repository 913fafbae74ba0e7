"""The stored runs of overoptimisation.py as a table and as curves over the root of the KL."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import store

FOLDER = store.RESULTS / "overoptimisation"
BEST_OF_N = "best of n"
Rows = list[dict[str, float]]


def by_arm() -> dict[str, list[dict[str, Any]]]:
    """Runs of each arm, in the order of seeds, their proxy in standard deviations of the start's, 0 its mean."""
    stored = store.read("runs", FOLDER).values()
    starts = {run["seed"]: run["start"] for run in stored if run["arm"] == BEST_OF_N}
    arms: dict[str, list[dict[str, Any]]] = {}
    for run in sorted(stored, key=lambda run: run["seed"]):
        scale = starts[run["seed"]]
        curve = [{**row, "proxy": (row["proxy"] - scale["mean"]) / scale["std"]} for row in run["curve"]]
        arms.setdefault(run["arm"], []).append({**run, "curve": curve})
    return arms


def smooth(rows: Rows, width: int = 3) -> Rows:
    """Means of `width` looks in a row."""
    windows = [rows[i : i + width] for i in range(max(1, len(rows) - width + 1))]
    return [{key: statistics.fmean(row[key] for row in part) for key in part[0]} for part in windows]


def spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table(names: Sequence[str]) -> str:
    arms = by_arm()
    lines = [
        "| | start: gold | best gold | KL there | proxy there | gold at the end | KL at the end | proxy at the end |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in (name for name in names if name in arms and name != BEST_OF_N):
        curves = [run["curve"] for run in arms[name]]
        best = [max(smooth(curve), key=lambda row: row["gold"]) for curve in curves]
        ends = [smooth(curve)[-1] for curve in curves]
        cells = [
            [curve[0]["gold"] for curve in curves],
            *([row[key] for row in best] for key in ("gold", "kl", "proxy")),
            *([row[key] for row in ends] for key in ("gold", "kl", "proxy")),
        ]
        seeds = "" if len(curves) == 3 else f" ({len(curves)} seeds)"
        lines.append(f"| {name}{seeds} | " + " | ".join(map(spread, cells)) + " |")
    for i, first in enumerate(arms[BEST_OF_N][0]["curve"] if BEST_OF_N in arms else []):
        rows = [run["curve"][i] for run in arms[BEST_OF_N]]
        gold, proxy = (spread([row[key] for row in rows]) for key in ("gold", "proxy"))
        lines.append(f"| best of {first['n']} | | {gold} | {first['kl']:.2f} | {proxy} | | | |")
    return "\n".join(lines)
