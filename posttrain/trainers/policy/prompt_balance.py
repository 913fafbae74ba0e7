"""The KL coefficient of each prompt (`beta_by`): by how often the policy solves it, or by the reference's entropy."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from posttrain.objectives.base import Groups, Objective
from posttrain.objectives.logged_rows import sampled_rewards
from posttrain.ops.balance import balance_factors, pass_rates, quantiles
from posttrain.trainers.forward.base import Rows, Scorer, Wanted
from posttrain.trainers.forward.padded import loss_mask


class BalancedHost(Protocol):
    """What the balance reads of its trainer. The names are TRL's, but for `scorer` and `objective`."""

    accelerator: Accelerator
    args: Any
    beta: float
    ref_model: Any
    scorer: Scorer
    objective: Objective
    _metrics: Any


def add_balance(host: BalancedHost, groups: Groups, output: dict[str, Any]) -> None:
    """Adds "beta_factor" (B,) to this rank's share of a rollout where the run has `beta_by`, and logs the coefficients.
    Raises ValueError where the reference cannot be asked."""
    args = host.args
    if args.beta_by is None:
        return
    if host.objective.kl_in_reward:
        raise ValueError(
            f"beta_by is of a penalty in the loss, and {type(host.objective).__name__} has none there"
        )
    with torch.no_grad():
        if args.beta_by == "pass_rate":
            signals = pass_rates(sampled_rewards(groups))
        else:
            signals = quantiles(reference_entropy(host, groups, output))
        factors = balance_factors(signals, args.beta_low, args.beta_high)
    for name, value in (("mean", factors.mean()), ("min", factors.min()), ("max", factors.max())):
        host._metrics["train"][f"beta/{name}"].append(host.beta * float(value))
    output["beta_factor"] = factors.to(groups.rewards)[output["group"]]


def reference_entropy(host: BalancedHost, groups: Groups, output: dict[str, Any]) -> Tensor:
    """Entropy in nats of the reference, mean over the loss tokens of each prompt's responses. (P,)."""
    if host.ref_model is None:
        raise ValueError(
            "beta_by: reference_entropy asks the reference, and an adapter's is its own base, which is not held by "
            "itself; take beta_by: pass_rate"
        )
    wanted = Wanted(entropy=True, rows_at_once=host.args.per_device_train_batch_size)
    entropy = host.scorer.score(host.ref_model, Rows.of_buffer(output), wanted).entropy
    if entropy is None:
        raise RuntimeError(f"{type(host.scorer).__name__} gave no entropies, which were asked for")
    mask = loss_mask(output).to(entropy)
    sums = torch.stack([(entropy * mask).sum(1), mask.sum(1)], dim=1)
    whole = torch.as_tensor(host.accelerator.gather(sums)).view(*groups.rewards.shape, 2).sum(1)
    return whole[:, 0] / whole[:, 1].clamp(min=1.0)
