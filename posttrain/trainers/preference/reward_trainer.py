"""The trainer of reward models: TRL's RewardTrainer with rows counted, our loss, and what its numbers are worth.

    rows -> tokens -> one forward on chosen and rejected -> ranking loss (+ centring, + the language model's own loss)

The mathematics stands in posttrain/preferences/reward_model.py.
"""

# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false
# Upstream annotates its trainers more widely than what their attributes hold once they are built.

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import trl
from accelerate.utils import DistributedType, is_peft_model
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase
from trl import RewardConfig

from posttrain.data.row_order import Curriculum
from posttrain.data.tokens import learned_ids
from posttrain.observe.reliability import write_reliability
from posttrain.preferences.reward_model import RewardModel, centring, correct, ranking_loss, reliability
from posttrain.recipe import Recipe
from posttrain.recipe.sections import ModelSection
from posttrain.rewards.messages import text_of
from posttrain.rollout.adapter_base import ModelFault
from posttrain.rollout.model_folder import tokenizer_of
from posttrain.trainers.models.ingredients import ingredients, model_and_tokenizer, torch_dtype
from posttrain.trainers.models.reward_heads import (
    as_reward_model,
    gives_scores,
    is_scorer,
    load_reward_model,
)
from posttrain.trainers.preference.collator import ScoredPairCollator
from posttrain.trainers.preference.pair_rows import EMPTY_ANSWER, PairCounts, join_conversations
from posttrain.trainers.reporting.announced import AnnouncedSteps
from posttrain.trainers.seam.best_metric import TIMES, check_best_metric
from posttrain.trainers.seam.config import flat_config, settings_from
from posttrain.trainers.seam.finite import FiniteSteps
from posttrain.trainers.seam.given_rows import require_columns
from posttrain.trainers.seam.ordered_rows import ORDER_KEY, order_of, sampler_in_order, with_order_keys
from posttrain.trainers.seam.recipe_arguments import training_arguments
from posttrain.trainers.seam.resume import ExactResume
from posttrain.trainers.seam.taken_over import own_arguments, refuse_changed
from posttrain.trainers.seam.whole_checkpoint import WholeCheckpoint

logger = logging.getLogger(__name__)

TOO_LONG = "longer than max_length"
_NAME = "reward_model"
_NOT_CARRIED = {"center_rewards_coefficient": "it is the setting center_coef here"}


@dataclasses.dataclass
class PairScoreConfig(RewardConfig):
    """TRL's RewardConfig for a `RewardModelTrainer`."""

    def check_carried(self) -> None:
        """ValueError for an argument that only TRL's own loss body reads."""
        refuse_changed(self, _NOT_CARRIED, RewardConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_carried()


RewardModelConfig = flat_config("RewardModelConfig", PairScoreConfig, RewardModel, __name__)


class RewardModelTrainer(AnnouncedSteps, FiniteSteps, WholeCheckpoint, ExactResume, trl.RewardTrainer):
    """`RewardModelTrainer(model, args=RewardModelConfig(output_dir=...), train_dataset=pairs)`.

    model          a language model or a sequence classifier of one label, or the folder or hub name of either. Of a
                   language model the layers are taken, and a head that starts at 0 is put on them; a classifier goes
                   on with its own head
    train_dataset  columns chosen and rejected, prompt where they do not hold it, margin if there is one
    row_counts     what became of the training rows

    Held-out pairs give accuracy, margin and calibration; reliability.json beside the checkpoints has how often the
    model was right where it was so sure. Raises ModelFault for a kind of model that has no sequence classifier.
    """

    loss_is_scaled_for_ga = True  # the divisor is the pairs of the whole step
    config_class = RewardModelConfig

    def __init__(
        self, model: Any, args: Any = None, train_dataset: Any = None, eval_dataset: Any = None, **named: Any
    ) -> None:
        args = own_arguments(type(self), args, self.config_class, RewardConfig, _NAME)
        self.method: RewardModel = settings_from(args, RewardModel)
        for name, rows in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            require_columns(type(self), rows, ["chosen", "rejected"], name=name)
        if isinstance(model, str):
            model, tokenizer = _load(ModelSection(path=model))
            named.setdefault("processing_class", tokenizer)
        tokenizer = named.get("processing_class")
        self._lm_head = self._head_of(model)
        if not is_scorer(model):
            if is_peft_model(model):
                raise ValueError(
                    "RewardModelTrainer: pass the base model, and the new adapter as peft_config"
                )
            model = as_reward_model(model, None if tokenizer is None else tokenizer.pad_token_id)
        if tokenizer is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
            logger.warning(
                "reward model: the tokenizer pads with its end token: the score stands at the last token before the end"
            )
        if (peft := named.get("peft_config")) is not None:
            named["peft_config"] = dataclasses.replace(
                peft, task_type="SEQ_CLS", modules_to_save=[*(peft.modules_to_save or ()), "score"]
            )
        self.row_counts = PairCounts()
        self._pairs_in_step: Tensor | None = None
        self.curriculum: Curriculum | None = None
        self._margins: list[Tensor] = []
        super().__init__(
            model=model, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, **named
        )
        self.data_collator = ScoredPairCollator(
            pad_token_id=self.processing_class.pad_token_id, pad_to_multiple_of=args.pad_to_multiple_of
        )
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if self.method.lm_coef and sharded and self.accelerator.distributed_type != DistributedType.NO:
            raise ValueError(
                "reward_model: lm_coef reads the LM head's weights, which FSDP and DeepSpeed shard; use DDP, or 0"
            )
        own = {f"{_NAME}/{name}" for name in ("chosen", "rejected", "margin", "reward_mean")}
        check_best_metric(
            self.args, TIMES | own | {"loss", "accuracy", f"{_NAME}/calibration_error", "num_tokens"}
        )
        if self.accelerator.is_main_process:
            logger.warning(self.row_counts.in_words())

    @classmethod
    def from_recipe(cls, recipe: Recipe, **changes: Any) -> RewardModelTrainer:
        """The trainer a recipe describes; `changes` win over its training arguments."""
        parts = ingredients(recipe, _load)
        trainer = cls(
            parts.model,
            training_arguments(recipe, cls.config_class, **{**recipe.objective.values(), **changes}),
            with_order_keys(parts.train_rows, parts.curriculum),
            parts.eval_rows,
            processing_class=parts.tokenizer,
            peft_config=parts.peft_config,
        )
        trainer.row_counts = trainer.row_counts.after(parts.train_counts.read, parts.train_counts.dropped)
        trainer.curriculum = order_of(trainer.train_dataset, parts.curriculum)
        return trainer

    def _head_of(self, model: Any) -> Tensor | None:
        """An LM head that is not the embedding, kept for lm_coef; it does not learn."""
        if not self.method.lm_coef:
            return None
        head = None if is_scorer(model) else model.get_output_embeddings()
        if head is None:
            raise ValueError(
                "reward_model: lm_coef needs the language model's head, which a sequence classifier has lost; start "
                "from the language model"
            )
        tied = head.weight is model.get_input_embeddings().weight
        return None if tied else head.weight.detach().clone()

    # Rows

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """A curriculum's, where there is one."""
        return sampler_in_order(self) or super()._get_train_sampler(train_dataset)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        """Replaces TRL's: rows are counted, and the answer's place is kept for the language model's loss."""
        if not isinstance(dataset, Dataset):
            raise TypeError(
                f"{dataset_name} dataset: reward models want a datasets.Dataset, whose rows can be counted, not "
                f"{type(dataset).__name__}"
            )
        if "chosen_ids" in dataset.column_names:
            return dataset
        counts = PairCounts(rows_in=len(dataset))
        dataset = join_conversations(dataset, counts)
        tokenised = dataset.map(
            lambda row: _tokens_of(row, processing_class),
            remove_columns=[name for name in dataset.column_names if name not in ("margin", ORDER_KEY)],
            desc="Tokenizing pairs",
        )
        kept = tokenised.filter(lambda row: row["answer_length"] > 0)
        if "margin" in kept.column_names:
            _check_margins(kept["margin"], dataset_name)
        counts.drop(EMPTY_ANSWER, len(tokenised) - len(kept))
        limit = args.max_length
        if limit is not None:
            before = len(kept)
            kept = kept.filter(lambda row: max(len(row["chosen_ids"]), len(row["rejected_ids"])) <= limit)
            counts.drop(TOO_LONG, before - len(kept))
        counts.trained = len(kept)
        counts.identical = sum(a == b for a, b in zip(kept["chosen_ids"], kept["rejected_ids"], strict=True))
        counts.check()
        if not len(kept):
            raise ValueError(f"{dataset_name} dataset: no pair is left. {counts.in_words()}")
        if dataset_name == "train":
            self.row_counts = counts
        return kept

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "answer_length" not in self._signature_columns:
            self._signature_columns.append("answer_length")

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Also counts the pairs of the optimizer step that begins, over all micro-batches and ranks."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        pairs = sum(batch["input_ids"].size(0) // 2 for batch in batches)
        self._pairs_in_step = self._all_sum(torch.tensor(float(pairs), device=device))
        return batches, items

    def _all_sum(self, values: Tensor) -> Tensor:
        return torch.as_tensor(self.accelerator.reduce(values, reduction="sum"))

    # Loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Replaces TRL's loss body. In training: this rank's share of the step's mean over pairs, times ranks."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        outputs = model(
            input_ids=ids,
            attention_mask=mask,
            use_cache=False,
            output_hidden_states=bool(self.method.lm_coef),
        )
        rewards = outputs.logits.squeeze(-1).float()
        chosen, rejected = rewards.chunk(2)
        losses = ranking_loss(chosen, rejected, inputs.get("margin", 0.0))
        extra: dict[str, Tensor] = {}
        if self.method.center_coef:
            losses = losses + self.method.center_coef * centring(chosen, rejected)
        if self.method.lm_coef:
            extra["lm_loss"] = self._lm_losses(outputs.hidden_states[-1], ids, mask, inputs["answer_length"])
            losses = losses + self.method.lm_coef * extra["lm_loss"]
        training = self.model.training
        if training:
            self.step_notes.note("the rewards", rewards)
        else:
            self._margins.append((chosen - rejected).detach())
        if training and self._pairs_in_step is not None:
            loss = losses.sum() / self._pairs_in_step * self.accelerator.num_processes
        else:
            loss = losses.mean()
        self._log_pairs("train" if training else "eval", chosen.detach(), rejected.detach(), mask, extra)
        return (loss, outputs) if return_outputs else loss

    def _lm_losses(self, states: Tensor, ids: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        """Mean negative log-likelihood of each chosen answer's tokens, the end among them. (B,)."""
        pairs = ids.size(0) // 2
        policy = self.accelerator.unwrap_model(self.model)
        weight = (
            policy.get_input_embeddings().weight if self._lm_head is None else self._lm_head.to(ids.device)
        )
        places = torch.arange(1, ids.size(1), device=ids.device)
        ends = mask[:pairs].sum(1, keepdim=True)
        answer = (places >= ends - lengths.unsqueeze(1)) & (places < ends)
        logits = states[:pairs, :-1][answer].to(weight.dtype) @ weight.T
        losses = torch.zeros(answer.shape, device=ids.device)
        losses[answer] = cross_entropy(logits.float(), ids[:pairs, 1:][answer], reduction="none")
        return losses.sum(1) / answer.sum(1).clamp(min=1)

    # Metrics

    def _log_pairs(
        self, mode: str, chosen: Tensor, rejected: Tensor, mask: Tensor, extra: dict[str, Tensor]
    ) -> None:
        """Means over the pairs of all ranks, in one reduction."""
        margins = chosen - rejected
        sums = {
            "chosen": chosen, "rejected": rejected, "margin": margins, "accuracy": correct(margins),
            "reward_mean": (chosen + rejected) / 2, **{name: one.detach() for name, one in extra.items()},
        }  # fmt: skip
        packed = torch.stack([*(one.sum().double() for one in sums.values()), mask.sum().double()])
        count = margins.new_tensor(margins.numel()).double()
        *totals, tokens, pairs = self._all_sum(torch.cat([packed, count[None]])).tolist()
        for name, total in zip(sums, totals, strict=True):
            key = (
                name if name == "accuracy" else f"{_NAME}/{name}"
            )  # TRL's name, which pages and headlines know
            self._metrics[mode][key].append(total / max(pairs, 1.0))
        if mode == "train":
            self._total_train_tokens += int(tokens)
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]

    def evaluate(self, *arguments: Any, **named: Any) -> dict[str, float]:
        """As upstream's, with the calibration of all held-out pairs: eval_reward_model/calibration_error."""
        self._margins = []
        metrics = super().evaluate(*arguments, **named)
        if not self._margins:
            return metrics
        margins = self.accelerator.gather_for_metrics(torch.cat(self._margins))
        found = reliability(torch.as_tensor(margins).cpu())
        prefix = named.get("metric_key_prefix", "eval")
        own = {f"{prefix}_{_NAME}/calibration_error": found.error}
        self.log(dict(own))
        if self.accelerator.is_main_process and self.args.output_dir is not None:
            write_reliability(Path(self.args.output_dir), self.state.global_step, dataclasses.asdict(found))
        return {**metrics, **own}

    # Resume

    def rollout_state(self) -> dict[str, Any]:
        return {"num_tokens": self._total_train_tokens}

    def load_rollout_state(self, state: dict[str, Any]) -> None:
        self._total_train_tokens = state["num_tokens"]


def _load(section: ModelSection) -> tuple[Any, PreTrainedTokenizerBase]:
    """A language model, or a reward model with the head that it has."""
    options = {"trust_remote_code": True} if section.trust_remote_code else {}
    if section.revision is not None:
        options["revision"] = section.revision
    if section.path is None or not gives_scores(section.path, **options):
        model, tokenizer = model_and_tokenizer(section)
        tokenizer.padding_side = "right"
        return model, tokenizer
    if section.quantization is not None:
        raise ModelFault(
            f"{section.path} is a reward model, which is not quantised here; leave 'quantization' out"
        )
    tokenizer = tokenizer_of(section.tokenizer or section.path, padding_side="right", **options)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if section.attn_implementation is not None:
        options["attn_implementation"] = section.attn_implementation
    dtype = section.dtype if section.dtype == "auto" else torch_dtype(section.dtype)
    model = load_reward_model(section.path, dtype, **options)
    model.requires_grad_(True)  # a merged adapter leaves its base frozen
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    logger.warning("reward model: %s is one already: the run goes on with its head", section.path)
    return model, tokenizer


def _tokens_of(row: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Ids of prompt and answer as one text, as rewards will read it, and the chosen answer's length, 0 where either
    answer is empty."""
    prompt = row.get("prompt", "")
    chosen, rejected = (learned_ids(tokenizer, prompt, row[side]) for side in ("chosen", "rejected"))
    length = sum(end - start for start, end in chosen.spans)
    empty = any(not text_of(row[side]).strip() for side in ("chosen", "rejected"))
    return {"chosen_ids": chosen.ids, "rejected_ids": rejected.ids, "answer_length": 0 if empty else length}


def _check_margins(margins: Any, name: str) -> None:
    """ValueError where a row's margin is no finite number."""
    for place, margin in enumerate(margins):
        if not isinstance(margin, int | float) or not math.isfinite(margin):
            raise ValueError(
                f"{name} dataset: the margin of row {place} is {margin!r}; give each row a number, or drop the column"
            )
