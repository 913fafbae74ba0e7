"""Answers of the data in an on-policy rollout: which places of a group they take, and how they are weighed.

Hybrid RL (Song et al. 2022, https://arxiv.org/abs/2210.06718; for policy gradients Zhou et al. 2023,
https://arxiv.org/abs/2311.08384) learns from the policy's samples and from logged data together; LUFFY
(Yan et al. 2025, https://arxiv.org/abs/2504.14945) puts a teacher's answer into each group of GRPO, one place of eight.
Both are judged by the same rewards and compared with each other.

Decisions alone. Who puts them there is trainers/engines/logged_answers.py. No torch: `posttrain plan` reads it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Treatment = Literal["none", "behaviour", "shaped"]
LOGGED = "logged/"
"""Prefix of the metrics."""


@dataclass(frozen=True)
class LoggedRule:
    """The recipe's `rollout.logged`.

    column           of the data: the answer to a row's prompt, or a list of answers; empty where there is none
    share            of the places of a group that they may take
    treatment        "none": as if the policy of now had sampled them, the ratio is 1 at every step; "behaviour": the
                     ratio to the log-probs that are stored with them, clipped as the method clips; "shaped": LUFFY's
                     loss in place of the method's, -A p / (p + gamma), which nothing clips
    logprobs_column  of the data: a number a token, in nats, at the temperature of the run; for "behaviour"
    gamma            of "shaped"
    """

    column: str
    share: float = 0.25
    treatment: Treatment = "none"
    logprobs_column: str | None = None
    gamma: float = 0.1

    def places(self, group_size: int) -> int:
        """Places of a group that logged answers may take: the share of them, rounded, halves up."""
        return math.floor(self.share * group_size + 0.5)

    def faults(self, group_size: int) -> Iterator[str]:
        """Why a group of this size cannot be shared like that, a sentence each."""
        places = self.places(group_size)
        if 0 < places < group_size:
            return
        what = (
            "no place for a logged answer"
            if places == 0
            else "no place for a sample, and a group needs one at least"
        )
        yield f"logged.share {self.share:g} of {group_size} responses leaves {what}; change share or group_size"


NOT_WITH = {
    "partial_budget": "a completion that is cut is judged in a later rollout than the rest of its group was filled for",
}
"""Options of `rollout` that logged answers do not go with -> why."""
