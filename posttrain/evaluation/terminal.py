"""The report's numbers in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from posttrain.evaluation import grades_page
from posttrain.evaluation.figures import group_names
from posttrain.evaluation.results import Result, by_benchmark, comparisons

Titled = tuple[str, Table]


def show(results: Sequence[Result], console: Console) -> None:
    """Scores with intervals, paired differences, accuracy by group, what stands behind win rates,
    warnings."""
    found = [_scores(results), _differences(results), *_groups(results), _preferences(results)]
    for title, table in (pair for pair in found if pair is not None):
        # a table's own title would be folded to the table's width
        console.print(f"\n[bold]{escape(title)}[/]", soft_wrap=True, highlight=False)
        console.print(table)
    console.print()
    for text in grades_page.notes(results):
        console.print(f"[yellow]note[/] {escape(text)}", highlight=False, soft_wrap=True)


def _table(texts: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _scores(results: Sequence[Result]) -> Titled:
    table = _table(
        ["benchmark", "model", "metric"],
        ["score", "95 % interval", "problems", "samples", "cut", "no answer", "time-outs"],
    )
    for group in by_benchmark(results):
        for result in group:
            for i, (name, entry) in enumerate(result.metrics["metrics"].items()):
                cells = [result.title, result.label] if i == 0 else ["", ""]
                table.add_row(
                    *map(escape, [*cells, name]),
                    grades_page.shown(entry),
                    grades_page.interval(entry),
                    f"{entry['problems']:,}",
                    f"{entry['samples']:,}",
                    *(grades_page.counts(result)[:3] if i == 0 else [""] * 3),
                )
    return "Scores", table


def _differences(results: Sequence[Result]) -> Titled | None:
    found = comparisons(results)
    if not found:
        return None
    table = _table(
        ["benchmark", "from", "to"],
        ["points", "95 % interval", "p", "better / worse"],
    )
    for c in found:
        names = [escape(text) for text in (c.after.title, c.before.label, c.after.label)]
        if c.difference is None:
            table.add_row(*names, "–", "not comparable", "–", "–")
            continue
        d = c.difference
        table.add_row(
            *names,
            f"{100 * d.value:+.1f}",
            f"{100 * d.low:+.1f} to {100 * d.high:+.1f}",
            grades_page.p_value(d.p_value),
            f"{d.better:,} / {d.worse:,}",
        )
    return "Differences, paired by problem", table


def _groups(results: Sequence[Result]) -> list[Titled]:
    tables = []
    for group in by_benchmark(results):
        graded = [r for r in group if r.metrics.get("groups")]
        names = group_names(graded)
        if len(names) < 2:
            continue
        table = _table(["group"], [escape(r.label) for r in graded])
        for name in names:
            entries = [r.metrics["groups"].get(name) for r in graded]
            table.add_row(
                escape(name),
                *("–" if e is None else f"{grades_page.shown(e)} [dim]({e['problems']})[/]" for e in entries),
            )
        tables.append((f"{group[0].title} by group", table))
    return tables


def _preferences(results: Sequence[Result]) -> Titled | None:
    judged = [r for r in results if r.metrics.get("preference")]
    if not judged:
        return None
    table = _table(["model"], grades_page.PREFERENCE_HEAD)
    for result in judged:
        table.add_row(escape(result.label), *grades_page.preference_cells(result))
    return "Behind the win rates", table
