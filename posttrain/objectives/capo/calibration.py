"""Thresholds at which a given share of tokens is rejected, found from counts of two shifts (CAPO's `calibrate`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from posttrain.objectives.capo.histogram import HIGHEST_EDGE, LOWEST_EDGE, joint_thresholds, quantile

LEVELS = (0.5, 0.9, 0.95, 0.99)

FOLLOWING_DECAY = 0.9
"""Weight a step's counts keep from one step to the next while thresholds follow: a memory of about ten steps."""


class Calibration:
    """Counts of (|objective shift|, policy shift) over the first steps, and the thresholds they propose."""

    def __init__(self) -> None:
        self.steps = 0
        self.counts: Tensor | None = None
        self.thresholds: tuple[float, float] | None = None

    def add(self, counts: Tensor) -> None:
        self.counts = counts if self.counts is None else self.counts.to(counts.device) + counts
        self.steps += 1

    def propose(self, rejection: float) -> dict[str, Tensor]:
        """Fixes the thresholds; returns them and the quantiles behind them."""
        assert self.counts is not None
        objective, policy = joint_thresholds(self.counts, rejection)
        self._check_range(float(objective), float(policy))
        self.thresholds = float(objective), float(policy)
        found = {"proposed_objective_threshold": objective, "proposed_policy_threshold": policy}
        for level in LEVELS:
            found[f"calibration/objective_shift_abs_q{100 * level:g}"] = quantile(self.counts.sum(1), level)
            found[f"calibration/policy_shift_q{100 * level:g}"] = quantile(self.counts.sum(0), level)
        return found

    @staticmethod
    def _check_range(objective: float, policy: float) -> None:
        """ValueError where a threshold is the end of what the counts can tell apart."""
        for name, value in (("objective", objective), ("policy", policy)):
            if not LOWEST_EDGE < value < HIGHEST_EDGE:
                what = "no token moves" if value <= LOWEST_EDGE else "most tokens move beyond all measure"
                raise ValueError(
                    f"calibration: the {name} threshold would be {value:.0e}: by the optimizer model {what}. Look at "
                    "the learning rate, or set the thresholds by hand and leave calibrate out"
                )

    def follow(self, counts: Tensor, rejection: float) -> dict[str, Tensor]:
        """Lets the thresholds rise to what recent steps propose, never fall; returns them. One that would lie at the
        end of what is counted stays: at it, nothing would be rejected any more."""
        assert self.counts is not None
        assert self.thresholds is not None
        self.counts = FOLLOWING_DECAY * self.counts.to(counts.device) + counts
        proposed = joint_thresholds(self.counts, rejection)
        raised = [
            torch.where((new > old) & (new < HIGHEST_EDGE), new, old)
            for new, old in zip(proposed, self.thresholds, strict=True)
        ]
        self.thresholds = float(raised[0]), float(raised[1])
        return {"objective_threshold": raised[0], "policy_threshold": raised[1]}

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"steps": self.steps, "thresholds": list(self.thresholds or ())}
        return state if self.counts is None else {**state, "counts": self.counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps, self.counts = int(state["steps"]), state.get("counts")
        self.thresholds = (
            (float(state["thresholds"][0]), float(state["thresholds"][1])) if state["thresholds"] else None
        )
