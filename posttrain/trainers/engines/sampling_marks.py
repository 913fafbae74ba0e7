"""What a rollout's tensors say of their sampling: each token's weight version, the weights that correct an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from posttrain.rollout.base import Completion
from posttrain.rollout.importance import importance_ratio
from posttrain.trainers.engines.rollout_plan import RolloutPlan
from posttrain.trainers.engines.weight_sync import marked_versions
from posttrain.trainers.forward.base import Rows, Scorer, Wanted


class MarkedHost(Protocol):
    """What marks read of their trainer. The names are TRL's, but for `scorer`."""

    args: Any
    accelerator: Accelerator
    model: Any
    state: Any
    scorer: Scorer
    tools: Any
    _metrics: Any


def over_ranks(accelerator: Accelerator, values: Tensor) -> dict[str, float]:
    """The mean of the ranks' means, the highest and the lowest of some values (N,); {} where no rank has any. For every
    rank to call: one may have none, where all its responses are logged answers."""
    own = values.new_zeros(4, dtype=torch.float32)  # 1 where there are any; mean, highest, lowest
    if values.numel():
        own = torch.stack([torch.ones_like(values.mean()), values.mean(), values.max(), values.min()])
    ranks = torch.as_tensor(accelerator.gather(own.float()[None]))
    ranks = ranks[ranks[:, 0] > 0]
    if not len(ranks):
        return {}
    return {
        "mean": ranks[:, 1].mean().item(),
        "max": ranks[:, 2].max().item(),
        "min": ranks[:, 3].min().item(),
    }


def joined(
    version: int, completion_ids: Sequence[list[int]], logprobs: Sequence[list[float]]
) -> list[Completion]:
    """Responses whose turns were all sampled with the weights `version`; tools wrote in between."""
    return [
        Completion(ids, values, "stop", ((version, len(ids)),))
        for ids, values in zip(completion_ids, logprobs, strict=True)
    ]


def version_column(host: MarkedHost, sampled: Sequence[Completion], completion_ids: Tensor) -> Tensor:
    """(B, T), -1 where there is no token. Tokens that a tool wrote count as of now."""
    versions = torch.full_like(completion_ids, -1)
    for row, marked in enumerate(marked_versions(sampled)):
        versions[row, : len(marked)] = torch.tensor(marked, device=versions.device)
    return versions


def correct(host: MarkedHost, output: dict[str, Any], mask: Tensor, plan: RolloutPlan, mode: str) -> None:
    """The ratio starts from the trainer's own log-probs; their distance to the sampling ones becomes a weight."""
    old = output.get("old_per_token_logps")
    if old is None:
        wanted = Wanted(rows_at_once=host.args.per_device_train_batch_size)
        with torch.no_grad():
            old = host.scorer.score(host.model, Rows.of_buffer(output), wanted).logprobs
        output["old_per_token_logps"] = old
    sampling = output["sampling_per_token_logps"]
    ratio = importance_ratio(old, sampling, mask, mode, plan.importance_clip_max, plan.importance_clip_min)
    output["importance_sampling_ratio"] = ratio
    difference = (old - sampling).abs()[mask.bool()]
    shown = ratio[mask.bool()] if ratio.size(1) > 1 else ratio.flatten()
    for name, values in (("sampling_logp_difference", difference), ("importance_sampling_ratio", shown)):
        for kind, value in over_ranks(host.accelerator, values).items():
            host._metrics["train"][f"sampling/{name}/{kind}"].append(value)
