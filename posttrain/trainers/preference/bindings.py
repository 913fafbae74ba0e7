"""The trainers of the methods that learn from a fixed set of pairs: each binds one loss to `PreferenceTrainer`.

`RPOTrainer(model, args=RPOConfig(output_dir=..., beta=0.01, eta=0.005), train_dataset=...)` works like any
TRL trainer; the config holds TRL's arguments and the settings of the method, which its docstring explains.
"""

from __future__ import annotations

from typing import Any

import trl
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from posttrain.preferences.dpo import DPO
from posttrain.preferences.hinge import Hinge
from posttrain.preferences.ipo import IPO
from posttrain.preferences.rpo import RPO
from posttrain.preferences.simpo import SimPO
from posttrain.recipe import Recipe
from posttrain.rollout.base import Sampling
from posttrain.trainers.preference.imitation import (
    Answer,
    answers_of,
    pair_with_dataset,
    read_imitation_rows,
    sample_imitation,
    with_stops,
)
from posttrain.trainers.preference.trainer import PreferenceConfig, PreferenceTrainer
from posttrain.trainers.seam.config import flat_config, settings_from
from posttrain.trainers.seam.taken_over import own_arguments

DPOConfig = flat_config("DPOConfig", PreferenceConfig, DPO, __name__)
IPOConfig = flat_config("IPOConfig", PreferenceConfig, IPO, __name__)
HingeConfig = flat_config("HingeConfig", PreferenceConfig, Hinge, __name__)
SimPOConfig = flat_config("SimPOConfig", PreferenceConfig, SimPO, __name__)
RPOConfig = flat_config("RPOConfig", PreferenceConfig, RPO, __name__)


class DPOTrainer(PreferenceTrainer):
    """DPO, see posttrain/preferences/dpo.py."""

    method_class = DPO
    config_class = DPOConfig


class IPOTrainer(PreferenceTrainer):
    """IPO, see posttrain/preferences/ipo.py."""

    method_class = IPO
    config_class = IPOConfig


class HingeTrainer(PreferenceTrainer):
    """The hinge on log-ratios, see posttrain/preferences/hinge.py."""

    method_class = Hinge
    config_class = HingeConfig


class SimPOTrainer(PreferenceTrainer):
    """SimPO, see posttrain/preferences/simpo.py."""

    method_class = SimPO
    config_class = SimPOConfig


class RPOTrainer(PreferenceTrainer):
    """RPO, see posttrain/preferences/rpo.py.

    Answers to imitate come, by `imitate`, from the chosen answers; from the reference, sampled once before training
    to the prompts of the pairs; or from `imitation_data`, a file of rows with prompt and completion. Rows that hold
    a column `imitation` already keep it.

    sampling  how the reference is sampled
    answer    samples in its place, see `imitation.Answer`; otherwise the reference, or the model, does it itself,
              in this process
    """

    method_class = RPO
    config_class = RPOConfig

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        method: RPO | None = None,
        sampling: Sampling | None = None,
        answer: Answer | None = None,
        **trl_arguments: Any,
    ) -> None:
        args = own_arguments(type(self), args, RPOConfig, trl.DPOConfig, "rpo")
        method = method if method is not None else settings_from(args, RPO)
        self._answer, self._sampling = answer, sampling
        self._sampled_from = ref_model if ref_model is not None else model
        if method.imitate == "reference" and answer is None and not isinstance(self._sampled_from, nn.Module):
            raise ValueError(
                "RPO: imitate 'reference' samples before training: pass the model itself, not its path"
            )
        super().__init__(model, ref_model, args, train_dataset, eval_dataset, method=method, **trl_arguments)
        self._answer = self._sampled_from = None  # the engine and the model are not kept

    @classmethod
    def recipe_options(cls, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, args: Any) -> dict[str, Any]:
        """The recipe's sampling and engine, where the reference's answers are imitated."""
        if recipe.rollout is None:
            return {}
        # Loops build on this package's trainers; only this method needs the way back.
        from posttrain.trainers.engines.from_recipe import answers_of_start, sampling_of

        return {"sampling": sampling_of(recipe), "answer": answers_of_start(recipe, tokenizer, args)}

    def with_imitation(self, rows: Dataset, args: Any, dataset_name: str) -> Dataset:
        method = self.method
        if not isinstance(method, RPO) or method.imitate == "chosen" or "imitation" in rows.column_names:
            return rows
        seed = args.seed + (dataset_name != "train")
        if method.imitation_data is not None:
            talks = isinstance(rows[0]["prompt"], list)
            return pair_with_dataset(rows, read_imitation_rows(method.imitation_data, chat=talks), seed)
        limit = args.max_length
        sampling = self._sampling or Sampling(max_new_tokens=(limit or 1024) // 2)
        sampling = with_stops(sampling, self._sampled_from, self._tokenizer)
        answer = self._answer or answers_of(self._sampled_from, self._tokenizer, on_cpu=args.use_cpu)
        return sample_imitation(rows, self._tokenizer, answer, sampling, seed, limit)
