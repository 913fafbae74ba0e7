"""A rollout of all ranks once it was scored: what rewards, reports and advantages read of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Rollout:
    """The rollout all ranks have just scored, in global order (a group's G responses are neighbours)."""

    prompts: list[Any]
    completions: list[str]
    completion_ids: list[list[int]]  # of a response with tools, their answers included
    columns: dict[str, list[Any]]
    rewards_per_function: Tensor  # (B, K), NaN = not judged
    answers: list[str | None] | None
    counts: dict[str, dict[str, int]]
    extra: dict[str, list[Any]] = field(default_factory=dict)  # what rewards logged beside each response
    logged: dict[str, list[float]] = field(default_factory=dict)  # numbers that rewards logged, one a call
    advantages: list[float] | None = None
    written: list[int] | None = None  # tokens of each response that the policy wrote; None without tools
    given: list[bool] | None = (
        None  # which are logged answers, that the policy did not sample; None without any
    )
    messages: list[Any] | None = (
        None  # the responses as conversations, with what tools said; None without tools
    )
    weight_versions: list[int] | None = None  # the latest weights a response was sampled with, where known
