"""The vocabulary of the policy losses, by hand: log-probs, ratios, surrogates, reductions, KL, group
advantages."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from posttrain.ops.groups import (
    batch_scaled,
    degenerate_groups,
    group_centered,
    group_zscore,
    nan_std,
    scaled_advantages,
)
from posttrain.ops.kl import k1, k3
from posttrain.ops.logprobs import largest, token_entropy, token_logprobs, top_candidates
from posttrain.ops.ratio import sequence_ratio, token_ratio
from posttrain.ops.reduce import per_constant, per_response, per_response_sum, per_token
from posttrain.ops.surrogate import clipped_surrogate, clipped_weight_loss, dual_clip, importance_surrogate

NAN = float("nan")


def test_logprobs_and_entropy_by_hand():
    logits = tensor([[math.log(1.0), math.log(2.0), math.log(5.0)]])
    assert_close(token_logprobs(logits, tensor([1])), tensor([math.log(0.25)]))
    expected = -(0.125 * math.log(0.125) + 0.25 * math.log(0.25) + 0.625 * math.log(0.625))
    assert_close(token_entropy(logits), tensor([expected]))


def test_logprobs_leave_bfloat16_before_the_sum():
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)).bfloat16() * 8
    ids = tensor([0, 1, 2, 3])
    exact = logits.double().log_softmax(-1)[tensor([0, 1, 2, 3]), ids]
    found = token_logprobs(logits, ids)
    assert found.dtype == torch.float32
    assert_close(found.double(), exact, rtol=1e-6, atol=1e-5)


def test_a_banned_token_adds_nothing_to_the_entropy():
    assert_close(token_entropy(tensor([[0.0, 0.0, -math.inf]])), tensor([math.log(2.0)]))


def test_candidates_are_the_most_likely_and_the_sampled_one():
    logits = tensor([[1.0, 5.0, 3.0, 4.0], [9.0, 1.0, 2.0, 3.0]])
    ids, values = top_candidates(logits, tensor([0, 3]), 2)
    assert ids.tolist() == [[1, 0], [0, 3]]  # row 0: the sampled id 0 ranks last and takes the place of id 3
    assert values.tolist() == [[5.0, 1.0], [9.0, 3.0]]
    ids, _ = top_candidates(logits, tensor([0, 3]), 50)
    assert ids.shape == (2, 4)
    with pytest.raises(ValueError, match="at least 1"):
        top_candidates(logits, tensor([0, 3]), 0)


def test_ratios_by_hand():
    new, old = tensor([[-1.0, -2.0, -3.0]]), tensor([[-1.5, -2.0, -1.0]])
    assert_close(token_ratio(new, old), tensor([[math.exp(0.5), 1.0, math.exp(-2.0)]]))
    mask = tensor([[1.0, 1.0, 0.0]])
    assert_close(sequence_ratio(new, old, mask), tensor([[math.exp(0.25)]]))
    assert_close(sequence_ratio(new, old, torch.zeros(1, 3)), tensor([[1.0]]))


def test_a_runaway_ratio_stays_finite_and_without_gradient():
    new = tensor([[0.0, 0.5]], requires_grad=True)
    ratio = token_ratio(new, tensor([[-500.0, 0.0]]))
    assert_close(ratio[0, 0].detach(), tensor(math.exp(20.0)))
    ratio.sum().backward()
    assert_close(new.grad, tensor([[0.0, math.exp(0.5)]]))


def test_clip_by_hand():
    ratio = tensor([[1.5, 0.5, 1.1], [1.5, 0.5, 1.1]])
    advantages = tensor([[1.0], [-1.0]])
    expected = tensor([[-1.28, -0.5, -1.1], [1.5, 0.8, 1.1]])
    assert_close(clipped_surrogate(ratio, advantages, 0.8, 1.28), expected)
    as_tensors = clipped_surrogate(ratio, advantages, tensor(0.8).double(), tensor(1.28).double())
    assert as_tensors.dtype == torch.float32
    assert torch.equal(as_tensors, clipped_surrogate(ratio, advantages, 0.8, 1.28))
    assert_close(importance_surrogate(ratio, advantages), tensor([[-1.5, -0.5, -1.1], [1.5, 0.5, 1.1]]))


def test_clip_takes_the_gradient_exactly_outside_its_side():
    ratio = tensor([[1.5, 0.5, 1.1], [1.5, 0.5, 1.1]], requires_grad=True)
    clipped_surrogate(ratio, tensor([[2.0], [-2.0]]), 0.8, 1.28).sum().backward()
    assert_close(ratio.grad, tensor([[0.0, -2.0, -2.0], [2.0, 0.0, 2.0]]))


def test_no_gradient_flows_into_the_bounds():
    bound = tensor(1.28, requires_grad=True)
    losses = clipped_surrogate(tensor([[1.5]], requires_grad=True), tensor([[1.0]]), 0.8, bound)
    losses.sum().backward()
    assert bound.grad is None


def test_dual_clip_caps_only_negative_advantages():
    ratio, advantages = tensor([[5.0, 2.0], [5.0, 2.0]]), tensor([[-1.0], [1.0]])
    losses = clipped_surrogate(ratio, advantages, 0.8, 1.2)
    assert_close(losses, tensor([[5.0, 2.0], [-1.2, -1.2]]))
    assert_close(dual_clip(losses, advantages, 3.0), tensor([[3.0, 2.0], [-1.2, -1.2]]))


def test_cispo_weight_is_capped_and_constant():
    ratio = tensor([[7.0, 0.5]], requires_grad=True)
    logprobs = tensor([[-1.0, -2.0]], requires_grad=True)
    losses = clipped_weight_loss(ratio, logprobs, tensor([[2.0]]), 5.0)
    assert_close(losses, tensor([[10.0, 2.0]]))
    losses.sum().backward()
    assert ratio.grad is None
    assert_close(logprobs.grad, tensor([[-10.0, -1.0]]))


def test_reductions_by_hand():
    losses = tensor([[1.0, 2.0, 4.0], [8.0, 5.0, 5.0]])
    mask = tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    assert_close(per_token(losses, mask, tensor(4.0)), tensor(15 / 4))
    assert_close(per_response(losses, mask, tensor(2.0)), tensor((7 / 3 + 8) / 2))
    assert_close(per_response_sum(losses, mask, tensor(2.0)), tensor(15 / 2))
    assert_close(per_constant(losses, mask, tensor(2.0), 10), tensor(15 / 20))
    assert_close(per_response(tensor([[1.0], [3.0]]), mask, tensor(2.0)), tensor(2.0))


def test_reductions_of_nothing_are_zero():
    losses, mask, nothing = torch.ones(2, 3), torch.zeros(2, 3), tensor(0.0)
    assert per_token(losses, mask, nothing) == 0
    assert per_response(losses, mask, nothing) == 0


def test_kl_by_hand():
    logprobs, ref = tensor([[-1.0, -2.0]]), tensor([[-1.5, -1.0]])
    assert_close(k1(logprobs, ref), tensor([[0.5, -1.0]]))
    assert_close(k3(logprobs, ref), tensor([[math.exp(-0.5) + 0.5 - 1, math.exp(1.0) - 2.0]]))


def test_group_advantages_by_hand():
    rewards = tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    std = math.sqrt((0.75**2 + 3 * 0.25**2) / 3)
    expected = tensor([[0.75, -0.25, -0.25, -0.25], [0.0, 0.0, 0.0, 0.0]])
    assert_close(group_centered(rewards), expected)
    assert_close(group_zscore(rewards), expected / (std + 1e-4))
    assert_close(batch_scaled(rewards), expected / (rewards.std() + 1e-4))
    for scale, function in (("group", group_zscore), ("batch", batch_scaled), ("none", group_centered)):
        assert torch.equal(scaled_advantages(rewards, scale), function(rewards))


def test_unjudged_responses_enter_no_statistic_and_get_zero():
    rewards = tensor([[1.0, NAN, 0.0], [NAN, NAN, NAN], [0.5, NAN, NAN]])
    std = math.sqrt(0.5)
    assert_close(group_zscore(rewards)[0], tensor([0.5, 0.0, -0.5]) / (std + 1e-4))
    assert torch.equal(group_zscore(rewards)[1:], torch.zeros(2, 3))
    assert_close(nan_std(rewards), tensor([1.0, 0.0, 0.5]).std())
    assert_close(batch_scaled(rewards)[0, 0], 0.5 / (tensor([1.0, 0.0, 0.5]).std() + 1e-4))


def test_an_infinite_reward_does_not_vanish():
    advantages = group_centered(tensor([[float("inf"), 0.0, 1.0]]))
    assert not torch.isfinite(advantages).any()


def test_degenerate_groups():
    rewards = tensor([[1.0, 1.0], [1.0, 0.0], [NAN, 1.0], [NAN, NAN]])
    assert degenerate_groups(rewards).tolist() == [True, False, True, True]


@pytest.mark.parametrize("vocabulary", [32 * 20 * 4, 32 * 20 * 4 + 17, 5000])
def test_largest_is_topk_in_long_rows(vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    values = torch.randn(6, vocabulary, generator=generator)
    values[0, -3:] = 9.0 + torch.arange(3)  # in the rest that fills no block
    values[1, 64:96] = 9.0 + torch.arange(32)  # more in one block than any other has
    values[2, 100:] = -float("inf")
    found, ids = largest(values, 20)
    expected = values.topk(20, dim=1)
    assert torch.equal(found, expected.values)
    assert torch.equal(ids, expected.indices)
    assert torch.equal(values.gather(1, ids), found)


def test_largest_where_there_are_fewer_blocks_than_wanted():
    values = torch.randn(3, 32 * 6 + 5, generator=torch.Generator().manual_seed(0))
    found, ids = largest(values, 50)
    expected = values.topk(50, dim=1)
    assert torch.equal(found, expected.values)
    assert torch.equal(values.gather(1, ids), found)
