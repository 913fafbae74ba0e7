"""One HTML page about the drift of conversations: how to read it, curves, tables, conversations to read."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from posttrain import __version__
from posttrain.evaluation import store
from posttrain.evaluation.drift_results import ArmResult, DriftResult
from posttrain.evaluation.drift_run import BASE, DriftSetup, Key, Row
from posttrain.evaluation.drift_tables import ARMS, NAMES, DriftTable, between, figures_of, tables, with_ends
from posttrain.observe.plot_style import AXIS, INK, LINE, MARK, MUTED, PALETTE, dress, svg
from posttrain.observe.run_page import TEMPLATE

READ = 2
"""Conversations of each arm to read on the page; all are in conversations.jsonl."""


def write_drift_page(
    setup: DriftSetup,
    result: DriftResult,
    rows: Mapping[Key, Row],
    measured: Mapping[Key, Row],
    heading: str,
    path: Path,
) -> None:
    title = f"Context drift: {setup.task.title}"
    readings = "".join(f"<li>{escape(text)}</li>" for text in result.readings)
    body = [
        f"<header><h1>{escape(title)}</h1><p>{escape(heading)}</p></header>",
        f'<section class="facts">{"".join(_facts(result))}</section>',
        f'<ul class="notes">{readings}</ul>' if readings else "",
        _charts(setup, result),
        *(_table(table) for table in tables(setup, result)),
        "<h2>Conversations to read</h2>",
        *(_conversation(setup, rows, measured, arm, c) for arm in setup.arms for c in _read(setup)),
    ]
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title),
        body="\n".join(part for part in body if part),
        footer=f"posttrain {escape(__version__)} · intervals are 95 %, over conversations · after arXiv 2510.07777",
    )
    store.write_text(path, page)


def _facts(result: DriftResult) -> list[str]:
    base = result.arms["kl"][BASE]
    values = [
        ("mean KL, nats per token", figures_of(base.curve.over_turns)),
        ("noise floor", figures_of(base.placebo.over_turns)),
    ]
    if base.fit is not None:
        values += [("b", with_ends(base.fit.slope)), ("D*", with_ends(base.fit.equilibrium))]
    if result.effects["kl"]:
        effect = result.effects["kl"][0].difference
        ends = "" if effect.problems == 1 else f" ({between(effect.low, effect.high)})"
        values.append(("reminders lower KL by", figures_of(effect.value) + ends))
    return [f'<div class="card fact"><span>{escape(k)}</span><b>{escape(v)}</b></div>' for k, v in values]


def _table(table: DriftTable) -> str:
    head = _row(table.head, "th")
    rows = "".join(_row(row, "td") for row in table.rows)
    note = f'<p class="label">{escape(table.note)}</p>' if table.note else ""
    return f'<h2>{escape(table.title)}</h2><div class="card"><table>{head}{rows}</table>{note}</div>'


def _row(cells: list[str], tag: str) -> str:
    first, *others = cells
    numbers = "".join(f'<{tag} class="number">{escape(cell)}</{tag}>' for cell in others)
    return f'<tr><{tag} class="name">{escape(first)}</{tag}>{numbers}</tr>'


# ---- plots


def _charts(setup: DriftSetup, result: DriftResult) -> str:
    cards = [(f"{NAMES[m]} by turn", _curves(setup, result, m)) for m in result.arms]
    base = result.arms["kl"][BASE]
    cards.append(("KL of each conversation (base)", _each(base)))
    if base.fit is not None:
        cards.append(("The fit: change against KL (base)", _changes(base)))
    if base.fit is not None and base.nulls:
        cards.append(("b beside what other processes give (base)", _processes(base)))
    inner = "".join(f'<div class="card chart"><h3>{escape(name)}</h3>{image}</div>' for name, image in cards)
    return f'<h2>At a glance</h2><div class="charts">{inner}</div>'


def _curves(setup: DriftSetup, result: DriftResult, measure: str) -> str:
    figure, ax = _figure()
    turns = list(range(1, setup.turns + 1))
    for i, (arm, found) in enumerate(result.arms[measure].items()):
        curve, colour = found.curve, PALETTE[(0, 2)[i]]
        ax.plot(turns, curve.mean, color=colour, marker="o", ms=4, linewidth=1.7, label=ARMS[arm])
        if curve.low is not None and curve.high is not None:
            ax.fill_between(turns, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)
    base = result.arms[measure][BASE]
    ax.plot(turns, base.placebo.mean, color=MARK, linestyle="--", linewidth=1.2, label="noise floor")
    if base.reference is not None:
        ax.plot(
            turns,
            base.reference.mean,
            color=PALETTE[1],
            linestyle=":",
            linewidth=1.5,
            label="reference itself",
        )
    for turn in setup.remind:
        ax.axvline(turn, color=LINE, linewidth=5, zorder=0)
    dress(ax, "turn" + (" (grey: reminders)" if setup.remind else ""))
    ax.set_ylabel("nats per token", color=MUTED, fontsize=8.5)
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    _legend(ax)
    return svg(figure, f"{NAMES[measure]} by turn")


def _each(base: ArmResult) -> str:
    figure, ax = _figure()
    turns = range(1, len(base.curve.mean) + 1)
    for values in base.values:
        ax.plot(turns, values, color=PALETTE[0], linewidth=0.9, alpha=0.4)
    ax.plot(turns, base.curve.mean, color=INK, linewidth=1.8)
    dress(ax, "turn")
    ax.set_ylabel("KL, nats per token", color=MUTED, fontsize=8.5)
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    return svg(figure, "KL of each conversation")


def _changes(base: ArmResult) -> str:
    assert base.fit is not None
    figure, ax = _figure()
    values = np.array(base.values)
    x, y = values[:, :-1], np.diff(values, axis=1)
    shades = np.broadcast_to(np.arange(1, x.shape[1] + 1), x.shape)
    for turn in range(1, x.shape[1] + 1):
        at = shades == turn
        ax.scatter(x[at], y[at], s=10, color=PALETTE[0], alpha=0.25 + 0.6 * turn / x.shape[1], linewidths=0)
    ends = np.array([x.min(), x.max()])
    ax.plot(ends, base.fit.intercept.value + base.fit.slope.value * ends, color=PALETTE[4], linewidth=1.6)
    ax.axhline(0, color=AXIS, linewidth=0.9)
    level = base.fit.equilibrium.value
    if ends[0] <= level <= ends[1]:
        ax.axvline(level, color=AXIS, linewidth=0.9, linestyle="--")
    dress(ax, "KL of a turn (darker: later; dashed: D*)")
    ax.set_ylabel("change to the next", color=MUTED, fontsize=8.5)
    return svg(figure, "Change of KL against KL")


def _processes(base: ArmResult) -> str:
    assert base.fit is not None
    figure, ax = _figure()
    names = [null.name for null in base.nulls]
    for row, null in enumerate(base.nulls):
        ax.plot([null.low, null.high], [row, row], color=PALETTE[0], linewidth=5, alpha=0.35)
        ax.plot([null.mean], [row], color=PALETTE[0], marker="o", ms=5)
    slope = base.fit.slope
    ax.axvline(slope.value, color=PALETTE[4], linewidth=1.6)
    if slope.low is not None and slope.high is not None:
        ax.axvspan(slope.low, slope.high, color=PALETTE[4], alpha=0.1, linewidth=0)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    dress(ax, "b (red: the data's, with its interval)")
    return svg(figure, "b beside what other processes give")


def _figure() -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.6, 2.7), layout="constrained")
    return figure, figure.add_subplot()


def _legend(ax: Any) -> None:
    ax.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, frameon=False, fontsize=8, borderaxespad=0.1,
        handlelength=1.4, columnspacing=1.2,
    )  # fmt: skip


# ---- to read


def _read(setup: DriftSetup) -> range:
    return range(min(READ, setup.conversations))


def _conversation(
    setup: DriftSetup, rows: Mapping[Key, Row], measured: Mapping[Key, Row], arm: str, conversation: int
) -> str:
    sides = []
    for turn in range(1, setup.turns + 1):
        row, found = rows[arm, conversation, turn], measured[arm, conversation, turn]
        cut = ", cut off" if row["truncated"] else ""
        value = f"KL {figures_of(found['kl'])}, {found['tokens']:,} tokens{cut}"
        sides += [_side(f"turn {turn}, user", row["user"]), _side(f"turn {turn}, {value}", row["response"])]
    heading = f"Conversation {conversation + 1}, {ARMS[arm]}"
    return f'<details class="card"><summary>{heading}</summary><div class="pair">{"".join(sides)}</div></details>'


def _side(label: str, text: str) -> str:
    return f'<div class="side"><div class="label">{escape(label)}</div><pre>{escape(text)}</pre></div>'
