"""What trainers on given images share: rows to latents, held-out images to look at, resume."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# Upstream annotates its trainers more widely than what their attributes hold once they are built.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import Trainer

from posttrain.data import RowCounts
from posttrain.recipe import Recipe
from posttrain.rollout.flow.flow_sampler import FlowSampler, FlowSampling
from posttrain.rollout.flow.image_frame import ImageFrame
from posttrain.rollout.flow.image_values import as_image
from posttrain.trainers.engines.scored_images import ScoredImages
from posttrain.trainers.flow.flow_ingredients import flow_ingredients, require_whole_weights
from posttrain.trainers.flow.image_judge import ImageJudge
from posttrain.trainers.models.adapters import check_adapter
from posttrain.trainers.reporting.announced import AnnouncedSteps
from posttrain.trainers.seam.config import settings_from
from posttrain.trainers.seam.finite import FiniteSteps
from posttrain.trainers.seam.given_rows import require_columns
from posttrain.trainers.seam.recipe_arguments import training_arguments
from posttrain.trainers.seam.resume import ExactResume
from posttrain.trainers.seam.whole_checkpoint import WholeCheckpoint

PER_PROMPT, SHOWN = 4, 40
"""Held-out images of one prompt, and of all, that an evaluation makes to look at."""
CACHED = 2**28
"""Elements of latents that are kept in memory at most; of larger sets each image is read anew."""


class GivenImagesTrainer(AnnouncedSteps, FiniteSteps, WholeCheckpoint, ExactResume, Trainer):
    """Base of the trainers whose rows hold images. A subclass names its config, its settings and its columns, and has
    a `compute_loss`.

    model  the velocity model: model(latents, times, **conditions)
    frame  prompts to conditions, images to latents (rollout.flow.image_frame.ImageFrame)
    """

    config_class: ClassVar[Any]
    settings_class: ClassVar[Any]
    image_columns: ClassVar[Mapping[str, str]]
    """Name of the latents in a batch -> column of the rows."""
    row_counts: RowCounts | None = None

    def __init__(
        self,
        model: Any,
        args: Any,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        *,
        frame: ImageFrame,
        peft_config: LoraConfig | None = None,
        **named: Any,
    ) -> None:
        name = self.config_class.__name__
        if not isinstance(args, self.config_class):
            raise TypeError(f"{type(self).__name__}: args is a {type(args).__name__}; pass a {name}")
        columns = ["prompt", *self.image_columns.values()]
        for place, rows in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            require_columns(type(self), rows, columns, name=place)
        self.settings = settings_from(args, self.settings_class)
        args.remove_unused_columns = False
        check_adapter(model, peft_config)
        if peft_config is not None:
            model = get_peft_model(model, peft_config)
        self.frame = frame
        self.held_out: list[ScoredImages] = []
        self._latents: dict[tuple[str, int, str], Tensor] = {}
        super().__init__(
            model=model,
            args=args,
            train_dataset=_numbered(train_dataset, "train"),
            eval_dataset=eval_dataset and _numbered(eval_dataset, "held out"),
            data_collator=self._collate,
            processing_class=frame,
            **named,
        )
        require_whole_weights(self)
        # the loss is a mean over a micro-batch, which transformers divides by the accumulated ones
        self.model_accepts_loss_kwargs = False
        sampling = FlowSampling(eval_denoising_steps=self.settings.sample_steps)
        self.sampler = FlowSampler(frame, sampling, self.accelerator.device, args.seed)
        self.judge = ImageJudge(self.accelerator, None, [])

    @classmethod
    def from_recipe(cls, recipe: Recipe, **changes: Any) -> Any:
        parts = flow_ingredients(recipe)
        arguments = {**recipe.objective.values(), **changes}
        trainer = cls(
            parts.model,
            training_arguments(recipe, cls.config_class, **arguments),
            parts.train_rows,
            parts.eval_rows,
            frame=parts.frame,
            peft_config=parts.peft_config,
        )
        trainer.row_counts = parts.train_counts
        return trainer

    @property
    def reward_func_names(self) -> list[str]:
        return []

    @property
    def reward_weights(self) -> Tensor:
        return self.judge.weights

    def floating_point_ops(self, inputs: Any) -> int:
        """Upstream counts them by tokens."""
        return 0

    # Rows

    def _collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        latents = {
            name: torch.stack([self._latent_of(row, column) for row in rows])
            for name, column in self.image_columns.items()
        }
        return {
            **latents,
            "row": torch.tensor([row["row"] for row in rows]),
            **self.frame.read_prompts([str(row["prompt"]) for row in rows]),
        }

    def _latent_of(self, row: dict[str, Any], column: str) -> Tensor:
        key = (row["split"], row["row"], column)
        if key not in self._latents:
            latent = self.frame.to_latents([as_image(row[column])])[0].cpu()
            if (len(self._latents) + 1) * latent.numel() > CACHED:
                return latent
            self._latents[key] = latent
        return self._latents[key]

    def conditions_of(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """A batch's conditions alone."""
        return {name: values for name, values in inputs.items() if name not in ("row", *self.image_columns)}

    # Evaluation

    def prediction_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> tuple[Tensor, None, None]:
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def evaluate(self, *arguments: Any, **named: Any) -> dict[str, float]:
        """As upstream's; some images of the held-out prompts are left in `held_out`."""
        given = arguments[0] if arguments else named.get("eval_dataset")
        self.held_out = [self._images_of(self.eval_dataset if given is None else given)]
        return super().evaluate(*arguments, **named)

    def _images_of(self, rows: Any) -> ScoredImages:
        prompts = [str(prompt) for prompt in rows["prompt"]]
        counts: dict[str, int] = {}
        shown: list[str] = []
        for prompt in sorted(prompts):
            counts[prompt] = counts.get(prompt, 0) + 1
            if counts[prompt] <= PER_PROMPT and len(shown) < SHOWN:
                shown.append(prompt)
        with self._still():
            images = self.frame.to_images(self.sampler.held_out(self.model, shown, range(len(shown))))
        none = torch.empty(len(shown), 0)
        return ScoredImages(shown, images, {}, none)

    @contextmanager
    def _still(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.compute_loss_context_manager():
                yield
        finally:
            self.model.train(was_training)

    def rollout_state(self) -> dict[str, Any]:
        return {}

    def load_rollout_state(self, state: dict[str, Any]) -> None:
        if state:
            raise ValueError(
                f"{type(self).__name__} carries nothing between steps, but the checkpoint holds {sorted(state)}"
            )


def _numbered(rows: Dataset, split: str) -> Dataset:
    """The rows with their numbers, which key their noise."""
    return rows.add_column("row", list(range(len(rows)))).add_column("split", [split] * len(rows))
