"""`posttrain report RUN`: one self-contained HTML page about a run, and its summary in the terminal.

Reads the run folder only: no torch, no trainer, works on a run that is still going or was killed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatch
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from rich import markup
from rich.console import Console
from rich.table import Table

from posttrain.observe import plots, writer
from posttrain.observe.curves import edges, metric_names, series
from posttrain.observe.image_grid import image_grid
from posttrain.observe.pairs import BeforeAfter
from posttrain.observe.plot_style import themed
from posttrain.observe.progress import sparkline
from posttrain.observe.reasons import CARRIED
from posttrain.observe.reliability import ReliabilityTable
from posttrain.observe.resampled import Resampled
from posttrain.observe.summary import Summary, facts, summarise

TEMPLATE = Path(__file__).with_name("report_template.html")
IN_TERMINAL = (
    *("reward", "accuracy", "eval_accuracy", "eval_reward", "loss", "eval_loss", "mean_token_accuracy"),
    *("rewards/accuracies", "rewards/margins", "entropy", "kl", "grad_norm", "completions/mean_length"),
    *("completions/clipped_ratio", "frac_reward_zero_std", "tools/call_frequency", "tools/failure_frequency"),
)
# of no use in a comparison of two evaluations
_NOT_HELD_OUT = ("reward_failures/*", "*std", "*min_*", "*max_*", "*terminated*", "problems")


def write_report(run_dir: str | Path, out: str | Path | None = None, *, benchmarks: str = "") -> Path:
    """Writes RUN/report.html (or `out`) and returns its path. FileNotFoundError where RUN is no run folder.

    `benchmarks` is the page's part on benchmarks, as HTML (evaluation/in_training.py)."""
    path = Path(out) if out is not None else Path(run_dir) / "report.html"
    return write_page(render(summarise(run_dir), run_dir, benchmarks), path)


def render(s: Summary, run_dir: str | Path, benchmarks: str = "") -> str:
    """The whole page."""
    charts = plots.panels(s.rows, s.recipe, s.evaluation)
    parts = [
        _header(s),
        _stretches(s),
        _charts("Learning", charts),
        _signal(s),
        _resampled(s),
        "" if s.logged is None else s.logged.html(),
        "" if s.family is None else s.family.html(),
        _charts("Policy", charts),
        _charts("Method", charts, title=f"{s.method}'s own numbers"),
        _evaluation(s),
        _reliability(s.reliability),
        benchmarks,
        _failures(s),
        _pairs(s),
        image_grid(Path(run_dir), last_step=s.rows[-1]["step"] if s.rows else 0),
        _charts("Run", charts, title="Schedule and speed"),
        _sources(s, Path(run_dir)),
    ]
    versions = s.environment.get("versions") or {}
    footer = f"posttrain {versions.get('posttrain', '')} · {s.environment.get('started', 'start unknown')}"
    if s.rows:
        footer += " · thin lines: every logged step; bold lines: running median"
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(f"{s.name}: {s.method}"), body="\n".join(p for p in parts if p), footer=escape(footer)
    )


def write_page(page: str, path: Path) -> Path:
    """Written aside and renamed: a reader never sees half a page."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(page, encoding="utf-8")
    os.replace(aside, path)
    return path


def _header(s: Summary) -> str:
    cards = []
    if s.result is not None:
        label, before, after = s.result
        cards.append(
            f'<div class="card fact result"><span>{escape(label)}</span>'
            f"<b>{number(before)} <i>→</i> {number(after)}</b>"
            f"{f'<small>{escape(s.basis)}</small>' if s.basis else ''}</div>"
        )
    cards += [f'<div class="card fact"><span>{escape(k)}</span><b>{escape(v)}</b></div>' for k, v in facts(s)]
    notes = "".join(f"<li>{escape(note)}</li>" for note in s.notes)
    command = s.environment.get("command") or ""
    return (
        f"<header><h1>{escape(s.name)}</h1><p>{escape(command)}</p></header>"
        f'<section class="facts">{"".join(cards)}</section>'
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
    )


def _charts(section: str, panels: Sequence[plots.Panel], title: str | None = None) -> str:
    cards = [
        f'<div class="card chart"><h3>{escape(panel.spec.title)}</h3>{plots.draw(panel)}</div>'
        for panel in panels
        if panel.spec.section == section
    ]
    if not cards:
        return ""
    return f'<h2>{escape(title or section)}</h2><div class="charts">{"".join(cards)}</div>'


def _signal(s: Summary) -> str:
    if not s.signal:
        return ""
    colours = plots.SIGNAL_COLOURS
    bar = "".join(
        f'<div style="width:{share:.4%};background:{themed(colours[name])}" title="{name}: {share:.2%}">'
        f"{f'{share:.0%}' if share > 0.04 else ''}</div>"
        for name, _, share in s.signal
    )
    rows = "".join(
        f'<tr><td><span class="swatch" style="background:{themed(colours[name])}"></span>{name}</td>'
        f'<td class="muted">{escape(meaning)}</td><td class="number">{share:.2%}</td></tr>'
        for name, meaning, share in s.signal
    )
    own = "".join(
        f'<tr><td>{escape(name)}</td><td class="muted">{escape(meaning)}</td>'
        f'<td class="number">{number(value)}</td></tr>'
        for name, meaning, value in s.own
    )
    if own:
        head = f'<tr><th>{escape(s.method)}\'s own numbers</th><th></th><th class="number">over the steps</th></tr>'
        own = f"<table>{head}{own}</table>"
    return (
        f"<h2>Signal: what became of the generated {s.counted}</h2>"
        f'<div class="card"><div class="stack">{bar}</div>'
        f'<table><tr><th>class</th><th></th><th class="number">share of {s.counted}</th></tr>{rows}</table>'
        f"{own}</div>"
        f'<div class="card wide"><h3>Over the steps</h3>{plots.draw_signal(s.rows, s.counted)}</div>'
    )


def _resampled(s: Summary) -> str:
    if s.resampled is None:
        return ""
    rows = "".join(
        f'<tr><td>{one.reason}</td><td class="muted">{escape(one.meaning)}</td>'
        f'<td class="number">{one.groups:,.0f}</td>'
        f'<td class="number">{one.tokens:,.0f}</td><td class="number">{one.share:.2%}</td>'
        f'<td class="number">{one.seconds:,.1f}</td></tr>'
        for one in s.resampled.thrown
    )
    head = "".join(
        f'<th class="number">{word}</th>' for word in ("groups", "tokens", "of all sampled", "seconds")
    )
    table = f"<table><tr><th>thrown away</th><th></th>{head}</tr>{rows}</table>" if rows else ""
    return f'<h2>Dynamic sampling</h2><div class="card"><p>{escape(s.resampled.in_words())}</p>{table}</div>'


def _stretches(s: Summary) -> str:
    """Which steps ran with which value of a setting that a resume changed."""
    rows = "".join(
        f"<tr><td>{escape(key)}</td>"
        f"<td>{first:,} to {'the end' if last is None else f'{last:,}'}</td><td>{escape(str(value))}</td></tr>"
        for key, first, last, value in s.stretches
    )
    if not rows:
        return ""
    return (
        '<h2>Settings that a resume changed</h2><div class="card"><table class="differs">'
        f"<tr><th>setting</th><th>steps</th><th>value</th></tr>{rows}</table></div>"
    )


def _evaluation(s: Summary) -> str:
    before, after = s.evaluation.get("before", {}), s.evaluation.get("after", {})
    names = [name for name in sorted({*before, *after}) if not any(fnmatch(name, p) for p in _NOT_HELD_OUT)]
    names = [name for name in names if before.get(name) or after.get(name)]
    if not names:
        return ""
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="number">{number(before.get(name))}</td>'
        f'<td class="number">{number(after.get(name))}</td>'
        f'<td class="number">{_change(before.get(name), after.get(name))}</td></tr>'
        for name in names
    )
    return (
        '<h2>Held-out, before and after</h2><div class="card"><table><tr><th>metric</th>'
        f'<th class="number">before</th><th class="number">after</th><th class="number">change</th></tr>{rows}'
        "</table></div>"
    )


def _reliability(table: ReliabilityTable | None) -> str:
    if table is None:
        return ""
    rows = "".join(
        f'<tr><td class="number">{one.predicted:.1%}</td><td class="number">{one.observed:.1%}</td>'
        f'<td class="number">{one.interval[0]:.0%} to {one.interval[1]:.0%}</td>'
        f'<td class="number">{one.pairs:,}</td></tr>'
        for one in table.bins
    )
    head = "".join(
        f'<th class="number">{word}</th>' for word in ("predicted", "observed", "95 % interval", "pairs")
    )
    return (
        f'<h2>Reliability of the reward model</h2><p class="muted">{escape(table.in_words())}</p>'
        f'<div class="charts"><div class="card chart">{plots.draw_reliability(table)}</div>'
        f'<div class="card"><table><tr>{head}</tr>{rows}</table></div></div>'
    )


def _failures(s: Summary) -> str:
    if not s.failures:
        return ""
    rows = "".join(
        f'<tr><td>{escape(function)}</td><td>{escape(reason)}</td><td class="number">{count:,}</td></tr>'
        for function, reason, count in s.failures
    )
    return (
        '<h2>Rewards that could not be given</h2><div class="card"><table><tr><th>reward function</th>'
        f'<th>reason</th><th class="number">responses</th></tr>{rows}</table></div>'
    )


def _pairs(s: Summary) -> str:
    if not s.pairs:
        return ""
    return "<h2>Completions</h2>" + "".join(_pair(pair, s.pair_titles) for pair in s.pairs)


def _pair(pair: BeforeAfter, titles: tuple[str, str]) -> str:
    prompt = ""
    if pair.prompt:
        answer = f'<span class="tag">answer: {escape(pair.answer)}</span>' if pair.answer else ""
        prompt = f'<div class="prompt">{answer}<span class="label">prompt</span><pre>{escape(pair.prompt)}</pre></div>'
    sides = "".join(
        f'<div class="side"><span class="tag {verdict if verdict in ("right", "wrong") else ""}">{escape(verdict)}'
        f'</span><span class="label">{escape(title)}</span><pre>{escape(text) or "(empty)"}</pre></div>'
        for title, text, verdict in (
            (titles[0], pair.before, pair.before_verdict),
            (titles[1], pair.after, pair.after_verdict),
        )
    )
    return f'<div class="card pair">{prompt}{sides}</div>'


def _sources(s: Summary, run_dir: Path) -> str:
    recipe_path = run_dir / writer.RECIPE
    recipe = recipe_path.read_text(encoding="utf-8") if recipe_path.exists() else "recipe.yaml is missing"
    environment = "".join(
        f"<tr><td>{escape(str(k))}</td><td><pre>{escape(_flat(v))}</pre></td></tr>"
        for k, v in s.environment.items()
        if k != "earlier" and v is not None
    )
    metrics = "".join(
        f'<tr><td>{escape(name)}</td><td class="number">{first}</td><td class="number">{last}</td>'
        f'<td class="number">{low}</td><td class="number">{high}</td></tr>'
        for name, first, last, low, high in _all_metrics(s)
    )
    found = [("Resolved recipe", f"<pre>{escape(recipe)}</pre>")]
    if environment:
        found.append(("Environment", f"<table>{environment}</table>"))
    if metrics:
        head = "".join(f'<th class="number">{word}</th>' for word in ("first", "last", "lowest", "highest"))
        found.append(("All metrics", f"<table><tr><th>metric</th>{head}</tr>{metrics}</table>"))
    cards = []
    for title, body in found:
        state = " open" if title == "Resolved recipe" else ""
        cards.append(f'<details class="card"{state}><summary>{title}</summary>{body}</details>')
    return "<h2>The run itself</h2>" + "".join(cards)


def _all_metrics(s: Summary) -> list[tuple[str, str, str, str, str]]:
    found = []
    for name in metric_names(s.rows):
        _, values = series(s.rows, name)
        if values:
            found.append((name, *(number(v) for v in (values[0], values[-1], min(values), max(values)))))
    return found


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{k} {v}" for k, v in value.items())
    return ", ".join(str(v) for v in value) if isinstance(value, list) else str(value)


def number(value: float | None) -> str:
    """Three to four digits that matter: 0.3412, 12.3, 1,234, 1.2e-06."""
    if value is None:
        return ""
    if value == 0 or value == int(value) and abs(value) < 1e6:
        return f"{value:,.0f}"
    size = abs(value)
    if size < 1e-3 or size >= 1e6:
        return f"{value:.2e}"
    return f"{value:.4f}" if size < 1 else f"{value:.3f}" if size < 100 else f"{value:,.0f}"


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return ""
    sign = "+" if after > before else ""
    return sign + number(after - before)


# The terminal


def _own_table(s: Summary) -> Table:
    table = Table(f"{s.method}'s own numbers", "over the steps", "", box=None, padding=(0, 2, 0, 0))
    for name, meaning, value in s.own:
        table.add_row(name, number(value), f"[dim]{meaning}[/dim]")
    return table


def print_summary(s: Summary, console: Console) -> None:
    """The page in a screenful: facts, curves' ends, signal, failures, notes."""
    console.print(f"[bold]{markup.escape(s.name)}[/bold]")
    console.print(
        "   ".join(f"[dim]{k}[/dim] {markup.escape(v)}" for k, v in facts(s)), highlight=False, soft_wrap=True
    )
    if s.result is not None:
        label, before, after = s.result
        rests = f" [dim]({markup.escape(s.basis)})[/dim]" if s.basis else ""
        console.print(
            f"{label}: [bold]{number(before)} -> {number(after)}[/bold]{rests}",
            highlight=False,
            soft_wrap=True,
        )
    shown = [(name, series(s.rows, name)[1]) for name in IN_TERMINAL]
    shown = [(name, values) for name, values in shown if values]
    if shown:
        table = Table("metric", box=None, padding=(0, 2, 0, 0))
        for word in ("first", "last"):
            table.add_column(word, justify="right")
        table.add_column("curve")
        for name, values in shown:
            first, last = edges(values)
            table.add_row(name, number(first), number(last), sparkline(_thin(values, 24)))
        console.print(table)
    if s.signal:
        table = Table(f"generated {s.counted}", "share", "", box=None, padding=(0, 2, 0, 0))
        for name, meaning, share in s.signal:
            table.add_row(name, f"{share:.2%}", "" if name == CARRIED else f"[dim]{meaning}[/dim]")
        console.print(table)
    if s.own:
        console.print(_own_table(s))
    if s.resampled is not None:
        _print_resampled(s.resampled, console)
    if s.reliability is not None:
        print_reliability(s.reliability, console)
    if s.logged is not None:
        console.print(s.logged.table())
    if s.family is not None:
        console.print(s.family.table())
    for function, reason, count in s.failures:
        console.print(f"reward {function}: {reason}: {count:,} responses", markup=False, highlight=False)
    for note in s.notes:
        console.print(f"! {note}", style="yellow", markup=False, highlight=False)


def _print_resampled(found: Resampled, console: Console) -> None:
    console.print(f"dynamic sampling: {found.in_words()}", highlight=False, soft_wrap=True)
    if not found.thrown:
        return
    table = Table("thrown away", box=None, padding=(0, 2, 0, 0))
    for word in ("groups", "tokens", "share", "seconds"):
        table.add_column(word, justify="right")
    table.add_column("")
    for one in found.thrown:
        numbers = (f"{one.groups:,.0f}", f"{one.tokens:,.0f}", f"{one.share:.2%}", f"{one.seconds:,.1f}")
        table.add_row(one.reason, *numbers, f"[dim]{one.meaning}[/dim]")
    console.print(table)


def print_reliability(found: ReliabilityTable, console: Console) -> None:
    """How sure a reward model is of held-out pairs, and how often it is right."""
    console.print(found.in_words(), highlight=False, soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for word in ("predicted", "observed", "pairs"):
        table.add_column(word, justify="right")
    for one in found.bins:
        table.add_row(f"{one.predicted:.1%}", f"{one.observed:.1%}", f"{one.pairs:,}")
    console.print(table)


def _thin(values: Sequence[float], count: int) -> list[float]:
    """At most `count` values, each the mean of a stretch of the curve."""
    if len(values) <= count:
        return list(values)
    cuts = [round(i * len(values) / count) for i in range(count + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in zip(cuts, cuts[1:], strict=False)]
