"""The account of a family of policies (train.beta_family) in a run: reward and KL of each coefficient. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from posttrain.observe.curves import series
from posttrain.settings.beta_family import METRICS

LAST = 5
"""Logged lines at either end that a mean is taken over."""
HEAD = ("coefficient", "of the groups", "reward, first", "last", "KL, last", "held out, first", "last")


@dataclass(frozen=True)
class FamilyTable:
    """rows: cells in the order of HEAD, a coefficient a row."""

    rows: list[list[str]]

    def html(self) -> str:
        head = "".join(f'<th class="{"number" if i else "name"}">{name}</th>' for i, name in enumerate(HEAD))
        lines = "".join(
            "<tr>"
            + "".join(f'<td class="{"number" if i else "name"}">{cell}</td>' for i, cell in enumerate(row))
            + "</tr>"
            for row in self.rows
        )
        return f'<h2>Each coefficient of the family</h2><div class="card"><table><tr>{head}</tr>{lines}</table></div>'

    def table(self) -> Table:
        """For a terminal."""
        table = Table(*HEAD, box=None, padding=(0, 2, 0, 0))
        for row in self.rows:
            table.add_row(*row)
        return table


def family_table(rows: Sequence[Mapping[str, Any]]) -> FamilyTable | None:
    """Of a run's logged lines; None where it has no family."""
    names = {key.split("/")[1] for row in rows for key in row if key.startswith(METRICS)}
    if not names:
        return None
    found = []
    for name in sorted(names, key=float):

        def of(what: str, prefix: str = "", name: str = name) -> list[float]:
            return series(rows, f"{prefix}{METRICS}{name}/{what}")[1]

        reward, kl, held_out, share = of("reward"), of("kl"), of("reward", "eval_"), of("share")
        cells = [_mean(share), _mean(reward[:LAST]), _mean(reward[-LAST:]), _mean(kl[-LAST:])]
        found.append([name, *cells, _mean(held_out[:1]), _mean(held_out[-1:])])
    return FamilyTable(found)


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3g}" if values else "–"
