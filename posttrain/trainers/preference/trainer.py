"""The one seam over TRL's DPO trainer: its loss body is replaced by a pair loss, the rest of it stays TRL's.

    rows -> tokens (TRL) -> forward -> log-probs of whole answers -> PairBatch -> pair_loss -> mean over the
    pairs of the optimizer step -> backward

What a method is stands in posttrain/preferences; this file only carries tensors to it and back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.data_utils import extract_prompt
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer as TRLDPOTrainer

from posttrain.data.row_order import Curriculum
from posttrain.preferences.base import PairBatch, PairLoss
from posttrain.recipe import Recipe
from posttrain.rollout.base import Sampling
from posttrain.rollout.model_folder import without_router_logits
from posttrain.trainers.engines.answers import Answer
from posttrain.trainers.engines.from_recipe import answers_of_start, sampling_of
from posttrain.trainers.models.adapters import check_adapter
from posttrain.trainers.models.ingredients import ingredients
from posttrain.trainers.models.reference import frozen_copy, needs_a_copy, share_from_main
from posttrain.trainers.preference.collator import PairCollator, take_imitation
from posttrain.trainers.preference.imitation import ImitatedAnswers, tokenize_imitation
from posttrain.trainers.preference.pair_rows import (
    PROMPT_FILLS,
    PairCounts,
    account_tokens,
    join_conversations,
    shorten_prompts,
)
from posttrain.trainers.preference.scored_answers import ScoredAnswers, as_reference, score_answers
from posttrain.trainers.reporting.announced import AnnouncedSteps
from posttrain.trainers.seam.best_metric import PAIR_EVALUATION, check_best_metric
from posttrain.trainers.seam.config import settings_from
from posttrain.trainers.seam.finite import FiniteSteps
from posttrain.trainers.seam.given_rows import require_columns
from posttrain.trainers.seam.ordered_rows import order_of, sampler_in_order, with_order_keys
from posttrain.trainers.seam.recipe_arguments import training_arguments
from posttrain.trainers.seam.resume import ExactResume
from posttrain.trainers.seam.taken_over import own_arguments, refuse_changed
from posttrain.trainers.seam.whole_checkpoint import WholeCheckpoint

logger = logging.getLogger(__name__)

# What a pair loss decides here, or what only TRL's own loss body reads.
_NOT_CARRIED = {
    "loss_type": "choose the trainer of the method instead (DPOTrainer, RPOTrainer, ...)",
    "loss_weights": "weights belong to the method's settings",
    "label_smoothing": "no pair loss here smooths its labels",
    "ld_alpha": "LD-DPO's length weighting is not carried",
    "f_divergence_type": "only the reverse KL is carried",
    "f_alpha_divergence_coef": "only the reverse KL is carried",
    "use_weighting": "WPO's weighting is not carried",
    "discopop_tau": "DiscoPOP is not one of the methods",
    "padding_free": "TRL itself falls back to padding",
    "truncation_mode": "long conversations lose their oldest turns, answers are cut at their end",
    "use_liger_kernel": "the fused LM head already avoids the logits",
}


@dataclass
class PreferenceConfig(DPOConfig):
    """TRL's DPOConfig for a `PreferenceTrainer`; options that only TRL's own losses read are refused by name."""

    def check_carried(self) -> None:
        """ValueError for an argument that only TRL's own loss body reads."""
        refuse_changed(self, _NOT_CARRIED, DPOConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_carried()


class PreferenceTrainer(AnnouncedSteps, FiniteSteps, WholeCheckpoint, ExactResume, TRLDPOTrainer):
    """`trl.DPOTrainer` that trains a `PairLoss`.

    `PreferenceTrainer(model, args=PreferenceConfig(...), train_dataset=..., method=DPO())`; the trainer of a
    method (`RPOTrainer`) takes the method's settings from its config instead.

    ref_model   the frozen reference. Without it: a copy of the model as it is now, or, with an adapter, TRL's
                rule (a new adapter: the base model; an adapter that came with the model: a frozen copy of it)
    row_counts  what became of the training rows

    A method may imitate other answers than the chosen ones (RPO's `imitate`): those of the rows' own column
    `imitation`, of a file, or of the reference, sampled once before training.

    sampling    how the reference is sampled
    answer      samples in its place, see `engines.answers.Answer`; otherwise the reference, or the model, does it
                itself, in this process
    """

    loss_is_scaled_for_ga = (
        True  # the divisor is the pairs of the whole step, so micro-batches are not averaged
    )
    # Narrower than upstream's annotations, which allow None where a trainer that was built has none.
    model: Any
    _tokenizer: Any
    _tp_size: int
    method_class: ClassVar[type[PairLoss] | None] = None
    config_class: ClassVar[type[PreferenceConfig]] = PreferenceConfig

    def __init__(
        self,
        model: Any,
        ref_model: PreTrainedModel | None = None,
        args: PreferenceConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        method: PairLoss | None = None,
        sampling: Sampling | None = None,
        answer: Answer | None = None,
        **trl_arguments: Any,
    ) -> None:
        learner = type(method) if method is not None else self.method_class
        if learner is None:
            raise ValueError(
                "PreferenceTrainer needs `method=`, or use the trainer of a method, e.g. RPOTrainer"
            )
        self.method_name = learner.__module__.rsplit(".", 1)[-1]
        config = own_arguments(type(self), args, self.config_class, DPOConfig, self.method_name)
        if method is None:
            method = settings_from(config, learner)
        if trl_arguments.get("compute_metrics") is not None or trl_arguments.get("data_collator") is not None:
            raise ValueError(
                "PreferenceTrainer: compute_metrics and data_collator are not carried; remove them"
            )
        for name, rows in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            require_columns(type(self), rows, ["chosen", "rejected"], name=name)
        check_adapter(model, trl_arguments.get("peft_config"))
        if not isinstance(model, str):
            without_router_logits(model)
        self.method = method
        self._imitated = ImitatedAnswers(
            learner.__name__, method.imitates(), model if ref_model is None else ref_model, answer, sampling
        )
        self.row_counts = PairCounts()
        self._pairs_in_step: Tensor | None = None
        self.curriculum: Curriculum | None = None
        if ref_model is None and not isinstance(model, str) and needs_a_copy(model, config, trl_arguments):
            ref_model = frozen_copy(model)
        if ref_model is not None:
            share_from_main(ref_model)
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=config,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            **trl_arguments,
        )
        self.data_collator = PairCollator(
            pad_token_id=self._tokenizer.pad_token_id,
            max_length=config.max_length,
            pad_to_multiple_of=config.pad_to_multiple_of,
        )
        del self._imitated  # the engine and the model it holds are not kept
        if not method.needs_reference:
            self.ref_model = None  # TRL makes one in any case
        own = {f"{self.method_name}/{name}" for name in _metric_names(method)}
        more = {"aux_loss"} if self.aux_loss_enabled else set()
        check_best_metric(self.args, PAIR_EVALUATION | own | more)
        if self.accelerator.is_main_process:
            logger.warning(self.row_counts.in_words())

    @classmethod
    def from_recipe(cls, recipe: Recipe, **changes: Any) -> PreferenceTrainer:
        """The trainer a recipe describes; `changes` win over its training arguments."""
        parts = ingredients(recipe)
        args = training_arguments(recipe, cls.config_class, **{**recipe.objective.values(), **changes})
        trainer = cls(
            parts.model,
            args=args,
            train_dataset=with_order_keys(parts.train_rows, parts.curriculum),
            eval_dataset=parts.eval_rows,
            processing_class=parts.tokenizer,
            peft_config=parts.peft_config,
            **cls.recipe_options(recipe, parts.tokenizer, args),
        )
        trainer.row_counts = trainer.row_counts.after(parts.train_counts.read, parts.train_counts.dropped)
        trainer.curriculum = order_of(trainer.train_dataset, parts.curriculum)
        return trainer

    @classmethod
    def recipe_options(cls, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, args: Any) -> dict[str, Any]:
        """The recipe's sampling and engine, where the method samples answers to imitate."""
        if recipe.rollout is None:
            return {}
        return {"sampling": sampling_of(recipe), "answer": answers_of_start(recipe, tokenizer, args)}

    # Rows

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        """TRL's tokenisation between our shortening of conversations and our account of the rows."""
        if not isinstance(dataset, Dataset):
            raise TypeError(
                f"{dataset_name} dataset: preference trainers want a datasets.Dataset, whose rows can be counted, "
                f"not {type(dataset).__name__}"
            )
        if {"image", "images"} & set(dataset.column_names):
            raise ValueError(f"{dataset_name} dataset: images are not carried; use trl.DPOTrainer")
        counts = PairCounts(rows_in=len(dataset))
        if "chosen_ids" not in dataset.column_names:
            dataset = join_conversations(dataset, counts)
            if "prompt" not in dataset.column_names:
                dataset = dataset.map(extract_prompt)
            before = len(dataset)
            if args.max_length is not None:
                dataset = shorten_prompts(dataset, self._tokenizer, args.max_length, counts)
            dataset = self._imitated.beside(dataset, self._tokenizer, args, training=dataset_name == "train")
            if "imitation" in dataset.column_names:
                dataset = tokenize_imitation(dataset, self._tokenizer)
            dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
            counts.drop(PROMPT_FILLS, before - len(dataset))
        dataset = account_tokens(dataset, args.max_length, counts)
        counts.check()
        if not len(dataset):
            raise ValueError(f"{dataset_name} dataset: no pair is left to train on. {counts.in_words()}")
        if dataset_name == "train":
            self.row_counts = counts
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """A curriculum's, where there is one."""
        return sampler_in_order(self) or super()._get_train_sampler(train_dataset)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "imitation_ids" not in self._signature_columns:
            self._signature_columns += ["imitation_prompt_ids", "imitation_ids"]

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Also counts the pairs of the optimizer step that begins, over all micro-batches and ranks."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        pairs = sum(batch["input_ids"].size(0) // 2 for batch in batches)
        self._pairs_in_step = self._all_sum(torch.tensor(float(pairs), device=device))
        return batches, items

    def _all_sum(self, values: Tensor) -> Tensor:
        summed: Any = self.accelerator.reduce(values, reduction="sum")
        return summed

    # Loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False) -> Tensor:
        """Replaces TRL's loss body. In training: this rank's share of the step's mean over pairs, times the
        number of ranks, because the engines average gradients over ranks."""
        if return_outputs:
            raise ValueError("PreferenceTrainer: a forward for compute_metrics is not carried")
        scored, batch = self._forward(model, inputs)
        losses = self.method.pair_loss(batch)
        training = self.model.training
        if training:
            for name, logps in (
                ("the reference's log-probs", torch.cat([batch.ref_chosen_logps, batch.ref_rejected_logps])),
                ("the policy's log-probs", scored.logps),
            ):
                self.step_notes.note(name, logps)
        if training and self._pairs_in_step is not None:
            loss = losses.sum() / self._pairs_in_step * self.accelerator.num_processes
        else:
            loss = losses.mean()
        if self.aux_loss_enabled:
            steps = self.current_gradient_accumulation_steps if training else 1
            loss = loss + self.router_aux_loss_coef * scored.aux_loss / steps  # type: ignore[operator]  # given when enabled
        self._log_loss("train" if training else "eval", inputs, scored, batch, losses)
        return loss

    def _forward(self, model: Any, inputs: Mapping[str, Any]) -> tuple[ScoredAnswers, PairBatch]:
        """The policy's forward on chosen, rejected and, if any, imitated answers; the reference's on the pairs."""
        pairs, imitation = take_imitation(inputs)
        together = (
            pairs if imitation is None else PairCollator.join(pairs, imitation, self._tokenizer.pad_token_id)
        )
        scored = score_answers(model, together, router_logits=self.aux_loss_enabled)
        chosen, rejected, *imitated = scored.logps.split(pairs["input_ids"].size(0) // 2)
        chosen_lengths, rejected_lengths, *imitated_lengths = scored.lengths.split(chosen.size(0))
        if not self.method.needs_reference:
            references = (torch.zeros_like(chosen), torch.zeros_like(chosen))
        elif self.precompute_ref_logps:
            references = (inputs["ref_chosen_logps"], inputs["ref_rejected_logps"])
        else:
            references = self.compute_ref_log_probs(self.ref_model or self.model, pairs)
        return scored, PairBatch(
            chosen_logps=chosen,
            rejected_logps=rejected,
            ref_chosen_logps=references[0],
            ref_rejected_logps=references[1],
            chosen_lengths=chosen_lengths,
            rejected_lengths=rejected_lengths,
            beta=self.beta,
            imitation_logps=imitated[0] if imitated else None,
            imitation_lengths=imitated_lengths[0] if imitated else None,
        )

    def compute_ref_log_probs(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Replaces TRL's, so that precomputed and live references are one computation. (B,), (B,)."""
        with as_reference(self):
            chosen, rejected = score_answers(model, inputs).logps.chunk(2)
        return chosen, rejected

    # Metrics

    def _log_loss(
        self, mode: str, inputs: Mapping[str, Any], scored: ScoredAnswers, batch: PairBatch, losses: Tensor
    ) -> None:
        """Means over all pairs or tokens of all ranks, in one reduction and one transfer to the host."""
        if scored.entropy is None or scored.is_top1 is None:
            raise RuntimeError(
                "PreferenceTrainer: the policy's fused head gave no entropy; TRL adds it at start"
            )
        pairs = batch.chosen_logps.size(0)
        mask = inputs["completion_mask"][:, 1:]
        entropy = scored.entropy[: 2 * pairs, : mask.size(1)]
        hits = scored.is_top1[:pairs, : mask.size(1)] & mask[:pairs].bool()
        rewards = [reward.detach() for reward in self.method.rewards(batch)]
        tokens = batch.chosen_lengths.sum()
        sums: dict[str, tuple[Any, Any]] = {
            "pair_loss": (losses.sum(), pairs),
            "entropy": ((entropy * mask).sum(), mask.sum()),
            "mean_token_accuracy": (hits.sum(), tokens),
            "rewards/chosen": (rewards[0].sum(), pairs),
            "rewards/rejected": (rewards[1].sum(), pairs),
            "rewards/margins": ((rewards[0] - rewards[1]).sum(), pairs),
            "rewards/accuracies": ((rewards[0] > rewards[1]).sum(), pairs),
            "logps/chosen": (batch.chosen_logps.sum(), pairs),
            "logps/rejected": (batch.rejected_logps.sum(), pairs),
            "logps/chosen_per_token": (batch.chosen_logps.sum(), tokens),
            "num_tokens": (inputs["attention_mask"].sum(), 1),
        }
        if scored.aux_loss is not None:
            sums["aux_loss"] = (scored.aux_loss, 1)
        for name, values in self.method.metrics(batch).items():
            sums[f"{self.method_name}/{name}"] = (values.sum(), pairs)
        # float64 holds token counts exactly beside the sums
        flat = [
            torch.as_tensor(v, device=losses.device).detach().double() for pair in sums.values() for v in pair
        ]
        totals = self._all_sum(torch.stack(flat)).view(-1, 2).tolist()
        means = dict(zip(sums, totals, strict=True))
        tokens_seen = int(means.pop("num_tokens")[0])
        if mode == "train":
            self._total_train_tokens += tokens_seen // self._tp_size
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        for name, (total, count) in means.items():
            self._metrics[mode][name].append(total / max(count, 1.0))

    # Resume

    def rollout_state(self) -> dict[str, Any]:
        return {"method": self.method.state_dict(), "num_tokens": self._total_train_tokens}

    def load_rollout_state(self, state: dict[str, Any]) -> None:
        self._total_train_tokens = state.get("num_tokens", 0)  # 0: a checkpoint of an earlier version
        if state["method"]:
            raise ValueError(
                f"{self.method_name} keeps no state, but the checkpoint holds {sorted(state['method'])}"
            )


def _metric_names(method: PairLoss) -> set[str]:
    """Of the method's own metrics, asked of a pair of nothing."""
    nothing = torch.zeros(1)
    lengths = torch.ones(1)
    pair = PairBatch(nothing, nothing, nothing, nothing, lengths, lengths, 1.0, nothing, lengths)
    return set(method.metrics(pair))
