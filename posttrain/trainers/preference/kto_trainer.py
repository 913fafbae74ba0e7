"""The trainer of marked answers: TRL's KTOTrainer with rows counted, and one reference point per optimizer step.

    rows -> tokens -> z_0 of the whole step, on mismatched answers -> forward -> loss of each answer -> mean over the
    answers of the optimizer step -> backward

The mathematics stands in posttrain/preferences/kto.py.
"""

# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false
# Upstream annotates its trainers more widely than what their attributes hold once they are built.

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import trl
from datasets import Dataset
from torch import Tensor
from torch.utils.data import RandomSampler

from posttrain.preferences.kto import KTO, balance_warnings, estimated_point, kto_loss
from posttrain.recipe import Recipe
from posttrain.rollout.model_folder import without_router_logits
from posttrain.trainers.models.adapters import check_adapter
from posttrain.trainers.models.ingredients import ingredients
from posttrain.trainers.models.reference import frozen_copy, needs_a_copy, share_from_main
from posttrain.trainers.preference.marked_rows import marked_rows, tokenised_marks
from posttrain.trainers.preference.pair_rows import PairCounts
from posttrain.trainers.preference.scored_answers import ScoredAnswers, as_reference, score_answers
from posttrain.trainers.reporting.announced import AnnouncedSteps
from posttrain.trainers.seam.best_metric import MARKED_EVALUATION, check_best_metric
from posttrain.trainers.seam.config import flat_config, settings_from
from posttrain.trainers.seam.finite import FiniteSteps
from posttrain.trainers.seam.given_rows import require_columns
from posttrain.trainers.seam.recipe_arguments import training_arguments
from posttrain.trainers.seam.resume import ExactResume
from posttrain.trainers.seam.taken_over import own_arguments, refuse_changed
from posttrain.trainers.seam.whole_checkpoint import WholeCheckpoint

logger = logging.getLogger(__name__)

_NAME = "kto"
_NOT_CARRIED = {
    "loss_type": "APO-zero's unpaired form is reference_point='zero'",
    "desirable_weight": "it is the setting good_weight here",
    "undesirable_weight": "it is the setting bad_weight here",
    "train_sampling_strategy": "rows are drawn at random: a row's mismatched answer does not hang on its batch",
    "use_liger_kernel": "the fused LM head already avoids the logits",
}
_MISMATCHED = "KL_"
_TENSORS = ("input_ids", "attention_mask", "completion_mask")


@dataclasses.dataclass
class MarkedAnswersConfig(trl.KTOConfig):
    """TRL's KTOConfig for a `KTOTrainer`."""

    def check_carried(self) -> None:
        """ValueError for an argument that only TRL's own loss body reads."""
        refuse_changed(self, _NOT_CARRIED, trl.KTOConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_carried()


KTOConfig = flat_config("KTOConfig", MarkedAnswersConfig, KTO, __name__)


class KTOTrainer(AnnouncedSteps, FiniteSteps, WholeCheckpoint, ExactResume, trl.KTOTrainer):
    """`KTOTrainer(model, args=KTOConfig(output_dir=...), train_dataset=rows)`.

    train_dataset  columns prompt, completion (text or messages) and label: true or false, 1 or 0. A conversation in
                   completion may hold its prompt. Pairs (prompt, chosen, rejected) are read as two rows each
    ref_model      the frozen reference. Without it: a copy of the model as it is now, or, with an adapter, TRL's rule
    row_counts     what became of the training rows

    Raises DataError for a label that is none of true, false, 1 and 0.
    """

    loss_is_scaled_for_ga = True  # the divisor is the rows of the whole step
    config_class = KTOConfig

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        **named: Any,
    ) -> None:
        given = own_arguments(type(self), args, self.config_class, trl.KTOConfig, _NAME)
        self.method: KTO = settings_from(given, KTO)
        if named.get("compute_metrics") is not None or named.get("data_collator") is not None:
            raise ValueError("KTOTrainer: compute_metrics and data_collator are not carried; remove them")
        for name, rows in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            require_columns(
                type(self),
                rows,
                ["completion", "label"],
                ["chosen", "rejected"],
                ["completion_ids"],
                name=name,
            )
        check_adapter(model, named.get("peft_config"))
        if not isinstance(model, str):
            without_router_logits(model)
        self.row_counts = PairCounts(unit="rows")
        self._rows_in_step: Tensor | None = None
        self._batches_in_step: Sequence[Mapping[str, Any]] | None = None
        self._point_of_step: tuple[Tensor, Tensor] | None = None
        self._sums: dict[str, dict[str, list[float]]] = {"train": {}, "eval": {}}
        if ref_model is None and not isinstance(model, str) and needs_a_copy(model, given, named):
            ref_model = frozen_copy(model)
        if ref_model is not None:
            share_from_main(ref_model)
        if not self._mismatches:  # TRL's name of it: no second batch is made, scored or precomputed
            given = copy.copy(given)
            given.loss_type = "apo_zero_unpaired"
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=given,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            **named,
        )
        own = {
            f"{_NAME}/{name}" for name in ("reference_point", "mismatched_margin", "good_share", "right_side")
        }
        more = {"aux_loss"} if self.aux_loss_enabled else set()
        check_best_metric(self.args, MARKED_EVALUATION | own | more)
        if self.accelerator.is_main_process:
            logger.warning(self.row_counts.in_words())

    @classmethod
    def from_recipe(cls, recipe: Recipe, **changes: Any) -> KTOTrainer:
        """The trainer a recipe describes; `changes` win over its training arguments."""
        parts = ingredients(recipe)
        trainer = cls(
            parts.model,
            args=training_arguments(recipe, cls.config_class, **{**recipe.objective.values(), **changes}),
            train_dataset=parts.train_rows,
            eval_dataset=parts.eval_rows,
            processing_class=parts.tokenizer,
            peft_config=parts.peft_config,
        )
        trainer.row_counts = trainer.row_counts.after(parts.train_counts.read, parts.train_counts.dropped)
        return trainer

    @property
    def _mismatches(self) -> bool:
        return self.method.reference_point == "mismatched"

    # Rows

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        """Replaces TRL's, which sets answers against the prompts of their neighbours in a fixed order."""
        if not isinstance(dataset, Dataset):
            raise TypeError(
                f"{dataset_name} dataset: KTO wants a datasets.Dataset, whose rows can be counted, not "
                f"{type(dataset).__name__}"
            )
        if not_carried := {"image", "images", "tools"} & set(dataset.column_names):
            raise ValueError(
                f"{dataset_name} dataset: {sorted(not_carried)[0]} is not carried; use trl.KTOTrainer"
            )
        if "completion_ids" in dataset.column_names:
            return dataset
        counts = PairCounts(rows_in=len(dataset), unit="rows")
        rows = marked_rows(dataset, counts)
        seed = args.seed if args.data_seed is None else args.data_seed
        if len(rows):
            rows = tokenised_marks(rows, self._tokenizer, args.max_length, seed, counts)
        counts.check()
        if not len(rows):
            raise ValueError(f"{dataset_name} dataset: no row is left to train on. {counts.in_words()}")
        if not self._mismatches:
            rows = rows.remove_columns("KL_completion_ids")
        if dataset_name == "train":
            self.row_counts = counts
            if args.process_index == 0:
                weights = self.method.good_weight, self.method.bad_weight
                for words in balance_warnings(counts.good, counts.bad, *weights):
                    logger.warning(words)
        return rows

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Replaces TRL's fixed order, which its way to mismatched answers needs."""
        return RandomSampler(self.train_dataset if train_dataset is None else train_dataset)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Also counts the rows of the optimizer step that begins, over all micro-batches and ranks."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        rows = sum(batch["label"].numel() for batch in batches)
        self._rows_in_step = self._all_sum(torch.tensor(float(rows), device=device))
        self._batches_in_step, self._point_of_step = batches, None
        return batches, items

    def _all_sum(self, values: Tensor) -> Tensor:
        return torch.as_tensor(self.accelerator.reduce(values, reduction="sum"))

    # Loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False) -> Tensor:
        """Replaces TRL's loss body. In training: this rank's share of the step's mean over rows, times ranks."""
        if return_outputs:
            raise ValueError("KTOTrainer: a forward for compute_metrics is not carried")
        training = self.model.training
        point, mismatched = self._reference_point(model, inputs, training=training)
        scored = score_answers(model, inputs, router_logits=self.aux_loss_enabled)
        good = inputs["label"].bool()
        references = self._reference_logps(inputs)
        logratios = scored.logps - references
        losses = kto_loss(
            logratios,
            good,
            reference_point=point,
            beta=self.beta,
            good_weight=self.method.good_weight,
            bad_weight=self.method.bad_weight,
        )
        if training:
            self.step_notes.note("the reference's log-probs", references)
            self.step_notes.note("the policy's log-probs", scored.logps)
        if training and self._rows_in_step is not None:
            loss = losses.sum() / self._rows_in_step * self.accelerator.num_processes
        else:
            loss = losses.mean()
        if self.aux_loss_enabled:
            steps = self.current_gradient_accumulation_steps if training else 1
            loss = loss + self.router_aux_loss_coef * scored.aux_loss / steps  # type: ignore[operator]  # given when enabled
        self._count(
            "train" if training else "eval", inputs, scored, logratios.detach(), good, point, mismatched
        )
        return loss

    def _reference_point(
        self, model: Any, inputs: Mapping[str, Any], *, training: bool
    ) -> tuple[Tensor, Tensor]:
        """z_0 and the mean it is the positive part of: of the step in training, of the batch in an evaluation. ()."""
        if not self._mismatches:
            zero = torch.zeros((), device=self.accelerator.device)
            return zero, zero
        if training and self._point_of_step is not None:
            return self._point_of_step
        step = self._batches_in_step if training else None
        sums = torch.zeros(2, device=self.accelerator.device)
        for one in step or [inputs]:
            batch = self._prepare_inputs(dict(one))
            pairs = {name: batch[_MISMATCHED + name] for name in _TENSORS}
            with torch.no_grad():
                own = score_answers(model, pairs).logps
            difference = own - self._reference_logps(batch, _MISMATCHED)
            sums += torch.stack(
                [difference.sum(), torch.tensor(float(difference.numel()), device=sums.device)]
            )
        total, count = self._all_sum(sums)
        found = estimated_point(total, count), total / count
        if step is not None:
            self._point_of_step = found
        return found

    def _reference_logps(self, inputs: Mapping[str, Any], prefix: str = "") -> Tensor:
        """Of the answers, or of the mismatched ones (prefix "KL_"), under the reference. (B,)."""
        if self.precompute_ref_logps:
            return inputs[f"ref_{prefix}logps"]
        batch = {name: inputs[prefix + name] for name in _TENSORS}
        with as_reference(self):
            return score_answers(self.ref_model or self.model, batch).logps

    def compute_ref_log_probs(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Replaces TRL's, so that precomputed and live references are one computation. (B,), (B,) or None."""
        with as_reference(self):
            found = [
                score_answers(model, {name: inputs[prefix + name] for name in _TENSORS}).logps
                for prefix in ("", _MISMATCHED)[: 2 if self._mismatches else 1]
            ]
        return found[0], found[1] if self._mismatches else None

    # Metrics

    def _count(
        self,
        mode: str,
        inputs: Mapping[str, Any],
        scored: ScoredAnswers,
        logratios: Tensor,
        good: Tensor,
        point: Tensor,
        mismatched: Tensor,
    ) -> None:
        """Sums over the rows of all ranks, in one reduction; `log` makes means of them."""
        bad, rows = ~good, good.new_ones(good.shape)
        logps, rewards = scored.logps.detach(), self.beta * logratios
        mask = inputs["completion_mask"][:, 1:]
        right = torch.where(good, logratios > point, logratios < point)
        entropy = rewards.new_zeros(()) if scored.entropy is None else (scored.entropy * mask).sum()
        sums: dict[str, tuple[Any, Any]] = {
            "entropy": (entropy, mask.sum()),
            "rewards/chosen": (rewards[good].sum(), good.sum()),
            "rewards/rejected": (rewards[bad].sum(), bad.sum()),
            "logps/chosen": (logps[good].sum(), good.sum()),
            "logps/rejected": (logps[bad].sum(), bad.sum()),
            "logps/chosen_per_token": (logps[good].sum(), scored.lengths[good].sum()),
            f"{_NAME}/good_share": (good.sum(), rows.sum()),
            f"{_NAME}/right_side": (right.sum(), rows.sum()),
            f"{_NAME}/reference_point": (point * rows.sum(), rows.sum()),
            f"{_NAME}/mismatched_margin": (mismatched * rows.sum(), rows.sum()),
            "num_tokens": (inputs["attention_mask"].sum(), rows.sum()),
        }
        if scored.aux_loss is not None:
            sums["aux_loss"] = (scored.aux_loss.detach(), 1)
        # float64 holds token counts exactly beside the sums
        flat = [torch.as_tensor(v, device=good.device).double() for pair in sums.values() for v in pair]
        totals = self._all_sum(torch.stack(flat)).view(-1, 2).tolist()
        for name, (total, count) in zip(sums, totals, strict=True):
            if name == "num_tokens":
                if mode == "train":
                    self._total_train_tokens += int(total) // (self._tp_size or 1)
                continue
            kept = self._sums[mode].setdefault(name, [0.0, 0.0])
            kept[0] += total
            kept[1] += count

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Means over the rows since the last line; a kind of answer that no row had is left out."""
        mode = "train" if self.model.training else "eval"
        sums, self._sums[mode] = self._sums[mode], {}
        means = {name: total / count for name, (total, count) in sums.items() if count}
        if {"rewards/chosen", "rewards/rejected"} <= means.keys():
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        if means:
            means["num_tokens"] = self._total_train_tokens
        self._metrics[mode].update({name: [value] for name, value in means.items()})
        super().log(logs, start_time)

    # Resume

    def rollout_state(self) -> dict[str, Any]:
        return {"num_tokens": self._total_train_tokens}

    def load_rollout_state(self, state: dict[str, Any]) -> None:
        self._total_train_tokens = state["num_tokens"]
