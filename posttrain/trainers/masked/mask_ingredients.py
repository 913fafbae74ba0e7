"""From a recipe's sections to what the masked-diffusion trainers take."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.recipe import Recipe
from posttrain.recipe.sections import MaskSection, ModelSection
from posttrain.rollout.masked.predictor import (
    load_mask_model,
    mask_id_of,
    own_code,
    scratch_mask_model,
    with_generation_config,
)
from posttrain.rollout.masked.sampler_options import DiffusionSampling
from posttrain.rollout.model_folder import tokenizer_of
from posttrain.trainers.models.ingredients import Ingredients, ingredients, torch_dtype
from posttrain.trainers.models.load import character_tokenizer


def mask_ingredients(recipe: Recipe) -> Ingredients:
    return ingredients(recipe, load=mask_model_and_tokenizer)


def mask_model_and_tokenizer(section: ModelSection) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A bidirectional model and a tokenizer that knows its mask token."""
    mask = section.mask or MaskSection()
    if section.scratch is not None:
        tokenizer = character_tokenizer(section.scratch.alphabet)
        sizes = section.scratch.model_dump(exclude={"architecture", "tokenizer", "alphabet"})
        model: Any = scratch_mask_model(tokenizer, **sizes)
        return (model if section.dtype == "auto" else model.to(torch_dtype(section.dtype))), tokenizer
    if section.path is None:
        raise ValueError("model: give 'path' or 'scratch'")
    # Said before the tokenizer is loaded, which would say it worse.
    own_code(section.path, trust_remote_code=section.trust_remote_code, revision=section.revision)
    options: dict[str, Any] = {
        "revision": section.revision,
        "attn_implementation": section.attn_implementation,
    }
    tokenizer = tokenizer_of(
        section.tokenizer or section.path,
        padding_side="left",
        trust_remote_code=section.trust_remote_code,
        revision=None if section.tokenizer else section.revision,
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    mask_id_of(tokenizer, mask.token)
    model = load_mask_model(
        section.path,
        dtype=section.dtype,
        trust_remote_code=section.trust_remote_code,
        logit_shift=mask.logit_shift,
        **{name: value for name, value in options.items() if value is not None},
    )
    _set_end_tokens(model, tokenizer, mask)
    return model, tokenizer


def _set_end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, mask: MaskSection) -> None:
    """The tokens that end a response: the tokenizer's, and those the recipe adds (LLaDA's end of turn)."""
    vocabulary = tokenizer.get_vocab()
    unknown = [token for token in mask.end_tokens if token not in vocabulary]
    if unknown:
        raise ValueError(f"model.mask.end_tokens: {unknown[0]!r} is not in the tokenizer's vocabulary")
    ends = [tokenizer.eos_token_id, *(vocabulary[token] for token in mask.end_tokens)]
    with_generation_config(model).generation_config.eos_token_id = ends


def sampler_arguments(recipe: Recipe) -> dict[str, Any]:
    """The sampler's own settings from the `rollout` section."""
    if recipe.rollout is None:
        raise ValueError(f"{recipe.path}: {recipe.method} needs a rollout section")
    names = {field.name for field in dataclasses.fields(DiffusionSampling)}
    return {name: value for name, value in recipe.rollout.model_dump().items() if name in names}
