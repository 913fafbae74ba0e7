"""The account of the logged answers of a run, beside that of its samples: what became of their tokens. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rich.table import Table

from posttrain.observe.curves import series
from posttrain.observe.reasons import CARRIED, CLASSES, REASONS
from posttrain.rollout.logged import LOGGED

NUMBERS = {
    "filled": "of the places that they may take, those they took; samples filled the others",
    "response_share": "of all responses that were trained on",
    "token_share": "of all loss tokens",
    "reward": "their mean reward; `reward` is that of samples alone",
    "accuracy": "of them the first reward calls right",
    "probability": "of their tokens under the policy, mean",
    "ratio": "of the policy to what is taken to have written them, mean",
    "mean_length": "tokens, the end token included",
}
"""logged/NAME -> what it is."""


@dataclass(frozen=True)
class LoggedTable:
    """
    numbers  (name, meaning, mean over the steps or rollouts that log it)
    classes  (class, meaning, share of the logged answers' tokens), empty classes left out
    """

    numbers: list[tuple[str, str, float]]
    classes: list[tuple[str, str, float]]

    def html(self) -> str:
        rows = "".join(
            f'<tr><td>{name}</td><td class="muted">{escape(meaning)}</td><td class="number">{value:.4g}</td></tr>'
            for name, meaning, value in self.numbers
        )
        shares = "".join(
            f'<tr><td>{name}</td><td class="muted">{escape(meaning)}</td><td class="number">{share:.2%}</td></tr>'
            for name, meaning, share in self.classes
        )
        return (
            '<h2>Logged answers: in the groups, and not sampled</h2><div class="card"><table>'
            f'<tr><th>logged answers</th><th></th><th class="number">mean</th></tr>{rows}</table>'
            f'<table><tr><th>class</th><th></th><th class="number">share of tokens</th></tr>{shares}</table></div>'
        )

    def table(self) -> Table:
        """For a terminal."""
        table = Table("logged answers", "mean or share", "", box=None, padding=(0, 2, 0, 0))
        for name, meaning, value in self.numbers:
            table.add_row(name, f"{value:.4g}", f"[dim]{meaning}[/dim]")
        for name, meaning, share in self.classes:
            table.add_row(name, f"{share:.2%}", f"[dim]{meaning}[/dim]")
        return table


def logged_table(rows: Sequence[Mapping[str, Any]]) -> LoggedTable | None:
    """Of a run's logged lines, each weighted by its logged tokens as far as classes go; None where it had none."""
    lines = [row for row in rows if row.get(LOGGED + "tokens")]
    if not lines:
        return None
    numbers = []
    for name, meaning in NUMBERS.items():
        if values := series(rows, LOGGED + name)[1]:
            numbers.append((name, meaning, sum(values) / len(values)))
    total = sum(float(row[LOGGED + "tokens"]) for row in lines)
    meanings = {CARRIED: "carried gradient", **REASONS}
    classes = []
    for name in CLASSES:
        held = sum(float(row[LOGGED + "tokens"]) * float(row.get(LOGGED + name) or 0.0) for row in lines)
        if held or name == CARRIED:
            classes.append((name, meanings[name], held / total))
    return LoggedTable(numbers, classes)
