"""Soups of model folders: adapters merged first, tokenizers compared, and the check that the soup is no garbage."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import is_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.references.soup import UNRELATED, StateDict, average, distance
from posttrain.rollout.model_folder import tokenizer_of
from posttrain.trainers.models.policy_folder import load_dense
from posttrain.trainers.models.whole_weights import whole_weights_everywhere

logger = logging.getLogger(__name__)


class SoupError(ValueError):
    """Models that cannot be averaged, or whose average is worse than either."""


def soup_with(model: PreTrainedModel, others: Sequence[str], weights: Sequence[float]) -> PreTrainedModel:
    """A frozen model with the average of `model`'s weights and those of the folders `others`, in that order.

    `model` is left as it is; of a PEFT model the adapter is merged in a copy.
    """
    first = copy.deepcopy(model).merge_and_unload() if is_peft_model(model) else model  # type: ignore[operator]  # peft's
    with whole_weights_everywhere():
        rest = [load_dense(path) for path in others]  # as saved: rounded once, after the sum
    states = [first.state_dict(), *[other.to(first.device).state_dict() for other in rest]]  # type: ignore[arg-type]  # as torch
    soup = average(states, weights)
    if PartialState().is_main_process:  # elsewhere FSDP may not have given the policy its weights yet
        warn_of_unrelated_weights(["the policy", *others], states)
    reference = rest[0].to(first.dtype)  # type: ignore[arg-type]  # as torch
    reference.load_state_dict(soup)
    return reference.requires_grad_(False).eval()


def warn_of_unrelated_weights(names: Sequence[str], states: Sequence[StateDict]) -> None:
    """Says so when a model lies as far from the first as if they had nothing in common; data would have to prove it."""
    for name, state in zip(names[1:], states[1:], strict=True):
        apart = distance(states[0], state)
        if apart >= UNRELATED:
            logger.warning(
                "soup: %s lies %.2f times its size away from %s, as models of different starts do; their average is "
                "likely garbage: check it with posttrain soup --check-data",
                name, apart, names[0],
            )  # fmt: skip


def check_tokenizers(paths: Sequence[str]) -> PreTrainedTokenizerBase:
    """The first folder's tokenizer, if all map the same tokens to the same numbers."""
    first = tokenizer_of(paths[0])
    for path in paths[1:]:
        check_vocabulary(first, paths[0], tokenizer_of(path), path)
    return first


def check_vocabulary(
    first: PreTrainedTokenizerBase, name: str, other: PreTrainedTokenizerBase, path: str
) -> None:
    """SoupError unless both map the same tokens to the same numbers: equal shapes do not say so."""
    vocabulary, found = first.get_vocab(), other.get_vocab()
    if found != vocabulary:
        differing = sorted(t for t in vocabulary.keys() | found.keys() if vocabulary.get(t) != found.get(t))
        raise SoupError(
            f"{path} has another vocabulary than {name} ({len(differing)} tokens differ, {differing[:3]} ...): "
            "their weights do not mean the same tokens"
        )


CheckText = tuple[str, str]
"""A prompt, which may be empty, and the answer that is scored."""


@torch.no_grad()
def perplexity(model: PreTrainedModel, tokenizer: Any, texts: Sequence[CheckText]) -> float:
    """exp of the mean negative log-likelihood a token of the answers given their prompts. A text's very first token,
    which nothing precedes, is not scored; what lies beyond the tokenizer's longest input is cut. SoupError if nothing
    is left to score."""
    nats, tokens = 0.0, 0
    for prompt, answer in texts:
        first = max(len(tokenizer(prompt)["input_ids"]) if prompt else 0, 1)
        ids: Tensor = tokenizer(prompt + answer, return_tensors="pt", truncation=True)["input_ids"]
        if ids.shape[1] <= first:
            continue
        ids = ids.to(model.device)
        logits = model(input_ids=ids).logits[0, first - 1 : -1].float()
        nats += float(cross_entropy(logits, ids[0, first:], reduction="sum"))
        tokens += len(logits)
    if tokens == 0:
        raise SoupError("the check texts hold no token to score")
    return math.exp(nats / tokens)


def check_perplexity(soup: float, models: Sequence[float], tolerance: float) -> None:
    """SoupError unless the soup is at most `tolerance` (a share) worse than the worst of its models."""
    limit = max(models) * (1 + tolerance)
    if not soup <= limit:
        raise SoupError(
            f"the soup's perplexity {soup:.4g} is above {limit:.4g}, {tolerance:.0%} over the worst of the models "
            f"({', '.join(f'{p:.4g}' for p in models)}): they do not lie in one basin, as models of different bases do"
        )


def save_soup(
    paths: Sequence[str],
    weights: Sequence[float],
    out: Path,
    *,
    check_texts: Sequence[CheckText] | None = None,
    tolerance: float = 0.1,
) -> dict[str, Any]:
    """Writes the soup of `paths` as a model folder, with the first one's config and tokenizer.

    Returns what was measured: perplexities of the models and of the soup, where there are `check_texts`.
    """
    tokenizer = check_tokenizers(paths)
    models = [load_dense(path) for path in paths]
    states = [model.state_dict() for model in models]
    soup = average(states, weights)
    if check_texts is None:
        warn_of_unrelated_weights(paths, states)
    measured: dict[str, Any] = {}
    if check_texts is not None:
        measured["models"] = [perplexity(model.eval(), tokenizer, check_texts) for model in models]
    first = models[0]
    first.load_state_dict(soup)
    if check_texts is not None:
        measured["soup"] = perplexity(first.eval(), tokenizer, check_texts)
        check_perplexity(measured["soup"], measured["models"], tolerance)
    out.mkdir(parents=True, exist_ok=True)
    first.save_pretrained(out)
    tokenizer_of(paths[0]).save_pretrained(out)
    return measured
