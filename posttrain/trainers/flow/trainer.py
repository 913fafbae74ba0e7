"""The trainer of image methods that learn from rewards: transformers' loop, our sampler, judge and step.

rollout (noise in each step) -> images -> rewards (whole groups) -> objective.advantages -> buffer
-> for each denoising step: forward, ratio, loss, backward (flow_step_in_hand.py) -> optimizer step
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# Upstream annotates its trainers more widely than what their attributes hold once they are built.

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer

from posttrain.data import RowCounts
from posttrain.objectives.flow_base import FlowObjective, carries_signal
from posttrain.ops.groups import degenerate_groups
from posttrain.process.phases import PHASES
from posttrain.recipe import Recipe
from posttrain.rewards.runner import RewardError
from posttrain.rollout.flow.flow_sampler import FlowSampler, FlowSampling, Velocity, guided
from posttrain.rollout.flow.image_frame import ImageFrame, on_device
from posttrain.trainers.engines.scored_images import ScoredImages
from posttrain.trainers.flow.flow_config import FlowConfig
from posttrain.trainers.flow.flow_ingredients import flow_ingredients, require_flow, require_whole_weights
from posttrain.trainers.flow.flow_metrics import FlowMetrics
from posttrain.trainers.flow.flow_step_in_hand import CONDITION, FlowStep
from posttrain.trainers.flow.image_judge import ImageJudge, image_rewards
from posttrain.trainers.models.adapters import check_adapter
from posttrain.trainers.policy.epoch_sampler import EpochRepeatSampler
from posttrain.trainers.policy.keeper import Keeper
from posttrain.trainers.reporting.announced import AnnouncedSteps
from posttrain.trainers.seam.config import settings_from
from posttrain.trainers.seam.finite import FiniteSteps, reward_fault
from posttrain.trainers.seam.given_rows import require_columns, require_rewards
from posttrain.trainers.seam.recipe_arguments import rewards_of, training_arguments
from posttrain.trainers.seam.resume import ExactResume
from posttrain.trainers.seam.whole_checkpoint import WholeCheckpoint


class FlowTrainer(AnnouncedSteps, FiniteSteps, WholeCheckpoint, ExactResume, Trainer):
    """A `transformers.Trainer` that trains a `FlowObjective` on images of its own making.

    `FlowTrainer(model, reward_funcs, args=..., train_dataset=..., frame=..., objective=GRPOGuard())`, or a method's own
    (`GRPOGuardTrainer`), which takes the objective's settings from its config.

    model         the velocity model: model(latents, times, **conditions)
    reward_funcs  functions f(completions, *, column, ...) -> list[float | None], whose completions are PIL images; by
                  name, as RewardSpec or callables, one or a list
    train_dataset, eval_dataset  rows with a column "prompt" (text) and what the rewards read
    frame         prompts to conditions, latents to images (rollout.flow.image_frame.ImageFrame)

    Raises ValueError where settings, columns, rewards or an adapter cannot be; `train` raises NotFinite or RewardError
    after the state was saved.
    """

    objective_class: ClassVar[type[FlowObjective] | None] = None
    config_class: ClassVar[type] = FlowConfig
    row_counts: RowCounts | None = None

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: Any = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        *,
        frame: ImageFrame,
        objective: FlowObjective | None = None,
        peft_config: LoraConfig | None = None,
        **named: Any,
    ) -> None:
        learner = type(objective) if objective is not None else self.objective_class
        if learner is None:
            raise ValueError(
                "FlowTrainer needs `objective=`, or use the trainer of a method, e.g. GRPOGuardTrainer"
            )
        self.method = learner.__module__.rsplit(".", 1)[-1]
        args = self._own_arguments(args)
        self.objective = settings_from(args, learner) if objective is None else objective
        sampling = settings_from(args, FlowSampling)
        _check_together(self.objective, sampling)
        require_flow(type(self), frame)
        require_rewards(type(self), reward_funcs, None)
        for name, rows in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            require_columns(type(self), rows, ["prompt"], name=name)
        check_adapter(model, peft_config)
        adapter = peft_config is not None or is_peft_model(model)
        reference = copy.deepcopy(model) if args.beta and not adapter else None
        if peft_config is not None:
            model = get_peft_model(model, peft_config)
        # transformers divides a loss by the accumulated micro-batches unless it is given a function for the loss
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=_as_they_are,
            processing_class=frame,
            compute_loss_func=_never_called,
            **named,
        )
        require_whole_weights(self)
        self.frame = frame
        self.reference = None if reference is None else self._frozen(reference)
        sources = image_rewards(
            reward_funcs,
            timeout_s=args.reward_timeout_s,
            on_error=args.reward_on_error,
            workers=args.reward_workers,
        )
        weights = args.reward_weights if args.reward_weights is not None else sources.weights
        if len(weights) != len(sources.names):
            raise ValueError(f"reward_weights: {len(weights)} weights for {len(sources.names)} rewards")
        self.judge = ImageJudge(self.accelerator, sources, weights)
        self.sampler = FlowSampler(frame, sampling, self.accelerator.device, args.seed)
        self.step = FlowStep(self, self.objective, self.method, FlowMetrics(self.accelerator))
        self.num_iterations = args.num_iterations
        self.max_completion_length = self.objective.trained_steps(sampling.denoising_steps)
        self.held_out: list[ScoredImages] = []
        self.keeper = Keeper(self, self.objective, _NoRounds())
        self._step = 0
        self._buffered_inputs: list[dict[str, Any]] | None = None
        self._metrics: dict[str, Any] = {"train": defaultdict(list), "eval": defaultdict(list)}

    def _own_arguments(self, args: Any) -> Any:
        if args is None:
            return self.config_class(use_cpu=not torch.accelerator.is_available())
        if not isinstance(args, self.config_class):
            raise TypeError(
                f"{type(self).__name__}: args is a {type(args).__module__}.{type(args).__name__}; pass a "
                f"posttrain.trainers.{self.config_class.__name__}"
            )
        return args

    @classmethod
    def from_recipe(cls, recipe: Recipe, **changes: Any) -> FlowTrainer:
        """The trainer a recipe describes; `changes` win over its training arguments."""
        parts = flow_ingredients(recipe)
        own = recipe.flow_rollout.model_dump(exclude={"engine", "group_size"})
        arguments = {
            **recipe.objective.values(),
            **own,
            "reward_weights": [reward.weight for reward in recipe.rewards],
            **changes,
        }
        trainer = cls(
            parts.model,
            rewards_of(recipe),
            training_arguments(recipe, cls.config_class, **arguments),
            parts.train_rows,
            parts.eval_rows,
            frame=parts.frame,
            peft_config=parts.peft_config,
        )
        trainer.row_counts = parts.train_counts
        return trainer

    # What reports read

    @property
    def rollout(self) -> ScoredImages | None:
        """The images that were scored last, of all ranks."""
        return self.judge.last

    @property
    def reward_func_names(self) -> list[str]:
        return self.judge.names

    @property
    def reward_weights(self) -> Tensor:
        return self.judge.weights

    def log(self, logs: dict[str, float], *arguments: Any, **named: Any) -> None:
        """As upstream's, with the means of what was noted since the last log."""
        mode = "train" if self.model.training else "eval"
        noted = {name: sum(values) / len(values) for name, values in self._metrics[mode].items()}
        self._metrics[mode].clear()
        super().log({**logs, **noted}, *arguments, **named)

    def floating_point_ops(self, inputs: Any) -> int:
        """Upstream counts them by tokens."""
        return 0

    # Rollout

    def get_train_dataloader(self) -> Any:
        """As TRL's policy trainers: a batch holds the rows of a whole rollout, and comes once per micro-batch."""
        return self._get_dataloader(
            dataset=self.train_dataset,
            description="Training",
            batch_size=self._train_batch_size * self.args.steps_per_generation,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def _get_train_sampler(self, dataset: Any = None) -> EpochRepeatSampler:
        args = self.args
        images = self._train_batch_size * args.steps_per_generation * self.accelerator.num_processes
        return EpochRepeatSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=args.num_generations,
            batch_size=images // args.num_generations,
            repeat_count=args.num_iterations * args.steps_per_generation,
            shuffle=args.shuffle_dataset,
            seed=args.seed,
            epoch=lambda: int((self.state.epoch or 0.0) + 1e-6),
        )

    def _prepare_inputs(self, rows: Any) -> dict[str, Any]:
        """The next micro-batch of the rollout in hand, or of a new one."""
        size = self.args.steps_per_generation
        if self._buffered_inputs is None or self._step % (size * self.num_iterations) == 0:
            self._buffered_inputs = _sliced(self._make_rollout(rows), size)
        return self._buffered_inputs[self._step % size]

    def _make_rollout(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """This rank's share: latents, means, advantages and conditions, one row an image."""
        number = self._step // (self.args.steps_per_generation * self.num_iterations)
        start = self.accelerator.process_index * len(rows)
        places = range(start, start + len(rows))
        prompts = [str(row["prompt"]) for row in rows]
        with self._sampling(), PHASES.within("making images", len(rows)):
            made = self.sampler.trajectories(self.model, prompts, places, number)
        images = self.frame.to_images(made.latents[:, -1])
        scored = self.judge.judge(rows, images, group_size=self.args.num_generations, state=self.state)
        groups = self.judge.groups(scored, self.args.num_generations)
        self.step.groups = groups
        streams = self.objective.advantages(groups)
        fault = reward_fault(groups, streams, self.judge.names)
        if fault is not None:  # on every rank: all have the same rewards
            self.stop_not_finite(fault, f"the rollout of step {self.state.global_step + 1}")
        advantages = streams["advantages"].reshape(-1)
        scored.advantages = advantages.tolist()
        for name, value in self.judge.metrics(scored, self.args.num_generations).items():
            self._metrics["train"][name].append(value)
        mine = slice(start, start + len(rows))
        own = advantages[mine].to(made.latents).unsqueeze(1)
        equal = degenerate_groups(groups.rewards).unsqueeze(1).expand_as(groups.rewards).reshape(-1)
        conditions = on_device(self.frame.read_prompts(prompts), self.accelerator.device)
        return {
            "latents": made.latents,
            "means": made.means,
            "advantages": own,
            "mask": carries_signal(own),
            "unjudged": groups.rewards.reshape(-1)[mine].isnan(),
            "equal_rewards": equal[mine],
            **{f"{CONDITION}{name}": values for name, values in conditions.items()},
        }

    @contextmanager
    def _sampling(self) -> Iterator[None]:
        """The model as it makes images: without dropout or gradient, in the arithmetic that it trains in."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.compute_loss_context_manager():
                yield
        finally:
            self.model.train(was_training)

    # Loss

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> Tensor:
        # what samples and what trains must be one function: dropout would make the ratio differ from 1 on-policy
        model.eval()
        try:
            return self.step.loss(model, inputs)
        finally:
            model.train()

    def training_step(self, *arguments: Any, **named: Any) -> Tensor:
        loss = super().training_step(*arguments, **named)
        self._step += 1
        return loss

    def training_velocity(self, model: Any, inputs: Mapping[str, Any]) -> Velocity:
        """The policy's, with the guidance that the images were made with."""
        return self._velocity(model, inputs)

    def reference_velocity(self, inputs: Mapping[str, Any]) -> Velocity | None:
        """The frozen model's, or that of the policy without its adapter; None where there is no KL."""
        if self.args.beta == 0.0:
            return None
        model: Any = self.accelerator.unwrap_model(self.model)
        if self.reference is not None:
            return self._velocity(self.reference, inputs)

        def without_adapter(latents: Tensor, times: Tensor) -> Tensor:
            with model.disable_adapter() if is_peft_model(model) else nullcontext():
                return self._velocity(model, inputs)(latents, times)

        return without_adapter

    def _velocity(self, model: Any, inputs: Mapping[str, Any]) -> Velocity:
        conditions = {
            name.removeprefix(CONDITION): values
            for name, values in inputs.items()
            if name.startswith(CONDITION)
        }
        scale, count = self.sampler.sampling.cfg_scale, len(inputs["latents"])
        without = None if scale == 1.0 else on_device(self.frame.no_prompts(count), self.accelerator.device)
        return guided(model, conditions, without, scale)

    def _frozen(self, reference: Any) -> Any:
        reference.requires_grad_(False)
        reference.eval()
        return reference.to(self.accelerator.device)

    # Evaluation

    def evaluate(
        self, eval_dataset: Any = None, *_: Any, metric_key_prefix: str = "eval", **__: Any
    ) -> dict[str, float]:
        """An image per held-out row, without noise in the steps, and its rewards; the images are in `held_out`."""
        rows = list(self.eval_dataset if eval_dataset is None else eval_dataset)
        scored = self._judge_held_out(rows)
        found = self.judge.metrics(scored, 1)
        self.held_out = [scored]
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        with self._evaluating():
            self.log(metrics)
        self.callback_handler.eval_dataloader = DataLoader(rows, collate_fn=_as_they_are)  # which is counted
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _judge_held_out(self, rows: list[dict[str, Any]]) -> ScoredImages:
        """Each rank makes a stretch of the images; shorter ones are filled up, since ranks gather together."""
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        each = -(-len(rows) // ranks)
        mine = list(range(rank * each, min((rank + 1) * each, len(rows))))
        images = []
        with PHASES.within("measuring", len(rows)), self._sampling():
            if mine:
                prompts = [str(rows[i]["prompt"]) for i in mine]
                images = self.frame.to_images(self.sampler.held_out(self.model, prompts, mine))
        return self.judge.judge([rows[i] for i in mine], images, group_size=1, state=self.state)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)

    # Resume

    def rollout_state(self) -> dict[str, Any]:
        return self.keeper.state()

    def load_rollout_state(self, state: dict[str, Any]) -> None:
        self.keeper.load_state(state)

    def _inner_training_loop(self, *arguments: Any, **named: Any) -> Any:
        """As upstream's; when a reward fails, the run stops at a saved checkpoint."""
        try:
            return super()._inner_training_loop(*arguments, **named)
        except RewardError as error:
            raise RewardError(f"{error}\n{self.keeper.save_before_stopping()}") from error


class _NoRounds:
    """What the keeper asks of engines that generate ahead: there are none for images."""

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing was kept."""


def _as_they_are(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return rows


def _never_called(*_: Any, **__: Any) -> Tensor:
    raise RuntimeError("FlowTrainer computes its loss itself")


def _sliced(rollout: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """A rollout cut into micro-batches, in order."""
    parts = {name: values.chunk(count) for name, values in rollout.items()}
    return [{name: values[i] for name, values in parts.items()} for i in range(count)]


def _check_together(objective: FlowObjective, sampling: FlowSampling) -> None:
    """ValueError for settings of method and sampler that cannot go together."""
    if not objective.guided_training and sampling.cfg_scale != 1.0:
        raise ValueError(
            f"guided_training is off and cfg_scale is {sampling.cfg_scale:g}: the policy that is trained would not be "
            "the one that made the images; train with the guidance, or make the images without"
        )
    if objective.trained_steps(sampling.denoising_steps) < 1:
        raise ValueError(
            f"trained_share {objective.trained_share:g} of {sampling.denoising_steps} denoising steps is less than one"
        )
    if (
        sampling.sampler == "cps"
        and objective.trained_steps(sampling.denoising_steps) == sampling.denoising_steps
    ):
        raise ValueError(
            "sampler cps has no noise in its last step, which cannot be trained on; lower trained_share"
        )
