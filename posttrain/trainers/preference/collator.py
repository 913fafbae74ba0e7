"""Batches of pairs as TRL pads them, with further answers to imitate beside them where the rows hold any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.reward_trainer import DataCollatorForPreference as DataCollatorForScores

_IMITATION = "imitation_"
_TENSORS = ("input_ids", "attention_mask", "completion_mask")


@dataclass
class PairCollator(DataCollatorForPreference):
    """TRL's collator; rows with `imitation_prompt_ids` and `imitation_ids` also give `imitation_input_ids`,
    `imitation_attention_mask` and `imitation_completion_mask` (B, T')."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        if "imitation_ids" in examples[0]:
            answers = [
                {
                    "prompt_ids": row["imitation_prompt_ids"],
                    "chosen_ids": row["imitation_ids"],
                    "rejected_ids": [],
                }
                for row in examples
            ]
            padded = super().torch_call(answers)
            for name in _TENSORS:
                batch[_IMITATION + name] = padded[name][: len(examples)]
        return batch

    @staticmethod
    def join(
        pairs: Mapping[str, Tensor], imitation: Mapping[str, Tensor], pad_token_id: int
    ) -> dict[str, Tensor]:
        """Pairs and answers to imitate in one batch, (2B + B', T), for one forward."""
        width = max(pairs["input_ids"].size(1), imitation["input_ids"].size(1))
        joined = {}
        for name in _TENSORS:
            fill = pad_token_id if name == "input_ids" else 0
            parts = [
                pad(part[name], (0, width - part[name].size(1)), value=fill) for part in (pairs, imitation)
            ]
            joined[name] = torch.cat(parts)
        return joined


@dataclass
class ScoredPairCollator(DataCollatorForScores):
    """TRL's collator for reward models, and `answer_length` (B,): the tokens of each chosen answer."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        batch["answer_length"] = torch.tensor([row["answer_length"] for row in examples])
        return batch


def take_imitation(inputs: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """The pairs' tensors, and those of the answers to imitate, if the batch has any."""
    pairs = {name: inputs[name] for name in _TENSORS}
    if _IMITATION + "input_ids" not in inputs:
        return pairs, None
    return pairs, {name: inputs[_IMITATION + name] for name in _TENSORS}
