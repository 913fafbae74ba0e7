"""The trainers of the methods that learn from a fixed set of pairs: each binds one loss to
`PreferenceTrainer`.

`RPOTrainer(model, args=RPOConfig(output_dir=..., beta=0.01, eta=0.005), train_dataset=...)` works like any
TRL trainer; the config holds TRL's arguments and the settings of the method, which its docstring explains.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from posttrain.preferences.dpo import DPO
from posttrain.preferences.hinge import Hinge
from posttrain.preferences.ipo import IPO
from posttrain.preferences.rpo import RPO
from posttrain.preferences.simpo import SimPO
from posttrain.rollout.base import Sampling
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.trainers.config import flat_config, settings_from
from posttrain.trainers.generating import answer_text, pad_id, stop_ids
from posttrain.trainers.imitation import (
    Answer,
    pair_with_dataset,
    read_imitation_rows,
    sample_imitation,
)
from posttrain.trainers.preference import PreferenceConfig, PreferenceTrainer

logger = logging.getLogger(__name__)

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

    Answers to imitate come, by `imitate`, from the chosen answers; from the reference, sampled once before
    training
    to the prompts of the pairs; or from `imitation_data`, a file of rows with prompt and completion. Rows
    that hold a
    column `imitation` already keep it.

    sampling  how the reference is sampled; one `answer` of the same shape as `sample_imitation` takes
    replaces it
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
        args = args if args is not None else RPOConfig()
        method = method if method is not None else settings_from(args, RPO)
        tokenizer = trl_arguments.get("processing_class")
        if method.imitate != "chosen":
            sampling = sampling or Sampling(max_new_tokens=(args.max_length or 1024) // 2)

            def prepare(rows: Any, seed: int) -> Any:
                return self._imitated(rows, method, ref_model or model, tokenizer, answer, sampling, seed)

            train_dataset = prepare(train_dataset, args.seed)
            eval_dataset = prepare(eval_dataset, args.seed + 1) if eval_dataset is not None else None
        super().__init__(model, ref_model, args, train_dataset, eval_dataset, method=method, **trl_arguments)

    @staticmethod
    def _imitated(
        rows: Dataset,
        method: RPO,
        reference: Any,
        tokenizer: PreTrainedTokenizerBase | None,
        answer: Answer | None,
        sampling: Sampling,
        seed: int,
    ) -> Dataset:
        """`rows` with the answers that `method` imitates."""
        if "imitation" in rows.column_names:
            return rows
        if method.imitation_data is not None:
            return pair_with_dataset(rows, read_imitation_rows(method.imitation_data), seed)
        if tokenizer is None or not (answer is not None or isinstance(reference, nn.Module)):
            raise ValueError(
                "RPO: imitate 'reference' samples before training: pass processing_class and the model itself, "
                "not its path"
            )
        if answer is None:
            answer = _answers_of(reference, tokenizer)
            sampling = _with_stops(sampling, reference, tokenizer)
        logger.warning("RPO: sampling %d answers of the reference", len(rows))
        return sample_imitation(rows, tokenizer, answer, sampling, seed)


def _answers_of(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Answer:
    engine = TransformersEngine.of(model, pad_token_id=pad_id(tokenizer))

    def answer(prompts: list[list[int]], sampling: list[Sampling]) -> list[str]:
        return [answer_text(tokenizer, completion) for completion in engine.generate(prompts, sampling)]

    return answer


def _with_stops(sampling: Sampling, model: Any, tokenizer: PreTrainedTokenizerBase) -> Sampling:
    if sampling.stop_token_ids:
        return sampling
    return replace(sampling, stop_token_ids=stop_ids(tokenizer, model.generation_config))
