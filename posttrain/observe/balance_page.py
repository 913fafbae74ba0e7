"""What `posttrain eval balance` found: reward and KL of each coefficient, the ways to choose one per prompt. No torch.

Reads the result as its JSON file holds it (`FamilyResult.for_json`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from posttrain import __version__
from posttrain.observe.plot_style import MUTED, PALETTE, dress, svg
from posttrain.observe.run_page import TEMPLATE

Rows = tuple[str, list[str], list[list[str]], str]
"""Title, head, cells, note."""


def tables_of(found: Mapping[str, Any]) -> list[Rows]:
    """Of the coefficients, the choices, and what each choice gives to how many prompts."""
    values = list(found["each"])
    ways = {name: one for name, one in found["choices"].items() if name in found["counts"]}
    each = [[value, _reward(one), f"{one['kl']:.3f}"] for value, one in found["each"].items()]
    choices = [
        [name, _reward(one), f"{one['kl']:.3f}", _gain(name, one), *map(str, found["counts"][name])]
        for name, one in ways.items()
    ]
    edges = found["bins"]["edges"]
    names = [f"below {edges[0]:g}", *(f"{a:g} to {b:g}" for a, b in zip(edges, edges[1:], strict=False))]
    bins = [[*names, f"{edges[-1]:g} and above"], [f"{value:g}" for value in found["bins"]["values"]]]
    prompts, samples = found["prompts"], found["samples"]
    return [
        (
            "Each coefficient",
            ["coefficient", "reward", "KL, nats per response"],
            each,
            f"mean over {prompts['evaluation']} prompts, {samples} samples each; in brackets the standard error over "
            "prompts",
        ),
        (
            "One coefficient per prompt",
            ["chosen by", "reward", "KL", "over the single best", *(f"at {value}" for value in values)],
            choices,
            f"chosen on {prompts['calibration']} other prompts, but for 'own samples': one half of a prompt's samples "
            "chooses, the other is counted. The last columns: prompts that get each coefficient",
        ),
        (
            "Bins of the reference's pass rate",
            ["pass rate", "coefficient"],
            list(map(list, zip(*bins, strict=True))),
            "",
        ),
        _weights(found["model"]),
    ]


def _weights(model: Mapping[str, Any]) -> Rows:
    head = ["feature", "mean", *(f"{value:g}" for value in model["values"])]
    rows = [
        [name, f"{center:.3g}", *(f"{one:+.2f}" for one in weights)]
        for name, center, weights in zip(model["features"], model["center"], model["weights"], strict=True)
    ]
    rows.append(["bias", "", *(f"{one:+.2f}" for one in model["bias"])])
    note = "weight of each feature, in units of its spread, for each coefficient: the highest sum is chosen"
    return "Balance model", head, rows, note


def _reward(one: Mapping[str, Any]) -> str:
    error = one["reward_error"]
    return f"{one['reward']:.3f}" + ("" if error is None else f" ({error:.3f})")


def _gain(name: str, one: Mapping[str, Any]) -> str:
    if name == "single best":
        return "–"
    error = one["gain_error"]
    return f"{one['gain']:+.3f}" + ("" if error is None else f" ({error:.3f})")


def show_balance(found: Mapping[str, Any], console: Console) -> None:
    for title, head, rows, note in tables_of(found):
        drawn = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        for at, name in enumerate(head):
            drawn.add_column(name, justify="right" if at else "left", no_wrap=at > 0)
        for row in rows:
            drawn.add_row(*row)
        console.print(f"\n[bold]{title}[/bold]")
        console.print(drawn)
        if note:
            console.print(note, style="dim", markup=False, soft_wrap=True)


def write_balance_page(found: Mapping[str, Any], name: str, path: Path) -> None:
    body = [
        f"<header><h1>KL coefficients of {escape(name)}</h1><p>one policy, asked with the prefix of each coefficient; "
        f"{found['samples']} samples a prompt</p></header>",
        f'<div class="charts"><div class="card chart"><h3>Reward against KL</h3>{_frontier(found)}</div>'
        f'<div class="card chart"><h3>Reward by coefficient</h3>{_by_value(found)}</div></div>',
        *(_table(*one) for one in tables_of(found)),
    ]
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=f"KL coefficients of {escape(name)}",
        body="\n".join(body),
        footer=f"posttrain {escape(__version__)} · bars: one standard error over prompts · after arXiv 2310.17966",
    )
    path.write_text(page, encoding="utf-8")


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> str:
    lines = _row(head, "th") + "".join(_row(row, "td") for row in rows)
    told = f'<p class="label">{escape(note)}</p>' if note else ""
    return f'<h2>{escape(title)}</h2><div class="card"><table>{lines}</table>{told}</div>'


def _row(cells: Sequence[str], tag: str) -> str:
    first, *others = cells
    numbers = "".join(f'<{tag} class="number">{escape(cell)}</{tag}>' for cell in others)
    return f'<tr><{tag} class="name">{escape(first)}</{tag}>{numbers}</tr>'


def _frontier(found: Mapping[str, Any]) -> str:
    figure = Figure(figsize=(5.6, 2.9), layout="constrained")
    ax = figure.add_subplot()
    points = list(found["each"].items())
    ax.plot(
        [p["kl"] for _, p in points],
        [p["reward"] for _, p in points],
        color=PALETTE[0],
        linewidth=1,
        alpha=0.5,
    )
    for value, one in points:
        ax.errorbar(
            one["kl"], one["reward"], yerr=one["reward_error"], color=PALETTE[0], marker="o", ms=4, lw=1
        )
        ax.annotate(
            value, (one["kl"], one["reward"]), (4, 4), textcoords="offset points", fontsize=7.5, color=MUTED
        )
    for at, (name, one) in enumerate(found["choices"].items()):
        if name != "single best":
            ax.plot(
                one["kl"],
                one["reward"],
                color=PALETTE[(at + 1) % len(PALETTE)],
                marker="D",
                ms=5,
                ls="",
                label=name,
            )
    dress(ax, "KL to the reference, nats per response")
    ax.set_ylabel("reward", color=MUTED, fontsize=8.5)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, fontsize=8, handlelength=1.2)
    return svg(figure, "Reward against KL")


def _by_value(found: Mapping[str, Any]) -> str:
    figure = Figure(figsize=(5.6, 2.9), layout="constrained")
    ax = figure.add_subplot()
    names, points = list(found["each"]), list(found["each"].values())
    errors = [one["reward_error"] or 0.0 for one in points]
    ax.errorbar(
        range(len(names)), [one["reward"] for one in points], yerr=errors, color=PALETTE[0], marker="o", ms=4
    )
    ax.set_xticks(range(len(names)), names)
    dress(ax, "coefficient")
    ax.set_ylabel("reward", color=MUTED, fontsize=8.5)
    return svg(figure, "Reward by coefficient")
