"""Supervised fine-tuning: TRL's SFT trainer, with whole checkpoints and a recipe.

Rows of a recipe become tokens here rather than inside TRL, which learns a conversation's later questions as well as
its answers, and takes columns of a data set for its own. Of rows with one answer the labels are TRL's.
"""

from __future__ import annotations

from typing import Any

import trl
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainingArguments
from trl import SFTConfig

from posttrain.data import RowCounts
from posttrain.data.tokens import learned_ids
from posttrain.recipe import Recipe
from posttrain.trainers.models.adapters import check_adapter
from posttrain.trainers.models.ingredients import ingredients
from posttrain.trainers.reporting.announced import AnnouncedSteps
from posttrain.trainers.seam.best_metric import SFT_EVALUATION, check_best_metric
from posttrain.trainers.seam.finite import FiniteSteps
from posttrain.trainers.seam.given_rows import require_columns
from posttrain.trainers.seam.recipe_arguments import training_arguments
from posttrain.trainers.seam.resume import ExactResume
from posttrain.trainers.seam.whole_checkpoint import WholeCheckpoint


class SFTTrainer(AnnouncedSteps, FiniteSteps, WholeCheckpoint, ExactResume, trl.SFTTrainer):
    """`trl.SFTTrainer`: supervised fine-tuning on given answers.

    `SFTTrainer(model, args=SFTConfig(output_dir=...), train_dataset=rows, processing_class=tokenizer)`. A resume
    continues exactly, the count of tokens too; a step that is not finite ends the run at a message.

    args           a `trl.SFTConfig`, or transformers' own TrainingArguments; TypeError for another trainer's
    train_dataset  columns prompt and completion, messages, conversations, a text column or input_ids; ValueError
                   where it has none of these
    """

    row_counts: RowCounts | None = None

    def __init__(self, model: Any, args: TrainingArguments | None = None, *more: Any, **named: Any) -> None:
        # TRL takes transformers' own arguments over; those of its other trainers would lose what is theirs
        if args is not None and not isinstance(args, SFTConfig) and type(args) is not TrainingArguments:
            raise TypeError(
                f"SFTTrainer: args is a {type(args).__module__}.{type(args).__name__}; pass a trl.SFTConfig, which is "
                "also posttrain.trainers.SFTConfig"
            )
        text = args.dataset_text_field if isinstance(args, SFTConfig) else "text"
        for name in ("train_dataset", "eval_dataset"):
            kinds = ["prompt", "completion"], ["messages"], ["conversations"], [text], ["input_ids"]
            if named.get("formatting_func") is None:
                require_columns(type(self), named.get(name), *kinds, name=name)
        check_adapter(model, named.get("peft_config"))
        super().__init__(model, args, *more, **named)
        more_names = {"aux_loss"} if self.aux_loss_enabled else set()
        check_best_metric(
            self.args, None if self.compute_metrics is not None else SFT_EVALUATION | more_names
        )

    @classmethod
    def from_recipe(cls, recipe: Recipe, **changes: Any) -> SFTTrainer:
        parts = ingredients(recipe)
        args = training_arguments(recipe, SFTConfig, **changes)
        train_rows, eval_rows = parts.train_rows, parts.eval_rows
        if not args.assistant_only_loss:  # TRL asks the chat template what the assistant says
            train_rows = tokenised(train_rows, parts.tokenizer, args.dataset_num_proc)
            eval_rows = eval_rows and tokenised(eval_rows, parts.tokenizer, args.dataset_num_proc)
        trainer = cls(
            parts.model,
            args=args,
            train_dataset=train_rows,
            eval_dataset=eval_rows,
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


def tokenised(rows: Dataset, tokenizer: PreTrainedTokenizerBase, processes: int | None = None) -> Dataset:
    """Rows of prompt and completion as input_ids and labels, which TRL cuts, packs and batches."""

    def tokenise(row: dict[str, Any]) -> dict[str, list[int]]:
        learned = learned_ids(tokenizer, row["prompt"], row["completion"])
        return {"input_ids": learned.ids, "labels": learned.labels()}

    return rows.map(
        tokenise, remove_columns=rows.column_names, num_proc=processes, desc="Tokenizing conversations"
    )
