"""Whole groups side by side in TRL's rollout buffer, so that a micro-batch can share their prompts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import split_tensor_dict

from posttrain.trainers.forward.base import VISION_KEYS

_Part = dict[str, Any]


def group_ordered(parts: list[_Part]) -> list[_Part]:
    """The same rows in as many parts, in order of groups: which group comes first is left to the order the rows had,
    TRL's shuffle; inside a group rows stand as they were sampled.

    Parts with images are left as they are: their tensors are not one row per response.
    """
    if len(parts) == 0 or any(key in part for part in parts for key in VISION_KEYS):
        return parts
    whole = {key: _joined([part[key] for part in parts]) for key in parts[0]}
    groups, rows = whole["group"].tolist(), whole["row"].tolist()
    turn = {group: place for place, group in reversed(list(enumerate(groups)))}
    order = sorted(range(len(rows)), key=lambda at: (turn[groups[at]], rows[at]))
    return split_tensor_dict(select_rows(whole, order), len(parts))


def select_rows(part: _Part, rows: list[int]) -> _Part:
    """These rows of a part of the buffer, in this order. What is not one value per row stays."""
    count = len(part["row"])
    return {key: _selected(value, rows, count) for key, value in part.items()}


def _selected(value: Any, rows: list[int], count: int) -> Any:
    if isinstance(value, Tensor) and value.dim() > 0 and value.size(0) == count:
        return value[torch.tensor(rows, dtype=torch.long, device=value.device)]
    if isinstance(value, list) and len(value) == count:
        return [value[row] for row in rows]
    return value


def _joined(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor) and first.dim() > 0:
        return torch.cat(values)
    if isinstance(first, list):
        return [one for value in values for one in value]
    return first
