"""The account of a rollout with logged answers in it: what TRL has logged of all responses is put right, so that it is
of samples alone, and the logged answers get numbers of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from trl.trainer.utils import nanstd

from posttrain.objectives.base import Groups
from posttrain.rollout.logged import LOGGED
from posttrain.trainers.engines.rollouts import Rollouts
from posttrain.trainers.engines.scored_rollout import Rollout


class AccountHost(Protocol):
    """What the account reads of its trainer, and where it leaves it. The names are TRL's."""

    accelerator: Accelerator
    state: Any
    rollouts: Rollouts
    reward_func_names: list[str]
    eos_token_ids: Any
    _tokenizer: Any
    _metrics: Any


def account_logged(host: AccountHost, rollout: Rollout, groups: Groups, output: Mapping[str, Any]) -> None:
    """Of a rollout of all ranks that TRL has just logged; `output` is this rank's share. Does nothing where the run
    puts no logged answers into its groups."""
    if rollout.given is None or groups.logged is None or host.rollouts.logged is None:
        return
    metrics = host._metrics["train"]
    given = groups.logged.reshape(-1)
    prompts = gather_object(output["prompt_mask"].sum(1).tolist())
    unread = sum(
        count + len(ids)
        for count, ids, logged in zip(prompts, rollout.completion_ids, rollout.given, strict=True)
        if logged
    )
    host.state.num_input_tokens_seen -= unread
    metrics["num_tokens"] = [host.state.num_input_tokens_seen]
    sampled = [ids for ids, logged in zip(rollout.completion_ids, rollout.given, strict=True) if not logged]
    stopped = {*host.eos_token_ids, host._tokenizer.pad_token_id}
    _put_right(metrics, lengths_of(sampled, stopped))
    rewards, each = groups.rewards.reshape(-1), rollout.rewards_per_function
    _put_right(metrics, {"reward": _mean(rewards[~given]), "reward_std": float(nanstd(rewards[~given]))})
    for k, name in enumerate(host.reward_func_names):
        of_samples = each[~given, k]
        moments = {"mean": _mean(of_samples), "std": float(nanstd(of_samples))}
        _put_right(metrics, {f"rewards/{name}/{kind}": value for kind, value in moments.items()})
    for name, value in numbers_of(rollout, groups, host.rollouts.logged.places).items():
        metrics[LOGGED + name].append(value)


def lengths_of(responses: Sequence[Sequence[int]], ends: set[int]) -> dict[str, float]:
    """TRL's metrics of the lengths of some responses; of those that end with one of `ends` by themselves too."""
    ended = [len(ids) for ids in responses if ids[-1] in ends]
    found = {"completions/clipped_ratio": 1 - len(ended) / len(responses)}
    for kind, lengths in (("length", [len(ids) for ids in responses]), ("terminated_length", ended or [0])):
        found[f"completions/mean_{kind}"] = sum(lengths) / len(lengths)
        found[f"completions/min_{kind}"] = float(min(lengths))
        found[f"completions/max_{kind}"] = float(max(lengths))
    return found


def numbers_of(rollout: Rollout, groups: Groups, places: int) -> dict[str, float]:
    """Of the logged answers: their share of the responses, the share of the places they might take, their mean reward
    and length, and the share that the first reward calls right where it says right or wrong."""
    if groups.logged is None:
        return {}
    given = groups.logged.reshape(-1)
    count, most = int(given.sum()), groups.logged.size(0) * places
    found = {"response_share": count / given.numel(), "filled": count / most}
    if not count:
        return found
    lengths = [len(ids) for ids, logged in zip(rollout.completion_ids, given.tolist(), strict=True) if logged]
    found |= {"reward": _mean(groups.rewards.reshape(-1)[given]), "mean_length": sum(lengths) / count}
    first = rollout.rewards_per_function[given, 0]
    first = first[~first.isnan()]
    if first.numel() and bool(((first == 0) | (first == 1)).all()):
        found["accuracy"] = first.mean().item()
    return found


def _put_right(metrics: Any, values: Mapping[str, float]) -> None:
    """TRL appends one number a rollout: the last is replaced."""
    for name, value in values.items():
        metrics[name][-1] = value


def _mean(values: Tensor) -> float:
    return float(torch.nanmean(values))
