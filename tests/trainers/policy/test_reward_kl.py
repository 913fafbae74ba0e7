"""A KL penalty that belongs to the reward: a rollout's log-ratios reach the advantages, and the loss has no term."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_run import arguments, judged, rows
from torch.testing import assert_close

from posttrain.objectives.base import TokenBatch
from posttrain.objectives.reinforce_pp import REINFORCEPlusPlus, batch_normalised
from posttrain.observe.recorder import load_record
from posttrain.trainers.forward.base import Rows
from posttrain.trainers.policy.bindings import REINFORCEPlusPlusConfig, REINFORCEPlusPlusTrainer
from posttrain.trainers.policy.policy_step import PolicyStep


@pytest.mark.parametrize("reused", [False, True])
def test_advantages_are_those_of_the_log_ratios(tiny_model, tokenizer, tmp_path, reused):
    """On fresh samples TRL keeps no log-probs of the policy, on reused ones it does."""
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for weights in other.parameters():
            weights.add_(0.05 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(0)))
    seen: list[Any] = []

    class Spied(REINFORCEPlusPlusTrainer):
        def _add_advantages(self, output: dict[str, Any], count: int) -> None:
            super()._add_advantages(output, count)
            with torch.no_grad():
                mine, its = (
                    self.scorer.score(one, Rows.of_buffer(output)).logprobs
                    for one in (self.model, self.ref_model)
                )
            seen.append((dict(output), mine - its, self.judge.groups(4)))

    args = REINFORCEPlusPlusConfig(
        **arguments(
            tmp_path / "run", beta=0.2, max_steps=1, num_iterations=2 if reused else 1, record_steps=[1]
        )
    )
    trainer = Spied(tiny_model, judged, args, rows(), processing_class=tokenizer, ref_model=other)
    trainer.train()
    output, kl, groups = seen[0]
    assert ("old_per_token_logps" in output) == reused
    mask = output["completion_mask"]
    kl = kl * mask
    assert kl.abs().max() > 0.01
    returns = groups.rewards.reshape(-1, 1) - 0.2 * kl.flip(1).cumsum(1).flip(1)
    assert_close(output["advantages"], batch_normalised(returns, mask) * mask, rtol=1e-4, atol=1e-5)
    record = load_record(next((tmp_path / "records").glob("*.safetensors")))
    assert record.groups is not None
    assert record.groups.token_kl is not None
    assert_close(record.groups.token_kl.flatten(0, 1), kl, rtol=1e-4, atol=1e-5)
    assert record.groups.beta == 0.2


@pytest.mark.parametrize("baseline", ["none", "group"])
def test_the_loss_has_the_term_only_where_the_reward_has_not(baseline):
    logprobs = torch.tensor([[-1.0, -2.0]])
    batch = TokenBatch(logprobs, logprobs, torch.ones(1, 2), torch.ones(1, 1), ref_logprobs=logprobs - 0.5)
    host = SimpleNamespace(beta=0.5, args=SimpleNamespace(use_bias_correction_kl=False))
    step: Any = SimpleNamespace(host=host, objective=REINFORCEPlusPlus(baseline=baseline))
    kls: list[torch.Tensor] = []
    found = PolicyStep._with_terms(step, batch, torch.zeros(1, 2), None, kls, {})
    kl = torch.full((1, 2), 0.5).exp().reciprocal() + 0.5 - 1  # e^d - d - 1 with d = -1/2
    assert_close(kls[0], kl)
    assert_close(found, kl * (0.5 if baseline == "group" else 0.0))
