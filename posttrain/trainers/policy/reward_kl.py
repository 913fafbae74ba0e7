"""What other models say about each sampled token: the reference, for a penalty on the rewards or a loss on pairs, and
the teacher in distillation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from posttrain.objectives.base import Groups
from posttrain.ops.kl import k1
from posttrain.trainers.forward.base import Rows, Scorer, Wanted
from posttrain.trainers.forward.padded import loss_mask


class PenaltyHost(Protocol):
    """What the penalty reads of its trainer. The names are TRL's, but for `scorer`."""

    accelerator: Accelerator
    args: Any
    beta: float
    model: Any
    scorer: Scorer


@torch.no_grad()
def with_token_kl(
    host: PenaltyHost, groups: Groups, output: Mapping[str, Any], *, with_mask: bool = False
) -> Groups:
    """The groups of all ranks with `token_kl` and `beta`, and with `mask` where it is asked for or tools wrote some of
    the tokens; output: this rank's share, as TRL buffers it."""
    # what stands behind the end of a response means nothing, and may be no number
    mask = loss_mask(output).bool()
    sampled = (
        mask if "logged" not in output else mask & ~output["logged"].unsqueeze(1)
    )  # the estimate is of samples
    kl = torch.where(sampled, k1(_old_logprobs(host, output), output["ref_per_token_logps"]), 0.0)
    inside = _of_all(host, groups, mask.to(kl)) if with_mask or groups.written is not None else None
    return replace(groups, token_kl=_of_all(host, groups, kl), beta=host.beta, mask=inside)


@torch.no_grad()
def with_teacher_gap(
    host: PenaltyHost, ask: Callable[[Rows], Tensor], groups: Groups, output: Mapping[str, Any]
) -> Groups:
    """The groups of all ranks with `teacher_gap` and `mask`; output: this rank's share, as TRL buffers it.

    ask  the teacher's log-probs (B, T) of the completions' tokens
    """
    mask = loss_mask(output).bool()
    theirs = ask(Rows.of_buffer(output))
    gap = torch.where(mask, k1(theirs, _old_logprobs(host, output)), 0.0)
    inside = _of_all(host, groups, mask.to(gap))
    return replace(groups, teacher_gap=_of_all(host, groups, gap), mask=inside)


def _old_logprobs(host: PenaltyHost, output: Mapping[str, Any]) -> Tensor:
    """Of the policy that sampled. (B, T). On fresh samples TRL keeps none: they cost a forward pass here."""
    old = output.get("old_per_token_logps")
    if old is not None:
        return old
    wanted = Wanted(rows_at_once=host.args.per_device_train_batch_size)
    return host.scorer.score(host.model, Rows.of_buffer(output), wanted).logprobs


def _of_all(host: PenaltyHost, groups: Groups, values: Tensor) -> Tensor:
    """This rank's (B, T) as (P, G, T) of all ranks."""
    padded = host.accelerator.pad_across_processes(values, dim=1)
    whole = torch.as_tensor(host.accelerator.gather(padded))
    return whole.view(*groups.rewards.shape, whole.size(1))
