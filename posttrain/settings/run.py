"""What a method may look at when it is asked: the recipe around it before a GPU is held, and what a run has logged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RunView:
    """A recipe as its method sees it.

    method     its name in the recipe, which messages say
    place      the section that holds the settings that are asked: "objective", or "objective.base_settings"
    train      sections of the recipe, as posttrain/recipe/sections.py and train_options.py declare them; `rollout` is
    data       None where nothing is generated
    model
    rollout
    processes  how many train
    prompts    of one rollout, over all processes; None where nothing is generated
    rewards    how many the recipe has; 0 where the method learns from none
    """

    method: str
    place: str
    train: Any
    data: Any
    model: Any
    rollout: Any
    processes: int
    prompts: int | None
    rewards: int

    def refused_train(self, reasons: Mapping[str, str]) -> Iterator[str]:
        """A fault for each option of `train` in `reasons` (option -> why it must stay as it is) that was changed."""
        for key, reason in reasons.items():
            if key in self.train.changed():
                yield f"train: '{key}' has no place with method '{self.method}': {reason}; leave it out"


@dataclass(frozen=True)
class RunCurves:
    """What a run has logged under a method's name, as METHOD/name.

    method  the name the metrics stand under: of a method built on another, the outer one's
    rows    logged lines with their "step", the last of the run; while it goes on, `WINDOW` at most
    logged  lines of this method since the run began
    ended   whether these are all of them
    """

    method: str
    rows: Sequence[Mapping[str, Any]]
    logged: int
    ended: bool

    def of(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of METHOD/name, where it was logged and is finite."""
        return series(self.rows, f"{self.method}/{name}")


WINDOW = 20
"""Logged lines that are looked at together while a run goes on."""


@dataclass(frozen=True)
class Note:
    """Something worth saying once. While a run goes on a note whose `about` was said already is not said again."""

    about: str
    text: str


def series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric, where it was logged and is finite."""
    found = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
    found = [(step, float(value)) for step, value in found if math.isfinite(value)]
    return [step for step, _ in found], [value for _, value in found]


BETA_BY = ("pass_rate", "reference_entropy", "learned")
"""What the KL coefficient of a prompt may follow."""


def balance_fault(
    beta: float, by: str | None, low: float, high: float, model: str | None = None
) -> str | None:
    """Why a KL coefficient per prompt cannot be like that, or would do nothing; None where it can."""
    if (by == "learned") != (model is not None):
        return (
            "beta_by: learned reads a balance model: name its file as beta_model (posttrain eval balance writes one)"
            if model is None
            else "'beta_model' does nothing without beta_by: learned; add that, or remove it"
        )
    if by is None:
        idle = "beta_low" if low != 1 else "beta_high" if high != 1 else None
        return None if idle is None else f"'{idle}' does nothing without beta_by; add that, or remove it"
    if by not in BETA_BY:
        return f"beta_by is {' or '.join(BETA_BY)}, not {by!r}"
    if beta == 0:
        return "'beta_by' does nothing without a KL penalty: beta above 0"
    if min(low, high) < 0:
        return f"beta_low {low:g} and beta_high {high:g} are factors of beta; write 0 or more"
    if low == high == 1:
        return "'beta_by' does nothing while beta_low and beta_high are both 1; set one of them"
    return None
