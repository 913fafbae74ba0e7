"""Pass rates of rows: a policy trainer's own rollout and judge, on rows that are not trained on.

The loop is that of held-out prompts (`prediction_step`), so engines, tools, environments and rewards are those of
training; the config says that held-out prompts are sampled as training's are (`eval_temperature`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from posttrain.data.measured_rows import MeasuredBatch, RowRate
from posttrain.recipe.errors import suggest
from posttrain.trainers.engines.scored_rollout import Rollout
from posttrain.trainers.policy.trainer import PolicyTrainer

_SLACK = 1e-6
"""Relative; a sum of weighted rewards is float32, and .8 + .2 must reach 1."""


class PassRates:
    """Samples `num_generations_eval` responses a row with the weights as they are, and judges them.

    pass_at  a response passes with a reward of at least this
    reward   name of the one reward that decides; None: the weighted sum, as training has it
    Raises ValueError where there is no reward of that name.
    """

    def __init__(self, trainer: PolicyTrainer, *, pass_at: float = 1.0, reward: str | None = None) -> None:
        names = list(trainer.reward_func_names)
        if reward is not None and reward not in names:
            near = suggest(reward, names) or f"; the rewards are {', '.join(names)}"
            raise ValueError(f"no reward {reward!r}{near}")
        self.trainer, self.pass_at = trainer, pass_at
        self.reward = None if reward is None else names.index(reward)
        host: Any = trainer
        host.model.eval()
        host.model_wrapped = host.accelerator.prepare_model(host.model, evaluation_mode=True)

    def measure(
        self, rows: Sequence[Mapping[str, Any]], numbers: Sequence[int], *, seed: int
    ) -> MeasuredBatch:
        """The rates of these rows of the trainer's data set. The seed, and the rows that are sampled together, decide
        the responses: the same of both gives the same rates. Raises what a rollout raises."""
        host: Any = self.trainer
        begin = time.perf_counter()
        scored = self.sampled(rows, seed=seed)
        rewards = self.rewards(scored)
        rates = [self._rate(number, group) for number, group in zip(numbers, rewards.tolist(), strict=True)]
        ends, ids = set(host.eos_token_ids), scored.completion_ids
        return MeasuredBatch(
            rates,
            responses=rewards.numel(),
            unjudged=int(rewards.isnan().sum()),
            cut=sum(not one or one[-1] not in ends for one in ids),
            tokens=sum(scored.written if scored.written is not None else map(len, ids)),
            seconds=time.perf_counter() - begin,
        )

    def sampled(self, rows: Sequence[Mapping[str, Any]], *, seed: int) -> Rollout:
        """The responses to these rows, a row's beside each other, with their rewards."""
        host: Any = self.trainer
        host.args.seed = seed
        set_seed(seed % 2**32)
        host.held_out = []
        with torch.no_grad():
            host.prediction_step(
                host.model, [dict(row) for row in rows for _ in range(host.num_generations_eval)], True
            )
        host._metrics["eval"].clear()  # nobody logs them
        (scored,) = host.held_out
        return scored

    def rewards(self, scored: Rollout) -> Tensor:
        """(rows, samples), NaN where a response was not judged."""
        host: Any = self.trainer
        groups = self.trainer.judge.groups(host.num_generations_eval, scored)
        return groups.rewards if self.reward is None else groups.rewards_per_function[..., self.reward]

    def _rate(self, number: int, rewards: Sequence[float]) -> RowRate:
        judged = [value for value in rewards if value == value]
        if not judged:
            return RowRate(number, None, None, 0)
        least = self.pass_at - _SLACK * max(1.0, abs(self.pass_at))
        passed = sum(value >= least for value in judged)
        mean = float(f"{sum(judged) / len(judged):.6g}")  # what float32 holds of it
        return RowRate(number, passed / len(judged), mean, len(judged))
