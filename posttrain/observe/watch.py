"""What a run's numbers say against the way it is set up: said once while it runs, and again in its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.observe.curves import metric_names, series

WINDOW = 20  # logged steps that are looked at together
WATCHED = (
    "/clip_low",
    "/rejected_share",
    "/proposed_policy_threshold",
)  # what makes a logged line worth a look
TOO_MANY = 0.1  # share of rejected tokens above which thresholds do not fit the run


def still_bounds(rows: Sequence[Mapping[str, Any]], shortest: int = 5) -> list[str]:
    """Adaptive bounds that never moved are a fixed clip in disguise."""
    notes = []
    for name in metric_names(rows):
        method, _, key = name.rpartition("/")
        low, high = series(rows, name)[1], series(rows, f"{method}/clip_high")[1]
        share = series(rows, f"{method}/positive_share_before")[1]
        if key == "clip_low" and share and len(low) >= shortest and len(set(low)) == len(set(high)) == 1:
            notes.append(
                f"Adaptive bounds inactive: {method} was a fixed clip ({low[0]:.2f}, {high[0]:.2f}) throughout. The "
                f"positive share lay at {min(share):.2f}-{max(share):.2f}; bounds move only when it crosses the target."
            )
    return notes


def stale_thresholds(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rejection thresholds that a run has outgrown: where more than `TOO_MANY` tokens are left out for `WINDOW` steps,
    the first such steps."""
    notes = []
    for name in metric_names(rows):
        method, _, key = name.rpartition("/")
        if key != "rejected_share":
            continue
        steps, shares = series(rows, name)
        for end in range(WINDOW, len(steps) + 1):
            mean = sum(shares[end - WINDOW : end]) / WINDOW
            if mean > TOO_MANY:
                notes.append(
                    f"{method} rejected {mean:.0%} of the tokens in steps {steps[end - WINDOW]} to {steps[end - 1]}: "
                    "its thresholds do not fit this model, learning rate or length of run. Find them with "
                    "objective.calibrate, and let them follow with objective.calibration_follows."
                )
                break
    return notes


def found_thresholds(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a calibration proposed, to be used from then on or written into the next recipe."""
    notes = []
    for name in metric_names(rows):
        method, _, key = name.rpartition("/")
        steps, policy = series(rows, name)
        objective = series(rows, f"{method}/proposed_objective_threshold")[1]
        if key == "proposed_policy_threshold" and policy and objective:
            notes.append(
                f"{method} calibrated at step {steps[-1]}: objective_threshold {objective[-1]:.3g}, policy_threshold "
                f"{policy[-1]:.3g}."
            )
    return notes


def idle_thresholds(rows: Sequence[Mapping[str, Any]], shortest: int = WINDOW) -> list[str]:
    """Thresholds that never rejected a token: the method was the objective it is built on."""
    notes = []
    for name in metric_names(rows):
        method, _, key = name.rpartition("/")
        shares = series(rows, name)[1]
        if key == "rejected_share" and len(shares) >= shortest and not any(shares):
            notes.append(
                f"{method} rejected no token in {len(shares)} logged steps: it was its base, unchanged."
            )
    return notes


class Watch:
    """The same, from the lines of a run that is still going: `see` gives what is new to be said."""

    def __init__(self) -> None:
        self._rows: list[Mapping[str, Any]] = []
        self._seen = 0
        self._told = False

    def see(self, row: Mapping[str, Any]) -> list[str]:
        """`row` is a logged line with its step."""
        if not any(name.endswith(WATCHED) for name in row):
            return []
        self._rows = [*self._rows[1 - WINDOW :], row]
        self._seen += 1
        notes = found_thresholds([row])
        notes += still_bounds(self._rows) if self._seen == WINDOW else []
        if not self._told and (stale := stale_thresholds(self._rows)):
            self._told = True
            notes += stale
        return notes
