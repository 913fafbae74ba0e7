"""A data set's description in the terminal and as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from rich.console import Console
from rich.table import Table
from rich.text import Text

from posttrain import __version__
from posttrain.data.describe.description import Description
from posttrain.observe.description_plots import plots_of
from posttrain.observe.description_tables import DescriptionTable, share, tables_of
from posttrain.observe.run_page import TEMPLATE, number, write_page

SHOWN_COLUMNS = 20
"""Of a data set with more of them, in the terminal."""

LONGEST_NUMBER = 40
"""Characters: what is longer in a column of numbers is a sentence, and set like one."""


def print_description(found: Description, warnings: Sequence[str], console: Console) -> None:
    """Heading, tables, warnings last: where the eye is when the command ends."""
    console.print(Text(found.source, style="bold"), Text(f"{found.rows:,} rows: {found.kind_in_words}"))
    for note in found.notes:
        console.print(Text(f"  {note}", style="dim"))
    for table in tables_of(found):
        console.print()
        console.print(_drawn(table))
        if table.note:
            console.print(Text(f"  {table.note}", style="dim"))
    if warnings:
        console.print()
        console.print(Text(f"Warnings ({len(warnings)})", style="bold yellow"))
        for warning in warnings:
            console.print(Text(f"  ! {warning}", style="yellow"))


def _drawn(table: DescriptionTable) -> Table:
    drawn = Table(
        show_header=any(word.strip("#") for word in table.head),
        title=table.title,
        title_style="bold",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
    )
    for head in table.head:
        if head.startswith("#"):
            drawn.add_column(head[1:], justify="right", overflow="fold", header_style="dim")
        else:
            drawn.add_column(head, overflow="fold", header_style="dim")
    for row in table.rows[:SHOWN_COLUMNS]:
        drawn.add_row(*(Text(cell) for cell in row))
    if len(table.rows) > SHOWN_COLUMNS:
        drawn.add_row(Text(f"... and {len(table.rows) - SHOWN_COLUMNS} more", style="dim"))
    return drawn


def write_description(found: Description, warnings: Sequence[str], out: str | Path) -> Path:
    """Writes the page and returns its path."""
    body = [
        f"<header><h1>{escape(Path(found.source).name or found.source)}</h1><p>{escape(found.source)}</p></header>",
        _cards(found),
        _list("notes", warnings),
        _plots(found),
        *(_table(table) for table in tables_of(found)),
        _excerpts(found),
    ]
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(f"{found.source}: {found.rows:,} rows"),
        body="\n".join(part for part in body if part),
        footer=escape(
            f"posttrain {__version__} · posttrain data describe · counts of all rows where none stands beside them"
        ),
    )
    return write_page(page, Path(out))


def _cards(found: Description) -> str:
    facts = [("rows", f"{found.rows:,}"), ("read as", found.kind_in_words)]
    unused = sum(count for count, _ in (*found.dropped.values(), *found.refused.values()))
    if unused:
        facts.append(("not used by training", f"{unused:,} ({share(unused, found.rows)})"))
    prompt = found.repeated.get("prompt")
    if prompt is not None:
        facts.append(("distinct prompts", f"{prompt.distinct:,}"))
    if found.pairs is not None and found.pairs.longer_chosen.trials:
        facts.append(
            ("longer answer chosen", share(found.pairs.longer_chosen.hits, found.pairs.longer_chosen.trials))
        )
    if found.coverage is not None and found.coverage.quality is not None:
        facts.append(("TQ", f"{found.coverage.quality:.3f}"))
    if found.coverage is not None and found.coverage.coverage is not None:
        facts.append(("SACo", f"{found.coverage.coverage:.3f}"))
    if found.model is not None:
        role, value = next(iter(found.model.per_token.items()))
        facts.append((f"log-prob per token, {role}", number(value)))
    cards = "".join(
        f'<div class="card fact"><span>{escape(name)}</span><b>{escape(value)}</b></div>'
        for name, value in facts
    )
    return f'<section class="facts">{cards}</section>' + _list("muted", found.notes)


def _list(kind: str, lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="{kind}">{items}</ul>' if items else ""


def _plots(found: Description) -> str:
    cards = "".join(
        f'<div class="card chart"><h3>{escape(title)}</h3>{drawing}</div>'
        for title, drawing in plots_of(found)
    )
    return f'<h2>At a glance</h2><div class="charts">{cards}</div>' if cards else ""


def _table(table: DescriptionTable) -> str:
    numeric = [head.startswith("#") for head in table.head]
    head = "".join(
        _cell("th", word.removeprefix("#"), of) for word, of in zip(table.head, numeric, strict=True)
    )
    rows = "".join(
        "<tr>"
        + "".join(
            _cell("td", cell, of and len(cell) < LONGEST_NUMBER)
            for cell, of in zip(row, numeric, strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    note = f'<p class="muted">{escape(table.note)}</p>' if table.note else ""
    head = f"<tr>{head}</tr>" if any(word.strip("#") for word in table.head) else ""
    return f'<h2>{escape(table.title)}</h2><div class="card"><table>{head}{rows}</table>{note}</div>'


def _cell(tag: str, text: str, right: bool) -> str:
    kind = ' class="number"' if right else ""
    return f"<{tag}{kind}>{escape(text)}</{tag}>"


def _excerpts(found: Description) -> str:
    """The first place of each fault, and the most frequent text of each role that has one."""
    rows = [
        (f"{one.role}: {one.fault}", f"row {one.first:,}", one.excerpt) for one in found.faults if one.excerpt
    ]
    rows += [
        (f"{role}: most frequent", f"{one.most:,} rows", one.example)
        for role, one in found.repeated.items()
        if one.most > 1
    ]
    lines = "".join(
        f'<tr><td class="name">{escape(what)}</td><td class="number">{escape(where)}</td>'
        f'<td class="long">{escape(text)}</td></tr>'
        for what, where, text in rows
    )
    return f'<h2>Examples</h2><div class="card"><table>{lines}</table></div>' if lines else ""
