"""A reward model that a server runs, vLLM, SGLang or text-embeddings-inference: asked about rows of tokens."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from posttrain.rewards.model_reward import ModelReward
from posttrain.rollout.base import EngineRefused
from posttrain.rollout.vllm.client import Server
from posttrain.trainers.models.reward_scorer import TextScorer
from posttrain.trainers.models.scoring_apis import APIS, VLLMScores, recognised

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
        server = Server(
            spec.server, api_key=key, timeout_s=spec.timeout_s, retries=spec.retries, role=VLLMScores.role
        )
        kind = recognised(server) if spec.api is None else APIS[spec.api]
        self.api = kind(replace(server, role=kind.role), spec, self.tokenizer)
        if (fault := self.api.fault()) is not None:
            raise EngineRefused(
                f"reward server {spec.server}: the tokenizer of its model {self.api.model!r} is not that of "
                f"{spec.model!r}: {fault}; name the model that it serves"
            )
        limits = [limit for limit in (spec.max_length, self.api.longest) if limit is not None]
        self.max_length = min(limits, default=None)
        self.score(["a"], ["b"])  # a model of several scores is refused before the first step

    def place(self) -> str:
        return f"{self.api.server.url} ({self.api.role.kind}) as {self.api.model}"

    def scores_of(self, rows: list[list[int]]) -> list[float]:
        found = self.api.scores(rows)
        if (several := next((one for one in found if len(one) != 1), None)) is not None:
            raise EngineRefused(
                f"reward server {self.api.server.url}: {self.api.model!r} gives {len(several)} scores, and a reward is "
                "one; serve a model of one label"
            )
        return [one[0] for one in found]

    def _in_turn(self, batches: list[list[list[int]]]) -> Iterable[list[float]]:
        with ThreadPoolExecutor(_IN_FLIGHT) as pool:
            return list(pool.map(self.scores_of, batches))
