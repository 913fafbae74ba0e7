"""How likely a model finds the answers of a data set: mean log-probability per token, forward passes only.

With pi_D the policy that wrote the data and pi the model, the mean of -log pi(answer | prompt) over the data estimates
KL(pi_D, pi) + H(pi_D): the action divergence of Belkhale, Cui and Sadigh 2023 (arXiv 2306.02437), and the data's own
entropy on top, which is not known. So it compares data sets under one model, or models on one data set; alone it is no
divergence. The tokens counted are those that training learns from, with the token that ends the answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from posttrain.data import DataError
from posttrain.data.conversations import Dropped
from posttrain.data.describe.described_rows import DescribedRow, Said
from posttrain.data.describe.description import ModelFit, evenly
from posttrain.data.describe.spread import spread
from posttrain.data.tokens import Learned, learned_ids
from posttrain.ops.logprobs import token_logprobs
from posttrain.rollout.model_folder import load_dense, tokenizer_of

ROLES_READ = ("completion", "chosen", "rejected")
LONGEST_FORWARD = 4_096
"""Tokens of prompt and answer: a longer row is left out and counted."""


def answer_fit(
    rows: Sequence[DescribedRow], model_path: str, *, count: int, device: str, dtype: str
) -> ModelFit | None:
    """Of at most `count` rows, evenly spaced among those that training would use; None where no row has an answer.

    ValueError where the model cannot be loaded.
    """
    usable = [row for row in rows if row.whole and _roles(row)]
    if not usable:
        return None
    model: Any = load_dense(model_path, dtype=dtype)
    model = model.to(device).eval()
    return fit_of(evenly(usable, count), model, tokenizer_of(model_path), model_path)


def fit_of(rows: Sequence[DescribedRow], model: Any, tokenizer: Any, name: str) -> ModelFit | None:
    """Of these rows; None where none of them could be read."""
    by_row: dict[str, list[float]] = {}
    sums: dict[str, float] = {}
    tokens: dict[str, int] = {}
    preferred: list[bool] = []
    read = left_out = 0
    for row in rows:
        found = {role: _fit(row.prompt, row.answers[role], model, tokenizer) for role in _roles(row)}
        if any(values is None for values in found.values()):
            left_out += 1
            continue
        read += 1
        means: dict[str, float] = {}
        for role, values in found.items():
            assert values is not None
            means[role] = float(values.mean())
            by_row.setdefault(role, []).append(means[role])
            sums[role] = sums.get(role, 0.0) + float(values.sum())
            tokens[role] = tokens.get(role, 0) + len(values)
        if {"chosen", "rejected"} <= means.keys():
            preferred.append(means["chosen"] > means["rejected"])
    if not read:
        return None
    spreads = {role: one for role, values in by_row.items() if (one := spread(values)) is not None}
    per_token = {role: sums[role] / tokens[role] for role in sums}
    return ModelFit(
        model=name,
        rows=read,
        tokens=tokens,
        by_row=spreads,
        per_token=per_token,
        perplexity={role: math.exp(min(-mean, 700.0)) for role, mean in per_token.items()},
        preferred=sum(preferred) / len(preferred) if preferred else None,
        left_out=left_out,
    )


def _roles(row: DescribedRow) -> list[str]:
    """The answers to look at; of a row without any the gold one is none, it may be a number behind ####."""
    return [role for role in ROLES_READ if (row.text(role) or "").strip()]


@torch.no_grad()
def _fit(prompt: Said, answer: Said, model: Any, tokenizer: Any) -> torch.Tensor | None:
    """Log-probability of each learned token, float64 on the CPU; None for a row that is too long or not to be read."""
    learned = _learned(prompt, answer, tokenizer)
    limit = min(LONGEST_FORWARD, getattr(model.config, "max_position_embeddings", None) or LONGEST_FORWARD)
    if learned is None or len(learned.ids) > limit:
        return None
    places = [place for start, end in learned.spans for place in range(max(start, 1), end)]
    if not places:
        return None
    ids = torch.tensor([learned.ids], device=model.device)
    logits = model(input_ids=ids).logits[0]
    at = torch.tensor(places, device=model.device)
    found = token_logprobs(logits[at - 1], ids[0, at]).double().cpu()
    if not bool(torch.isfinite(found).all()):
        raise ValueError("the model gives log-probabilities that are not finite; try --dtype float32")
    return found


def _learned(prompt: Said, answer: Said, tokenizer: Any) -> Learned | None:
    from jinja2 import TemplateError

    if isinstance(prompt, list) and tokenizer.chat_template is None:
        raise DataError(
            "prompts are messages, but the model's tokenizer has no chat template; name another --model"
        )
    try:
        return learned_ids(tokenizer, prompt, answer)
    except (TemplateError, Dropped, DataError, TypeError):
        return None
