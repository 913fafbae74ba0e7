"""Supervised fine-tuning of a masked-diffusion model: posttrain/objectives/mdlm_sft.py on `transformers.Trainer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Trainer
from trl.trainer.utils import pad

from posttrain.data import RowCounts
from posttrain.data.tokens import masked_ids, prompt_ids
from posttrain.objectives.masked_base import ElboObjective
from posttrain.objectives.mdlm_sft import MaskedSFT
from posttrain.recipe import Recipe
from posttrain.rollout.masked.predictor import (
    MaskPredictor,
    check_mask_predictor,
    mask_id_of,
    whole_on_this_rank,
    with_generation_config,
)
from posttrain.rollout.masked.response_canvas import Canvas, lay_canvas
from posttrain.trainers.masked.likelihood import draw_noise, pass_terms
from posttrain.trainers.masked.mask_ingredients import mask_ingredients
from posttrain.trainers.models.adapters import check_adapter
from posttrain.trainers.reporting.announced import AnnouncedSteps
from posttrain.trainers.seam.best_metric import TIMES, check_best_metric
from posttrain.trainers.seam.config import flat_config, settings_from
from posttrain.trainers.seam.finite import FiniteSteps
from posttrain.trainers.seam.recipe_arguments import training_arguments
from posttrain.trainers.seam.resume import ExactResume
from posttrain.trainers.seam.taken_over import own_arguments, refuse_changed
from posttrain.trainers.seam.whole_checkpoint import WholeCheckpoint

_OF_TRL_ALONE: dict[str, str] = dict.fromkeys(
    (
        "packing",
        "packing_strategy",
        "eval_packing",
        "padding_free",
        "truncation_mode",
        "assistant_only_loss",
        "completion_only_loss",
        "neftune_noise_alpha",
        "activation_offloading",
        "loss_type",
        "label_smoothing_factor",
        "router_aux_loss_coef",
        "chat_template_path",
        "dataset_text_field",
        "dataset_kwargs",
        "eos_token",
        "pad_token",
    ),
    "masked-diffusion fine-tuning does not read it; leave it out",
)


@dataclass
class MaskedConfig(trl.SFTConfig):
    """TRL's SFTConfig for a `MaskedSFTTrainer`; options that only TRL's own loss reads are refused by name."""

    def check_carried(self) -> None:
        """ValueError for an argument that only TRL's trainer reads."""
        refuse_changed(self, _OF_TRL_ALONE, trl.SFTConfig)


MaskedSFTConfig = flat_config("MaskedSFTConfig", MaskedConfig, MaskedSFT, __name__)


class MaskedSFTTrainer(AnnouncedSteps, FiniteSteps, WholeCheckpoint, ExactResume, Trainer):
    """Supervised fine-tuning of a masked-diffusion model by the ELBO of the given answers.

    `MaskedSFTTrainer(model, MaskedSFTConfig(output_dir=...), rows, processing_class=tokenizer)`, a
    `transformers.Trainer` on rows of "prompt" and "completion" (text, or messages). `help(MaskedSFTConfig)` lists its
    settings.

    model             one that predicts hidden tokens from both sides
    processing_class  its tokenizer, which has a mask token
    """

    row_counts: RowCounts | None = None

    def __init__(
        self,
        model: Any,
        args: Any,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        *,
        processing_class: PreTrainedTokenizerBase,
        peft_config: LoraConfig | None = None,
        **named: Any,
    ) -> None:
        args = own_arguments(type(self), args, MaskedSFTConfig, trl.SFTConfig, "mdlm_sft")
        args.check_carried()
        check_adapter(model, peft_config)
        self.settings = settings_from(args, MaskedSFT)
        args.remove_unused_columns = False
        base = with_generation_config(model)
        self.predictor = MaskPredictor.of(base, mask_id_of(processing_class))
        self._probed = whole_on_this_rank()
        if self._probed:
            check_mask_predictor(self.predictor)
        if peft_config is not None:
            model = get_peft_model(model, peft_config)
            if args.gradient_checkpointing:
                model.enable_input_require_grads()
        super().__init__(
            model=model,
            args=args,
            train_dataset=tokenised(train_dataset, processing_class, self.settings, args.max_length),
            eval_dataset=eval_dataset
            and tokenised(eval_dataset, processing_class, self.settings, args.max_length),
            data_collator=self._collate,
            processing_class=processing_class,
            **named,
        )
        check_best_metric(self.args, {"loss", *TIMES})
        self._draws = ElboObjective(samples=1, noise=self.settings.noise, t_floor=self.settings.t_floor)

    @classmethod
    def from_recipe(cls, recipe: Recipe, **changes: Any) -> MaskedSFTTrainer:
        parts = mask_ingredients(recipe)
        arguments = {**recipe.objective.values(), **changes}
        trainer = cls(
            parts.model,
            training_arguments(recipe, MaskedSFTConfig, **arguments),
            parts.train_rows,
            parts.eval_rows,
            processing_class=parts.tokenizer,
            peft_config=parts.peft_config,
        )
        trainer.row_counts = parts.train_counts
        return trainer

    # Rows

    def _collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        def padded(name: str, side: str) -> tuple[Tensor, Tensor]:
            ids = [torch.tensor(row[name], dtype=torch.long) for row in rows]
            filler = int(self.processing_class.pad_token_id or 0)  # type: ignore[arg-type]  # one id
            mask = pad([torch.ones_like(one) for one in ids], padding_value=0, padding_side=side)
            return pad(ids, padding_value=filler, padding_side=side), mask

        prompt_ids, prompt_mask = padded("prompt_ids", "left")
        completion_ids, completion_mask = padded("completion_ids", "right")
        return {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "completion_ids": completion_ids,
            "completion_mask": completion_mask,
            "row": torch.tensor([row["row"] for row in rows]),
        }

    # Loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Mean over the micro-batch's responses."""
        if not self._probed:
            self._probed = True
            check_mask_predictor(self.predictor.with_model(model))
        canvas = self._canvas(inputs)
        step = self.state.global_step if model.training else -1  # an evaluation always hides the same tokens
        noise = draw_noise(self._draws, canvas, inputs["row"], iterations=1, seed=self.args.seed, step=step)
        terms = pass_terms(self.predictor.with_model(model), canvas, noise, 0, "sequence").squeeze(1)
        if self.settings.length_normalise:
            terms = terms / canvas.scored.sum(1).clamp(min=1)
        loss = -terms.mean()
        return (loss, {}) if return_outputs else loss

    def _canvas(self, inputs: dict[str, Tensor]) -> Canvas:
        width = inputs["completion_ids"].shape[1]
        return lay_canvas(
            inputs["prompt_ids"],
            inputs["prompt_mask"],
            inputs["completion_ids"],
            inputs["completion_mask"],
            tail=self.settings.tail,
            length=self.settings.canvas_length or width,
            mask_id=self.predictor.mask_id,
            end_id=int(self.processing_class.eos_token_id),  # type: ignore[arg-type]  # one id
        )

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def rollout_state(self) -> dict[str, Any]:
        return {}

    def load_rollout_state(self, state: dict[str, Any]) -> None:
        if state:
            raise ValueError(f"SFT carries nothing between steps, but the checkpoint holds {sorted(state)}")


def tokenised(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, settings: MaskedSFT, max_length: int | None
) -> Dataset:
    """prompt_ids, completion_ids with the end token, and the row's number, which keys its noise.

    A response is cut at the canvas, and where prompt and response together pass max_length.
    """

    def ids_of(row: Mapping[str, Any], number: int) -> dict[str, Any]:
        prompt = prompt_ids(tokenizer, row["prompt"])
        room = None if max_length is None else max(max_length - len(prompt), 0)
        limit = min((n for n in (settings.canvas_length, room) if n is not None), default=None)
        return {
            "prompt_ids": prompt,
            "completion_ids": masked_ids(tokenizer, row["prompt"], row["completion"])[:limit],
            "row": number,
        }

    return rows.map(ids_of, with_indices=True, remove_columns=rows.column_names)
