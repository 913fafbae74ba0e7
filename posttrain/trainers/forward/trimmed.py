"""The trimmed layout: padded rows without the columns in which no row of them has a token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from posttrain.trainers.forward.base import LOGPROBS_ONLY, Rows, Scored, Scorer, Wanted


class TrimmedScorer:
    """Hands `padded` the rows cut to their own longest prompt and completion, and puts zeros where it cut."""

    def __init__(self, padded: Scorer) -> None:
        self._padded = padded

    def score(self, model: Any, rows: Rows, wanted: Wanted = LOGPROBS_ONLY) -> Scored:
        if rows.extras:  # images stand at columns of their own
            return self._padded.score(model, rows, wanted)
        first, length = _first_used(rows.prompt_mask), rows.completion_ids.size(1)
        kept = max(1, length - _first_used(rows.completion_mask.flip(1)))
        cut = replace(
            rows,
            prompt_ids=rows.prompt_ids[:, first:],
            prompt_mask=rows.prompt_mask[:, first:],
            completion_ids=rows.completion_ids[:, :kept],
            completion_mask=rows.completion_mask[:, :kept],
        )
        scored = self._padded.score(model, cut, wanted)

        def whole(values: Tensor) -> Tensor:
            return pad(values, (0, 0) * (values.dim() - 2) + (0, length - kept))

        return replace(
            scored,
            logprobs=whole(scored.logprobs),
            entropy=None if scored.entropy is None else whole(scored.entropy),
            outputs={name: whole(values) for name, values in scored.outputs.items()},
        )


def _first_used(mask: Tensor) -> int:
    """The first column of (B, L) with a token in it; L - 1 at most, so that one column is always left."""
    used = mask.any(0).nonzero()
    last = max(0, mask.size(1) - 1)
    return int(torch.minimum(used[0, 0], used.new_tensor(last))) if len(used) else last
