"""SePPO's loop: each round compares with a past checkpoint of the policy, which also writes the losing answers.

    round k: r ~ U{0, ..., k-1}; y_r ~ pi_r(. | x); steps on (x, winner, y_r) against pi_r; pi_k joins the pool

The optimizer and its schedule run through all rounds, as in one training. The method's page is
posttrain/preferences/seppo.py; the folders of a run are described in staged.py.
"""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from datasets import Dataset
from trl import DPOConfig

from posttrain.preferences.seppo import SePPO
from posttrain.recipe import Recipe, RecipeError
from posttrain.rollout.base import Sampling
from posttrain.trainers.engines.answers import prompt_ids
from posttrain.trainers.engines.from_recipe import staged_options
from posttrain.trainers.models.ingredients import ingredients
from posttrain.trainers.preference.pair_rows import PairCounts, drop_oldest_turns
from posttrain.trainers.preference.trainer import PreferenceConfig, PreferenceTrainer
from posttrain.trainers.seam.config import flat_config, settings_from
from posttrain.trainers.seam.recipe_arguments import training_arguments
from posttrain.trainers.seam.resume import own_settings
from posttrain.trainers.seam.taken_over import own_arguments
from posttrain.trainers.staged.carried_optimizer import keep_optimizer, take_optimizer
from posttrain.trainers.staged.staged import Pair, Stage, StagedTrainer

SePPOConfig = flat_config("SePPOConfig", PreferenceConfig, SePPO, __name__)

_OPTIMIZER = "optimizer"


class RoundTrainer(PreferenceTrainer):
    """One round; its optimizer state comes from the round before, its schedule spans all rounds."""

    carried_optimizer: Path | None = None
    steps_before = 0
    steps_in_all = 0

    def _prepare_for_training(self, max_steps: int, dataloader: Any, resumed_from: str | None) -> Any:
        prepared = super()._prepare_for_training(max_steps, dataloader, resumed_from)
        if resumed_from is None and self.carried_optimizer is not None:
            take_optimizer(self, self.carried_optimizer)
            if self._own_groups is not None:  # only the moments: the learning rate belongs to the schedule
                own_settings(self.optimizer, self.lr_scheduler, self._own_groups)
        return prepared

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        fresh = self.lr_scheduler is None
        scheduler = super().create_scheduler(self.steps_in_all, optimizer)
        with warnings.catch_warnings():
            # Torch expects an optimizer step before each of these; they were taken in the rounds before.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            for _ in range(self.steps_before if fresh else 0):
                scheduler.step()
        return scheduler


class SePPOTrainer(StagedTrainer):
    """SePPO for language models, see posttrain/preferences/seppo.py.

    `SePPOTrainer(model, winners, args=SePPOConfig(output_dir=..., rounds=7), processing_class=tokenizer)`.

    winners   a dataset with columns prompt and chosen; a column rejected is not read. Rounds walk through it in an
              order drawn from the seed, and begin it again when it is used up
    sampling  of the reference's answers
    """

    def __init__(
        self,
        model: Any,
        winners: Dataset,
        args: Any,
        processing_class: Any,
        *,
        sampling: Sampling | None = None,
        **more: Any,
    ) -> None:
        args = own_arguments(type(self), args, SePPOConfig, DPOConfig, "seppo")
        method = settings_from(args, SePPO)
        if not args.disable_dropout:
            raise ValueError(
                "SePPO: the sign of a pair is read from dropout-free forwards; leave disable_dropout on"
            )
        if args.precompute_ref_log_probs:
            raise ValueError(
                "SePPO: precompute_ref_log_probs is not carried; a round reads each pair about once"
            )
        steps = method.rounds * method.steps_per_round
        if args.max_steps not in (-1, steps):
            raise ValueError(
                f"SePPO: max_steps is {args.max_steps}, but {method.rounds} rounds of {method.steps_per_round} steps "
                f"are {steps}; make them agree"
            )
        if missing := {"prompt", "chosen"} - set(winners.column_names):
            raise ValueError(f"SePPO: the winners need columns prompt and chosen; missing {sorted(missing)}")
        sampling = sampling or Sampling(max_new_tokens=(args.max_length or 1024) // 2)
        super().__init__(model, args, method, processing_class, sampling=sampling, **more)
        self.settings: SePPO = method
        self.winners = winners

    @classmethod
    def from_recipe(cls, recipe: Recipe, **changes: Any) -> SePPOTrainer:
        """The run a recipe describes; `changes` win over its training arguments."""
        if recipe.train.max_steps is None:
            raise RecipeError(
                f"{recipe.path}: train: SePPO runs rounds of steps: write max_steps, not epochs"
            )
        parts = ingredients(recipe)
        args = training_arguments(recipe, SePPOConfig, **{**recipe.objective.values(), **changes})
        trainer = cls(
            parts.model,
            parts.train_rows,
            args,
            parts.tokenizer,
            peft_config=parts.peft_config,
            **staged_options(recipe, parts.tokenizer, args),
        )
        trainer.row_counts = parts.train_counts
        return trainer

    def rows(self) -> Iterable[Any]:
        return ({"prompt": row["prompt"], "chosen": row["chosen"]} for row in self.winners)  # type: ignore[call-overload]  # rows are mappings

    def stage_names(self) -> list[str]:
        return [f"round {k}" for k in range(1, self.settings.rounds + 1)]

    def planned_steps(self) -> int:
        return self.settings.rounds * self.settings.steps_per_round

    def stage_arguments(self, stage: Stage, args: Any) -> None:
        args.max_steps = self.settings.steps_per_round

    def trainer_class(self) -> type[PreferenceTrainer]:
        return RoundTrainer

    def reference_index(self, stage: Stage) -> int:
        """Which checkpoint the round compares with; the same on every rank."""
        index = [self.pool.draw(stage.number + 1, self.settings.reference)]
        if self.ranks.num_processes > 1:
            broadcast_object_list(index)
        return index[0]

    def reference(self, stage: Stage) -> Path:
        return self.pool.path(self.reference_index(stage))

    def make_pairs(self, stage: Stage) -> tuple[list[Pair], PairCounts]:
        index = self.reference_index(stage)
        if self.ranks.is_main_process:
            self.pool.record(stage.number + 1, index)
        rows = [self.winners[i] for i in self._rows_of(stage)]
        counts = PairCounts(rows_in=len(rows))
        limit = (self.args.max_length or 10**9) - 1
        prompts = [self._prompt_ids(row["prompt"], limit) for row in rows]
        usable = [(row, ids) for row, ids in zip(rows, prompts, strict=True) if ids is not None]
        counts.drop("prompt fills max_length", len(rows) - len(usable))
        sampled = self.sample(stage, self.pool.path(index), [ids for _, ids in usable])
        return [self._pair(row, text) for (row, _), text in zip(usable, sampled, strict=True)], counts

    def prepare_trainer(self, stage: Stage, trainer: PreferenceTrainer) -> None:
        if not isinstance(trainer, RoundTrainer):
            raise TypeError("SePPO trains its rounds with a RoundTrainer")
        carried = stage.folder.with_name(f"{stage.number - 1:03d}") / _OPTIMIZER
        trainer.carried_optimizer = carried if carried.exists() else None
        trainer.steps_before = stage.number * self.settings.steps_per_round
        trainer.steps_in_all = self.planned_steps()

    def leave_trainer(self, stage: Stage, trainer: PreferenceTrainer) -> None:
        """Keeps the optimizer's moments for the next round."""
        keep_optimizer(trainer, stage.folder / _OPTIMIZER)
        if self.ranks.is_main_process:
            # The round before may still be needed if this one is not published; the one before that is not.
            shutil.rmtree(stage.folder.with_name(f"{stage.number - 2:03d}") / _OPTIMIZER, ignore_errors=True)

    def _rows_of(self, stage: Stage) -> list[int]:
        """The round's rows: as many as its steps take, from a walk through ever new orders of all rows."""
        per_step = (
            self.args.per_device_train_batch_size
            * self.args.gradient_accumulation_steps
            * self.ranks.num_processes
        )
        size = per_step * self.settings.steps_per_round
        generator = random.Random(self.args.seed)
        order: list[int] = []
        while len(order) < size * (stage.number + 1):
            order += generator.sample(range(len(self.winners)), len(self.winners))
        return order[size * stage.number : size * (stage.number + 1)]

    def _prompt_ids(self, prompt: Any, limit: int) -> list[int] | None:
        if isinstance(prompt, list):
            prompt = drop_oldest_turns(prompt, lambda t: len(prompt_ids(self.processing_class, t)) <= limit)
        ids = prompt_ids(self.processing_class, prompt)
        return ids if len(ids) <= limit else None

    @staticmethod
    def _pair(row: dict[str, Any], sample: str) -> Pair:
        answer = [{"role": "assistant", "content": sample}] if isinstance(row["prompt"], list) else sample
        return {"prompt": row["prompt"], "chosen": row["chosen"], "rejected": answer}
