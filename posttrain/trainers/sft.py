"""Supervised fine-tuning: TRL's SFT trainer, with whole checkpoints and a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import trl
from transformers import TrainingArguments
from trl import SFTConfig

from posttrain.data import RowCounts
from posttrain.recipe import Recipe
from posttrain.trainers.build import ingredients, training_arguments
from posttrain.trainers.finite import FiniteSteps
from posttrain.trainers.resume import ExactResume


@dataclass(frozen=True)
class SFTSettings:
    """Nothing to set beyond `train`: the loss is the mean negative log-likelihood of the completion's tokens."""


class SFTTrainer(FiniteSteps, ExactResume, trl.SFTTrainer):
    """`trl.SFTTrainer`; beside its step counter, the tokens it has counted are carried over a resume."""

    row_counts: RowCounts | None = None

    def __init__(self, model: Any, args: TrainingArguments | None = None, *more: Any, **named: Any) -> None:
        # TRL takes transformers' own arguments over; those of its other trainers would lose what is theirs
        if args is not None and not isinstance(args, SFTConfig) and type(args) is not TrainingArguments:
            raise TypeError(
                f"SFTTrainer: args is a {type(args).__module__}.{type(args).__name__}; pass a trl.SFTConfig, which is "
                "also posttrain.trainers.SFTConfig"
            )
        super().__init__(model, args, *more, **named)

    @classmethod
    def from_recipe(cls, recipe: Recipe, **changes: Any) -> SFTTrainer:
        parts = ingredients(recipe)
        trainer = cls(
            parts.model,
            args=training_arguments(recipe, SFTConfig, **changes),
            train_dataset=parts.train_rows,
            eval_dataset=parts.eval_rows,
            processing_class=parts.tokenizer,
            peft_config=parts.peft_config,
        )
        trainer.row_counts = parts.train_counts
        return trainer

    def rollout_state(self) -> dict[str, Any]:
        return {"num_tokens": self._total_train_tokens}

    def load_rollout_state(self, state: dict[str, Any]) -> None:
        if unknown := sorted(state.keys() - {"num_tokens"}):
            raise ValueError(
                f"SFT carries nothing of the kind between steps, but the checkpoint holds {unknown}"
            )
        self._total_train_tokens = state.get("num_tokens", 0)  # 0: a checkpoint of an earlier version
