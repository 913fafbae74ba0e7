"""The plots of an evaluation report, as inline SVG in the look of the run report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from posttrain.evaluation.results import Result
from posttrain.observe.plot_style import LINE, MARK, MUTED, PALETTE, dress, svg

RIGHT, WRONG = "#059669", "#dc2626"


def over_steps(series: Sequence[tuple[str, list[Result]]], labels: Mapping[str, str]) -> str:
    """Headline metric by training step, its interval shaded."""
    figure, ax = _figure()
    for i, (name, results) in enumerate(series):
        colour = PALETTE[i % len(PALETTE)]
        entries = [(r.step, r.headline[1]) for r in results if r.headline[1]["value"] is not None]
        steps = [step for step, _ in entries]
        ax.plot(
            steps,
            [e["value"] for _, e in entries],
            color=colour,
            marker="o",
            ms=4,
            linewidth=1.7,
            label=labels[name],
        )
        bands = [e["interval"] or [e["value"]] * 2 for _, e in entries]
        ax.fill_between(
            steps, [b[0] for b in bands], [b[1] for b in bands], color=colour, alpha=0.13, linewidth=0
        )
    unit = series[0][1][0].headline[1].get("unit")
    _dress(ax, "training step", percent=unit == "share")
    ax.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    _legend(ax, len(series))
    return svg(figure, "Score over checkpoints")


def pass_at_k(results: Sequence[Result]) -> str:
    """pass@k against k for every model that has it, with intervals; pass@1 is the accuracy."""
    figure, ax = _figure()
    drawn = 0
    for result in results:
        curve = pass_at_k_values(result)
        if not curve:
            continue
        colour = PALETTE[drawn % len(PALETTE)]
        drawn += 1
        ks = [k for k, _ in curve]
        ax.plot(
            ks,
            [e["value"] for _, e in curve],
            color=colour,
            marker="o",
            ms=4,
            linewidth=1.7,
            label=result.label,
        )
        bands = [e["interval"] or [e["value"]] * 2 for _, e in curve]
        ax.fill_between(
            ks, [b[0] for b in bands], [b[1] for b in bands], color=colour, alpha=0.13, linewidth=0
        )
    ax.set_xscale("log", base=2)
    ticks = sorted({k for result in results for k, _ in pass_at_k_values(result)})
    ax.set_xticks(ticks, [str(k) for k in ticks])
    ax.minorticks_off()
    _dress(ax, "k samples", percent=True)
    _legend(ax, drawn)
    return svg(figure, "pass@k")


def pass_at_k_values(result: Result) -> list[tuple[int, Mapping[str, Any]]]:
    """(k, entry) ascending, or [] where there is no pass@k."""
    entries = result.metrics["metrics"]
    found = [(int(name.split("@")[1]), entry) for name, entry in entries.items() if name.startswith("pass@")]
    return [(1, entries["accuracy"]), *sorted(found, key=lambda item: item[0])] if found else []


def lengths(result: Result) -> str:
    """Response lengths of right and wrong responses, stacked, with the limit marked."""
    figure, ax = _figure()
    right = [g["tokens"] for g in result.grades if g["score"] == 1.0]
    wrong = [g["tokens"] for g in result.grades if g["score"] != 1.0]
    top = max([*right, *wrong, 1])
    limit = result.limit
    if limit is not None and top > 0.6 * limit:
        top = limit
    bins = np.linspace(0, top, min(40, top) + 1)
    ax.hist(
        [right, wrong],
        bins=bins.tolist(),
        stacked=True,
        color=[RIGHT, WRONG],
        label=["right", "not right"],
        alpha=0.8,
    )
    if limit is not None:
        truncated = sum(bool(g.get("truncated")) for g in result.grades)
        if top == limit:
            ax.axvline(
                limit,
                color=MARK,
                linestyle="--",
                linewidth=1.2,
                label=f"limit {limit:,}: {truncated:,} cut off",
            )
        else:
            ax.plot(
                [],
                [],
                color=MARK,
                linestyle="--",
                label=f"limit {limit:,} lies to the right: {truncated:,} cut off",
            )
    _dress(ax, "tokens", percent=False)
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set_ylabel("responses", color=MUTED, fontsize=8.5)
    _legend(ax, 3)
    return svg(figure, f"Response lengths of {result.label}")


def groups(results: Sequence[Result]) -> str:
    """Accuracy by group (MATH's levels, subjects), one bar a model, with intervals."""
    names = group_names(results)
    rows = max(1, len(names))
    height = max(2.4, 0.42 + rows * (0.14 + 0.17 * len(results)))
    figure, ax = _figure(height)
    thickness = 0.8 / len(results)
    for i, result in enumerate(results):
        found = result.metrics["groups"]
        places, values, below, above = [], [], [], []
        for row, name in enumerate(names):
            entry = found.get(name)
            if entry is None or entry["value"] is None:
                continue
            low, high = entry["interval"] or [entry["value"]] * 2
            places.append(row - 0.4 + thickness * (i + 0.5))
            values.append(entry["value"])
            below.append(max(0.0, entry["value"] - low))
            above.append(max(0.0, high - entry["value"]))
        ax.barh(
            places, values, thickness * 0.86, color=PALETTE[i % len(PALETTE)], label=result.label, alpha=0.85
        )
        ax.errorbar(values, places, xerr=[below, above], fmt="none", ecolor=MARK, elinewidth=1, capsize=2)
    first = results[0].metrics["groups"]
    ax.set_yticks(range(rows), [_group_label(name, first) for name in names])
    ax.invert_yaxis()
    _dress(ax, "", percent=False)
    ax.grid(visible=False, axis="y")
    ax.grid(axis="x", color=LINE, linewidth=0.8)
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    _legend(ax, len(results))
    return svg(figure, "Accuracy by group")


def group_names(results: Sequence[Result]) -> list[str]:
    """Groups of all results: numbers ascending, else by name."""
    names = {name for result in results for name in result.metrics.get("groups") or {}}
    return sorted(names, key=lambda name: (0, int(name), "") if name.isdigit() else (1, 0, name))


def _group_label(name: str, groups: Mapping[str, Any]) -> str:
    text = f"level {name}" if name.isdigit() else short(name, 34)
    return f"{text}  ({groups[name]['problems']})" if name in groups else text


def short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _figure(height: float = 2.7) -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.6, height), layout="constrained")
    return figure, figure.add_subplot()


def _legend(ax: Any, entries: int) -> None:
    if entries > 1:
        labels = ax.get_legend_handles_labels()[1]
        columns = max(1, min(3, 70 // (max(map(len, labels)) + 6)))
        ax.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, frameon=False, fontsize=8,
            borderaxespad=0.1, handlelength=1.4, columnspacing=1.2,
        )  # fmt: skip


def _dress(ax: Any, xlabel: str, *, percent: bool) -> None:
    dress(ax, xlabel)
    if percent:
        low, high = ax.get_ylim()
        ax.set_ylim(max(0.0, low), min(1.0, high) if high > 0 else 1.0)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
