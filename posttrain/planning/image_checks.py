"""What can be known of a run that trains a flow model of images before anything is loaded. No torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.planning.batch import RolloutSize, plural
from posttrain.planning.checks import maker_of
from posttrain.planning.image_shapes import published_fault, published_noise_model
from posttrain.planning.launcher import engine_asked
from posttrain.planning.shapes import is_folder_name
from posttrain.recipe import Recipe
from posttrain.recipe.image_sections import FlowRolloutSection
from posttrain.rollout.adapter_base import ModelFault
from posttrain.rollout.flow.flow_folder import is_noise_model, kind_of_folder


def flow_model_faults(recipe: Recipe) -> Iterator[str]:
    """Why the model is none that flow methods train, as far as its folder shows."""
    model = recipe.model
    if model.peft is not None and model.peft.dropout:
        yield (
            "model.peft: dropout would make the policy that trains another than the one that made the images; "
            "set it to 0"
        )
    if model.path is None:
        return
    folder, noise_models = Path(model.path), recipe.objective.trains_noise_models
    if not folder.is_dir():
        if (fault := published_fault(model.path, noise_models=noise_models)) is not None:
            yield f"model: {fault}"
        if published_noise_model(model.path):
            yield from _noise_faults(recipe)
        if importlib.util.find_spec("diffusers") is None and not is_folder_name(
            model.path, recipe.output.dir
        ):
            yield f"model: {model.path} is read by diffusers, which is not installed; pip install 'posttrain[flow]'"
        if is_folder_name(model.path, recipe.output.dir):
            yield f"model: no folder '{folder}' here or beside the recipe; first train {maker_of(folder, recipe)}"
        return
    if recipe.output.overwrite and Path(recipe.output.run_dir).resolve() in folder.resolve().parents:
        yield (
            f"model: folder '{folder}' is part of the run that output.overwrite would replace; "
            "give this run another output.name"
        )
    if model.revision is not None:
        yield "model: 'revision' does nothing with a local folder; remove it"
    try:
        kind = kind_of_folder(folder, noise_models=noise_models)
    except ModelFault as error:
        yield f"model: {error}"
        return
    if is_noise_model(folder):
        yield from _noise_faults(recipe)
    if kind in ("pipeline", "trained") and importlib.util.find_spec("diffusers") is None:
        yield f"model: {folder} is a pipeline of diffusers, which is not installed; pip install 'posttrain[flow]'"


def _noise_faults(recipe: Recipe) -> Iterator[str]:
    """Settings of a method on pairs that a model of noise does not know."""
    times = recipe.objective.values().get("times")
    if recipe.objective.trains_noise_models and times != "ddpm":
        yield (
            f"objective: times: {times} are of a flow, and {recipe.model.path} is a model of noise, which knows the "
            "steps of its own schedule alone; write times: ddpm and error: epsilon (of one that says v v_prediction)"
        )


def sharding_faults(recipe: Recipe, zero: int) -> Iterator[str]:
    """Of launches that keep weights or optimizer states in parts: `plan --zero`, or as accelerate began it."""
    if zero or engine_asked() not in ("ddp", "one process"):
        yield (
            f"launch: method '{recipe.method}' trains on one process or under DDP; ZeRO and FSDP keep in parts what "
            "its steps read whole; launch with launch/accelerate/ddp.yaml"
        )


def flow_rollout_faults(recipe: Recipe) -> Iterator[str]:
    """Settings of method and sampler that cannot go together."""
    rollout: Any = recipe.rollout
    if not isinstance(rollout, FlowRolloutSection):
        return
    objective: Any = recipe.objective
    if rollout.cfg_scale != 1.0 and not objective.guided_training:
        yield (
            f"rollout: cfg_scale {rollout.cfg_scale:g} guides the images, and objective.guided_training is off: the "
            "policy that is trained would not be the one that made them; train with the guidance, or write cfg_scale: 1"
        )
    trained = objective.trained_steps(rollout.denoising_steps)
    if trained < 1:
        yield (
            f"objective: trained_share {objective.trained_share:g} of {rollout.denoising_steps} denoising steps is "
            "less than one step; raise one of them"
        )
    if rollout.sampler == "cps" and trained == rollout.denoising_steps:
        yield (
            "rollout: sampler cps has no noise in its last step, which cannot be trained on; lower "
            "objective.trained_share"
        )


def flow_lines(recipe: Recipe, rollout: RolloutSize | None) -> list[str]:
    """How the images are made, and the forward passes of one optimizer step."""
    section: Any = recipe.rollout
    if not isinstance(section, FlowRolloutSection) or rollout is None:
        return []
    objective: Any = recipe.objective
    trained, twice = objective.trained_steps(section.denoising_steps), 1 if section.cfg_scale == 1.0 else 2
    passes = trained * rollout.accumulation
    guided = "" if twice == 1 else f", each of {2 * rollout.micro_batch} rows for the guidance"
    return [
        f"an image is made in {plural(section.denoising_steps, 'step')} ({section.sampler}, noise "
        f"{section.noise_level:g}), and its first {trained} are trained on; all rows of a pass stand at the same step",
        f"each optimizer step = {plural(passes, 'forward and backward pass')} on each process{guided}",
    ]
