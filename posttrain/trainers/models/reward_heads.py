"""Models that give a whole text one number: made from a language model, and loaded from a run's folder."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import is_peft_model
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
)

from posttrain.rollout.adapter_base import ModelFault, adapter_config, base_of, holds_adapter
from posttrain.rollout.model_folder import load_adapter, load_whole


def is_scorer(model: Any) -> bool:
    """Whether it is a sequence classifier already, bare or with an adapter."""
    bare = model.get_base_model() if is_peft_model(model) else model
    return "SequenceClassification" in type(bare).__name__


def as_reward_model(model: Any, pad_token_id: int | None) -> Any:
    """The language model's layers under a head of one score, which starts at 0. The layers are shared, not copied.

    Raises ModelFault where transformers has no such class for this kind of model.
    """
    config = model.config
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ModelFault(
            f"transformers has no sequence classifier of the type {config.model_type!r}, so it makes no reward model"
        )
    config.num_labels, config.pad_token_id = 1, pad_token_id
    with init_empty_weights():
        kind: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
        scorer = kind(config)
    if not isinstance(vars(scorer)["_modules"].get("score"), nn.Linear):
        raise ModelFault(
            f"{type(scorer).__name__} keeps its head elsewhere than other models do; it cannot be made one"
        )
    weight = next(model.parameters())
    setattr(scorer, scorer.base_model_prefix, model.base_model)
    hidden = config.get_text_config().hidden_size
    scorer.score = nn.Linear(hidden, 1, bias=False, dtype=weight.dtype, device=weight.device)
    nn.init.zeros_(scorer.score.weight)
    scorer.generation_config = None
    return scorer


def gives_scores(path: str, **options: Any) -> bool:
    """Whether a folder or hub name is a sequence classifier, or an adapter of one."""
    if holds_adapter(path):
        return adapter_config(path).get("task_type") == "SEQ_CLS"
    names = AutoConfig.from_pretrained(path, **options).architectures or ()
    return any("SequenceClassification" in name for name in names)


def load_reward_model(folder: str, dtype: Any = "auto", **options: Any) -> Any:
    """A saved reward model, an adapter merged into its base. ModelFault where it is not whole or not of one score."""
    if holds_adapter(folder):
        base = base_of(folder)
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=1, dtype=dtype, **options
        )
        return load_adapter(model, folder).merge_and_unload()  # type: ignore[operator]  # peft's
    named = {name: options[name] for name in ("revision", "trust_remote_code") if name in options}
    config = AutoConfig.from_pretrained(folder, **named)
    if not gives_scores(folder, **named):
        names = config.architectures or ()
        raise ModelFault(
            f"{folder} is a {', '.join(names) or 'model of no named kind'}, which gives no reward; train one with "
            "`method: reward_model`, or name a sequence classifier of one label"
        )
    model = load_whole(folder, AutoModelForSequenceClassification, dtype=dtype, **options)
    labels = model.config.num_labels
    if labels != 1:
        raise ModelFault(f"{folder} gives {labels} scores, and a reward is one; name a model of one label")
    return model


@torch.no_grad()
def score_of(model: Any) -> torch.Tensor:
    """The head's weight (1, H)."""
    return model.score.weight.detach().clone()
