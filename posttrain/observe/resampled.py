"""What dynamic sampling cost a run, read back from its metrics. No torch, no drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.rollout.resample import RESAMPLE, THROWN


@dataclass(frozen=True)
class ThrownRow:
    """What was sampled and not trained on for one reason, over the logged rollouts.

    share  of the response tokens that were sampled
    """

    reason: str
    meaning: str
    groups: float
    tokens: float
    seconds: float
    share: float


@dataclass(frozen=True)
class Resampled:
    """Sums over the rows that log a rollout. A row stands for the mean of the rollouts since the last one, so with
    several of them a row the sums are too small by that factor, and the shares stay right."""

    rollouts: int
    rounds: float
    groups: float
    taught: float
    tokens: float
    taught_tokens: float
    open_slots: float
    repeated: float
    thrown: list[ThrownRow]

    def in_words(self) -> str:
        words = (
            f"{self.groups:,.0f} groups sampled in {self.rounds / self.rollouts:.2f} rounds per rollout; "
            f"{self.taught:,.0f} of them taught, with {self.taught_tokens / max(self.tokens, 1):.1%} of the tokens"
        )
        words += (
            f"; {self.open_slots:,.0f} slots kept a group that teaches nothing" if self.open_slots else ""
        )
        return words + (f"; {self.repeated:,.0f} slots repeated one that does" if self.repeated else "")


def resampled_of(rows: Sequence[Mapping[str, Any]]) -> Resampled | None:
    """None where the run did not sample over."""
    logged = [row for row in rows if RESAMPLE + "rounds" in row]
    if not logged:
        return None

    def total(name: str) -> float:
        return sum(float(row.get(RESAMPLE + name) or 0.0) for row in logged)

    tokens = total("tokens")
    thrown = []
    for reason, meaning in THROWN.items():
        groups, of_reason = total(f"{reason}/groups"), total(f"{reason}/tokens")
        if groups:
            seconds = total(f"{reason}/seconds")
            thrown.append(
                ThrownRow(reason, meaning, groups, of_reason, seconds, of_reason / max(tokens, 1.0))
            )
    return Resampled(
        rollouts=len(logged),
        rounds=total("rounds"),
        groups=total("groups"),
        taught=total("taught_groups"),
        tokens=tokens,
        taught_tokens=total("taught_tokens"),
        open_slots=total("open_slots"),
        repeated=total("repeated"),
        thrown=thrown,
    )
