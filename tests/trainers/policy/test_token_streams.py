"""An objective whose advantages and further streams differ from token to token."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from letter_rewards import by_letters
from pydantic.dataclasses import dataclass
from tiny_run import arguments, rows
from torch import Tensor
from torch.testing import assert_close

from posttrain.objectives.base import Groups, Objective, StepTotals, TokenBatch
from posttrain.observe.recorder import load_record
from posttrain.observe.replay import replay_step
from posttrain.ops.reduce import per_token
from posttrain.trainers.policy.trainer import PolicyTrainer
from posttrain.trainers.seam.config import PolicyConfig


@dataclass(frozen=True)
class LaterTokensCount(Objective):
    """Token t of n has the reward times t/n as its advantage, and a weight of 1/t."""

    def advantages(self, groups: Groups) -> dict[str, Tensor]:
        assert groups.lengths is not None
        longest = int(groups.lengths.max())
        place = torch.arange(1, longest + 1).float()
        inside = place <= groups.lengths.unsqueeze(2)
        share = place / groups.lengths.clamp(min=1).unsqueeze(2)
        return {
            "advantages": groups.rewards.unsqueeze(2) * share * inside,
            "weight": (1 / place).expand_as(share) * inside,
            "reward": groups.rewards,
        }

    def token_loss(self, batch: TokenBatch) -> Tensor:
        assert batch.streams["reward"].shape == (len(batch.mask), 1)
        return -batch.advantages * batch.streams["weight"] * batch.logprobs

    def reduce(self, losses: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:
        return per_token(losses, mask, totals.num_tokens)


@pytest.mark.parametrize("parts", [1, 3])
def test_a_loss_by_hand_from_streams_per_token(tiny_model, tokenizer, tmp_path, parts):
    seen: list[tuple[dict[str, Any], TokenBatch]] = []

    class Spied(PolicyTrainer):
        def _read(self, model: Any, inputs: Any) -> Any:
            found = super()._read(model, inputs)
            seen.append((dict(inputs), found[0]))
            return found

        def _generate_single_turn(self, *arguments: Any, **named: Any) -> Any:
            sampled, logprobs = super()._generate_single_turn(*arguments, **named)
            return [ids[: 2 + 5 * i % 9] for i, ids in enumerate(sampled)], logprobs  # ragged

    settings = {"per_device_train_batch_size": 12 // parts, "gradient_accumulation_steps": parts}
    trainer = Spied(
        copy.deepcopy(tiny_model),
        by_letters,
        PolicyConfig(
            **arguments(tmp_path / "run" / "checkpoints", max_steps=1, record_steps=[1], **settings)
        ),
        rows(24),
        processing_class=tokenizer,
        objective=LaterTokensCount(),
    )
    trainer.train()
    rollout = trainer.rollout
    assert rollout is not None
    assert len({len(ids) for ids in rollout.completion_ids}) > 1
    total, tokens = 0.0, 0
    for inputs, batch in seen:
        for i, place in enumerate(inputs["row"].tolist()):
            n = len(rollout.completion_ids[place])
            reward = rollout.rewards_per_function[place, 0].item()
            for t in range(n):
                total -= reward * (t + 1) / n / (t + 1) * batch.logprobs[i, t].item()
            tokens += n
    (logged,) = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx(total / tokens, rel=1e-5)
    moved = [
        not torch.equal(a, b)
        for a, b in zip(trainer.model.parameters(), tiny_model.parameters(), strict=True)
    ]
    assert any(moved)
    means = [
        sum(reward * (t + 1) / n for t in range(n)) / n
        for reward, n in zip(
            rollout.rewards_per_function[:, 0].tolist(), map(len, rollout.completion_ids), strict=True
        )
    ]
    assert rollout.advantages == pytest.approx(means, rel=1e-5)  # what is logged for a response

    again = replay_step(load_record(tmp_path / "run" / "records"), LaterTokensCount(), "again")
    assert_close(again.loss, logged, rtol=1e-5, atol=1e-7)
