"""An estimate of the memory one device needs: what is held all the time, and the peaks of training and generation.

Plain sums over the model's shape, meant to tell 20 GiB from 80 before a GPU is held; fragmentation, the framework's
own buffers and communication are not in it. Activations count what a Llama-like layer keeps for backward when
attention is not materialised; with gradient checkpointing, one layer of that plus each layer's input. Logits are
not among them, as TRL's trainers score through a fused head; those of a masked-diffusion model are (diffusion.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.planning.batch import rollout_of
from posttrain.planning.diffusion import logits_bytes
from posttrain.planning.shapes import Shape
from posttrain.recipe import Recipe
from posttrain.sections import VLLMSection
from posttrain.train_options import PolicyTrain, PreferenceTrain, TextTrain

GIB = 2**30
ASSUMED_PROMPT_TOKENS = 512
ASSUMED_ROW_TOKENS = 1024
_STATE_BYTES = {  # of the optimizer, a trained parameter; for states that follow the parameter's type, at float32
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
_FOLLOWS_PARAMETER = {"adamw_torch", "adamw_torch_fused", "rmsprop"}


@dataclass(frozen=True)
class Launch:
    """How the run is started. `zero` is DeepSpeed's stage; FSDP2 with full sharding counts as 3."""

    processes: int = 1
    zero: int = 0
    device_gib: float | None = None


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    weights: float
    gradients: float
    optimizer: float
    reference: float
    activations: float
    generation: float
    engine: float
    notes: tuple[str, ...]

    @property
    def peak(self) -> float:
        held = self.weights + self.optimizer + self.reference + self.engine
        return held + max(self.gradients + self.activations, self.generation)

    def rows(self) -> list[tuple[str, float]]:
        named = [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("optimizer states", self.optimizer),
            ("reference model", self.reference),
            ("activations (training)", self.activations),
            ("key-value cache (generation)", self.generation),
            ("vLLM beside the trainer", self.engine),
            ("peak", self.peak),
        ]
        return [(name, size) for name, size in named if size]


def estimate(recipe: Recipe, shape: Shape, launch: Launch, prompt_tokens: int | None = None) -> Memory:
    """The estimate for one process; `prompt_tokens` is the longest prompt, where it is known."""
    train, peft = recipe.train, recipe.model.peft
    size = _bytes_of(recipe)
    mixed = 2 if train.bf16 or train.fp16 else size
    trained = shape.parameters if peft is None else shape.lora_parameters(peft.r, peft.target_modules)
    trained_size = 4 if peft is not None else size  # adapters stay float32 over a half-precision base
    states = _STATE_BYTES[train.optim]
    if train.optim in _FOLLOWS_PARAMETER:
        states *= trained_size / 4
    if launch.zero and train.bf16 and peft is None:
        # DeepSpeed trains a bfloat16 copy and keeps the float32 weights with the optimizer.
        size = trained_size = 2
        states = _STATE_BYTES[train.optim] + 4
    weights_share = launch.processes if launch.zero >= 3 else 1
    gradient_share = launch.processes if launch.zero >= 2 else 1
    optimizer_share = launch.processes if launch.zero >= 1 else 1
    tokens, notes = _tokens(recipe, prompt_tokens)
    engine_share = _engine_share(recipe)
    if engine_share and launch.device_gib is None:
        notes += (
            f"beside this, vLLM takes {engine_share:.0%} of the device (rollout.vllm.gpu_memory_utilization)",
        )
    return Memory(
        weights=(shape.parameters + (trained if peft is not None else 0)) * size / weights_share,
        gradients=trained * trained_size / gradient_share,
        optimizer=trained * states / optimizer_share,
        reference=_references(recipe) * shape.parameters * size / weights_share,
        activations=_activations(recipe, shape, tokens, mixed),
        generation=_cache(recipe, shape, tokens, size),
        engine=engine_share * (launch.device_gib or 0) * GIB,
        notes=notes,
    )


def _bytes_of(recipe: Recipe) -> int:
    # "auto" is the checkpoint's own type, nearly always 16 bits.
    return 4 if recipe.model.dtype == "float32" else 2


def _references(recipe: Recipe) -> int:
    """Further copies of the weights. An adapter's reference is the model without it, unless the method brings one
    of its own (`own_reference`), beside which a whole model's start may be kept too (`start_kept_by`)."""
    train, flags, adapter = recipe.train, recipe.flags(), recipe.model.peft is not None
    if flags.get("own_reference"):
        kept_by = flags.get("start_kept_by")
        return 1 + (kept_by is not None and not adapter and vars(recipe.objective)[kept_by])
    if adapter:
        return 0
    if isinstance(train, PolicyTrain):
        return int(train.beta > 0)
    return int(isinstance(train, PreferenceTrain) and not train.precompute_ref_log_probs)


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


def _activations(recipe: Recipe, shape: Shape, tokens: int, size: int) -> float:
    rows = recipe.train.per_device_train_batch_size * (2 if isinstance(recipe.train, PreferenceTrain) else 1)
    key = shape.kv_heads * shape.head_size
    one_layer = rows * tokens * (6 * shape.hidden + 2 * key + 4 * shape.intermediate) * size
    logits = logits_bytes(recipe, shape, tokens, size)
    if recipe.train.gradient_checkpointing:
        return shape.layers * rows * tokens * shape.hidden * size + one_layer + logits
    return shape.layers * one_layer + logits


def _engine_share(recipe: Recipe) -> float:
    """The share of the device a colocated vLLM keeps for itself beside the trainer, weights and cache."""
    if recipe.rollout is None or recipe.rollout.engine != "vllm":
        return 0.0
    if recipe.spec.family == "preference":  # samples between trainings, when no trainer is held
        return 0.0
    return (recipe.rollout.vllm or VLLMSection()).gpu_memory_utilization


def _cache(recipe: Recipe, shape: Shape, tokens: int, size: int) -> float:
    rollout = rollout_of(recipe, 1)
    if rollout is None or recipe.rollout is None or recipe.rollout.engine != "transformers":
        return 0.0
    return (
        rollout.completions_per_process * tokens * 2 * shape.layers * shape.kv_heads * shape.head_size * size
    )
