"""The canvas a response's likelihood is taken on: [padding][prompt][response][tail], one row a response.

The sampler always fills a canvas of the full length; what stands behind the first end token is no part of the
response. Which of the three readings of that tail is used must be the same for the policy, the old policy and the
reference, so the canvas is laid once a rollout and kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

Tail = Literal["drop", "mask", "fill"]


@dataclass(frozen=True)
class Canvas:
    """P prompt columns, L response columns, S = P + L.

    tokens   (B, S)
    present  (B, S)  1 where a token may be attended to
    scored   (B, L)  bool, response tokens whose likelihood is taken; the others are never hidden
    """

    tokens: Tensor
    present: Tensor
    scored: Tensor

    @property
    def prompt_length(self) -> int:
        return self.tokens.shape[1] - self.scored.shape[1]

    def rows(self, start: int, stop: int) -> Canvas:
        return Canvas(self.tokens[start:stop], self.present[start:stop], self.scored[start:stop])


def lay_canvas(
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    *,
    tail: Tail,
    length: int,
    mask_id: int,
    end_id: int,
) -> Canvas:
    """Prompts (B, P) padded on the left, completions (B, T) cut behind their first end token, padded on the right.

    length  columns of the rollout's canvas; `drop` needs only the longest completion's
    A completion without any mask (a truncated one that is left out) is scored nowhere.
    """
    if tail == "drop":
        present = torch.cat([prompt_mask, completion_mask], dim=1)
        return Canvas(torch.cat([prompt_ids, completion_ids], dim=1), present, completion_mask.bool())
    extra = length - completion_ids.shape[1]
    inside = pad(completion_mask.bool(), (0, extra))
    ids = torch.where(inside, pad(completion_ids, (0, extra)), mask_id if tail == "mask" else end_id)
    scored = inside if tail == "mask" else completion_mask.bool().any(1, keepdim=True).expand_as(inside)
    present = torch.cat([prompt_mask, torch.ones_like(ids)], dim=1)
    return Canvas(torch.cat([prompt_ids, ids], dim=1), present, scored)
