"""DRIFT's loop: in each iteration new chosen answers from the policy that has seen the complaint, then DPO without it.

    seed stage (with seed pairs): DPO on logged repairs
    iteration k: y+ ~ pi_{k-1}(. | x, y-, u)  ->  pairs (x, y+, y-)  ->  DPO against pi_{k-1}  ->  pi_k

The method's page is posttrain/preferences/drift.py; the folders of a run are described in staged.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from trl import DPOConfig

from posttrain.data.feedback_logs import Complaint, SeedPair, feedback_log, read_seed_pairs
from posttrain.preferences.drift import DRIFT
from posttrain.recipe import Recipe
from posttrain.rollout.base import Sampling
from posttrain.trainers.engines.from_recipe import staged_options
from posttrain.trainers.models.ingredients import ingredients
from posttrain.trainers.preference.pair_rows import PairCounts
from posttrain.trainers.preference.trainer import PreferenceConfig
from posttrain.trainers.seam.config import flat_config, settings_from
from posttrain.trainers.seam.recipe_arguments import training_arguments
from posttrain.trainers.seam.taken_over import own_arguments
from posttrain.trainers.staged.feedback_prompt import FeedbackPrompts, plain_lines
from posttrain.trainers.staged.staged import Pair, Stage, StagedTrainer

DRIFTConfig = flat_config("DRIFTConfig", PreferenceConfig, DRIFT, __name__)

SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=512)
"""How the released code samples the chosen answers."""

SEED = "seed"
_APOLOGY = re.compile(
    r"\s*(i\s+(sincerely\s+)?apologi[sz]e|(i['’]?m|i\s+am)\s+(so\s+|very\s+)?sorry|sorry|apologies)\b", re.I
)


class DRIFTTrainer(StagedTrainer):
    """DRIFT, see posttrain/preferences/drift.py.

    `DRIFTTrainer(model, complaints, args=DRIFTConfig(output_dir=..., iterations=2), processing_class=tokenizer)`.
    `args` speaks of one iteration: its epochs or steps, its learning rate. Rows come from
    `posttrain.data.feedback_logs`.

    complaints  what users were dissatisfied with
    seeds       logged repairs for the warm start, or none
    """

    def __init__(
        self,
        model: Any,
        complaints: Sequence[Complaint],
        args: Any,
        processing_class: Any,
        *,
        seeds: Sequence[SeedPair] = (),
        sampling: Sampling = SAMPLING,
        **more: Any,
    ) -> None:
        args = own_arguments(type(self), args, DRIFTConfig, DPOConfig, "drift")
        method = settings_from(args, DRIFT)
        super().__init__(model, args, method, processing_class, sampling=sampling, **more)
        self.settings: DRIFT = method
        self.held_out_rows = list(complaints[: method.holdout_rows])
        self.complaints = list(complaints[method.holdout_rows :])
        self.seeds = list(seeds)
        self.dropped_before: dict[str, int] = {}
        if not self.complaints:
            raise ValueError(
                f"DRIFT: {len(complaints)} rows, {method.holdout_rows} held out, none left to train on"
            )

    @classmethod
    def from_recipe(cls, recipe: Recipe, **changes: Any) -> DRIFTTrainer:
        """The run a recipe describes; `changes` win over its training arguments."""
        parts = ingredients(recipe)
        args = training_arguments(recipe, DRIFTConfig, **{**recipe.objective.values(), **changes})
        log = feedback_log(parts.train_rows.to_list(), recipe.data.path or recipe.data.name or "data")  # type: ignore[arg-type]  # a list of mappings
        trainer = cls(
            parts.model,
            log.complaints,
            args,
            parts.tokenizer,
            seeds=read_seed_pairs(args.seed_data) if args.seed_data is not None else (),
            peft_config=parts.peft_config,
            **staged_options(recipe, parts.tokenizer, args),
        )
        trainer.dropped_before = {**parts.train_counts.dropped, **log.dropped}
        trainer.row_counts = parts.train_counts
        return trainer

    def rows(self) -> Iterable[Any]:
        return (asdict(row) for row in (*self.held_out_rows, *self.complaints, *self.seeds))

    def stage_names(self) -> list[str]:
        iterations = [f"iteration {k}" for k in range(1, self.settings.iterations + 1)]
        return [SEED, *iterations] if self.seeds else iterations

    def stage_arguments(self, stage: Stage, args: Any) -> None:
        if stage.name == SEED:
            args.num_train_epochs = float(self.settings.seed_epochs)
            args.max_steps = -1

    def planned_steps(self) -> int:
        per_step = (
            self.args.per_device_train_batch_size
            * self.args.gradient_accumulation_steps
            * self.ranks.num_processes
        )
        seed_steps = math.ceil(len(self.seeds) / per_step) * self.settings.seed_epochs
        one = math.ceil(math.ceil(len(self.complaints) / per_step) * self.args.num_train_epochs)
        return seed_steps + self.settings.iterations * (
            self.args.max_steps if self.args.max_steps > 0 else one
        )

    def make_pairs(self, stage: Stage) -> tuple[list[Pair], PairCounts]:
        if stage.name == SEED:
            pairs = [self._pair(row.prompt, row.chosen, row.rejected) for row in self.seeds]
            return pairs, PairCounts(rows_in=len(pairs))
        read = len(self.complaints) + len(self.held_out_rows) + sum(self.dropped_before.values())
        counts = PairCounts(rows_in=read, dropped=dict(self.dropped_before))
        counts.drop("held out", len(self.held_out_rows))
        prompts = FeedbackPrompts(
            self.processing_class,
            guided=self.settings.guided,
            compat=self.settings.compat,
            limit=self.args.max_length or 10**9,
        )
        tokens = [prompts.tokens(row) for row in self.complaints]
        counts.drop("feedback prompt longer than max_length", sum(ids is None for ids in tokens))
        usable = [(row, ids) for row, ids in zip(self.complaints, tokens, strict=True) if ids is not None]
        sampled = self.sample(stage, self.pool.path(stage.number), [ids for _, ids in usable])
        answers = [prompts.answer(text, ids) for text, (_, ids) in zip(sampled, usable, strict=True)]
        return self._kept(
            ((row, answer) for (row, _), answer in zip(usable, answers, strict=True)), counts
        ), counts

    def _kept(self, answered: Iterable[tuple[Complaint, str]], counts: PairCounts) -> list[Pair]:
        """The pairs that the settings let through; the others are counted."""
        pairs = []
        for row, answer in answered:
            reason = self._refusal(row, answer)
            if reason is None:
                pairs.append(self._pair(row.prompt, answer, row.rejected))
            else:
                counts.drop(reason)
        return pairs

    def _refusal(self, row: Complaint, answer: str) -> str | None:
        settings = self.settings
        if settings.drop_identical and settings.compat == "corrected" and answer == row.rejected:
            return "sampled answer equals the rejected one"
        if settings.drop_empty and not answer.strip():
            return "sampled answer is empty"
        if settings.drop_apologies and _APOLOGY.match(answer):
            return "sampled answer apologises"
        return None

    def _pair(self, prompt: list[dict[str, str]], chosen: str, rejected: str) -> Pair:
        """The prompt as it was asked, without the complaint. Plain lines for a tokenizer without chat template."""
        if self.processing_class.chat_template is None:
            return {"prompt": plain_lines(prompt) + "Assistant: ", "chosen": chosen, "rejected": rejected}
        return {
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
