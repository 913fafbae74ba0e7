"""The one seam over TRL's GRPO trainer: its loss body is replaced by an objective, the rest of it stays TRL's.

    rollout (TRL) -> rewards (whole groups) -> objective.advantages -> buffer (TRL) -> forward -> objective.token_loss
    -> KL, entropy, importance terms -> objective.reduce -> backward

What a method is stands in posttrain/objectives; this file only carries tensors to it and back.
"""

# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportOptionalOperand=false, reportOperatorIssue=false
# Upstream annotates its trainers more widely than what their attributes hold once they are built.

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from accelerate.utils import gather_object, is_peft_model
from torch import Tensor
from transformers import PreTrainedModel
from trl import GRPOConfig
from trl.trainer.callbacks import SyncRefModelCallback

from posttrain.data import RowCounts
from posttrain.data.row_order import Curriculum
from posttrain.environments.tool_specs import EnvironmentFault
from posttrain.objectives.base import Groups, Objective, TokenBatch
from posttrain.objectives.streams import response_means
from posttrain.process.phases import PHASES
from posttrain.recipe import Recipe
from posttrain.rewards.runner import RewardError
from posttrain.rollout.base import Engine, EngineError
from posttrain.rollout.model_folder import without_router_logits
from posttrain.trainers.engines.attach import attach_engine
from posttrain.trainers.engines.rollout_plan import RolloutPlan
from posttrain.trainers.engines.rollouts import Rollouts
from posttrain.trainers.engines.scored_rollout import Rollout
from posttrain.trainers.engines.turns import Turns
from posttrain.trainers.forward.base import Rows, Scorer, Wanted
from posttrain.trainers.forward.choose_layout import RowLayout, choose_layout
from posttrain.trainers.forward.head import HeadOptions
from posttrain.trainers.forward.padded import ForwardProbe, PaddedScorer
from posttrain.trainers.models.adapters import check_adapter, copies_reference
from posttrain.trainers.models.ingredients import ingredients
from posttrain.trainers.models.reference import copy_of_policy, frozen_reference
from posttrain.trainers.policy.critic import Critic
from posttrain.trainers.policy.epoch_sampler import EpochRepeatSampler
from posttrain.trainers.policy.family_rollout import FamilyRollout
from posttrain.trainers.policy.group_order import group_ordered
from posttrain.trainers.policy.held_out_sampling import held_out_sampling
from posttrain.trainers.policy.judging import Judge, reward_arguments
from posttrain.trainers.policy.keeper import Keeper
from posttrain.trainers.policy.logged_account import account_logged
from posttrain.trainers.policy.loss_metrics import LossMetrics
from posttrain.trainers.policy.micro_batches import MicroBatches
from posttrain.trainers.policy.policy_step import PolicyStep
from posttrain.trainers.policy.resampling import Resampling
from posttrain.trainers.policy.reward_kl import with_token_kl
from posttrain.trainers.policy.reward_sources import judge_as_trl, reward_sources
from posttrain.trainers.policy.rollout_batch import add_to_buffer
from posttrain.trainers.policy.step_in_hand import StepInHand
from posttrain.trainers.policy.token_batch import token_batch
from posttrain.trainers.policy.tool_arguments import tool_arguments, toolbox_of
from posttrain.trainers.reporting.announced import AnnouncedSteps
from posttrain.trainers.seam.best_metric import check_best_metric, policy_names
from posttrain.trainers.seam.config import PolicyConfig, settings_from
from posttrain.trainers.seam.finite import FiniteSteps, reward_fault
from posttrain.trainers.seam.given_rows import require_columns, require_rewards
from posttrain.trainers.seam.recipe_arguments import policy_arguments, rewards_of, training_arguments
from posttrain.trainers.seam.resume import ExactResume
from posttrain.trainers.seam.taken_over import own_arguments
from posttrain.trainers.seam.trl_seam import GRPOTrainer
from posttrain.trainers.seam.whole_checkpoint import WholeCheckpoint


class PolicyTrainer(
    AnnouncedSteps,
    FiniteSteps,
    WholeCheckpoint,
    ExactResume,
    GRPOTrainer,
):
    """`trl.GRPOTrainer` that trains an `Objective`.

    `PolicyTrainer(model, reward_funcs, args=PolicyConfig(...), train_dataset=..., objective=GRPO())`; the trainer of
    a method (`BAPOTrainer`) takes the objective's settings from its config instead.

    model         a causal language model, or the folder or hub name of one; a new adapter is `peft_config`
    args          the method's config; TRL's GRPOConfig is taken over where it means the same. None: its defaults
    train_dataset, eval_dataset  rows with a column "prompt" (text or messages) and what the rewards read
    reward_funcs  a function `f(completions, *, column, ...) -> list[float | None]`, its name ("math_answer",
                  "package.module:function", "file.py:function"), a `RewardSpec` or a mapping of its fields, a reward
                  model or its name, or a list of any of these. Functions are given the completions' text; those whose
                  parameter says `completions: list[list[dict]]` are given messages
    ref_model     the KL reference (beta > 0), when it is not the model as it is now

    Raises ValueError where settings, columns, rewards or an adapter cannot be; `train` raises NotFinite, RewardError or
    EngineError after the state was saved.
    """

    objective_class: ClassVar[type[Objective] | None] = None
    config_class: ClassVar[type[PolicyConfig]] = PolicyConfig

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: PolicyConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        objective: Objective | None = None,
        ref_model: PreTrainedModel | None = None,
        **trl_arguments: Any,
    ) -> None:
        learner = type(objective) if objective is not None else self.objective_class
        if learner is None:
            raise ValueError(
                "PolicyTrainer needs `objective=`, or use the trainer of a method, e.g. BAPOTrainer"
            )
        self.method = learner.__module__.rsplit(".", 1)[-1]
        args = own_arguments(type(self), args, self.config_class, GRPOConfig, self.method)
        self.objective = settings_from(args, learner) if objective is None else objective
        args.check_window()
        environment = trl_arguments.get("environment_factory")
        if self.objective.needs_rewards:
            require_rewards(type(self), reward_funcs, environment)
        for name, rows in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            require_columns(type(self), rows, ["prompt"], name=name)
        check_adapter(model, trl_arguments.get("peft_config"))
        if not isinstance(model, str):
            without_router_logits(model)
        self.family = FamilyRollout(self, args)
        train_dataset, eval_dataset = self.family.rows_of(train_dataset, eval_dataset)
        sources = reward_sources(reward_funcs, args, has_environments=environment is not None)
        self.turns = Turns(self)
        self.rollouts = Rollouts(self)
        self.keeper = Keeper(self, self.objective, self.rollouts)
        self.judge = Judge(self, sources.runner, partial(judge_as_trl, self, super()._calculate_rewards))
        self.held_out: list[Rollout] = []
        self.row_counts: RowCounts | None = None
        self.curriculum: Curriculum | None = None
        beta, sync = args.beta, args.sync_ref_model
        self._makes_reference = copies_reference(model, trl_arguments.get("peft_config"))
        if self._makes_reference:
            # keeps TRL from loading a reference from disk or hub; see _set_reference
            args.beta, args.sync_ref_model = 0.0, False
        try:
            super().__init__(
                model,
                reward_arguments(sources, args),
                args,
                train_dataset,
                eval_dataset,
                **trl_arguments,
            )
        finally:
            args.beta, args.sync_ref_model = beta, sync
        if not self.use_vllm:
            # NaN logits would end sampling in an assertion of the device; the forward that follows names them
            self.generation_config.remove_invalid_values = True
        self._set_reference(ref_model)
        check_best_metric(
            self.args, policy_names(self.judge.runner, self.reward_func_names, self.family.metrics)
        )
        self.layout = self.make_layout()
        self.scorer: Scorer = self.layout.scorer
        self.judge.load(sources, self.processing_class)
        self.family.begin()
        self.step: StepInHand = self.make_step()
        self.critic = Critic(self, self.objective, self.method) if self.objective.uses_critic else None
        if self.critic is not None:
            self.add_callback(self.critic)

    @classmethod
    def from_recipe(cls, recipe: Recipe, **changes: Any) -> PolicyTrainer:
        """The trainer a recipe describes; `changes` win over its training arguments."""
        parts, toolbox = ingredients(recipe), toolbox_of(recipe)
        arguments = {**recipe.objective.values(), **policy_arguments(recipe), **changes}
        trainer = cls(
            parts.model,
            rewards_of(recipe),
            training_arguments(recipe, cls.config_class, **arguments),
            parts.train_rows,
            parts.eval_rows,
            processing_class=parts.tokenizer,
            peft_config=parts.peft_config,
            **tool_arguments(toolbox, parts.tokenizer),
        )
        trainer.turns.toolbox = toolbox
        trainer.row_counts = parts.train_counts
        trainer.curriculum = parts.curriculum
        attach_engine(trainer, recipe)
        return trainer

    def make_step(self) -> StepInHand:
        """The part that turns micro-batches into losses; a method with terms of its own in the loss makes another."""
        metrics = LossMetrics(self.accelerator)
        return PolicyStep(self, self.objective, self.method, metrics, self._read, self._micro_batches())

    def _micro_batches(self) -> MicroBatches:
        limit = self.args.max_tokens_per_micro_batch
        return MicroBatches(self.accelerator, limit, shares_prompts=self.layout.shares_prompts)

    # The reference and the probe

    def _set_reference(self, ref_model: PreTrainedModel | None) -> None:
        """The KL reference is the given model, or the policy as it is now; never one reloaded from a path.

        TRL's rules hold in two cases: with PEFT the reference is the base model, or a frozen copy of an adapter that
        came with the model; under ZeRO-3, where no process holds the weights, it is loaded from the model's path.
        """
        self.beta = self.args.beta
        if self.beta == 0.0:
            given_for_it = {"ref_model": ref_model is not None, "sync_ref_model": self.args.sync_ref_model}
            for name, given in given_for_it.items():
                if given:
                    raise ValueError(f"{name} has no effect at beta 0; set beta above 0 or leave it out")
            return
        if ref_model is None and not self._makes_reference:
            return
        self.ref_model = frozen_reference(self, copy_of_policy(self) if ref_model is None else ref_model)
        if self.args.sync_ref_model:
            self.add_callback(SyncRefModelCallback(ref_model=self.ref_model, accelerator=self.accelerator))

    def _make_probe(self) -> ForwardProbe | None:
        if not self.objective.needs:
            return None
        policy: Any = self.accelerator.unwrap_model(self.model)
        causal_lm = policy.get_base_model() if is_peft_model(policy) else policy
        return ForwardProbe(causal_lm, self.objective.needs, self.objective.num_candidates)

    # Rollout: the order of prompts, the engine, advantages

    @property
    def engine(self) -> Engine | None:
        """What generates, where it is not TRL."""
        return self.rollouts.engine

    def use_engine(self, engine: Engine, plan: RolloutPlan | None = None) -> None:
        """From now on `engine` generates. Raises ValueError when it cannot do what the plan asks."""
        self.rollouts.use_engine(engine, plan)
        if plan is not None and plan.resample is not None:
            Resampling(self, plan.resample)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Lets the rows of later rounds be seen before their turn."""
        return super().get_batch_samples(self.rollouts.readable_ahead(epoch_iterator), num_batches, device)

    def _get_train_sampler(self, dataset: Any = None) -> EpochRepeatSampler:
        """Replaces TRL's sampler by one that knows the epoch it is in."""
        return EpochRepeatSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
            # a share of an epoch is added step by step: rounding must not make 1.0 an epoch 0
            epoch=lambda: int((self.state.epoch or 0.0) + 1e-6),
            curriculum=self.curriculum,
        )

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """As TRL's; a fresh rollout is cut into micro-batches of whole groups where layout or method gain by it."""
        window = self.args.steps_per_generation * self.num_iterations
        fresh = self._buffered_inputs is None or self._step % window == 0
        inputs = super()._prepare_inputs(generation_batch)
        whole_groups = self.layout.orders_groups or self.objective.pairs_answers
        if not self.model.training or not whole_groups or not fresh:
            return inputs
        self._buffered_inputs = group_ordered(self._buffered_inputs)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Replaces TRL's advantages by the objective's, computed on the whole groups of all ranks."""
        self.turns.begin()
        with self.rollouts.round_for(inputs) as self.family.rows:
            output = super()._generate_and_score_completions(self.family.rows)
        if not self.model.training:
            return output
        self.rollouts.mark(output)
        self._add_advantages(output, len(inputs))
        return output

    def _add_advantages(self, output: dict[str, Any], count: int) -> None:
        """The objective's advantages for this rank's `count` responses of the rollout that was just judged."""
        rollout, groups = self.judge.last(), self.judge.groups(self.num_generations)
        account_logged(self, rollout, groups, output)
        groups = self.scored_groups(self.objective.observe_rewards(groups), output)
        streams = self.objective.advantages(groups)
        fault = reward_fault(groups, streams, self.reward_func_names)
        if fault is not None:  # on every rank: all have the same rewards
            self.stop_not_finite(fault, f"the rollout of step {self.state.global_step + 1}")
        for name, value in self.objective.rollout_metrics(groups).items():
            self._metrics["train"][f"{self.method}/{name}"].append(float(value))
        if "weight_version" in output:
            rollout.weight_versions = gather_object(output["weight_version"].amax(dim=1).tolist())
        means = response_means(streams["advantages"], groups.lengths, groups.written)
        self.judge.record_advantages(means.reshape(-1))
        rows = slice(self.accelerator.process_index * count, (self.accelerator.process_index + 1) * count)
        add_to_buffer(output, groups, streams, rows, rollout.completion_ids[rows])
        self.step.take(groups, output)

    def scored_groups(self, groups: Groups, output: Mapping[str, Any]) -> Groups:
        """With what other models say about the sampled tokens; output: this rank's share, as TRL buffers it."""
        if self.objective.kl_in_reward and self.beta > 0:
            groups = with_token_kl(self, groups, output, with_mask=self.objective.pairs_answers)
        return groups if self.critic is None else self.critic.valued(groups, output)

    @property
    def rollout(self) -> Rollout | None:
        """The rollout that was scored last, of all ranks."""
        return self.judge.rollout

    def _calculate_rewards(
        self,
        inputs: list[dict[str, Any]],
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[Any],
    ) -> Tensor:
        """Replaces TRL's per-rank call. (B, K) over all ranks, NaN where a response could not be judged."""
        training = self.model.training
        return self.judge.judge(
            inputs,
            prompts,
            completions,
            completion_ids,
            group_size=self.num_generations if training else self.num_generations_eval,
            mode="train" if training else "eval",
        )

    def _generate_single_turn(
        self,
        prompt_ids: Any,
        images: Any,
        multimodal_fields: Any,
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[Any, Any]:
        """Replaces TRL's choice between vLLM and transformers where an engine is in use."""
        self.turns.next()
        if self.rollouts.engine is not None:
            return self.rollouts.single_turn(prompt_ids, images)
        with held_out_sampling(self), PHASES.within("generating", len(prompt_ids)):
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )

    def _tool_call_loop(
        self, prompts: Any, prompt_ids: Any, completion_ids: Any, completions: Any, *more: Any
    ) -> tuple[Any, ...]:
        """As TRL's, each turn in step with the other ranks; who wrote which token is noted."""
        with self.turns.loop(prompt_ids):
            made = super()._tool_call_loop(prompts, prompt_ids, completion_ids, completions, *more)
        masks, completions, completion_ids, logprobs, *_ = made
        self.turns.note(masks, completions)
        self.rollouts.join_turns(completion_ids, logprobs)
        return made

    # Loss

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        """Evaluation generates and scores; a policy loss on held-out prompts would say nothing."""
        self._prepare_inputs(inputs)
        if self.rollout is not None:
            self.held_out.append(self.rollout)
            self.family.account("eval")
        return None, None, None

    def evaluate(self, *arguments: Any, **named: Any) -> dict[str, float]:
        """As TRL's; the responses are left in `held_out`."""
        self.held_out = []
        return super().evaluate(*arguments, **named)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Replaces TRL's loss body."""
        return self.step.loss(model, inputs)

    # Scoring

    def make_layout(self) -> RowLayout:
        """The layout whose scorer every log-prob of the run comes from."""
        return choose_layout(
            self.args.layout,
            self.accelerator.unwrap_model(self.model),
            PaddedScorer(super()._get_per_token_logps_and_entropies, self._make_probe()),
            accelerator=self.accelerator,
            head=HeadOptions(self.temperature, self.args.cast_lm_head_to_fp32),
            needs=self.objective.needs,
            num_candidates=self.objective.num_candidates,
        )

    def _read(self, model: Any, inputs: Mapping[str, Any]) -> tuple[TokenBatch, Tensor, Tensor | None]:
        """One micro-batch scored: the batch, the entropies (with gradient) and the router's auxiliary loss."""
        wanted = Wanted(entropy=True, aux_loss=self.aux_loss_enabled, for_method=True)
        scored = self.scorer.score(model, Rows.of_buffer(inputs), wanted)
        if scored.entropy is None:
            raise RuntimeError(f"{type(self.scorer).__name__} gave no entropies, which were asked for")
        return token_batch(scored, inputs), scored.entropy, scored.aux_loss

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **extras: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """TRL asks, for the old policy and the reference of a rollout. Hands over to the scorer."""
        if model is self.model and self.rollouts.replaces_old_logprobs:
            return self.rollouts.sampled_logprobs(logits_to_keep), None, None
        rows = Rows.of_joined(input_ids, attention_mask, logits_to_keep, extras)
        rows = self.family.for_reference(model, rows)
        scored = self.scorer.score(model, rows, Wanted(compute_entropy, compute_aux_loss, False, batch_size))
        return scored.logprobs, scored.entropy, scored.aux_loss

    # Resume

    def rollout_state(self) -> dict[str, Any]:
        return self.keeper.state()

    def load_rollout_state(self, state: dict[str, Any]) -> None:
        self.keeper.load_state(state)

    def shared_state(self) -> dict[str, Any]:
        return {} if self.critic is None else {"critic": self.critic.state()}

    def load_shared_state(self, state: dict[str, Any]) -> None:
        if self.critic is not None:
            self.critic.load_state(state["critic"])

    def _inner_training_loop(self, *arguments: Any, **named: Any) -> Any:
        """As upstream's; when the engine is lost or a reward fails, the run stops at a saved checkpoint."""
        self.accelerator.print(f"forward pass: {self.layout.name} ({self.layout.reason})")
        try:
            return super()._inner_training_loop(*arguments, **named)
        except (EngineError, RewardError, EnvironmentFault) as error:
            raise type(error)(f"{error}\n{self.keeper.save_before_stopping()}") from error
