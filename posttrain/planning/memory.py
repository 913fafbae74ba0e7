"""An estimate of the memory one process needs, by parts: what is held all the time, and what each phase of a step adds.

On a GPU it is what the device lacks at the peak (as nvidia-smi counts), on a CPU the resident size of the trainer and
its reward workers. Tensors are counted from the model's shape (activations.py); what libraries, contexts and allocators
take beside them is measured, with date and place at each constant. docs/memory.md has the parts and the check:
eval/memory/measure.py runs recipes and compares.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal

from posttrain.planning.activations import (
    BACKWARD_WIDTHS,
    Arithmetic,
    head_backward,
    head_forward,
    layer_bytes,
    layer_weights,
)
from posttrain.planning.batch import rollout_of
from posttrain.planning.masked_costs import logits_bytes, sampling_bytes
from posttrain.planning.shapes import Shape, read_shape
from posttrain.recipe import Recipe
from posttrain.recipe.methods import Family, with_inner
from posttrain.recipe.sections import ModelSection, VLLMSection
from posttrain.recipe.train_options import PolicyTrain, PreferenceTrain, TextTrain

GIB, MIB = 2**30, 2**20
ASSUMED_PROMPT_TOKENS = 512
ASSUMED_ROW_TOKENS = 1024
STATE_BYTES = {  # of the optimizer, a trained parameter; for states that follow the parameter's type, at float32
    "adamw_torch": 8.0,
    "adamw_torch_fused": 8.0,
    "paged_adamw_32bit": 8.0,
    "adamw_8bit": 2.0,
    "paged_adamw_8bit": 2.0,
    "lion_32bit": 4.0,
    "lion_8bit": 1.0,
    "rmsprop": 4.0,
    "adafactor": 0.1,
    "sgd": 0.0,
}
FOLLOWS_PARAMETER = {"adamw_torch", "adamw_torch_fused", "rmsprop"}

CPU_LIBRARIES: dict[Family, float] = {
    "sft": 563 * MIB,
    "policy": 587 * MIB,
    "preference": 587 * MIB,
    "diffusion": 587 * MIB,
    "images": 663 * MIB,
    "image_sft": 663 * MIB,
}
"""Resident size of a trainer that has imported everything and built nothing: x86-64, Python 3.11, torch 2.13 for CPUs,
transformers 5.23, trl 1.16, 2026-11-26 (`libraries` of eval/memory/measure.py, and 15 MiB that loading rows brings). Of
images with diffusers 0.42, 2026-11-28 (VmHWM after the imports)."""
NF4_BYTES = 0.516
"""Of a weight in 4 bits: with scales of 64 weights, themselves in 8 bits (QLoRA, arXiv 2305.14314, section 3)."""
CUDA_CONTEXT = 800 * MIB
"""Context, kernels and libraries' workspaces outside the allocator: `used` less `reserved`, 754 to 764 MiB in four runs
on an H200, torch 2.11 for CUDA 13, 2026-11-26."""
CUDA_ROUNDING = 0.07
"""What the caching allocator reserves beyond what it hands out at its fullest: 4, 5, 6 and 13 % in the same runs."""
HEAP_KEPT = {False: 0.4, True: 0.9}
"""Share of all layers' activations that glibc's heap keeps beside what is in use, without and with an adapter. Blocks
below 32 MiB lie in a heap, and what is freed between blocks that stay is not given back; an adapter frees three blocks
for each that stays. `fordblks` of mallinfo2 and resident sizes, eleven runs, x86-64, glibc, 2026-11-26: 0.32 to 0.41
and 0.76 to 0.97. Checkpointing does not lessen it: its passes leave the same gaps."""
CPU_WORKER = 23 * MIB
"""A reward's worker process whose function imports nothing big, same runs."""


OTHER_MOMENT, OTHER_TRAINING = "(at another time: generating and scoring)", "(at another time: training)"


@dataclass(frozen=True)
class Launch:
    """How the run is started. `zero` is DeepSpeed's stage; FSDP2 with full sharding counts as 3."""

    processes: int = 1
    zero: int = 0
    device_gib: float | None = None
    device: Literal["cuda", "cpu"] = "cuda"


@dataclass(frozen=True)
class Memory:
    """Bytes of one process.

    held all the time      weights, optimizer, reference, engine, base (libraries, or the device's context), workers
    while training         gradients; layers (what they keep for the backward) and head (log-probs or logits, and, under
                           autocast, the weights in 16 bits), of which the larger of two moments counts: log-probs, when
                           all layers are kept, and the end of the backward, when all gradients are (`last_layer`)
    while generating       generation
    beside                 held all the time too: a critic's weights, gradients and optimizer states
    rollout                and latents, means and conditions of the images of a rollout
    allocator              kept beside what is in use
    """

    weights: float
    gradients: float
    optimizer: float
    reference: float
    layers: float
    head: float
    last_layer: float
    generation: float
    engine: float = 0.0
    base: float = 0.0
    workers: float = 0.0
    allocator: float = 0.0
    accumulates: bool = False
    on_cpu: bool = False
    notes: tuple[str, ...] = ()
    beside: float = 0.0
    rollout: float = 0.0

    @property
    def moments(self) -> tuple[float, float]:
        """Of training: when log-probs and their gradient are made, and at the end of the backward."""
        early = self.layers + self.head + (self.gradients if self.accumulates else 0.0)
        return early, self.gradients + self.last_layer

    @property
    def training(self) -> float:
        return max(self.moments)

    @property
    def tensors(self) -> float:
        """What torch hands out at the peak (torch.cuda.max_memory_allocated)."""
        held = self.weights + self.optimizer + self.reference + self.beside + self.rollout
        return held + max(self.training, self.generation)

    @property
    def peak(self) -> float:
        return self.tensors + self.engine + self.base + self.workers + self.allocator

    def rows(self) -> list[tuple[str, float]]:
        """The parts that stand at the peak, what the other moment takes (not among them), their sum, and the peak."""
        early, trains = self.moments[0] >= self.moments[1], self.training >= self.generation
        named = [
            ("weights", self.weights),
            ("optimizer states", self.optimizer),
            ("reference model", self.reference),
            ("critic", self.beside),
            ("rollout", self.rollout),
            (OTHER_TRAINING, 0.0 if trains else self.training),
            ("gradients", self.gradients if trains and (self.accumulates or not early) else 0.0),
            ("activations", (self.layers if early else self.last_layer) if trains else 0.0),
            ("log-probs and head", self.head if trains and early else 0.0),
            (OTHER_MOMENT if trains else "generating and scoring", self.generation),
            ("vLLM beside the trainer", self.engine),
            ("libraries" if self.on_cpu else "context", self.base),
            ("reward workers", self.workers),
            ("allocator", self.allocator),
            ("tensors", self.tensors),
            ("peak", self.peak),
        ]
        return [(name, size) for name, size in named if size]


def estimate(recipe: Recipe, shape: Shape, launch: Launch, prompt_tokens: int | None = None) -> Memory:
    """The estimate for one process; `prompt_tokens` is the longest prompt, where it is known."""
    train, peft = recipe.train, recipe.model.peft
    size = _bytes_of(recipe)
    trained = shape.parameters if peft is None else shape.lora_parameters(peft.r, peft.target_modules)
    trained_size = 4 if peft is not None else size  # adapters stay float32 over a half-precision base
    states = STATE_BYTES[train.optim]
    if train.optim in FOLLOWS_PARAMETER:
        states *= trained_size / 4
    if launch.zero and train.bf16 and peft is None:
        # DeepSpeed trains a bfloat16 copy and keeps the float32 weights with the optimizer.
        size = trained_size = 2
        states = STATE_BYTES[train.optim] + 4
    weights_share = launch.processes if launch.zero >= 3 else 1
    gradient_share = launch.processes if launch.zero >= 2 else 1
    optimizer_share = launch.processes if launch.zero >= 1 else 1
    tokens, notes = _tokens(recipe, prompt_tokens)
    engine_share = _engine_share(recipe)
    if engine_share and launch.device_gib is None:
        notes += (
            f"beside this, vLLM takes {engine_share:.0%} of the device (rollout.vllm.gpu_memory_utilization)",
        )
    frozen, unknown = _frozen_bytes(recipe)
    notes += unknown
    how = arithmetic(recipe, size, launch.device)
    step = _step(recipe, shape, how, tokens)
    beside = recipe.objective.texts_beside
    if beside is not None:
        step = step.or_larger(_step(recipe, shape, how, beside, texts=True))
    weights = _base_bytes(recipe, shape, size) + (trained * trained_size if peft is not None else 0)
    found = Memory(
        weights=weights / weights_share,
        gradients=trained * trained_size / gradient_share,
        optimizer=trained * states / optimizer_share,
        reference=(_references(recipe) * shape.parameters * size + frozen) / weights_share,
        layers=step.layers,
        head=step.head,
        last_layer=step.last_layer,
        generation=max(_generation(recipe, shape, tokens, size), step.scoring),
        engine=engine_share * (launch.device_gib or 0) * GIB,
        accumulates=train.gradient_accumulation_steps > 1 or beside is not None,
        on_cpu=launch.device == "cpu",
        notes=notes,
        beside=_beside(recipe) * shape.parameters * 4 * _bytes_of(recipe),
    )
    return with_surroundings(found, recipe, step.all_layers, launch)


def with_surroundings(found: Memory, recipe: Recipe, all_layers: float, launch: Launch) -> Memory:
    """What is not tensors: libraries and workers, or the device's context, and the allocator's share."""
    if launch.device == "cuda":
        return replace(found, base=CUDA_CONTEXT, allocator=CUDA_ROUNDING * found.tensors)
    return replace(
        found,
        base=CPU_LIBRARIES[recipe.spec.family],
        workers=sum(one.model is None for one in recipe.rewards) * workers_of_a_reward() * CPU_WORKER,
        allocator=HEAP_KEPT[recipe.model.peft is not None] * all_layers,
    )


@dataclass(frozen=True)
class _Step:
    """Bytes of one micro-batch.

    layers      what the layers keep at the time of the log-probs
    head        what log-probs or logits need then, and the weights in 16 bits under autocast
    last_layer  what the end of the backward needs beside all gradients
    scoring     the largest pass without gradient: one layer and the head
    all_layers  what the layers would keep without checkpointing
    """

    layers: float
    head: float
    last_layer: float
    scoring: float
    all_layers: float

    def or_larger(self, other: _Step) -> _Step:
        """For two kinds of micro-batch, one after the other: each part as the larger has it."""
        return _Step(**{name: max(value, vars(other)[name]) for name, value in vars(self).items()})


def arithmetic(recipe: Recipe, size: int, device: Literal["cuda", "cpu"]) -> Arithmetic:
    """How the run computes; `size` is the bytes of a weight while training."""
    peft, train = recipe.model.peft, recipe.train
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    targets = None
    if peft is not None:
        chosen = peft.target_modules if isinstance(peft.target_modules, list) else names
        targets = frozenset(name.rpartition(".")[2] for name in chosen)
    return Arithmetic(
        weight=size,
        autocast=(train.bf16 or train.fp16) and size == 4,
        trained=targets,
        rank=0 if peft is None else peft.r,
        padded=_rows(recipe) > 1,
        eager=recipe.model.attn_implementation == "eager",
        cuda=device == "cuda",
    )


def _step(recipe: Recipe, shape: Shape, how: Arithmetic, tokens: int, *, texts: bool = False) -> _Step:
    """Of responses of `tokens` tokens with their prompts, or of as many texts, each of whose tokens is scored."""
    rows, train = _rows(recipe), recipe.train
    here = tokens_at_once(recipe, rows, tokens)
    one = here * layer_bytes(shape, how, tokens)
    casts = shape.layers * layer_weights(shape) * 2.0 if how.autocast else 0.0
    whole = shape.layers * one
    # A layer's input; under autocast what lies between layers stays float32.
    inputs = shape.layers * here * shape.hidden * how.weight
    masked = logits_bytes(recipe, shape, rows, tokens, how)
    answers = recipe.rollout is not None and how.cuda and not texts
    scored = recipe.rollout.max_new_tokens if answers and recipe.rollout is not None else tokens - 1
    positions = here * scored // tokens
    forward = masked.forward if masked else head_forward(shape, how, positions)
    backward = masked.backward if masked else head_backward(shape, how, positions)
    embedding = shape.vocabulary * shape.hidden * 4.0 if how.trained is None else 0.0
    widths = here * BACKWARD_WIDTHS * shape.intermediate * how.compute
    if train.gradient_checkpointing:
        # Autocast keeps its copies of the weights to the end of the forward, then makes them anew layer by layer.
        head, last = max(forward + casts, backward), one + widths
    else:
        head, last = casts + max(forward, backward), one + widths + casts
    return _Step(
        layers=inputs if train.gradient_checkpointing else whole,
        head=head,
        last_layer=max(last, embedding),
        scoring=one + casts + forward if not texts and _scores_without_gradient(recipe) else 0.0,
        all_layers=whole,
    )


def tokens_at_once(recipe: Recipe, rows: int, tokens: int) -> int:
    """Of one forward and backward: all rows at the longest one's length, as if no layout shared prompts or left padding
    out, but no more than `max_tokens_per_micro_batch` where a row alone is not longer."""
    limit = recipe.train.max_tokens_per_micro_batch if isinstance(recipe.train, PolicyTrain) else None
    return rows * tokens if limit is None else min(rows * tokens, max(limit, tokens))


def _scores_without_gradient(recipe: Recipe) -> bool:
    """Log-probs of a reference, or of the policy before it moves."""
    if isinstance(recipe.train, PolicyTrain):
        rollout = rollout_of(recipe, 1)
        asked = recipe.train.beta > 0 or bool(recipe.objective.frozen_models)
        return asked or (rollout is not None and rollout.optimizer_steps > 1)
    return isinstance(recipe.train, PreferenceTrain)


def _rows(recipe: Recipe) -> int:
    """Of a micro-batch: a pair is two."""
    pairs = isinstance(recipe.train, PreferenceTrain) and not recipe.objective.marked_answers
    return recipe.train.per_device_train_batch_size * (2 if pairs else 1)


def workers_of_a_reward() -> int:
    """As RewardRunner starts them."""
    return max(1, min(4, (os.cpu_count() or 1) // 2))


def _bytes_of(recipe: Recipe) -> int:
    # "auto" is the checkpoint's own type, nearly always 16 bits.
    return 4 if recipe.model.dtype == "float32" else 2


def _base_bytes(recipe: Recipe, shape: Shape, size: int) -> float:
    """The model's own weights; quantised, its linear maps are in 4 bits and the rest as it was."""
    mapped = shape.layers * layer_weights(shape) if recipe.model.quantization is not None else 0
    return (shape.parameters - mapped) * size + mapped * NF4_BYTES


def _references(recipe: Recipe) -> int:
    """Further copies of the weights. An adapter's reference is the model without it, unless the method brings one."""
    train, adapter = recipe.train, recipe.model.peft is not None
    own = recipe.objective.reference_copies(adapter=adapter)
    if own is not None:
        return own
    if adapter:
        return 0
    if isinstance(train, PolicyTrain):
        return int(train.beta > 0)
    return int(isinstance(train, PreferenceTrain) and not train.precompute_ref_log_probs)


def _frozen_bytes(recipe: Recipe) -> tuple[float, tuple[str, ...]]:
    """Of the models that the method holds beside the policy, each of a size of its own; a note for one not known."""
    found, notes = 0.0, ()
    for path, dtype in recipe.objective.frozen_models.items():
        shape = read_shape(ModelSection(path=path))
        if shape is None:
            notes += (f"{path} is not on this machine: it is not in the estimate",)
        else:
            found += shape.parameters * (4.0 if dtype == "float32" else 2.0)
    return found, notes


def _beside(recipe: Recipe) -> int:
    """Models of the policy's size that are trained beside it, those of the method it is built on among them. Each has
    weights, gradients and AdamW's two moments, all in the weights' own type, on every rank."""
    return sum(settings.trained_beside for _, settings in with_inner(recipe.objective))


def _tokens(recipe: Recipe, prompt_tokens: int | None) -> tuple[int, tuple[str, ...]]:
    """Tokens of the longest row, and what was assumed about it."""
    if isinstance(recipe.train, TextTrain):
        if recipe.train.max_length is None:
            note = f"rows taken as {ASSUMED_ROW_TOKENS} tokens at most; train.max_length would say"
            return ASSUMED_ROW_TOKENS, (note,)
        return recipe.train.max_length, ()
    assert recipe.rollout is not None
    known = [n for n in (recipe.data.max_prompt_tokens, prompt_tokens) if n is not None]
    prompt = min(known, default=None)
    if prompt is None:
        note = f"prompts taken as {ASSUMED_PROMPT_TOKENS} tokens at most; data.max_prompt_tokens would say"
        return ASSUMED_PROMPT_TOKENS + recipe.rollout.max_new_tokens, (note,)
    return prompt + recipe.rollout.max_new_tokens, ()


def _engine_share(recipe: Recipe) -> float:
    """The share of the device a colocated vLLM keeps for itself beside the trainer, weights and cache."""
    if recipe.rollout is None or recipe.rollout.engine != "vllm":
        return 0.0
    if recipe.spec.family == "preference":  # samples between trainings, when no trainer is held
        return 0.0
    return (recipe.rollout.vllm or VLLMSection()).gpu_memory_utilization


def _generation(recipe: Recipe, shape: Shape, tokens: int, size: int) -> float:
    """In this process: keys and values of all completions at once, and a step's logits; or the masked sampler's."""
    rollout = rollout_of(recipe, 1)
    if rollout is None or recipe.rollout is None:
        return 0.0
    rows = rollout.completions_per_process
    if recipe.rollout.engine == "masked_diffusion":
        return sampling_bytes(recipe, shape, rows, tokens, size)
    if recipe.rollout.engine != "transformers":
        return 0.0
    cache = rows * tokens * 2 * shape.layers * shape.kv_heads * shape.head_size * size
    # Logits in float32, their scaled copy and the probabilities drawn from.
    return cache + rows * shape.vocabulary * 12
