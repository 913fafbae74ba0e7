"""From the measured turns to what is reported: curves, fits, processes beside them, reminders, and how to read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posttrain.evaluation.drift_run import BASE, REMINDERS, DriftSetup, Key, Row
from posttrain.evaluation.drift_statistics import (
    FEWEST_TURNS,
    Interval,
    Null,
    RecurrenceFit,
    ReminderEffect,
    fit,
    nulls,
    reminder_effects,
)
from posttrain.evaluation.estimators import bootstrap_interval

MEASURES = ("kl", "js")
FEW_CONVERSATIONS = 10
_PLACEBO, _REFERENCE = "placebo_", "reference_"


@dataclass(frozen=True)
class TurnCurve:
    """Means over conversations by turn, with 95 % intervals; None for a single conversation."""

    mean: list[float]
    low: list[float] | None
    high: list[float] | None

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> TurnCurve:
        """(C, T)"""
        mean = [float(v) for v in values.mean(axis=0)]
        if len(values) == 1:
            return cls(mean, None, None)
        ends = [bootstrap_interval(column, resamples=2_000) for column in values.T]
        return cls(mean, [low for low, _ in ends], [high for _, high in ends])

    @property
    def over_turns(self) -> float:
        return sum(self.mean) / len(self.mean)


@dataclass(frozen=True)
class ArmResult:
    """One measure of one arm.

    values     (C, T) the divergence D of each conversation and turn
    placebo    the reference against itself with an irrelevant sentence added: its noise floor
    reference  the reference in the tested model's place; None where that is 0 (the goal is not restated), or the
               model itself
    """

    values: list[list[float]]
    curve: TurnCurve
    placebo: TurnCurve
    reference: TurnCurve | None
    fit: RecurrenceFit | None
    nulls: list[Null]


@dataclass(frozen=True)
class DriftResult:
    """What the page and the terminal show; `asdict` of it is drift.json.

    arms     measure -> arm -> its result
    effects  measure -> reminders' effect, [] without reminders
    tokens   arm -> mean tokens of a response by turn
    cut_off  share of responses that ran into the limit
    """

    arms: dict[str, dict[str, ArmResult]]
    effects: dict[str, list[ReminderEffect]]
    tokens: dict[str, list[float]]
    cut_off: float
    readings: list[str]

    def for_json(self) -> dict[str, Any]:
        return _finite(asdict(self))


def results_of(
    setup: DriftSetup, rows: Mapping[Key, Row], measured: Mapping[Key, Row], notes: list[str]
) -> DriftResult:
    """Everything that is said of the measured turns; `notes` come first among the readings."""
    arms = {measure: {arm: _arm(setup, measured, measure, arm) for arm in setup.arms} for measure in MEASURES}
    effects = {
        measure: reminder_effects(found[BASE].values, found[REMINDERS].values, setup.remind, seed=setup.seed)
        if setup.remind
        else []
        for measure, found in arms.items()
    }
    tokens = {
        arm: [float(v) for v in _table(setup, measured, "tokens", arm).mean(axis=0)] for arm in setup.arms
    }
    cut_off = float(np.mean([row["truncated"] for row in rows.values()]))
    bare = DriftResult(arms, effects, tokens, cut_off, [])
    return DriftResult(arms, effects, tokens, cut_off, [*notes, *readings(setup, bare)])


def _arm(setup: DriftSetup, measured: Mapping[Key, Row], measure: str, arm: str) -> ArmResult:
    values = _table(setup, measured, measure, arm)
    own = _table(setup, measured, _REFERENCE + measure, arm) if setup.restate_goal else None
    if own is not None and np.array_equal(own, values):
        own = None  # the model is its own reference
    return ArmResult(
        values=values.tolist(),
        curve=TurnCurve.of(values),
        placebo=TurnCurve.of(_table(setup, measured, _PLACEBO + measure, arm)),
        reference=None if own is None else TurnCurve.of(own),
        fit=fit(values, seed=setup.seed),
        nulls=nulls(values, seed=setup.seed),
    )


def _table(setup: DriftSetup, measured: Mapping[Key, Row], column: str, arm: str) -> NDArray[np.float64]:
    turns = range(1, setup.turns + 1)
    return np.array([[measured[arm, c, t][column] for t in turns] for c in range(setup.conversations)])


# ---- how to read it


def readings(setup: DriftSetup, result: DriftResult) -> list[str]:
    """Plain sentences about what the numbers of the base's KL show, and what weakens them."""
    arm = result.arms["kl"][BASE]
    found = [*_of_size(setup), *_of_floor(arm), *_of_turns(result)]
    if arm.fit is None:
        found.append(
            f"{setup.conversations} conversations of {setup.turns} turns give no fit of the recurrence: it takes three "
            "pairs of turns, and values that vary"
        )
    else:
        found += [*_of_nulls(arm.fit, arm.nulls), *_of_fit(arm.fit)]
    return found


def _of_size(setup: DriftSetup) -> list[str]:
    found = []
    if setup.turns < FEWEST_TURNS:
        found.append(
            f"{setup.turns} turns are too few for the fit to mean anything by itself ({FEWEST_TURNS} or more are "
            "needed): read it beside the processes that give the same"
        )
    if setup.conversations == 1:
        found.append("one conversation: there are no intervals")
    elif setup.conversations < FEW_CONVERSATIONS:
        found.append(f"intervals from {setup.conversations} conversations are rough, most of them too narrow")
    return found


def _of_floor(arm: ArmResult) -> list[str]:
    mean, floor = arm.curve.over_turns, arm.placebo.over_turns
    if mean > floor:
        return []
    return [
        f"D is {mean:.3g} on the mean, no more than an irrelevant sentence moves the reference ({floor:.3g}): no "
        "drift from the goal is shown"
    ]


def _of_turns(result: DriftResult) -> list[str]:
    found, tokens = [], result.tokens[BASE]
    if max(tokens) > 1.5 * min(tokens):
        found.append(
            f"the answers' mean length lies between {min(tokens):.0f} and {max(tokens):.0f} tokens by turn: D of "
            "different turns is not D of the same kind of text"
        )
    if result.cut_off > 0.05:
        found.append(f"{result.cut_off:.0%} of the responses were cut off at the limit of new tokens")
    return found


def _of_nulls(found: RecurrenceFit, processes: list[Null]) -> list[str]:
    lines, b = [], found.slope.value
    alike = [null.name for null in processes if null.p_value >= 0.05 and null.name != "fitted AR(1)"]
    if alike:
        lines.append(
            f"b = {b:.2f} is also what {_listed(alike)} of this size would give: no restoring force is shown"
        )
    elif processes:
        lines.append(f"b = {b:.2f} is outside what each simple process gives (p < 0.05)")
    fitted = next((null for null in processes if null.name == "fitted AR(1)"), None)
    if fitted is not None and abs(fitted.mean - b) > 0.05:
        lines.append(
            f"were the fitted recurrence true, its estimate would be {fitted.mean:.2f} on the mean: b is biased by "
            f"about {fitted.mean - b:+.2f}"
        )
    return lines


def _of_fit(found: RecurrenceFit) -> list[str]:
    lines = []
    if found.contraction.value > 1:
        lines.append(
            f"lambda = {found.contraction.value:.2f} is above 1: the fitted recurrence is unstable, and D* no level "
            "that it returns to"
        )
    if _beyond_zero(found.trend):
        verb = "grows" if found.trend.value > 0 else "falls"
        lines.append(
            f"D {verb} by {abs(found.trend.value):.3g} a turn: D* is then no level at which it has settled"
        )
    if (
        found.turn_effect is not None
        and found.slope_given_turn is not None
        and _beyond_zero(found.turn_effect)
    ):
        lines.append(
            f"with the turn as covariate b is {found.slope_given_turn.value:.2f} instead of {found.slope.value:.2f}, "
            "and the turn has an effect of its own"
        )
    if found.without_equilibrium is not None and found.without_equilibrium >= 0.005:
        lines.append(f"{found.without_equilibrium:.0%} of the resamples have b >= 0 and so no equilibrium")
    return lines


def _beyond_zero(one: Interval) -> bool:
    return one.low is not None and one.high is not None and (one.low > 0 or one.high < 0)


def _listed(names: list[str]) -> str:
    words = [
        {"i.i.d.": "i.i.d. noise", "turn means": "the turns' means with noise"}.get(n, f"a {n}")
        for n in names
    ]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _finite(value: Any) -> Any:
    """For JSON: what is not finite becomes null."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
