"""A teacher that a vLLM server runs: asked for the log-probs of the very tokens that the policy sampled.

vLLM gives the log-probs of a prompt's tokens (`prompt_logprobs`): prompt and response are sent as one prompt, as ids.
They are those of the model's own distribution, at temperature 1.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from posttrain.rollout.base import EngineRefused
from posttrain.rollout.vllm.client import Role, Server
from posttrain.rollout.vllm.served_model import served_model, tokenizer_fault
from posttrain.trainers.engines.weight_sync import together
from posttrain.trainers.forward.base import Rows

TEACHER = Role(
    "teacher server",
    "start it with: vllm serve MODEL",
    "objective.teacher_api_key_env",
    "objective.teacher_timeout_s",
    "objective.teacher_server",
    "It is no vLLM server that runs a language model",
)
_IN_FLIGHT = 4
"""Calls at once: the next batch is there when one is done."""


class ServedTeacher:
    """`logprobs(rows)` of each rank's own rows.

    settings   of the objective: teacher_server, teacher_model (its name there), teacher_timeout_s, teacher_retries,
               teacher_batch_size, teacher_api_key_env
    tokenizer  the policy's, which must be the teacher's

    Raises EngineRefused for another tokenizer or a server that cannot be asked about its own, EngineLost when it does
    not answer; on every rank, when it happens on one.
    """

    def __init__(self, settings: Any, tokenizer: Any) -> None:
        self.server = Server(
            settings.teacher_server,
            api_key=os.environ.get(settings.teacher_api_key_env),
            timeout_s=settings.teacher_timeout_s,
            retries=settings.teacher_retries,
            role=TEACHER,
        )
        self.batch_size = settings.teacher_batch_size
        self.model, self.longest = together(lambda: self._checked(settings.teacher_model, tokenizer))

    def _checked(self, name: str | None, tokenizer: Any) -> tuple[str, int | None]:
        model, longest = served_model(self.server, name or "")
        if (fault := tokenizer_fault(self.server, model, tokenizer)) is not None:
            raise EngineRefused(
                f"teacher server {self.server.url}: {model!r} has another tokenizer than the policy: {fault}; take a "
                "teacher of the same family, or learn its answers by sft"
            )
        return model, longest

    def logprobs(self, rows: Rows) -> Tensor:
        """(B, T): of the completions' tokens, 0 where the mask is."""
        ids, mask = (one.tolist() for one in rows.joined)
        texts = [
            [token for token, there in zip(*row, strict=True) if there] for row in zip(ids, mask, strict=True)
        ]
        found = together(lambda: self._asked(texts))
        told = torch.zeros(rows.completion_ids.shape, device=rows.completion_ids.device)
        for row, values in enumerate(found):
            places = rows.completion_mask[row].bool().nonzero()[:, 0]
            if len(places):
                told[row, places] = torch.tensor(values[-len(places) :], device=told.device)
        return told

    def _asked(self, texts: Sequence[list[int]]) -> list[list[float]]:
        """The log-prob of each token of each text, NaN of the first, which nothing foresees."""
        longest = max(map(len, texts), default=0)
        if self.longest is not None and longest >= self.longest:
            raise EngineRefused(
                f"teacher server {self.server.url}: a prompt and its response have {longest} tokens, and with the one "
                f"that it must sample it takes {self.longest}; start it with a larger --max-model-len"
            )
        parts = [texts[start : start + self.batch_size] for start in range(0, len(texts), self.batch_size)]
        with ThreadPoolExecutor(_IN_FLIGHT) as pool:
            return [row for part in pool.map(self._call, parts) for row in part]

    def _call(self, texts: Sequence[list[int]]) -> list[list[float]]:
        body = {
            "model": self.model,
            "prompt": list(texts),
            "max_tokens": 1,
            "prompt_logprobs": 0,
            "temperature": 1.0,
            "add_special_tokens": False,
        }
        return self.server.post("/v1/completions", body, read=lambda answer: _read(answer, texts))


def _read(answer: Any, texts: Sequence[list[int]]) -> list[list[float]]:
    """Of each text the log-probs of its tokens. ValueError where one is missing or no finite number."""
    choices = {one["index"]: one.get("prompt_logprobs") for one in answer["choices"]}
    if sorted(choices) != list(range(len(texts))):
        raise ValueError(f"answers to texts {sorted(choices)}, and {len(texts)} were sent")
    found = []
    for i, ids in enumerate(texts):
        told = choices[i]
        if not isinstance(told, list) or len(told) != len(ids):
            raise ValueError(f"log-probs of {len(told or ())} tokens, and {len(ids)} were sent")
        values = [math.nan]
        for token, one in zip(ids[1:], told[1:], strict=True):
            value = one[str(token)]["logprob"] if isinstance(one, dict) and str(token) in one else None
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"the log-prob of token {token} is {value!r}")
            values.append(value)
        found.append(values)
    return found
