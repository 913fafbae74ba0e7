"""The KL coefficient of each prompt: by how often the policy solves it, by the reference's entropy or by a balance
model (`beta_by`), or the one its prefix says (`beta_family`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from posttrain.objectives.base import Groups, Objective
from posttrain.objectives.logged_rows import sampled_rewards
from posttrain.ops.balance import balance_factors, pass_rates, quantiles
from posttrain.ops.balance_model import BalanceModel
from posttrain.trainers.forward.base import Rows, Scorer, Wanted
from posttrain.trainers.forward.padded import loss_mask
from posttrain.trainers.policy.family_rollout import FamilyRollout


class BalancedHost(Protocol):
    """What the balance reads of its trainer. The names are TRL's, but for `scorer` and `objective`."""

    accelerator: Accelerator
    args: Any
    beta: float
    ref_model: Any
    scorer: Scorer
    objective: Objective
    family: FamilyRollout
    _metrics: Any


def add_balance(host: BalancedHost, groups: Groups, output: dict[str, Any]) -> None:
    """Adds "beta_factor" (B,) to this rank's share of a rollout where the run has `beta_by`, and logs the coefficients.
    Raises ValueError where the reference cannot be asked."""
    args = host.args
    if args.beta_by is None and args.beta_family is None:
        return
    if host.objective.kl_in_reward:
        key = "beta_by" if args.beta_by is not None else "beta_family"
        raise ValueError(
            f"{key} is of a penalty in the loss, and {type(host.objective).__name__} has none there"
        )
    if args.beta_family is not None:
        own = host.family.factors(host.beta, output)
        host.family.account("train")
        factors = torch.as_tensor(host.accelerator.gather(own))
        output["beta_factor"] = own.to(groups.rewards)
    else:
        with torch.no_grad():
            factors = balance_factors(signals_of(host, groups, output), args.beta_low, args.beta_high)
        output["beta_factor"] = factors.to(groups.rewards)[output["group"]]
    for name, value in (("mean", factors.mean()), ("min", factors.min()), ("max", factors.max())):
        host._metrics["train"][f"beta/{name}"].append(host.beta * float(value))


def signals_of(host: BalancedHost, groups: Groups, output: dict[str, Any]) -> Tensor:
    """What the coefficient of each prompt follows, within [0, 1]; NaN: nothing is known. (P,)."""
    args = host.args
    if args.beta_by == "pass_rate":
        return pass_rates(sampled_rewards(groups))
    if args.beta_by == "reference_entropy":
        return quantiles(reference_entropy(host, groups, output))
    model = read_balance(args.beta_model)
    columns: dict[str, Callable[[], Tensor]] = {
        "length": lambda: prompt_lengths(host, groups, output),
        "reference_entropy": lambda: reference_entropy(host, groups, output),
        "pass_rate": lambda: pass_rates(sampled_rewards(groups)),
    }
    features = torch.stack([columns[name]().double().cpu() for name in model.features], dim=1)
    return model.signals(features).to(groups.rewards)


def read_balance(path: Any) -> BalanceModel:
    """The balance model of a file that `posttrain eval balance` wrote. Raises ValueError where it holds none."""
    try:
        plain = json.loads(Path(path).read_text(encoding="utf-8"))
        return BalanceModel.from_plain(plain.get("model", plain))
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"beta_model: {path} holds no balance model ({error})") from None


def prompt_lengths(host: BalancedHost, groups: Groups, output: dict[str, Any]) -> Tensor:
    """Tokens of each prompt. (P,)."""
    lengths = torch.as_tensor(host.accelerator.gather(output["prompt_mask"].sum(1)))
    return lengths.view(groups.rewards.shape)[:, 0]


def reference_entropy(host: BalancedHost, groups: Groups, output: dict[str, Any]) -> Tensor:
    """Entropy in nats of the reference, mean over the loss tokens of each prompt's responses. (P,)."""
    if host.ref_model is None:
        raise ValueError(
            f"beta_by: {host.args.beta_by} asks the reference, and an adapter's is its own base, which is not held by "
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
