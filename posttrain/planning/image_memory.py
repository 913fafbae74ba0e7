"""An estimate of the memory one process needs for a method on images: memory.py's parts, from a network's blocks.

Activations: what autograd keeps of each block (image_blocks.py), times the rows of one forward pass. What is held of a
rollout: latents and means of every step, and the prompts' conditions. Images are made without gradient, and decoded one
by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from posttrain.planning.batch import rollout_of
from posttrain.planning.image_shapes import ImageShape
from posttrain.planning.memory import FOLLOWS_PARAMETER, STATE_BYTES, Launch, Memory, with_surroundings
from posttrain.recipe import Recipe
from posttrain.recipe.image_sections import FlowRolloutSection
from posttrain.recipe.train_options import FlowTrain


def estimate_images(recipe: Recipe, shape: ImageShape, launch: Launch) -> Memory:
    """The estimate for one process."""
    train, peft = recipe.train, recipe.model.peft
    size = 2 if recipe.model.dtype in ("bfloat16", "float16") else 4  # auto: float32, as it is loaded
    targets = None if peft is None else _targets(peft, shape)
    trained = (
        shape.parameters if peft is None or targets is None else shape.adapter_parameters(peft.r, targets)
    )
    trained_size = size if peft is None else 4
    states = STATE_BYTES[train.optim] * (trained_size / 4 if train.optim in FOLLOWS_PARAMETER else 1.0)
    step = _step(recipe, shape, targets, size)
    found = Memory(
        weights=(shape.parameters + shape.frozen) * size + (0 if peft is None else trained * trained_size),
        gradients=trained * trained_size,
        optimizer=trained * states,
        reference=_reference(recipe, shape, trained * trained_size, size),
        layers=step.layers,
        head=step.casts,
        last_layer=step.last_block,
        generation=_generation(recipe, shape, step),
        rollout=_rollout_bytes(recipe, shape),
        accumulates=_passes(recipe) > 1,
        on_cpu=launch.device == "cpu",
        notes=_notes(recipe),
    )
    return with_surroundings(found, recipe, step.layers, launch)


@dataclass(frozen=True)
class _PassBytes:
    """Of one forward and backward.

    layers      what the blocks keep
    last_block  what the end of the backward needs beside all gradients
    casts       copies of the weights in 16 bits under autocast
    largest     the block that keeps most, of one row
    """

    layers: float
    last_block: float
    casts: float
    largest: float


def _step(recipe: Recipe, shape: ImageShape, targets: frozenset[str] | None, size: int) -> _PassBytes:
    train = recipe.train
    autocast = (train.bf16 or train.fp16) and size == 4
    compute = 2 if autocast else size
    each = [block.bytes_kept(targets, size, compute) for block in shape.blocks]
    rows, largest = rows_at_once(recipe), max(each)
    whole = sum(each)
    entries = sum(block.positions * block.entry * size for block in shape.blocks)
    checkpointed = train.gradient_checkpointing and entries > 0
    return _PassBytes(
        layers=rows * (entries if checkpointed else whole),
        last_block=rows * largest,
        casts=shape.parameters * 2.0 if autocast else 0.0,
        largest=max(block.bytes_kept(None, size, compute) for block in shape.blocks),
    )


def rows_at_once(recipe: Recipe) -> int:
    """Of one forward pass with gradient: guidance doubles them, and so does a pair."""
    rows = recipe.train.per_device_train_batch_size
    if isinstance(recipe.rollout, FlowRolloutSection):
        return rows * (1 if recipe.rollout.cfg_scale == 1.0 else 2)
    return rows * (2 if recipe.objective.trains_noise_models else 1)


def _passes(recipe: Recipe) -> int:
    """Forward and backward passes of an optimizer step: between them gradients stay."""
    steps = 1
    if isinstance(recipe.rollout, FlowRolloutSection):
        objective: Any = recipe.objective
        steps = max(1, objective.trained_steps(recipe.rollout.denoising_steps))
    return steps * recipe.train.gradient_accumulation_steps


def _reference(recipe: Recipe, shape: ImageShape, trained: float, size: int) -> float:
    if isinstance(recipe.train, FlowTrain):
        return shape.parameters * size if recipe.train.beta > 0 and recipe.model.peft is None else 0.0
    return trained if recipe.objective.trains_noise_models else 0.0  # diffusion_dpo keeps what is trained


def _rollout_bytes(recipe: Recipe, shape: ImageShape) -> float:
    """Latents and means of every step, and conditions, of this process's images: float32."""
    rollout = rollout_of(recipe, 1)
    if rollout is None or not isinstance(recipe.rollout, FlowRolloutSection):
        return 0.0
    steps = recipe.rollout.denoising_steps
    return rollout.completions_per_process * 4.0 * ((2 * steps + 1) * shape.latents + shape.told)


def _generation(recipe: Recipe, shape: ImageShape, step: _PassBytes) -> float:
    """The larger of a pass without gradient, one block at a time, and the decoding of one image."""
    rows = rows_at_once(recipe)
    if isinstance(recipe.rollout, FlowRolloutSection):
        at_once = min(recipe.rollout.sampler_rows, _images(recipe))
        rows = at_once * (1 if recipe.rollout.cfg_scale == 1.0 else 2)
    size = 2 if recipe.model.dtype in ("bfloat16", "float16") else 4
    narrow, wide = shape.decoder
    return max(rows * step.largest, size * shape.pixels**2 * (narrow + 2 * wide))


def _images(recipe: Recipe) -> int:
    rollout = rollout_of(recipe, 1)
    return 1 if rollout is None else rollout.completions_per_process


def _targets(peft: Any, shape: ImageShape) -> frozenset[str]:
    if isinstance(peft.target_modules, list):
        return frozenset(peft.target_modules)
    return frozenset(name for block in shape.blocks for name in block.linears)


def _notes(recipe: Recipe) -> tuple[str, ...]:
    return ("counted for attention that does not keep its scores, and prompts of full length",) * (
        recipe.model.path is not None
    )
