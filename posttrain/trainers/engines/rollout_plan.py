"""How a trainer uses an engine, and what one rollout of it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from posttrain.rollout.base import Completion
from posttrain.rollout.logged import LoggedRule
from posttrain.rollout.resample import ResampleRule

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class RolloutPlan:
    """How an engine is used; the recipe's `rollout` section beyond sampling.

    staleness              rounds generated ahead of training; 0 generates when samples are needed
    importance_correction  one of options.CORRECTIONS, or None: the sampling log-probs are the old log-probs
    importance_clip_max    bounds of the corrected ratio; None = none
    partial_budget         tokens a completion may get a round before it is cut and continued later; None = never cut
    resample               which groups are sampled over, see rollout/resample.py; None = every rollout as it comes
    logged                 answers of the data in the groups, see rollout/logged.py; None = samples alone
    proof_limit            largest |log-prob of the engine - of the trainer| after a sync, in nats; None = by dtype
    """

    staleness: int = 0
    importance_correction: str | None = None
    importance_clip_max: float | None = 3.0
    importance_clip_min: float | None = None
    partial_budget: int | None = None
    resample: ResampleRule | None = None
    proof_limit: float | None = None
    logged: LoggedRule | None = None


@dataclass
class Round:
    """One rank's share of a rollout batch: dataset rows, what was sampled for each, and how long that took."""

    rows: Rows
    prompts: list[list[int]]
    completions: list[Completion]
    seconds: float = 0.0
