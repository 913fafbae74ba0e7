"""The tables of `posttrain eval drift`, for the terminal and the page alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from posttrain.evaluation.drift_results import DriftResult, TurnCurve
from posttrain.evaluation.drift_run import BASE, REMINDERS, DriftSetup
from posttrain.evaluation.drift_statistics import Interval, RecurrenceFit

ARMS = {BASE: "base", REMINDERS: "with reminders"}
NAMES = {"kl": "KL", "js": "JS"}


@dataclass(frozen=True)
class DriftTable:
    """`head` and `rows` have one cell a column; the first column is text, the others are numbers."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""


def tables(setup: DriftSetup, result: DriftResult) -> list[DriftTable]:
    """All of them; what does not apply is left out."""
    found = [_turns(setup, result), *_fits(setup, result), *_nulls(result), _effects(result)]
    return [table for table in found if table is not None]


def show(setup: DriftSetup, result: DriftResult, console: Console) -> None:
    """Tables, readings last: where the eye is when the command ends."""
    for table in tables(setup, result):
        drawn = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        for i, name in enumerate(table.head):
            drawn.add_column(name, justify="right" if i else "left", no_wrap=i > 0)
        for row in table.rows:
            drawn.add_row(*map(Text, row))
        console.print()
        console.print(Text(table.title, style="bold"))
        console.print(drawn)
        if table.note:
            console.print(Text(table.note, style="dim"), soft_wrap=True)
    console.print()
    for text in result.readings:
        console.print(Text.assemble(("note ", "yellow"), text), soft_wrap=True)


def figures_of(value: float | None) -> str:
    """Three digits that matter."""
    if value is None or value != value:
        return "–"
    size = abs(value)
    if value == 0 or size < 1e-3 or size >= 1e5:
        return "0" if value == 0 else f"{value:.2e}"
    decimals = (
        max(0, 3 - len(str(int(size)))) if size >= 1 else 3 if size >= 0.1 else 4 if size >= 0.01 else 5
    )
    return f"{value:.{decimals}f}"


def between(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{figures_of(low)} to {figures_of(high)}"


def _turns(setup: DriftSetup, result: DriftResult) -> DriftTable:
    head, columns = ["turn"], []
    for measure, arms in result.arms.items():
        for arm, found in arms.items():
            head.append(f"{NAMES[measure]} {ARMS[arm]}")
            columns.append(_curve(found.curve))
            if measure == "kl":
                head.append("95 %")
                columns.append(_bands(found.curve))
    base = result.arms["kl"][BASE]
    head.append("KL floor")
    columns.append(_curve(base.placebo))
    if base.reference is not None:
        head.append("KL reference")
        columns.append(_curve(base.reference))
    head.append("tokens")
    columns.append([f"{tokens:.0f}" for tokens in result.tokens[BASE]])
    rows = []
    for i in range(setup.turns):
        mark = " (reminder)" if i + 1 in setup.remind else ""
        rows.append([f"{i + 1}{mark}", *(column[i] for column in columns)])
    return DriftTable(
        "Divergence from the reference by turn, nats per token",
        head,
        rows,
        "floor: the reference against itself with an irrelevant sentence added. "
        + (
            "reference: the reference without the restated goal in the tested model's place."
            if base.reference is not None
            else "The reference in the tested model's place is the model itself."
            if setup.restate_goal
            else "The reference in the tested model's place has 0."
        ),
    )


def _curve(curve: TurnCurve) -> list[str]:
    return [figures_of(v) for v in curve.mean]


def _bands(curve: TurnCurve) -> list[str]:
    if curve.low is None or curve.high is None:
        return ["–"] * len(curve.mean)
    return [between(low, high) for low, high in zip(curve.low, curve.high, strict=True)]


def _fits(setup: DriftSetup, result: DriftResult) -> list[DriftTable]:
    """One a measure: both in one would be wider than a page."""
    made = []
    for measure, arms in result.arms.items():
        found = {ARMS[arm]: one.fit for arm, one in arms.items() if one.fit is not None}
        if not found:
            continue
        columns = [_fit_cells(one) for one in found.values()]
        rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
        pairs = next(iter(found.values())).pairs
        made.append(
            DriftTable(
                f"The recurrence  D' = D + a + b D  fitted to {NAMES[measure]}",
                ["", *found],
                rows,
                f"Least squares over {pairs:,} pairs of turns of {setup.conversations} conversations; 95 % intervals "
                "by drawing conversations again.",
            )
        )
    return made


def _fit_cells(one: RecurrenceFit) -> dict[str, str]:
    return {
        "a": with_ends(one.intercept),
        "b": with_ends(one.slope),
        "D* = -a/b": with_ends(one.equilibrium),
        "lambda = |1 + b|": with_ends(one.contraction),
        "residual sd": with_ends(one.residual_sd),
        "Spearman of D and its change": with_ends(one.spearman),
        "b, turn as covariate": with_ends(one.slope_given_turn),
        "effect of the turn on the change": with_ends(one.turn_effect),
        "trend of D per turn": with_ends(one.trend),
        "b, mean of single conversations": figures_of(one.slope_per_conversation),
    }


def with_ends(one: Interval | None) -> str:
    """The value, its interval in brackets where there is one."""
    if one is None:
        return "–"
    ends = "" if one.low is None else f"  ({between(one.low, one.high)})"
    return figures_of(one.value) + ends


def _nulls(result: DriftResult) -> list[DriftTable]:
    made = []
    for arm, one in result.arms["kl"].items():
        if one.fit is None or not one.nulls:
            continue
        rows = [
            [
                null.name,
                figures_of(null.mean),
                between(null.low, null.high),
                _p(null.p_value),
                f"{null.negative:.0%}",
            ]
            for null in one.nulls
        ]
        made.append(
            DriftTable(
                f"What b other processes of this size give (KL {ARMS[arm]}: b = {figures_of(one.fit.slope.value)})",
                ["process", "mean b", "95 % of b", "p of the data's b", "b < 0"],
                rows,
                "Simulated with the data's conversations, turns and moments. A large p: the process alone explains b.",
            )
        )
    return made


def _effects(result: DriftResult) -> DriftTable | None:
    rows = []
    for measure, effects in result.effects.items():
        for one in effects:
            d = one.difference
            ends = between(None, None) if d.problems == 1 else between(d.low, d.high)
            change = "–" if one.relative is None else f"{one.relative:+.1%}"
            turns = ", ".join(map(str, one.turns)) if len(one.turns) < 9 else f"{len(one.turns)} turns"
            rows.append(
                [f"{NAMES[measure]}, {one.name} ({turns})", figures_of(d.value), ends, _p(d.p_value), change]
            )
    if not rows:
        return None
    return DriftTable(
        "Effect of the reminders: base minus reminded, paired by conversation",
        ["turns", "difference", "95 %", "p", "change"],
        rows,
        "Above 0: the reminders lower the divergence. p: sign flips of the conversations' differences.",
    )


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def shape_line(setup: DriftSetup, names: Sequence[str]) -> str:
    """What was done, in one line."""
    remind = ", ".join(map(str, setup.remind)) or "none"
    model, reference, user = names
    restated = " with the goal restated" if setup.restate_goal else ""
    return (
        f"{model} against {reference}{restated} · {setup.task.title} · {setup.conversations} conversations of "
        f"{setup.turns} turns · reminders at {remind} · user: {user}"
    )
