"""The stored runs of overoptimisation.py as a table and as curves over the root of the KL."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

import store  # noqa: E402  # after the path is set
from matplotlib.figure import Figure  # noqa: E402

from posttrain.observe.plot_style import MUTED, PALETTE, dress, svg  # noqa: E402

FOLDER = store.RESULTS / "overoptimisation"
BEST_OF_N = "best of n"
DRAWN = {
    "Learned from the reward model, KL coefficient .001": ("GRPO", "PPO", "PPO-max"),
    "The same with a KL coefficient of .3, and PPO-max at its paper's .05": (
        "GRPO, beta 0.3",
        "PPO, beta 0.3",
        "PPO-max, beta 0.05",
    ),
    "SALSA: the average of two SFT models as the reference": (
        "PPO, beta 0.3",
        "SALSA on PPO, beta 0.3",
        "GRPO, beta 0.3",
        "SALSA on GRPO, beta 0.3",
    ),
    "DPO and RPO, from the pairs themselves": ("DPO", "RPO 0.005", "RPO 0.5", "RPO 2"),
}
KLS = (0.2, 0.4, 0.6, 1.0, 2.0, 3.0)
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
        seeds = "" if len(curves) == 3 else f" ({len(curves)} of 3 seeds)"
        lines.append(f"| {name}{seeds} | " + " | ".join(map(spread, cells)) + " |")
    for i, first in enumerate(arms[BEST_OF_N][0]["curve"] if BEST_OF_N in arms else []):
        rows = [run["curve"][i] for run in arms[BEST_OF_N]]
        gold, proxy = (spread([row[key] for row in rows]) for key in ("gold", "proxy"))
        lines.append(f"| best of {first['n']} | | {gold} | {first['kl']:.2f} | {proxy} | | | |")
    return "\n".join(lines)


def at_kl(curve: Rows, kl: float, key: str = "gold") -> float | None:
    """What a curve has where it first comes so far from the start, between two looks by a straight line."""
    for before, after in zip(curve, curve[1:], strict=False):
        if before["kl"] < kl <= after["kl"]:
            share = (kl - before["kl"]) / (after["kl"] - before["kl"])
            return before[key] + share * (after[key] - before[key])
    return None


def matched(names: Sequence[str]) -> str:
    """Gold of each arm at the same KL, where all its seeds come so far."""
    arms = by_arm()
    lines = ["| gold at a KL of | " + " | ".join(map(str, KLS)) + " |", "|---" * (len(KLS) + 1) + "|"]
    for name in (name for name in names if name in arms):
        cells = []
        for kl in KLS:
            found = [value for run in arms[name] if (value := at_kl(run["curve"], kl)) is not None]
            cells.append(
                spread(found) if len(found) == len(arms[name]) else f"{len(found)} of {len(arms[name])} runs"
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(title: str, arms: Mapping[str, list[dict[str, Any]]]) -> str:
    """Gold on the left, proxy on the right, over the root of the KL, as an <svg>: the mean of the seeds at each look,
    each seed's own curve thin behind it, best of n in grey."""
    figure = Figure(figsize=(9.2, 3.0), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, key, named in zip(
        axes, ("gold", "proxy"), ("right answers", "proxy [spreads of the start]"), strict=True
    ):
        for i, (name, runs) in enumerate(arms.items()):
            grey = name == BEST_OF_N
            colour, style = (MUTED, "--") if grey else (PALETTE[i % len(PALETTE)], "-")
            curves = [run["curve"] for run in runs]
            for curve in curves:
                axis.plot(
                    [_root(row) for row in curve],
                    [row[key] for row in curve],
                    color=colour,
                    alpha=0.25,
                    lw=0.8,
                )
            shared = list(zip(*curves, strict=False))
            means = [[statistics.fmean(row[what] for row in rows) for what in ("kl", key)] for rows in shared]
            roots = [math.sqrt(max(kl, 0.0)) for kl, _ in means]
            axis.plot(
                roots,
                [value for _, value in means],
                style,
                color=colour,
                lw=1.8,
                marker="o",
                ms=2.5,
                label=name,
            )
        dress(axis, "root of the KL to the start [nats per answer]")
        named = "gold: right answers" if key == "gold" else "proxy [standard deviations of the start]"
        axis.set_title(named, fontsize=9, loc="left")
    axes[0].set_ylim(0, None)
    axes[0].legend(frameon=False, fontsize=7.5)
    return svg(figure, title)


def _root(row: Mapping[str, float]) -> float:
    return math.sqrt(max(row["kl"], 0.0))


def section() -> str:
    """The lab's page about it; empty where nothing is stored."""
    arms = by_arm()
    if not arms:
        return ""
    parts = [
        "<h2>Over-optimisation: gold and proxy over the KL to the start</h2>",
        '<p class="muted">A reward model of 400 noisy pairs; gold is whether the answer is right, which nothing was '
        "trained on; mean over seeds, each seed thin (eval/stability/overoptimisation.py)</p>",
    ]
    for title, names in DRAWN.items():
        shown = {name: arms[name] for name in (*names, BEST_OF_N) if name in arms}
        if shown.keys() - {BEST_OF_N}:
            parts.append(f'<div class="card chart"><h3>{escape(title)}</h3>{draw(title, shown)}</div>')
    return "".join(parts)
