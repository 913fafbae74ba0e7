"""How far a policy's answer is from what a reference would have said, token by token, teacher-forced: what `posttrain
eval drift` measures, and the reward `drift_penalty` is made of. arXiv 2510.07777v2."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from posttrain.ops.divergence import vocabulary_js, vocabulary_kl

BLOCK = 64
"""Positions whose whole vocabulary is in float32 at a time."""


@torch.no_grad()
def response_logits(model: Any, history: Sequence[int], response: Sequence[int]) -> Tensor:
    """Logits (n, V) of a causal model that predict each of the n response tokens after `history`, in the model's own
    precision."""
    ids = torch.tensor([[*history, *response[:-1]]], device=model.device)
    count = len(response)
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=count).logits[0]
    else:
        logits = model(input_ids=ids, use_cache=False).logits[0]
    return logits[-count:]


def mean_divergences(
    logits: Tensor, ref_logits: Tensor, vocabulary: int, device: Any = "cpu"
) -> tuple[float, float]:
    """Mean KL(q || p) and JS over the positions, (n, V) each, on the tokenizer's ids; what heads are padded to is cut.

    Raises ValueError where one is not finite.
    """
    kl, js = [], []
    for start in range(0, len(logits), BLOCK):
        q, p = (x[start : start + BLOCK, :vocabulary].to(device) for x in (logits, ref_logits))
        kl.append(vocabulary_kl(q, p).double())
        js.append(vocabulary_js(q, p).double())
    means = float(torch.cat(kl).mean()), float(torch.cat(js).mean())
    if not all(map(torch.isfinite, map(torch.tensor, means))):
        raise ValueError("the models give log-probabilities that are not finite; try --dtype float32")
    return means


def mean_log_ratio(logits: Tensor, ref_logits: Tensor, response: Sequence[int], vocabulary: int) -> float:
    """1/n sum_j log q(y_j) - log p(y_j) of the n tokens said, (n, V) each: of an answer drawn from q an unbiased sample
    of what `mean_divergences` gives on the mean. ValueError where it is not finite."""
    said = torch.tensor(response, device=logits.device).unsqueeze(1)
    total = 0.0
    for start in range(0, len(logits), BLOCK):
        rows = slice(start, start + BLOCK)
        q, p = (
            x[rows, :vocabulary].float().log_softmax(-1).gather(1, said[rows]) for x in (logits, ref_logits)
        )
        total += float((q - p).double().sum())
    if not math.isfinite(total):
        raise ValueError("the models give log-probabilities that are not finite; try float32")
    return total / len(logits)


def with_goal(prompt: Any, goal: str) -> Any:
    """A prompt with the goal stated once more: of a conversation at the end of the last message, as eval drift does it;
    before a text, which ends where the answer begins."""
    if isinstance(prompt, str):
        return f"{goal}\n\n{prompt}"
    *before, last = prompt
    return [*before, {**last, "content": f"{last['content']}\n\n{goal}"}]
