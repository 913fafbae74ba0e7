"""The trainer of masked-diffusion methods: TRL's loop, our sampler, and one backward for each forward pass.

rollout (masked_diffusion engine) -> rewards, advantages (as every PolicyTrainer) -> canvas and noise, stored in
TRL's buffer with the terms of the old policy and the reference -> the step (optimizer_step.py)
"""

# pyright: reportArgumentType=false, reportOptionalMemberAccess=false
# Upstream annotates its trainers more widely than what their attributes hold once they are built.

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from accelerate.utils import is_peft_model
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import GRPOConfig

from posttrain.objectives.masked_base import (
    DiffusionObjective,
)
from posttrain.recipe import Recipe
from posttrain.rollout.masked.block_reader import refuse_cache
from posttrain.rollout.masked.predictor import (
    MaskPredictor,
    load_mask_model,
    mask_id_of,
    with_generation_config,
)
from posttrain.rollout.masked.sampler_options import DiffusionSampling, schedule
from posttrain.trainers.forward.choose_layout import RowLayout
from posttrain.trainers.forward.padded import PaddedScorer
from posttrain.trainers.masked.diffusion_metrics import DiffusionMetrics
from posttrain.trainers.masked.elbo_scorer import ElboScorer
from posttrain.trainers.masked.mask_ingredients import mask_ingredients, sampler_arguments
from posttrain.trainers.masked.masked_rollouts import MaskedRollouts
from posttrain.trainers.masked.masked_step import DiffusionStep
from posttrain.trainers.policy.trainer import PolicyTrainer
from posttrain.trainers.seam.config import PolicyConfig, flat_config, settings_from
from posttrain.trainers.seam.faults import NotUnderThisEngine
from posttrain.trainers.seam.recipe_arguments import policy_arguments, rewards_of, training_arguments
from posttrain.trainers.seam.taken_over import own_arguments

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
    "layout": "a canvas is one row, with its prompt",
    "max_tokens_per_micro_batch": "each Monte Carlo pass is a forward and backward of its own",
    "beta_by": "the KL penalty is of likelihood estimates, with one coefficient",
    "beta_family": "the KL penalty is of likelihood estimates, with one coefficient",
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
        base: Any = self.accelerator.unwrap_model(self.model)
        base = base.get_base_model() if is_peft_model(base) else base
        self.predictor = MaskPredictor.of(base, mask_id_of(self._tokenizer))
        refuse_cache(self.predictor, self.sampler_options.cache)
        self.elbo_scorer = ElboScorer(self, self.objective, self.predictor)
        self.masked_rollouts = MaskedRollouts(
            self,
            self.elbo_scorer,
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
            rewards_of(recipe),
            training_arguments(recipe, cls.config_class, **arguments),
            parts.train_rows,
            parts.eval_rows,
            processing_class=parts.tokenizer,
            peft_config=parts.peft_config,
        )
        trainer.row_counts = parts.train_counts
        trainer.curriculum = parts.curriculum
        return trainer

    # Rollout

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
        """Replaces TRL's generation by the masked-diffusion engine."""
        return self.masked_rollouts.single_turn(prompt_ids), None

    def _get_per_token_logps_and_entropies(self, *_: Any, **__: Any) -> tuple[None, None, None]:
        """TRL asks for left-to-right log-probs of old policy and reference. There are none, and TRL carries none."""
        return None, None, None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Adds canvas and noise, and the terms of the old policy and the reference, to TRL's buffer."""
        output = super()._generate_and_score_completions(inputs)
        if self.model.training:
            self.elbo_scorer.add_terms(output)
        return output

    # Loss

    def make_layout(self) -> RowLayout:
        """One canvas per row: its likelihood is the ELBO scorer's, and no log-prob from left to right is asked for."""
        return RowLayout("padded", "a canvas per row", PaddedScorer(self._get_per_token_logps_and_entropies))

    def make_step(self) -> DiffusionStep:
        return DiffusionStep(self, self.objective, self.method, DiffusionMetrics(self.accelerator))


def _refuse_reloaded_reference(model: Any, args: Any, named: dict[str, Any]) -> None:
    """Under ZeRO-3 TRL reloads the reference from the model's path, its own way: a decoder would come back causal."""
    adapter = is_peft_model(model) or named.get("peft_config") is not None
    if args.beta != 0.0 and not adapter and is_deepspeed_zero3_enabled():
        raise NotUnderThisEngine(
            "beta above 0 under ZeRO-3 needs an adapter (model.peft), whose base is the reference; "
            "without one use FSDP2 or ZeRO-2"
        )


def _refuse_without_effect(args: Any) -> None:
    defaults = {f.name: f.default for f in dataclasses.fields(PolicyConfig)}
    for name, reason in _WITHOUT_EFFECT.items():
        default = [] if defaults[name] is dataclasses.MISSING else defaults[name]  # record_steps
        if vars(args)[name] != default:
            raise ValueError(f"{type(args).__name__}: {name} has no effect on a diffusion method: {reason}")
