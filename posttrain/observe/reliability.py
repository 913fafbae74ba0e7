"""How sure a reward model was of held-out pairs, and how often it was right: the table that its evaluations leave.

Of a pair the model says sigma(|r_chosen - r_rejected|), at least 1/2: the probability that the answer which it scores
higher is the preferred one (Guo et al. 2017, https://arxiv.org/abs/1706.04599, for the diagram and its error).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.observe.basis import wilson

RELIABILITY = "reliability.json"
"""Beside the checkpoints, written anew by each evaluation."""


@dataclass(frozen=True)
class ConfidenceBin:
    """predicted  mean of what the model says of the bin's pairs, 1/2 to 1
    observed   share of them in which the answer scored higher is the preferred one, ties counted half
    pairs      how many there are
    """

    predicted: float
    observed: float
    pairs: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `observed`."""
        return wilson(self.observed, self.pairs)


@dataclass(frozen=True)
class ReliabilityTable:
    """step  the optimizer step whose weights were measured
    bins  by rising confidence, none of them empty
    """

    step: int
    bins: tuple[ConfidenceBin, ...]

    @property
    def pairs(self) -> int:
        return sum(one.pairs for one in self.bins)

    @property
    def error(self) -> float:
        """Expected calibration error: |predicted - observed|, a mean over pairs."""
        return sum(abs(one.predicted - one.observed) * one.pairs for one in self.bins) / self.pairs

    @property
    def leaning(self) -> float:
        """Predicted minus observed, a mean over pairs: above 0 the model is surer than it is right."""
        return sum((one.predicted - one.observed) * one.pairs for one in self.bins) / self.pairs

    def in_words(self) -> str:
        return (
            f"calibration on {self.pairs:,} held-out pairs at step {self.step:,}: expected calibration error "
            f"{self.error:.3f}, {self._way()}"
        )

    def _way(self) -> str:
        if self.error < 0.005:
            return "as sure as it is right"
        if abs(self.leaning) < self.error / 2:
            return "too sure of some pairs and not sure enough of others"
        return "surer than it is right" if self.leaning > 0 else "less sure than it is right"


def write_reliability(folder: Path, step: int, table: Mapping[str, Any]) -> None:
    """table  confidence, accuracy and counts of each bin (posttrain/preferences/reward_model.py, `Reliability`)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RELIABILITY).write_text(json.dumps({"step": step, **table}) + "\n", encoding="utf-8")


def read_reliability(run_dir: Path) -> ReliabilityTable | None:
    """Of the run's last evaluation; None where there is no such table, or no pair in it."""
    path = run_dir / "checkpoints" / RELIABILITY
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    bins = zip(found["confidence"], found["accuracy"], found["counts"], strict=True)
    table = ReliabilityTable(found["step"], tuple(ConfidenceBin(*one) for one in bins))
    return table if table.bins else None
