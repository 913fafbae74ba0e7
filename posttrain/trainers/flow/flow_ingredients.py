"""From a recipe's `model` and `data` sections to a flow model, what stands around it, an adapter's config and rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from peft import LoraConfig

from posttrain.data import RowCounts, load_rows
from posttrain.planning.checks import loaded_faults
from posttrain.planning.launcher import started
from posttrain.planning.row_needs import needs_of
from posttrain.process.phases import PHASES
from posttrain.recipe import Recipe, RecipeError
from posttrain.recipe.image_sections import FlowModelSection
from posttrain.recipe.sections import PeftSection
from posttrain.rollout.adapter_base import ModelFault
from posttrain.rollout.flow.flow_folder import load_flow
from posttrain.rollout.flow.image_frame import ImageFrame
from posttrain.rollout.flow.small_flow import ClassFrame, scratch_flow
from posttrain.trainers.models.ingredients import torch_dtype
from posttrain.trainers.seam.faults import NotUnderThisEngine


@dataclass(frozen=True)
class FlowIngredients:
    """What a recipe's `model` and `data` sections became."""

    model: Any
    frame: ImageFrame
    train_rows: Dataset
    train_counts: RowCounts
    eval_rows: Dataset | None
    peft_config: LoraConfig | None


def flow_ingredients(recipe: Recipe) -> FlowIngredients:
    """RecipeError where the folder holds no flow model, or a prompt cannot be read by it."""
    PHASES.say("loading weights")
    section: Any = recipe.model
    try:
        model, frame = flow_model(section)
    except ModelFault as error:
        raise RecipeError(f"{recipe.path}: model: {error}") from None
    PHASES.say("reading rows")
    needs = needs_of(recipe)
    loaded = load_rows(recipe.data, needs=needs)
    faults = loaded_faults(recipe, loaded.rows, started())
    if faults:
        raise RecipeError(*(f"{recipe.path}: {fault}" for fault in faults))
    held_out = None if recipe.data.eval is None else load_rows(recipe.data.eval, needs=needs).rows
    for place, rows in (("data", loaded.rows), ("data.eval", held_out)):
        _check_prompts(recipe, frame, place, rows)
    PHASES.say("building the trainer")
    adapter = None if section.peft is None else flow_lora(section.peft)
    return FlowIngredients(model, frame, loaded.rows, loaded.counts, held_out, adapter)


def flow_model(section: FlowModelSection) -> tuple[Any, ImageFrame]:
    """Raises ModelFault where the folder holds none."""
    if section.scratch is not None:
        sizes = section.scratch.model_dump(exclude={"architecture", "seed"})
        model: Any = scratch_flow(section.scratch.seed, **sizes)
        if section.dtype != "auto":
            model.to(torch_dtype(section.dtype))
        return model, ClassFrame(model.config)
    if section.path is None:
        raise ValueError("model: give 'path' or 'scratch'")
    dtype = None if section.dtype == "auto" else torch_dtype(section.dtype)
    return load_flow(
        section.path,
        dtype=dtype,
        revision=section.revision,
        image_size=section.image_size,
        embedded_guidance=section.embedded_guidance,
    )


def flow_lora(section: PeftSection) -> LoraConfig:
    """The adapter's config; without a task, because the model is called with latents."""
    return LoraConfig(
        r=section.r,
        lora_alpha=section.alpha,  # type: ignore[arg-type]  # peft scales by alpha / r, a float serves
        lora_dropout=section.dropout,
        target_modules=section.target_modules,
        modules_to_save=section.modules_to_save or None,
        use_rslora=section.rslora,
        use_dora=section.dora,
    )


def require_flow(trainer: type, frame: ImageFrame) -> None:
    """ValueError where the model is one of noise, which has no steps of a flow."""
    if frame.line_times is not None:
        raise ValueError(
            f"{trainer.__name__} trains flow models, and this is a model of noise with a DDPM's scheduler, whose steps "
            "are none of a flow; train it with diffusion_dpo or seppo_diffusion"
        )


def require_whole_weights(trainer: Any) -> None:
    """NotUnderThisEngine under DeepSpeed and FSDP, which keep in parts what image methods read whole."""
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise NotUnderThisEngine(
            f"{type(trainer).__name__}: samplers and references read the policy's weights whole, which DeepSpeed and "
            "FSDP keep in parts; train on one process or under DDP"
        )


def _check_prompts(recipe: Recipe, frame: ImageFrame, place: str, rows: Dataset | None) -> None:
    """A model of classes reads their names alone: said before the first step."""
    if rows is None or not isinstance(frame, ClassFrame):
        return
    try:
        frame.read_prompts([str(prompt) for prompt in dict.fromkeys(rows["prompt"])])
    except ValueError as error:
        raise RecipeError(f"{recipe.path}: {place}: {error}") from None
