"""The Scorer: rows of a rollout in, log-probs and what else a method reads of a forward pass out.

Policy, old policy, reference, SALSA's start and the proof of a weight sync all ask here, so none of them knows which
layout ran. A layout is a file beside this one that implements `Scorer`; whatever it packs or trims inside, it answers
in the rows' own order, (B, T) with the T of `Rows.completion_ids`, so divisors and objectives never see it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

VISION_KEYS = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)
"""What TRL's buffer holds beside the ids where rows have images."""


@dataclass(frozen=True)
class Rows:
    """B prompts, each with its completion.

    prompt_ids, prompt_mask          (B, S)  mask 1 where there is a token; padding may stand on either side
    completion_ids, completion_mask  (B, T)  as above. A token whose mask is 0 is scored by no layout: its log-prob
                                             is finite and means nothing
    groups  (B,) rows of the same number share their prompt; None where nothing is known of it
    extras  further arguments of the model, by TRL's names (VISION_KEYS)
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    groups: Tensor | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_buffer(cls, inputs: Mapping[str, Any]) -> Rows:
        """From a slice of TRL's rollout buffer, or a whole rollout."""
        return cls(
            inputs["prompt_ids"],
            inputs["prompt_mask"],
            inputs["completion_ids"],
            inputs["completion_mask"],
            inputs.get("group"),
            {key: inputs[key] for key in VISION_KEYS if key in inputs},
        )

    @classmethod
    def of_joined(
        cls, input_ids: Tensor, attention_mask: Tensor, length: int, extras: Mapping[str, Any]
    ) -> Rows:
        """From prompt and completion in one tensor (B, S + T), of which the last `length` = T are the completion."""
        return cls(
            input_ids[:, :-length],
            attention_mask[:, :-length],
            input_ids[:, -length:],
            attention_mask[:, -length:],
            extras=extras,
        )

    @classmethod
    def of_lists(
        cls,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        *,
        filler: int,
        device: Any,
    ) -> Rows:
        """From ragged ids; prompts are padded on the left, completions on the right, with `filler`."""
        left, left_mask = _padded(prompts, filler, "left", device)
        right, right_mask = _padded(completions, filler, "right", device)
        return cls(left, left_mask, right, right_mask)

    @property
    def joined(self) -> tuple[Tensor, Tensor]:
        """Ids and mask of prompt and completion side by side. (B, S + T) each."""
        ids = torch.cat([self.prompt_ids, self.completion_ids], dim=1)
        return ids, torch.cat([self.prompt_mask, self.completion_mask], dim=1)


@dataclass(frozen=True)
class Wanted:
    """What is asked for beyond log-probs.

    entropy       (B, T) entropies in nats, with gradient where the log-probs have one
    aux_loss      a mixture of experts' load-balancing loss
    for_method    what the objective `needs` of the policy's forward
    rows_at_once  at most so many rows in one forward; None = all
    """

    entropy: bool = False
    aux_loss: bool = False
    for_method: bool = False
    rows_at_once: int | None = None


LOGPROBS_ONLY = Wanted()


@dataclass(frozen=True)
class Scored:
    """A forward pass over rows.

    logprobs  (B, T), with gradient where it is enabled
    entropy   (B, T) or None, aux_loss () or None, as asked for
    outputs   what the objective `needs`, by name (`Objective.needs` lists names, shapes, gradients)
    """

    logprobs: Tensor
    entropy: Tensor | None = None
    aux_loss: Tensor | None = None
    outputs: Mapping[str, Tensor] = field(default_factory=dict)


class Scorer(Protocol):
    """One layout. The caller decides on gradient, train or eval mode and adapters; the scorer on everything else."""

    def score(self, model: Any, rows: Rows, wanted: Wanted = LOGPROBS_ONLY) -> Scored: ...


def _padded(rows: Sequence[Sequence[int]], filler: int, side: str, device: Any) -> tuple[Tensor, Tensor]:
    ids = [torch.tensor(list(row), dtype=torch.long, device=device) for row in rows]
    ones = [torch.ones_like(row) for row in ids]
    return (
        pad_sequence(ids, batch_first=True, padding_value=filler, padding_side=side),
        pad_sequence(ones, batch_first=True, padding_value=0, padding_side=side),
    )
