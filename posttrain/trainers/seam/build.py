"""From a checked recipe to what every trainer takes: model, tokenizer, rows and training arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from posttrain.data import RowCounts, load_rows
from posttrain.data.reward_columns import marked
from posttrain.planning.checks import loaded_faults
from posttrain.planning.launcher import started
from posttrain.planning.rewards import spec_of
from posttrain.planning.row_needs import needs_of
from posttrain.process.phases import PHASES
from posttrain.recipe import Recipe, RecipeError
from posttrain.recipe.sections import ModelSection, PeftSection
from posttrain.recipe.train_options import SFTTrain
from posttrain.rewards.runner import RewardRunner
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


def ingredients(recipe: Recipe, load: LoadModel | None = None) -> Ingredients:
    """`load` makes model and tokenizer where they are not a causal language model's."""
    PHASES.say("loading weights")
    peft = lora(recipe.model.peft, recipe.model.revision) if recipe.model.peft is not None else None
    try:
        model, tokenizer = (load or model_and_tokenizer)(recipe.model)
    except ModelFault as error:
        raise RecipeError(f"{recipe.path}: model: {error}") from None
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
    return Ingredients(model, tokenizer, train_rows, loaded.counts, held_out, peft)


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


def training_arguments(recipe: Recipe, config_class: type, **changes: Any) -> Any:
    """The family's TRL config, filled from the recipe; `changes` win."""
    names = {f.name for f in dataclasses.fields(config_class) if f.init}
    return config_class(**{**recipe.trl_arguments(sorted(names)), **changes})


def policy_arguments(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says outside `train` and `objective` that a `PolicyConfig` holds."""
    if recipe.rollout is None:
        raise ValueError(f"{recipe.path}: {recipe.method} needs a rollout section")
    return {
        "reward_weights": [reward.weight for reward in recipe.rewards],
        "num_generations_eval": 1,
        "eval_temperature": recipe.rollout.eval_temperature,
        "record_steps": list(recipe.output.record),
        "log_completions": False,  # the run folder keeps them, see observe/writer.py
    }


def reward_runner(recipe: Recipe) -> RewardRunner:
    """The recipe's rewards, each in processes of its own."""
    return RewardRunner([spec_of(reward) for reward in recipe.rewards])
