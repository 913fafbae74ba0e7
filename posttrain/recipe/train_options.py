"""The `train` section: the arguments of TrainingArguments and of TRL's configs that make sense here.

One class a family; a name of another family, or one that another section owns, is refused with a pointer.
Defaults are TRL's unless DEPARTURES says otherwise, and every value is handed over, so that a resolved recipe
is a complete account. Meanings are upstream's: see the TRL documentation of GRPOConfig, DPOConfig, SFTConfig.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Le, Lt
from pydantic import model_validator

from posttrain.recipe.sections import Count, NotNegative, Positive, Section, Seed, Text
from posttrain.settings.beta_family import family_beta
from posttrain.settings.run import balance_fault

Momentum = Annotated[float, Ge(0), Lt(1)]
UnitInterval = Annotated[float, Ge(0), Le(1)]
Rate = Annotated[float, Gt(0), Le(10)]
Batch = Annotated[int, Ge(1), Le(2**20)]

DEPARTURES = {
    "seed": "0: the number one writes down",
    "bf16": "off: whether the arithmetic is bfloat16 is said in the recipe",
    "num_train_epochs": "none: a recipe says how long it runs",
    "max_steps": "none: a recipe says how long it runs",
}
"""Defaults that differ from TRL's, and why."""

IMAGE_DEPARTURES = {
    "learning_rate": "of the papers on flow models",
    "gradient_checkpointing": "off: the small model has no layers to compute again",
}
"""Defaults of image methods that differ besides, and why."""

OURS = {
    "layout": "how rows go through the model: padded as TRL does, trimmed, or packed with shared prompts",
    "max_tokens_per_micro_batch": "micro-batches by tokens; TRL's are by rows",
    "beta_by": "a KL coefficient per prompt; TRL has one",
    "beta_low": "of beta_by",
    "beta_high": "of beta_by",
    "beta_model": "of beta_by: learned",
    "beta_family": "one policy for several KL coefficients, with the coefficient as an input",
    "beta_prefixes": "of beta_family",
}
"""Options that TRL does not have, and what they are."""


class TrainSection(Section):
    """What every trainer takes (transformers.TrainingArguments)."""

    per_device_train_batch_size: Batch = 8
    gradient_accumulation_steps: Batch = 1
    max_steps: Count | None = None
    num_train_epochs: Positive | None = None
    learning_rate: Rate = 1e-6
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
        "warmup_stable_decay",
    ] = "linear"
    lr_scheduler_kwargs: dict[str, Any] | None = None
    warmup_steps: NotNegative = 0.0  # a value below 1 is a share of all steps
    optim: Literal[
        "adamw_torch",
        "adamw_torch_fused",
        "adamw_8bit",
        "paged_adamw_8bit",
        "paged_adamw_32bit",
        "lion_8bit",
        "lion_32bit",
        "adafactor",
        "sgd",
        "rmsprop",
    ] = "adamw_torch_fused"
    optim_args: Text | None = None
    weight_decay: Annotated[float, Ge(0), Le(100)] = 0.0
    adam_beta1: Momentum = 0.9
    adam_beta2: Momentum = 0.999
    adam_epsilon: Annotated[float, Ge(1e-30), Le(1)] = 1e-8  # smaller is 0 in float32
    max_grad_norm: NotNegative = 1.0
    bf16: bool = False
    fp16: bool = False
    tf32: bool | None = None
    gradient_checkpointing: bool = True
    gradient_checkpointing_kwargs: dict[str, Any] | None = None
    use_cpu: bool = False
    torch_compile: bool = False
    torch_empty_cache_steps: Count | None = None
    seed: Seed = 0
    data_seed: Seed | None = None
    full_determinism: bool = False
    dataloader_num_workers: Annotated[int, Ge(0), Le(1000)] = 0
    ddp_find_unused_parameters: bool | None = None
    ddp_timeout: Annotated[int, Ge(1), Le(10**7)] = 1800
    per_device_eval_batch_size: Batch = 8
    eval_steps: Count | None = None
    eval_on_start: bool = False
    router_aux_loss_coef: NotNegative | None = None

    @model_validator(mode="after")
    def _length_and_precision(self) -> Self:
        if (self.max_steps is None) == (self.num_train_epochs is None):
            both = "; null takes one away" if self.max_steps is not None else ""
            raise ValueError(f"say how long: exactly one of 'max_steps' and 'num_train_epochs'{both}")
        if self.bf16 and self.fp16:
            raise ValueError("'bf16' and 'fp16' exclude each other; keep bf16 where the GPU has it")
        return self

    def trl_arguments(self) -> dict[str, Any]:
        """Keyword arguments for the family's TRL config."""
        # TRL writes "unset" as -1 steps and 3 epochs; every other None means there what it means here.
        unset = [k for k in ("max_steps", "num_train_epochs") if self.model_dump()[k] is None]
        arguments = {k: v for k, v in self.model_dump().items() if k not in unset}
        if self.eval_steps is not None:  # upstream ignores it unless the strategy says so
            arguments["eval_strategy"] = "steps"
        return arguments


class PolicyTrain(TrainSection):
    """Learning from rewards (trl.GRPOConfig)."""

    steps_per_generation: Batch | None = None  # None: gradient_accumulation_steps
    num_iterations: Annotated[int, Ge(1), Le(10**4)] = 1
    beta: NotNegative = 0.0
    beta_by: Literal["pass_rate", "reference_entropy", "learned"] | None = (
        None  # what a prompt's coefficient follows
    )
    beta_low: NotNegative = 1.0  # factor of beta where that is lowest
    beta_high: NotNegative = 1.0
    beta_model: Text | None = None  # file of the balance model, for beta_by: learned
    beta_family: list[NotNegative] | None = (
        None  # coefficients that the policy is trained with, told by a prefix
    )
    beta_prefixes: list[str] | None = None  # what a prompt of each begins with
    disable_dropout: bool = False
    shuffle_dataset: bool = True
    mask_truncated_completions: bool = False
    entropy_coef: NotNegative = 0.0
    top_entropy_quantile: UnitInterval = 1.0
    off_policy_mask_threshold: Positive | None = None
    use_bias_correction_kl: bool = True
    sync_ref_model: bool = False
    ref_model_mixup_alpha: UnitInterval = 0.6
    ref_model_sync_steps: Count = 512
    cast_lm_head_to_fp32: bool = False
    layout: Literal["auto", "padded", "trimmed", "shared"] = "auto"
    max_tokens_per_micro_batch: Annotated[int, Ge(1), Le(2**30)] | None = None
    ds3_gather_for_generation: bool = True
    cache_implementation: Text | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _largest(cls, given: Any) -> Any:
        """A family's `beta` is its largest coefficient, and is written into the resolved recipe."""
        values = given.get("beta_family") if isinstance(given, dict) else None
        if not isinstance(values, list) or not values or given.get("beta"):
            return given
        known = all(isinstance(one, int | float) for one in values)
        return {**given, "beta": max(values)} if known else given

    @property
    def window(self) -> int:
        """Micro-batches of one rollout: TRL's `steps_per_generation` with its default filled in."""
        return self.steps_per_generation or self.gradient_accumulation_steps

    @model_validator(mode="after")
    def _balance(self) -> Self:
        family_beta(self.beta, self.beta_family, self.beta_prefixes, self.beta_by)
        fault = balance_fault(self.beta, self.beta_by, self.beta_low, self.beta_high, self.beta_model)
        if fault is not None:
            raise ValueError(fault)
        return self


class DiffusionTrain(PolicyTrain):
    """Learning from rewards with a masked-diffusion model; what needs token log-probs is refused as idle."""


class FlowTrain(TrainSection):
    """Learning from rewards with a flow model of images (a transformers trainer; TRL has none)."""

    learning_rate: Rate = 1e-4
    gradient_checkpointing: bool = False
    steps_per_generation: Batch | None = None  # None: gradient_accumulation_steps
    num_iterations: Annotated[int, Ge(1), Le(10**4)] = 1
    beta: NotNegative = 0.0
    shuffle_dataset: bool = True

    @property
    def window(self) -> int:
        """Micro-batches of one rollout."""
        return self.steps_per_generation or self.gradient_accumulation_steps


class FlowSFTTrain(TrainSection):
    """Supervised training of a flow model of images."""

    learning_rate: Rate = 1e-3
    gradient_checkpointing: bool = False


class TextTrain(TrainSection):
    """Families that train on given texts."""

    max_length: Annotated[int, Ge(1), Le(2**24)] | None = 1024
    dataset_num_proc: Annotated[int, Ge(1), Le(1000)] | None = None
    activation_offloading: bool = False


class SFTTrain(TextTrain):
    """Supervised fine-tuning (trl.SFTConfig)."""

    learning_rate: Rate = 2e-5
    packing: bool = False
    packing_strategy: Literal["bfd", "bfd_split", "wrapped"] = "bfd"
    padding_free: bool = False
    assistant_only_loss: bool = False
    shuffle_dataset: bool = False
    train_sampling_strategy: Literal["random", "sequential"] = "random"
    neftune_noise_alpha: Annotated[float, Gt(0), Le(1000)] | None = None


class PreferenceTrain(TextTrain):
    """Learning from pairs (trl.DPOConfig)."""

    beta: Positive = 0.1
    disable_dropout: bool = True
    precompute_ref_log_probs: bool = False
    precompute_ref_batch_size: Batch | None = None
    sync_ref_model: bool = False
    ref_model_mixup_alpha: UnitInterval = 0.6
    ref_model_sync_steps: Count = 512


OWNED: dict[str, str] = {
    "num_generations": "rollout.group_size",
    "max_completion_length": "rollout.max_new_tokens",
    "temperature": "rollout.temperature",
    "top_p": "rollout.top_p",
    "top_k": "rollout.top_k",
    "min_p": "rollout.min_p",
    "repetition_penalty": "rollout.repetition_penalty",
    "report_to": "output.report_to",
    "run_name": "output.name",
    "output_dir": "output.run_dir",
    "logging_steps": "output.logging_steps",
    "save_steps": "output.save_steps",
    "save_total_limit": "output.save_total_limit",
    "trust_remote_code": "model.trust_remote_code",
}
"""TRL's name -> "section.key" that holds its value here; also how a recipe fills the TRL config."""

ELSEWHERE: dict[str, str] = {
    "lr": "write learning_rate",
    "batch_size": "write per_device_train_batch_size",
    "train_batch_size": "write per_device_train_batch_size",
    "epochs": "write num_train_epochs",
    "num_epochs": "write num_train_epochs",
    "steps": "write max_steps",
    "num_steps": "write max_steps",
    "grad_accum": "write gradient_accumulation_steps",
    "gradient_accumulation": "write gradient_accumulation_steps",
    "warmup": "write warmup_steps, a count or a share below 1",
    "scheduler": "write lr_scheduler_type",
    "lr_scheduler": "write lr_scheduler_type",
    "optimizer": "write optim",
    "grad_clip": "write max_grad_norm",
    "kl_coef": "write beta",
    "output_dir": "write output.dir and output.name",
    "loss_type": "choose the loss with 'method', its settings in 'objective'",
    "loss_weights": "choose the loss with 'method', its settings in 'objective'",
    "importance_sampling_level": "choose 'method: gspo' for one ratio per response",
    "epsilon": "write objective.clip_low, an epsilon or a bound as the method's page says",
    "epsilon_high": "write objective.clip_high, an epsilon or a bound as the method's page says",
    "delta": "the clip belongs to the method: see its settings with 'posttrain methods NAME'",
    "scale_rewards": "the advantage belongs to the method: see 'posttrain methods'",
    "multi_objective_aggregation": "the advantage belongs to the method: see 'posttrain methods'",
    "reward_weights": "write the weight beside the reward: rewards[].weight",
    "reward_funcs": "write the 'rewards' section",
    "generation_batch_size": "write steps_per_generation; the size follows (posttrain plan shows it)",
    "num_generations_eval": "evaluation samples one response per prompt at rollout.eval_temperature",
    "use_vllm": "write rollout.engine: vllm",
    "vllm_mode": "write rollout.engine: vllm (colocated) or vllm_server",
    "vllm_gpu_memory_utilization": "write rollout.vllm.gpu_memory_utilization",
    "vllm_tensor_parallel_size": "give it to the server: launch/serve_vllm.sh MODEL --tensor-parallel-size N",
    "vllm_max_model_length": "write rollout.vllm.max_model_length",
    "vllm_server_base_url": "write rollout.vllm.servers",
    "vllm_importance_sampling_correction": "write rollout.importance_correction",
    "vllm_importance_sampling_mode": "write rollout.importance_correction",
    "vllm_importance_sampling_clip_max": "write rollout.importance_clip_max",
    "vllm_importance_sampling_clip_min": "write rollout.importance_clip_min",
    "model_init_kwargs": "write model.dtype, model.attn_implementation, model.revision",
    "dtype": "write model.dtype",
    "max_prompt_length": "write data.max_prompt_tokens",
    "log_completions": "write output.log_completions",
    "save_strategy": "write output.save_steps",
    "logging_strategy": "write output.logging_steps",
    "eval_strategy": "write eval_steps",
    "evaluation_strategy": "write eval_steps",
    "warmup_ratio": "write warmup_steps with a value below 1",
    "resume_from_checkpoint": "use --resume on the command line",
    "overwrite_output_dir": "write output.overwrite",
    "deepspeed": "give it to the launcher: accelerate launch --config_file launch/accelerate/...",
    "fsdp": "give it to the launcher: accelerate launch --config_file launch/accelerate/...",
    "fsdp_config": "give it to the launcher: accelerate launch --config_file launch/accelerate/...",
    "auto_find_batch_size": "a halved batch would cut prompt groups; lower per_device_train_batch_size",
    "use_liger_kernel": "the fused LM head already avoids the logits",
    "remove_unused_columns": "columns are kept for rewards; nothing to write",
    "completion_only_loss": "the loss is on data.completion; nothing to write",
}
"""Names users bring from TRL or by habit that do not belong in `train`, and what to write instead."""
