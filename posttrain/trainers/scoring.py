"""Rewards of a rollout: whole groups, in processes of their own, the same result on every rank.

TRL hands a reward function only the slice of its rank, so a group that straddles ranks is judged in pieces. Here
the responses of all ranks are brought together, each rank scores some of the *groups*, and every rank learns all
scores. A failure on one rank is raised on all of them, so that none waits for ever.
"""

# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false
# Upstream annotates its trainers more widely than what their attributes hold once they are built.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from posttrain.objectives.base import Groups
from posttrain.rewards.runner import RewardError, RewardRunner, Scores
from posttrain.trainers.config import PolicyConfig

RewardLike = Callable[..., Any] | str


@dataclass
class Rollout:
    """The rollout all ranks have just scored, in global order (a group's G responses are neighbours)."""

    prompts: list[Any]
    completions: list[str]
    completion_ids: list[list[int]]
    columns: dict[str, list[Any]]
    rewards_per_function: Tensor  # (B, K), NaN = not judged
    answers: list[str | None] | None
    counts: dict[str, dict[str, int]]
    advantages: list[float] | None = None
    weight_versions: list[int] | None = None  # the latest weights a response was sampled with, where known


class GroupScoring:
    """Mixin before `trl.GRPOTrainer`: replaces how rewards are computed."""

    _runner: RewardRunner | None = None
    rollout: Rollout | None = None

    def _prepare_rewards(self, reward_funcs: Any, args: PolicyConfig) -> list[Any]:
        """What TRL's constructor gets: reward models as they are, functions as named stand-ins it never calls."""
        funcs = (
            reward_funcs if isinstance(reward_funcs, list) else [] if reward_funcs is None else [reward_funcs]
        )
        if isinstance(reward_funcs, RewardRunner):
            self._runner = reward_funcs
            return [_stand_in(name) for name in self._runner.names]
        models = [f for f in funcs if isinstance(f, nn.Module)]
        if models and len(models) < len(funcs):
            raise ValueError(
                "reward models and reward functions cannot be mixed in one trainer; pass one kind"
            )
        if models or not funcs:
            return funcs
        self._runner = RewardRunner(
            funcs, timeout_s=args.reward_timeout_s, on_error=args.reward_on_error, workers=args.reward_workers
        )
        return [_stand_in(name) for name in self._runner.names]

    def _calculate_rewards(
        self,
        inputs: list[dict[str, Any]],
        prompts: list[Any],
        completions: list[Any],
        completion_ids_list: list[Any],
    ) -> Tensor:
        """Replaces TRL's per-rank call. (B, K) over all ranks, NaN where a response could not be judged."""
        training = self.model.training
        group_size = self.num_generations if training else self.num_generations_eval
        columns = [key for key in inputs[0] if key not in ("prompt", "completion", "completion_ids")]
        local = [
            {
                "prompt": prompt,
                "completion": as_text(completion),
                "ids": list(ids),
                "columns": {key: row[key] for key in columns},
            }
            for row, prompt, completion, ids in zip(
                inputs, prompts, completions, completion_ids_list, strict=True
            )
        ]
        rows = gather_object(local)
        if self._runner is None:  # reward models and environments judge single responses: TRL's own way
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
            scores = Scores(values=rewards.tolist(), answers=None, counts={})
        else:
            scores = self._score_groups(rows, columns, group_size)
            rewards = _as_tensor(scores.values, self.accelerator.device)
        self.rollout = Rollout(
            prompts=[row["prompt"] for row in rows],
            completions=[row["completion"] for row in rows],
            completion_ids=[row["ids"] for row in rows],
            columns={key: [row["columns"][key] for row in rows] for key in columns},
            rewards_per_function=rewards,
            answers=scores.answers,
            counts=scores.counts,
        )
        metrics = self._metrics["train" if training else "eval"]
        for name, reasons in scores.counts.items():
            for reason, count in reasons.items():
                metrics[f"reward_failures/{name}/{reason}"].append(float(count))
        first = rewards[:, 0][~rewards[:, 0].isnan()]
        if first.numel() and bool(((first == 0) | (first == 1)).all()):  # right or wrong, nothing between
            metrics["accuracy"].append(first.mean().item())
        return rewards

    def _score_groups(
        self, rows: Sequence[dict[str, Any]], columns: Sequence[str], group_size: int
    ) -> Scores:
        """This rank scores every `num_processes`-th group; then all ranks put the scores together."""
        if self._runner is None:
            raise RuntimeError("GroupScoring: no reward function to call")
        accelerator = self.accelerator
        groups = [list(range(start, start + group_size)) for start in range(0, len(rows), group_size)]
        mine = groups[accelerator.process_index :: accelerator.num_processes]
        picked = [rows[i] for group in mine for i in group]
        failure, scores = None, Scores(values=[], answers=None, counts={})
        try:
            scores = self._runner.score(
                [row["completion"] for row in picked],
                columns={
                    "prompts": [row["prompt"] for row in picked],
                    "completion_ids": [row["ids"] for row in picked],
                    **{key: [row["columns"][key] for row in picked] for key in columns},
                },
                group_size=group_size,
            )
        except Exception as error:  # any failure of a reward must reach the other ranks before it is raised
            failure = error
        failures = gather_object([None if failure is None else str(failure) or type(failure).__name__])
        if failure is not None:
            raise failure
        elsewhere = [(rank, message) for rank, message in enumerate(failures) if message is not None]
        if elsewhere:
            rank, message = elsewhere[0]
            raise RewardError(f"on rank {rank}: {message}")
        return _in_order(gather_object([(mine, scores)]), len(rows))

    def scored_groups(self, group_size: int) -> Groups:
        """The last rollout as the objective wants it: (P, G) rewards over all ranks."""
        if self.rollout is None:
            raise RuntimeError("GroupScoring: no rollout has been scored yet")
        per_function = self.rollout.rewards_per_function
        weights = self.reward_weights.to(per_function)
        total = (per_function * weights).nansum(dim=1)
        total[per_function.isnan().all(dim=1)] = torch.nan
        answers = self.rollout.answers
        return Groups(
            rewards=total.view(-1, group_size),
            rewards_per_function=per_function.view(-1, group_size, per_function.size(1)),
            weights=weights,
            answers=None
            if answers is None
            else [answers[i : i + group_size] for i in range(0, len(answers), group_size)],
        )

    def record_advantages(self, advantages: Tensor) -> None:
        """Puts the objective's advantages where TRL's were logged, and beside the rollout."""
        values = advantages.tolist()
        if self.rollout is not None:
            self.rollout.advantages = values
        logged = self._logs["advantages"]
        for _ in range(min(len(values), len(logged))):
            logged.pop()
        logged.extend(values)


def as_text(completion: Any) -> str:
    """A completion as the text a reward reads: of a conversation, the assistant's messages."""
    if isinstance(completion, str):
        return completion
    return "".join(
        _content_text(message["content"]) for message in completion if message["role"] == "assistant"
    )


def _content_text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(block["text"] for block in content if block["type"] == "text")


def _as_tensor(values: Sequence[Sequence[float | None]], device: torch.device) -> Tensor:
    rows = [[torch.nan if value is None else float(value) for value in row] for row in values]
    return torch.tensor(rows, dtype=torch.float32, device=device)


def _in_order(parts: Sequence[tuple[list[list[int]], Scores]], size: int) -> Scores:
    """Puts the ranks' scores back into the global order of the responses."""
    values: list[list[float | None]] = [[] for _ in range(size)]
    answers: list[str | None] = [None] * size
    has_answers = any(scores.answers is not None for _, scores in parts)
    counts: dict[str, dict[str, int]] = {}
    for groups, scores in parts:
        indices = [i for group in groups for i in group]
        for position, index in enumerate(indices):
            values[index] = list(scores.values[position])
            if scores.answers is not None:
                answers[index] = scores.answers[position]
        for name, reasons in scores.counts.items():
            total = counts.setdefault(name, {})
            for reason, count in reasons.items():
                total[reason] = total.get(reason, 0) + count
    return Scores(values=values, answers=answers if has_answers else None, counts=counts)


def _stand_in(name: str) -> Callable[..., Any]:
    def scored_in_its_own_process(**_: Any) -> list[float]:
        raise RuntimeError(f"reward {name!r} is scored by the RewardRunner, not called here")

    scored_in_its_own_process.__name__ = name
    return scored_in_its_own_process
