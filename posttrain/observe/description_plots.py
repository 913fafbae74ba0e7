"""The plots of a data set's description, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from posttrain.data.describe.coverage import Coverage
from posttrain.data.describe.description import Description
from posttrain.data.describe.spread import Spread
from posttrain.observe.plot_style import AXIS, INK, MARK, MUTED, PALETTE, dress, svg

MOST_BARS, MOST_PAIRED, FEWEST_SLOTS = 8, 5, 4
LONGEST_LABEL = 34
_ROLE_COLOURS = {
    "prompt": PALETTE[0],
    "completion": PALETTE[2],
    "answer": PALETTE[5],
    "chosen": PALETTE[2],
    "rejected": PALETTE[4],
}
_THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.0f}")


def plots_of(found: Description) -> list[tuple[str, str]]:
    """(title, <svg>) of everything there is to draw."""
    drawn: list[tuple[str, str]] = []

    def add(title: str, figure: Figure | None) -> None:
        if figure is not None:
            drawn.append((title, svg(figure, title)))

    tokens = any(of.tokens is not None for of in found.lengths.values())
    for unit in ("tokens",) if tokens else ("characters",):
        spreads = {role: one for role, of in found.lengths.items() if (one := vars(of)[unit]) is not None}
        prompts = {role: one for role, one in spreads.items() if role == "prompt"}
        answers = {role: one for role, one in spreads.items() if role != "prompt"}
        add(f"Length of prompts [{unit}]", histogram(prompts, unit))
        add(f"Length of answers [{unit}]", histogram(answers, unit))
    add("Languages", _languages(found))
    if found.answer_kinds is not None:
        add(f"Kinds of answers ({found.answer_kinds.role})", bars({"": found.answer_kinds.kinds}, "rows"))
    faults = {f"{one.role}: {one.fault}": one.rows for one in found.faults}
    add("Faults in texts", bars({"": faults}, "rows") if faults else None)
    if found.pairs is not None and found.pairs.difference is not None:
        title = "Chosen minus rejected [characters]"
        add(title, histogram({"": found.pairs.difference}, "characters", zero=True))
    if found.ratings is not None:
        add("Scores of the answers", histogram({"": found.ratings.scores}, "score"))
    if found.logs is not None and found.logs.turns is not None:
        add("User turns per conversation", histogram({"": found.logs.turns}, "user turns"))
    if found.model is not None:
        add("Log-prob of the answers [nats per token]", histogram(found.model.by_row, "mean of a row"))
    if found.coverage is not None:
        add("Trajectory quality and coverage", plane(found.coverage))
    return drawn


def histogram(spreads: Mapping[str, Spread], xlabel: str, *, zero: bool = False) -> Figure | None:
    """Outlined histograms of one or more roles on one axis, logarithmic where one of them has such bins. Several have
    bins of different widths, so what is drawn is their density: equal areas are equal shares. None where all values are
    one."""
    if all(one.smallest == one.largest for one in spreads.values()):
        return None
    figure, ax = _figure()
    wide = any(_is_logarithmic(one) for one in spreads.values())
    for i, (role, one) in enumerate(spreads.items()):
        colour = _ROLE_COLOURS.get(role, PALETTE[i])
        edges = [max(edge, 0.5) if wide else edge for edge in one.edges]
        counts: Sequence[float] = one.counts
        if edges[0] == edges[-1]:  # one value: a bar needs a width
            width = max(abs(edges[0]) * 0.02, 0.5)
            edges, counts = [edges[0] - width, edges[0] + width], [one.count]
        if len(spreads) > 1:
            counts = _density(counts, edges, wide)
        ax.stairs(counts, edges, fill=True, alpha=0.22, color=colour)
        ax.stairs(counts, edges, color=colour, linewidth=1.5, label=role)
    if wide:
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    else:
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=all(map(_is_of_whole_numbers, spreads.values()))))
    if wide or max(abs(one.largest) for one in spreads.values()) >= 1000:
        ax.xaxis.set_major_formatter(_THOUSANDS)
    if zero:
        ax.axvline(0, color=MARK, linestyle="--", linewidth=1.1)
    ax.set_ylim(bottom=0)
    if len(spreads) == 1:
        ax.yaxis.set_major_formatter(_THOUSANDS)
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=len(spreads) == 1))
    dress(ax, xlabel)
    ylabel = "rows" if len(spreads) == 1 else f"share of rows, per {'doubling' if wide else 'unit'}"
    ax.set_ylabel(ylabel, color=MUTED, fontsize=8.5)
    _legend(ax, [role for role in spreads if role])
    return figure


def _density(counts: Sequence[float], edges: Sequence[float], wide: bool) -> list[float]:
    """Share of all rows over the width of the bin, in doublings where `wide`."""
    total = sum(counts)
    widths = [math.log2(end / start) if wide else end - start for start, end in pairwise(edges)]
    return [count / total / width for count, width in zip(counts, widths, strict=True)]


def bars(counts: Mapping[str, Mapping[str, int]], xlabel: str) -> Figure | None:
    """Horizontal bars of one or more series, the commonest on top, with their numbers; None for fewer than two."""
    names = sorted(
        {name for of in counts.values() for name in of},
        key=lambda n: -max(of.get(n, 0) for of in counts.values()),
    )
    if len(names) < 2:  # a table says as much
        return None
    shown = names[: MOST_BARS if len(counts) == 1 else MOST_PAIRED]
    figure, ax = _figure()
    height = 0.76 / len(counts)
    largest = max(of.get(name, 0) for of in counts.values() for name in shown)
    for i, (label, of) in enumerate(counts.items()):
        for row, name in enumerate(shown):
            value = of.get(name, 0)
            place = row + (i - (len(counts) - 1) / 2) * height
            colour = PALETTE[(0, 2)[i]] if len(counts) > 1 else PALETTE[0]
            ax.barh(
                place, value, height=height * 0.92, color=colour, alpha=0.8, label=label if row == 0 else ""
            )
            if value:
                ax.text(value + largest * 0.012, place, f"{value:,}", va="center", fontsize=8, color=INK)
    ax.set_yticks(range(len(shown)), [_short(name) for name in shown])
    ax.set_ylim(max(len(shown), FEWEST_SLOTS) - 0.5, -0.5)  # from above; a lone bar is no wall
    ax.set_xlim(0, largest * 1.14)
    dress(ax, xlabel)
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.xaxis.set_major_formatter(_THOUSANDS)
    _legend(ax, [label for label in counts if label])
    return figure


def plane(found: Coverage) -> Figure | None:
    """The data among SACo (across) and TQ (up), the reference's own place at (1, 1); None without both."""
    if found.quality is None or found.coverage is None:
        return None
    figure, ax = _figure()
    ax.axhline(1, color=AXIS, linewidth=0.9, linestyle="--")
    ax.axvline(1, color=AXIS, linewidth=0.9, linestyle="--")
    ax.plot([1], [1], marker="s", ms=7, color=MARK, linestyle="", label="best of the reference")
    ax.plot(
        [found.coverage], [found.quality], marker="o", ms=9, color=PALETTE[0], linestyle="", label="this data"
    )
    ax.set_xlim(0, max(1.15, found.coverage * 1.15))
    ax.set_ylim(min(0.0, found.quality * 1.15), max(1.15, found.quality * 1.15))
    dress(ax, "SACo")
    ax.set_ylabel("TQ", color=MUTED, fontsize=8.5)
    _legend(ax, ["both", "shown"])
    return figure


def _languages(found: Description) -> Figure | None:
    named = {"prompt": "prompts", "answer": "answers"}
    counts = {named[role]: of for role, of in found.languages.items()}
    return bars(counts, "rows") if counts else None


def _is_logarithmic(one: Spread) -> bool:
    """Whether spread.py chose bins that grow: equal widths have none twice as wide as the first."""
    edges = one.edges
    return len(edges) > 3 and edges[-1] - edges[-2] > 2 * (edges[2] - edges[1])


def _is_of_whole_numbers(one: Spread) -> bool:
    """Whether spread.py gave each whole number its bin."""
    return one.edges[0] % 1 == 0.5


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…"


def _figure() -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.6, 2.55), layout="constrained")
    return figure, figure.add_subplot()


def _legend(ax: Any, labels: Sequence[str]) -> None:
    if len(labels) > 1:
        ax.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, frameon=False, fontsize=8, borderaxespad=0.1,
            handlelength=1.4, columnspacing=1.2,
        )  # fmt: skip
