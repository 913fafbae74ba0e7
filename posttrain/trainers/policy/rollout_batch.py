"""What a scored rollout adds to TRL's buffer: advantages, streams, places, groups, why a response may be silent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from posttrain.objectives.base import Groups
from posttrain.objectives.streams import stream_rows
from posttrain.ops.groups import degenerate_groups
from posttrain.trainers.policy.token_batch import buffer_key


def add_to_buffer(
    output: dict[str, Any],
    groups: Groups,
    streams: Mapping[str, Tensor],
    rows: slice,
    completion_ids: Sequence[Sequence[int]],
) -> None:
    """Adds to one rank's share of a rollout.

    groups, streams  of all ranks
    rows             the places of this rank's responses among them
    completion_ids   this rank's, as they were sampled
    """
    ids = output["completion_ids"]
    group_size = groups.rewards.size(1)
    for name, values in streams.items():
        output[buffer_key(name)] = stream_rows(values, rows, ids.size(1)).to(output["advantages"])
    output["row"] = torch.arange(rows.start, rows.stop, device=ids.device)
    output["group"] = output["row"] // group_size
    equal = degenerate_groups(groups.rewards).unsqueeze(1).expand_as(groups.rewards)
    output["equal_rewards"] = equal.reshape(-1)[rows]
    output["unjudged"] = groups.rewards.reshape(-1)[rows].isnan()
    # TRL zeroes the mask of a truncated response; the account wants every token that was generated.
    lengths = torch.tensor([len(one) for one in completion_ids], device=ids.device)
    output["generated_mask"] = torch.arange(ids.size(1), device=ids.device) < lengths.unsqueeze(1)
