"""From a recipe's `model` and `data` sections to a model, its tokenizer, an adapter's config and rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from posttrain.data import RowCounts, load_rows
from posttrain.data.reward_columns import marked
from posttrain.data.row_order import Curriculum
from posttrain.planning.checks import loaded_faults
from posttrain.planning.launcher import started
from posttrain.planning.row_needs import needs_of
from posttrain.process.phases import PHASES
from posttrain.recipe import Recipe, RecipeError
from posttrain.recipe.sections import ModelSection, PeftSection
from posttrain.recipe.train_options import SFTTrain
from posttrain.rollout.adapter_base import ModelFault
from posttrain.trainers.models.adapters import check_adapter
from posttrain.trainers.models.load import character_tokenizer, load_pretrained, scratch_llama

LoadModel = Callable[[ModelSection], tuple[PreTrainedModel, PreTrainedTokenizerBase]]


@dataclass(frozen=True)
class Ingredients:
    """What a recipe's `model` and `data` sections became."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    train_rows: Dataset
    train_counts: RowCounts
    eval_rows: Dataset | None
    peft_config: LoraConfig | None
    curriculum: Curriculum | None = None


def ingredients(recipe: Recipe, load: LoadModel | None = None) -> Ingredients:
    """`load` makes model and tokenizer where they are not a causal language model's."""
    PHASES.say("loading weights")
    peft = lora(recipe.model.peft, recipe.model.revision) if recipe.model.peft is not None else None
    try:
        model, tokenizer = (load or model_and_tokenizer)(recipe.model)
    except ModelFault as error:
        raise RecipeError(f"{recipe.path}: model: {error}") from None
    templates_of(recipe.model, tokenizer)
    try:
        check_adapter(model, peft)
    except ValueError as error:
        raise RecipeError(f"{recipe.path}: model.peft: {error}") from None
    # TRL's SFT trainer cuts there without a word; the preference trainers keep an account of their own.
    cut_at = recipe.train.max_length if isinstance(recipe.train, SFTTrain) else None
    needs = needs_of(recipe)
    PHASES.say("reading rows")
    loaded = load_rows(recipe.data, tokenizer, needs=needs, max_length=cut_at)
    faults = loaded_faults(recipe, loaded.rows, started())
    if faults:
        raise RecipeError(*(f"{recipe.path}: {fault}" for fault in faults))
    held_out = None
    if recipe.data.eval is not None:
        held_out = load_rows(recipe.data.eval, tokenizer, needs=needs, max_length=cut_at).rows
        held_out = marked(held_out) if needs.others else held_out
    PHASES.say("building the trainer")
    train_rows = marked(loaded.rows) if needs.others else loaded.rows
    return Ingredients(model, tokenizer, train_rows, loaded.counts, held_out, peft, loaded.order)


def templates_of(section: ModelSection, tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives the tokenizer the templates that the recipe names; they are saved with the model."""
    if section.chat_template is not None:
        tokenizer.chat_template = Path(section.chat_template).read_text(encoding="utf-8")
    if section.response_template is not None:
        told: Any = tokenizer
        told.response_template = json.loads(Path(section.response_template).read_text(encoding="utf-8"))


def model_and_tokenizer(section: ModelSection) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if section.scratch is not None:
        tokenizer = character_tokenizer(section.scratch.alphabet)
        scratch = scratch_llama(
            tokenizer,
            hidden_size=section.scratch.hidden_size,
            layers=section.scratch.layers,
            heads=section.scratch.heads,
            intermediate_size=section.scratch.intermediate_size,
            max_positions=section.scratch.max_positions,
            seed=section.scratch.seed,
        )
        if section.dtype != "auto":
            scratch.to(torch_dtype(section.dtype))  # pyright: ignore[reportArgumentType]  # upstream wraps `to`
        return scratch, tokenizer
    if section.path is None:
        raise ValueError("model: give 'path' or 'scratch'")
    options: dict[str, Any] = {"trust_remote_code": section.trust_remote_code}
    if section.revision is not None:
        options["revision"] = section.revision
    if section.attn_implementation is not None:
        options["attn_implementation"] = section.attn_implementation
    if section.quantization is not None:
        options["quantization_config"] = nf4(section.dtype)
    return load_pretrained(section.path, tokenizer_path=section.tokenizer, dtype=section.dtype, **options)


def nf4(dtype: str) -> BitsAndBytesConfig:
    """Linear maps in 4-bit NormalFloat with quantised scales (QLoRA, arXiv 2305.14314); products in `dtype`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else torch_dtype(dtype),
    )


def torch_dtype(name: str) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def lora(section: PeftSection, revision: str | None = None) -> LoraConfig:
    """The adapter's config; `revision`, of the base model, is saved with it."""
    return LoraConfig(
        revision=revision,
        r=section.r,
        lora_alpha=section.alpha,  # type: ignore[arg-type]  # peft scales by alpha / r, a float serves
        lora_dropout=section.dropout,
        target_modules=section.target_modules,
        modules_to_save=section.modules_to_save or None,
        use_rslora=section.rslora,
        use_dora=section.dora,
        task_type="CAUSAL_LM",
    )
