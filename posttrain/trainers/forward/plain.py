"""Log-probs of texts as the model itself has them: its own forward and its own logits, at temperature 1."""

from __future__ import annotations

from typing import Any

from posttrain.ops.logprobs import token_logprobs
from posttrain.trainers.forward.base import LOGPROBS_ONLY, Rows, Scored, Scorer, Wanted
from posttrain.trainers.forward.head import HeadOptions
from posttrain.trainers.forward.shared import SharedScorer


class PlainScorer:
    """The (B, L, V) logits exist here: for small batches, or where the head cannot be read by itself."""

    def score(self, model: Any, rows: Rows, wanted: Wanted = LOGPROBS_ONLY) -> Scored:
        ids, mask = rows.joined
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False).logits
        length = rows.completion_ids.size(1)
        return Scored(token_logprobs(logits[:, -length - 1 : -1], rows.completion_ids))


def untempered(scorer: Scorer, *, float32: bool) -> Scorer:
    """What scores texts at temperature 1 by the layout of `scorer`, which scores at the sampling temperature.

    float32  whether the head's product is in float32, whatever the rest runs in
    """
    plain = PlainScorer()
    return scorer.with_head(HeadOptions(1.0, float32), plain) if isinstance(scorer, SharedScorer) else plain
