"""The trainer of masked-diffusion methods: TRL's loop, our sampler, and one backward for each forward pass.

rollout (masked_diffusion engine) -> rewards, advantages (as every PolicyTrainer) -> canvas and noise, stored in
TRL's buffer with the terms of the old policy and the reference -> the step (optimizer_step.py)
"""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from accelerate.utils import is_peft_model
from torch import Tensor
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import GRPOConfig

from posttrain.objectives.masked_base import (
    DiffusionObjective,
)
from posttrain.ops.masked_elbo import Noise
from posttrain.recipe import Recipe
from posttrain.rollout.base import Sampling, stable_seed
from posttrain.rollout.masked.canvas import Canvas, lay_canvas
from posttrain.rollout.masked.engine import MaskedDiffusionEngine
from posttrain.rollout.masked.options import DiffusionSampling, schedule
from posttrain.rollout.masked.predictor import (
    MaskPredictor,
    check_mask_predictor,
    load_mask_model,
    mask_id_of,
    whole_on_this_rank,
    with_generation_config,
)
from posttrain.trainers.masked.build import mask_ingredients, sampler_arguments
from posttrain.trainers.masked.likelihood import (
    all_terms,
    draw_noise,
    to_buffer,
)
from posttrain.trainers.masked.metrics import DiffusionMetrics
from posttrain.trainers.masked.optimizer_step import DiffusionStep
from posttrain.trainers.policy.trainer import PolicyTrainer
from posttrain.trainers.seam.build import policy_arguments, reward_runner, training_arguments
from posttrain.trainers.seam.config import PolicyConfig, flat_config, settings_from
from posttrain.trainers.seam.taken_over import own_arguments
from posttrain.trainers.seam.trl_seam import use_adapter

DiffusionConfig = flat_config("DiffusionConfig", PolicyConfig, DiffusionSampling, __name__)

_WITHOUT_EFFECT = {
    "use_vllm": "vLLM serves no masked-diffusion model",
    "use_transformers_continuous_batching": "there is no cache to batch",
    "top_p": "the masked-diffusion sampler does not truncate",
    "top_k": "the masked-diffusion sampler does not truncate",
    "min_p": "the masked-diffusion sampler does not truncate",
    "repetition_penalty": "the masked-diffusion sampler has none",
    "cache_implementation": "there is no cache",
    "generation_kwargs": "use diffusion_steps, block_length, remasking, cfg_scale, end_rule",
    "entropy_coef": "a diffusion objective has no token entropy",
    "top_entropy_quantile": "a diffusion objective has no token entropy",
    "off_policy_mask_threshold": "use the method's clip",
    "cast_lm_head_to_fp32": "log-probs are taken in float32 anyway",
    "router_aux_loss_coef": "the router's loss is not carried here",
    "record_steps": "`posttrain replay` reads token batches, which diffusion methods do not have",
}


class DiffusionTrainer(PolicyTrainer):
    """`PolicyTrainer` for a `DiffusionObjective` and a model that predicts hidden tokens from both sides.

    `DiffusionTrainer(model, reward_funcs, args=..., objective=BGPO())`, or a method's own (`BGPOTrainer`). The model
    is a path, loaded bidirectional, or one that already is; the mask token is the tokenizer's.
    """

    objective_class: ClassVar[type[DiffusionObjective] | None] = None
    config_class: ClassVar[type[PolicyConfig]] = DiffusionConfig
    objective: DiffusionObjective

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: Any = None, *datasets: Any, **named: Any
    ) -> None:
        learner = named.get("objective", self.objective_class)
        method = getattr(learner, "__module__", "diffusion").rsplit(".", 1)[-1]
        args = own_arguments(type(self), args, self.config_class, GRPOConfig, method)
        _refuse_without_effect(args)
        self.sampler_options = settings_from(args, DiffusionSampling)
        schedule(self.sampler_options, args.max_completion_length)
        if isinstance(model, str):
            model = load_mask_model(
                model, trust_remote_code=args.trust_remote_code, **(args.model_init_kwargs or {})
            )
        # Dropout would make the ratio differ from 1 on-policy, and a second pass differ from the first.
        args.disable_dropout = True
        _refuse_reloaded_reference(model, args, named)
        super().__init__(with_generation_config(model), reward_funcs, args, *datasets, **named)
        base = self.accelerator.unwrap_model(self.model)
        base = base.get_base_model() if is_peft_model(base) else base
        self.predictor = MaskPredictor.of(base, mask_id_of(self._tokenizer))
        self._probed = False
        if whole_on_this_rank():
            self._probe_model()
        self.mask_engine = MaskedDiffusionEngine(
            self._predicting,
            self.sampler_options,
            pad_token_id=self._tokenizer.pad_token_id,
            dtype=base.dtype,
        )

    @classmethod
    def from_recipe(cls, recipe: Recipe, **changes: Any) -> DiffusionTrainer:
        """The trainer a recipe describes; `changes` win over its training arguments."""
        parts = mask_ingredients(recipe)
        arguments = {
            **recipe.objective.values(),
            **policy_arguments(recipe),
            **sampler_arguments(recipe),
            **changes,
        }
        trainer = cls(
            parts.model,
            reward_runner(recipe),
            training_arguments(recipe, cls.config_class, **arguments),
            parts.train_rows,
            parts.eval_rows,
            processing_class=parts.tokenizer,
            peft_config=parts.peft_config,
        )
        trainer.row_counts = parts.train_counts
        return trainer

    def _probe_model(self) -> None:
        """Refuses a model that looks to the left only. Every rank must come here."""
        self._probed = True
        if check_mask_predictor(self._own_predictor()) == "attended":
            self.accelerator.print(
                f"{type(self.predictor.model).__name__} attends to padding: an ELBO depends on how far its prompt is "
                "padded. Old and new policy see the same padding, the sampler may see another; prompts of equal "
                "length have none."
            )

    # Rollout

    def _own_predictor(self) -> MaskPredictor:
        """The policy on this rank, without the wrapper that exchanges gradients."""
        return self.predictor.with_model(self.accelerator.unwrap_model(self.model))

    def _predicting(self) -> AbstractContextManager[MaskPredictor]:
        if not self._probed:  # the first rollout, before any step
            self._probe_model()
        return nullcontext(self._own_predictor())

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
        """Replaces TRL's generation by the masked-diffusion engine. Returns completions cut behind their end."""
        training, rank, count = self.model.training, self.accelerator.process_index, len(prompt_ids)
        temperature = self.temperature if training else self.args.eval_temperature
        # An evaluation must not depend on how many came before it, nor training on any of them.
        key = ("train", self.state.global_step) if training else ("eval", len(self.held_out))
        seed = stable_seed(self.args.seed, "rollout", *key)
        sampling = [
            Sampling(
                temperature=self.temperature if temperature is None else temperature,
                max_new_tokens=self.max_completion_length,
                stop_token_ids=tuple(self.eos_token_ids),
                seed=seed + rank * count + i,
            )
            for i in range(count)
        ]
        completions = self.mask_engine.generate(prompt_ids, sampling)
        self.check_sampled(completion.logprobs for completion in completions)
        return [completion.token_ids for completion in completions], None

    def _get_per_token_logps_and_entropies(self, *_: Any, **__: Any) -> tuple[None, None, None]:
        """TRL asks for left-to-right log-probs of old policy and reference. There are none, and TRL carries none."""
        return None, None, None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Adds canvas and noise, and the terms of the old policy and the reference, to TRL's buffer."""
        output = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return output
        objective = self.objective
        canvas = lay_canvas(
            output["prompt_ids"],
            output["prompt_mask"],
            output["completion_ids"],
            output["completion_mask"],
            tail=objective.tail,
            length=self.max_completion_length,
            mask_id=self.predictor.mask_id,
            end_id=self._tokenizer.eos_token_id,
        )
        iterations = self.num_iterations if objective.fresh_noise else 1
        noise = draw_noise(
            objective,
            canvas,
            output["row"],
            iterations=iterations,
            seed=self.args.seed,
            step=self.state.global_step,
        )
        output |= to_buffer(canvas, noise)
        spans_steps = self.args.gradient_accumulation_steps % (
            self.args.steps_per_generation * self.num_iterations
        )
        if spans_steps:  # later steps train on it too, and by then the policy has moved
            output["old_terms"] = self._fixed_terms(self._own_predictor(), canvas, noise)
        if self.beta != 0.0:
            output["ref_terms"] = self._reference_terms(canvas, noise)
        return output

    def _fixed_terms(self, predictor: MaskPredictor, canvas: Canvas, noise: Noise) -> Tensor:
        rows = self.args.per_device_train_batch_size
        return all_terms(predictor, canvas, noise, self.objective.level, rows_at_once=rows)

    def _reference_terms(self, canvas: Canvas, noise: Noise) -> Tensor:
        if self.ref_model is not None:
            return self._fixed_terms(self.predictor.with_model(self.ref_model), canvas, noise)
        policy = self.accelerator.unwrap_model(self.model)
        with use_adapter(policy, adapter_name="ref" if "ref" in policy.peft_config else None):
            return self._fixed_terms(self.predictor.with_model(policy), canvas, noise)

    # Loss

    def make_step(self) -> DiffusionStep:
        return DiffusionStep(self, self.objective, self.method, DiffusionMetrics(self.accelerator))


def _refuse_reloaded_reference(model: Any, args: Any, named: dict[str, Any]) -> None:
    """Under ZeRO-3 TRL reloads the reference from the model's path, its own way: a decoder would come back causal."""
    adapter = is_peft_model(model) or named.get("peft_config") is not None
    if args.beta != 0.0 and not adapter and is_deepspeed_zero3_enabled():
        raise ValueError(
            "beta above 0 under ZeRO-3 needs an adapter (model.peft), whose base is the reference; "
            "without one use FSDP2 or ZeRO-2"
        )


def _refuse_without_effect(args: Any) -> None:
    defaults = {f.name: f.default for f in dataclasses.fields(GRPOConfig)}
    for name, reason in _WITHOUT_EFFECT.items():
        default = defaults.get(name, [])
        if vars(args)[name] != default:
            raise ValueError(f"{type(args).__name__}: {name} has no effect on a diffusion method: {reason}")
