"""The trainer of masked-diffusion methods: TRL's loop, our sampler, and one backward for each forward pass.

    rollout (masked_diffusion engine) -> rewards, advantages (as every PolicyTrainer) -> canvas and noise, stored in
    TRL's buffer with the terms of the old policy and the reference -> for each pass: forward, term, backward

A joint graph over n passes would need n times the memory. Here each pass's graph is freed by its own backward before
the next begins. All but the last run with gradients held back, so that ranks exchange them once; the last one's loss
is returned, and transformers' training step does the backward that ends the micro-batch, as it always does.
"""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from accelerate.utils import DistributedType, is_peft_model
from torch import Tensor
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import GRPOConfig

from posttrain.objectives.base import StepTotals
from posttrain.objectives.masked_base import (
    DiffusionBatch,
    DiffusionObjective,
    reduced_loss,
    term_coefficients,
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
    from_buffer,
    gradients_held_back,
    pass_terms,
    to_buffer,
)
from posttrain.trainers.masked.metrics import DiffusionMetrics, signal_of
from posttrain.trainers.policy.trainer import PolicyTrainer
from posttrain.trainers.policy.whole_step import StepWindow
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
        self.loss_metrics = DiffusionMetrics(self.accelerator)  # type: ignore[assignment]  # other data, same `flush`

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

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *_: Any, **__: Any
    ) -> tuple[Tensor, None, None]:
        """TRL asks for left-to-right log-probs of old policy and reference; there are none. Placeholders, dropped."""
        return input_ids.new_zeros(input_ids.shape[0], logits_to_keep, dtype=torch.float32), None, None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Adds canvas and noise, and the terms of the old policy and the reference, to TRL's buffer."""
        output = super()._generate_and_score_completions(inputs)
        off_policy = output.pop("old_per_token_logps", None) is not None
        output.pop("ref_per_token_logps", None)
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
        if off_policy:
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

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Runs all backwards but the last, and returns the last pass's loss plus the others' values, so that the
        logged loss is the whole one. As in PolicyTrainer: this rank's share of the step's loss, times the ranks."""
        accumulation, ranks = self.current_gradient_accumulation_steps, self.accelerator.num_processes
        position = self._step % accumulation
        if position == 0:
            self._window = self._open_diffusion_window()
        window = self._window
        if window is None:
            raise RuntimeError(
                "DiffusionTrainer: a micro-batch arrived before the first one of its optimizer step"
            )
        canvas, noise = from_buffer(inputs)
        passes = self._passes_of_this_iteration(noise)
        noise = noise.passes(passes.start, passes.stop)
        known = self._known_terms(inputs, canvas, passes)
        predictor = self.predictor.with_model(model)
        coefficients = self._coefficients(predictor, canvas, noise, known, window.totals)

        seen: list[Tensor] = []
        value, loss = 0.0, torch.zeros(())
        for j in range(noise.num_passes):
            last = j == noise.num_passes - 1
            with nullcontext() if last else gradients_held_back(self.accelerator, model):
                terms = pass_terms(predictor, canvas, noise, j, self.objective.level)
                seen.append(terms.detach())
                loss = ranks * self._pass_loss(terms, j, known, coefficients, window.totals)
                if not last:
                    self._backward(loss)
                    value = value + loss.detach()
        whole = self._whole_batch(known, torch.cat(seen, dim=1))
        for name, terms in (
            ("the old policy's terms", known["old_terms"]),
            ("the reference's terms", known["ref_terms"]),
            ("the policy's terms", whole.terms),
        ):
            self.step_notes.note(name, terms)
        exact = ranks * reduced_loss(self.objective, whole, window.totals, self.beta).detach()
        self._note(whole, noise, inputs, exact * accumulation)
        if position == accumulation - 1:
            self._close_window(window)
        return loss + (exact - loss.detach())

    def _backward(self, loss: Tensor) -> None:
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        self.accelerator.backward(loss, **({"scale_wrt_gas": False} if deepspeed else {}))

    def _passes_of_this_iteration(self, noise: Noise) -> slice:
        """The passes one estimate reads: all, or those of the current pass over the rollout."""
        if not self.objective.fresh_noise:
            return slice(0, noise.num_passes)
        iteration = (self._step // self.args.steps_per_generation) % self.num_iterations
        n = self.objective.num_passes
        return slice(iteration * n, (iteration + 1) * n)

    def _known_terms(self, inputs: dict[str, Any], canvas: Canvas, passes: slice) -> dict[str, Any]:
        """What a batch holds apart from the policy's own terms."""
        old, ref = inputs.get("old_terms"), inputs.get("ref_terms")
        return {
            "old_terms": None if old is None else old[:, passes],
            "ref_terms": None if ref is None else ref[:, passes],
            "advantages": inputs["advantages"],
            "mask": canvas.scored.float(),
            "num_passes": self.objective.num_passes,
            "canvas_length": self.max_completion_length,
        }

    def _whole_batch(self, known: dict[str, Any], terms: Tensor) -> DiffusionBatch:
        """Without stored old terms the policy is the one that sampled."""
        old = known["old_terms"]
        return DiffusionBatch(
            **{**known, "terms": terms, "old_terms": terms.detach() if old is None else old}
        )

    def _coefficients(
        self,
        predictor: MaskPredictor,
        canvas: Canvas,
        noise: Noise,
        known: dict[str, Any],
        totals: StepTotals,
    ) -> Tensor | None:
        """For an objective that needs all terms at once: the loss's derivative with respect to each. None where a
        pass's own graph says it: separable objectives, and a single pass."""
        if self.objective.separable or noise.num_passes == 1:
            return None
        if known["old_terms"] is None and self.beta == 0.0:
            # On-policy the terms enter by their difference to the old ones alone, which is zero: no first pass.
            shape = noise.weights.shape if self.objective.level == "sequence" else noise.masks.shape
            terms = torch.zeros(shape, device=noise.weights.device)
        else:
            terms = all_terms(predictor, canvas, noise, self.objective.level, rows_at_once=len(noise.weights))
        return term_coefficients(self.objective, self._whole_batch(known, terms), totals, self.beta)

    def _pass_loss(
        self, terms: Tensor, j: int, known: dict[str, Any], coefficients: Tensor | None, totals: StepTotals
    ) -> Tensor:
        """What pass j adds to the gradient of the step's loss. ()."""
        if coefficients is not None:
            return (coefficients[:, j : j + 1] * terms).sum()
        own = {
            **known,
            **{
                k: v[:, j : j + 1]
                for k, v in known.items()
                if k in ("old_terms", "ref_terms") and v is not None
            },
        }
        return reduced_loss(self.objective, self._whole_batch(own, terms), totals, self.beta)

    # The optimizer step as a whole

    def _open_diffusion_window(self) -> StepWindow:
        """Counts over all micro-batches and ranks of the optimizer step that begins now."""
        per_rollout = self.args.steps_per_generation
        slices = [
            self._buffered_inputs[(self._step + i) % per_rollout]
            for i in range(self.current_gradient_accumulation_steps)
        ]
        tokens = torch.stack([part["canvas_scored"].sum() for part in slices]).sum()
        responses = tokens.new_tensor(sum(len(part["canvas_scored"]) for part in slices))
        counts = self._all_sum(torch.stack([tokens, responses]).float())
        return StepWindow(StepTotals(counts[0], counts[1], self.max_completion_length), step={}, before=None)

    def _note(self, whole: DiffusionBatch, noise: Noise, inputs: dict[str, Any], loss: Tensor) -> None:
        signal = signal_of(
            self.objective,
            whole,
            noise,
            generated=inputs["generated_mask"],
            unjudged=inputs["unjudged"],
            truncated=inputs["completion_mask"].sum(1) == 0,
        )
        kl = self.objective.penalty(whole) if self.beta != 0.0 else None
        self.loss_metrics.add(
            self.objective, self.method, whole, noise=noise, loss=loss, kl=kl, signal=signal
        )  # type: ignore[call-arg]  # DiffusionMetrics


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
