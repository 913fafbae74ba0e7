"""`posttrain report RUN RUN ...`: several runs on one page. Shared axes, the settings that differ, final figures.

Reads the run folders only, as run_page.py does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any

from rich.console import Console
from rich.markup import escape as plain
from rich.table import Table

from posttrain import __version__
from posttrain.observe import plots
from posttrain.observe.curves import edges, metric_names, series
from posttrain.observe.plot_style import PALETTE, themed
from posttrain.observe.plots import Curve, Panel, Spec
from posttrain.observe.run_page import IN_TERMINAL, TEMPLATE, number, write_page
from posttrain.observe.summary import Summary, facts, summarise

UNSET = "unset"
_OWN = ("output.name", "output.dir")  # differ between any two runs and say nothing
_DASHES = ("-", "--", ":", "-.")  # a palette's second, third, fourth round


@dataclass(frozen=True)
class Run:
    """One of the runs compared: what it is called here, its facts, and its colour and dash in every plot."""

    label: str
    summary: Summary
    colour: str
    dash: str


def read_runs(run_dirs: Sequence[str | Path]) -> list[Run]:
    """FileNotFoundError where one is no run folder; ValueError where one is named twice."""
    folders = [Path(folder) for folder in run_dirs]
    resolved = [folder.resolve() for folder in folders]
    for folder in resolved:
        if resolved.count(folder) > 1:
            raise ValueError(f"{folder}: named twice; a run is not compared with itself")
    return [
        Run(
            label,
            summarise(folder),
            PALETTE[i % len(PALETTE)],
            _DASHES[i // len(PALETTE) % len(_DASHES)],
        )
        for i, (label, folder) in enumerate(zip(run_labels(resolved), folders, strict=True))
    ]


def run_labels(folders: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell all of them apart."""
    deepest = max(len(folder.parts) for folder in folders)
    for depth in range(1, deepest + 1):
        labels = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(labels)) == len(labels):
            return labels
    return [str(folder) for folder in folders]


def differing_settings(recipes: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """(key, its value in each recipe) of every key that two of them hold differently, in the recipes' order."""
    flat = [_flattened(recipe) for recipe in recipes]
    keys = dict.fromkeys(key for recipe in flat for key in recipe if key not in _OWN)
    found = [(key, [recipe.get(key, UNSET) for recipe in flat]) for key in keys]
    return [
        (key, [str(v) for v in values]) for key, values in found if any(a != b for a, b in pairwise(values))
    ]


def final_figures(runs: Sequence[Run]) -> list[tuple[str, list[tuple[float, float] | None]]]:
    """(metric, its mean over the first and the last steps of each run) for what a reader asks first."""
    found = []
    for name in IN_TERMINAL:
        values = [series(run.summary.rows, name)[1] for run in runs]
        if any(values):
            found.append((name, [edges(one) if one else None for one in values]))
    return found


def overlaid(runs: Sequence[Run]) -> list[Panel]:
    """One panel a metric, one curve per run, in the order of a run's own page; only what two runs share, but for what
    tells whether they learned."""
    names = list(dict.fromkeys(name for run in runs for name in metric_names(run.summary.rows)))
    panels, claimed = [], set()
    for spec in plots.specs_of([row for run in runs for row in run.summary.rows]):
        if spec.title == "Loss" and "reward" in names:
            spec = replace(spec, section="Run")
        for pattern, label in spec.metrics:
            for name in names:
                if name in claimed or not plots.matches(name, pattern):
                    continue
                claimed.add(name)
                word = label.format(plots.starred(name, pattern))
                title = spec.title if len(spec.metrics) == 1 else f"{spec.title}: {word}"
                panels.append(_panel(replace(spec, title=title, band=None, target=None), name, runs))
    for name in names:
        if "/" in name and name not in claimed and not name.startswith(plots.SHARED):
            panels.append(_panel(Spec("Method", name, ((name, ""),)), name, runs))
    return [p for p in panels if len(p.curves) > 1 or (p.curves and p.spec.section == "Learning")]


def write_comparison(runs: Sequence[Run], out: Path) -> Path:
    """Writes the page and returns its path."""
    body = [
        f"<header><h1>{len(runs)} runs compared</h1></header>",
        _key(runs),
        _notes(runs),
        _figures(runs),
        _settings(runs),
        *(_charts(section, overlaid(runs)) for section in ("Learning", "Policy", "Method", "Run")),
    ]
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(" · ".join(run.label for run in runs)),
        body="\n".join(part for part in body if part),
        footer=escape(
            f"posttrain {__version__} · figures: mean of the first and of the last logged steps, five where there are "
            "ten or more"
        ),
    )
    return write_page(page, out)


def print_comparison(runs: Sequence[Run], console: Console) -> None:
    """The tables of the page."""
    table = Table("metric", box=None, padding=(0, 2, 0, 0))
    for run in runs:
        table.add_column(plain(run.label), justify="right", overflow="fold")
    for name, ends in final_figures(runs):
        table.add_row(plain(name), *("–" if end is None else number(end[1]) for end in ends))
    console.print(table)
    differing = differing_settings([run.summary.recipe for run in runs])
    if differing:
        table = Table("setting", box=None, padding=(0, 2, 0, 0))
        for run in runs:
            table.add_column(plain(run.label), overflow="fold")
        for key, values in differing:
            table.add_row(plain(key), *map(plain, values))
        console.print(table)
    for note in _warnings(runs):
        console.print(f"! {note}", style="yellow", markup=False, highlight=False)


def _panel(spec: Spec, name: str, runs: Sequence[Run]) -> Panel:
    curves = [
        Curve("", *series(run.summary.rows, name), colour=run.colour, dash=run.dash)
        for run in runs
        if series(run.summary.rows, name)[0]
    ]
    return Panel(spec, curves)


def _key(runs: Sequence[Run]) -> str:
    entries = []
    for run in runs:
        line = (
            f'<svg width="26" height="8" aria-hidden="true"><line x1="0" y1="4" x2="26" y2="4" stroke-width="3" '
            f'style="stroke:{themed(run.colour)}" stroke-dasharray="{_dash_array(run.dash)}"/></svg>'
        )
        entries.append(f"<li>{line} {escape(run.label)}</li>")
    return f'<ul class="key">{"".join(entries)}</ul>'


def _dash_array(dash: str) -> str:
    return {"-": "none", "--": "7 4", ":": "2 3", "-.": "7 3 2 3"}[dash]


def _notes(runs: Sequence[Run]) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in _warnings(runs))
    return f'<ul class="notes">{notes}</ul>' if notes else ""


def _warnings(runs: Sequence[Run]) -> list[str]:
    """What makes the runs hard to compare."""
    found = []
    rows = {str(run.summary.environment["rows"]) for run in runs if run.summary.environment.get("rows")}
    if len(rows) > 1:
        found.append("The runs were not trained on the same rows.")
    versions: dict[str, set[str]] = {}
    for run in runs:
        for package, version in (run.summary.environment.get("versions") or {}).items():
            versions.setdefault(package, set()).add(str(version))
    differ = [f"{package} ({', '.join(sorted(v))})" for package, v in versions.items() if len(v) > 1]
    if differ:
        found.append(f"The runs had different versions of {', '.join(differ)}.")
    for run in runs:
        s = run.summary
        if s.total_steps and s.steps < s.total_steps:
            found.append(f"{run.label}: not at its end, step {s.steps:,} of {s.total_steps:,}.")
    return found


def _figures(runs: Sequence[Run]) -> str:
    lines = []
    for label in dict.fromkeys(name for run in runs for name, _ in facts(run.summary)):
        values = [dict(facts(run.summary)).get(label, "–") for run in runs]
        lines.append((label, [escape(value) for value in values]))
    results = [run.summary.result for run in runs]
    if any(results):
        cells = [
            "–"
            if result is None
            else f"{escape(result[0])}: <b>{number(result[1])} → {number(result[2])}</b>"
            f'<br><span class="muted">{escape(run.summary.basis)}</span>'
            for run, result in zip(runs, results, strict=True)
        ]
        lines.append(("result", cells))
    for name, ends in final_figures(runs):
        lines.append((name, ["–" if end is None else f"{number(end[0])} → {number(end[1])}" for end in ends]))
    return _table("Figures", "", runs, lines)


def _settings(runs: Sequence[Run]) -> str:
    differing = differing_settings([run.summary.recipe for run in runs])
    lines = [(key, [escape(value) for value in values]) for key, values in differing]
    if not lines:
        return '<h2>Settings that differ</h2><p class="muted">None.</p>'
    return _table("Settings that differ", "setting", runs, lines)


def _table(title: str, corner: str, runs: Sequence[Run], lines: Sequence[tuple[str, Sequence[str]]]) -> str:
    """`lines` holds a name and each run's cell as HTML."""
    head = "".join(
        f'<th><span class="swatch" style="background:{themed(run.colour)}"></span>{escape(run.label)}</th>'
        for run in runs
    )
    body = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for name, cells in lines
    )
    return (
        f'<h2>{title}</h2><div class="card"><table class="differs"><tr><th>{corner}</th>{head}</tr>{body}'
        "</table></div>"
    )


def _charts(section: str, panels: Sequence[Panel]) -> str:
    cards = [
        f'<div class="card chart"><h3>{escape(panel.spec.title)}</h3>{plots.draw(panel)}</div>'
        for panel in panels
        if panel.spec.section == section
    ]
    if not cards:
        return ""
    title = {"Method": "The methods' own numbers", "Run": "Schedule and speed"}.get(section, section)
    return f'<h2>{title}</h2><div class="charts">{"".join(cards)}</div>'


def _flattened(value: Any, key: str = "") -> dict[str, Any]:
    """`{"train": {"seed": 0}}` as `{"train.seed": 0}`; of lists of sections each by its place."""
    if isinstance(value, Mapping) and value:
        parts = [(f"{key}.{name}" if key else str(name), part) for name, part in value.items()]
    elif isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        parts = [(f"{key}[{i}]", part) for i, part in enumerate(value)]
    else:
        return {key: value}
    return {name: leaf for path, part in parts for name, leaf in _flattened(part, path).items()}
