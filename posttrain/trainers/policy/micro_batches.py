"""The micro-batches of one optimizer step, split further where they hold more tokens than one pass may.

Divisors count the whole step, so neither loss nor gradient moves with the split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from posttrain.trainers.forward.token_budget import split_by_tokens
from posttrain.trainers.policy.group_order import select_rows

Part = dict[str, Any] | None
"""Rows of TRL's buffer; None: nothing, while another rank has a part more."""


class MicroBatches:
    """limit           most tokens of one forward and backward; None: no split
    shares_prompts  whether a prompt counts once for its group
    """

    def __init__(self, accelerator: Accelerator, limit: int | None, *, shares_prompts: bool) -> None:
        self._accelerator = accelerator
        self._limit = limit
        self._shares_prompts = shares_prompts

    def __call__(self, slices: Sequence[dict[str, Any]]) -> list[list[Part]]:
        """For each micro-batch its parts, as many on every rank: one at least."""
        if self._limit is None:
            return [[inputs] for inputs in slices]
        cut: list[list[Part]] = [list(self._split(inputs, self._limit)) for inputs in slices]
        counts = torch.tensor([[len(parts) for parts in cut]], device=self._accelerator.device)
        most = torch.as_tensor(self._accelerator.gather(counts)).amax(dim=0).tolist()
        return [parts + [None] * (count - len(parts)) for parts, count in zip(cut, most, strict=True)]

    def _split(self, inputs: dict[str, Any], limit: int) -> list[dict[str, Any]]:
        prompts, completions = (
            inputs[mask].sum(dim=1).tolist() for mask in ("prompt_mask", "completion_mask")
        )
        groups = inputs["group"].tolist() if self._shares_prompts else None
        places = split_by_tokens(prompts, completions, groups, limit)
        return [inputs] if len(places) == 1 else [select_rows(inputs, rows) for rows in places]


def silent_row(inputs: dict[str, Any]) -> dict[str, Any]:
    """One row whose completion is masked: enough for a forward pass, and no token of it is scored."""
    row = select_rows(inputs, [0])
    mask: Tensor = row["completion_mask"]
    return {**row, "completion_mask": torch.zeros_like(mask)}
