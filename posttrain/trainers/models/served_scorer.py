"""A reward model that a vLLM server runs (`vllm serve MODEL --runner pooling`): asked by tokens, over `/classify`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from posttrain.rewards.model_reward import ModelReward
from posttrain.rollout.base import EngineRefused
from posttrain.rollout.vllm.client import Role, Server
from posttrain.rollout.vllm.served_model import served_model, tokenizer_fault
from posttrain.trainers.models.reward_scorer import TextScorer

REWARDS = Role(
    "reward server",
    "start it with: vllm serve MODEL --runner pooling",
    "rewards.api_key_env",
    "rewards.timeout_s",
    "rewards.server",
    "It is no vLLM server that runs a sequence classifier",
)
_IN_FLIGHT = 4
"""Calls at once: the next batch is there when one is done."""


class ServedScorer(TextScorer):
    """Asked by every rank for its own responses. The server's tokenizer must be that of the `model` that the recipe
    names, and its logits are taken as they are, without the activation that it would put on them.

    Raises EngineLost when it does not answer, EngineRefused for another tokenizer or a model of several scores.
    """

    def __init__(self, spec: ModelReward) -> None:
        super().__init__(spec)
        if spec.server is None:
            raise ValueError(f"reward model {spec.title!r}: no server")
        key = os.environ.get(spec.api_key_env)
        self.server = Server(
            spec.server, api_key=key, timeout_s=spec.timeout_s, retries=spec.retries, role=REWARDS
        )
        self.model, longest = served_model(self.server, spec.model)
        if (fault := tokenizer_fault(self.server, self.model, self.tokenizer)) is not None:
            raise EngineRefused(
                f"reward server {spec.server}: the tokenizer of its model {self.model!r} is not that of "
                f"{spec.model!r}: {fault}; name the model that it serves"
            )
        limits = [limit for limit in (spec.max_length, longest) if limit is not None]
        self.max_length = min(limits, default=None)
        self.scores_of(
            [[self.tokenizer.eos_token_id]]
        )  # a model of several scores is refused before the first step

    def place(self) -> str:
        return f"{self.server.url} as {self.model}"

    def scores_of(self, rows: list[list[int]]) -> list[float]:
        body = {"model": self.model, "input": rows, "use_activation": False}
        found: list[list[float]] = self.server.post(
            "/classify", body, read=lambda answer: _probs(answer, len(rows))
        )
        if (several := next((one for one in found if len(one) != 1), None)) is not None:
            raise EngineRefused(
                f"reward server {self.server.url}: {self.model!r} gives {len(several)} scores, and a reward is one; "
                "serve a model of one label"
            )
        return [one[0] for one in found]

    def _in_turn(self, batches: list[list[list[int]]]) -> Iterable[list[float]]:
        with ThreadPoolExecutor(_IN_FLIGHT) as pool:
            return list(pool.map(self.scores_of, batches))


def _probs(answer: Any, count: int) -> list[list[float]]:
    """The scores of each row, in the rows' order. ValueError for anything else."""
    rows = {one["index"]: one["probs"] for one in answer["data"]} if isinstance(answer, dict) else {}
    if sorted(rows) != list(range(count)):
        raise ValueError(f"scores of rows {sorted(rows)}, and {count} were asked about")
    for row in rows.values():
        if not isinstance(row, list) or not all(
            isinstance(one, int | float) and math.isfinite(one) for one in row
        ):
            raise ValueError(f"a score is no finite number: {row!r}")
    return [rows[i] for i in range(count)]
