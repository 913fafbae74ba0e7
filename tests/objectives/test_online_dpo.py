"""Online DPO: pairs by hand, DPO's own loss, PARL's term against a bilevel reference with its exact Hessian."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_recipe import POLICY, Load
from torch import Tensor, tensor
from torch.func import grad, hessian, jacrev
from torch.testing import assert_close

from posttrain.objectives.base import Groups, TokenBatch
from posttrain.objectives.online_dpo import (
    INDIFFERENT,
    OnlineDPO,
    baselines,
    draw_pairs,
    pair_slope,
    pair_value,
)
from posttrain.objectives.step import step_losses
from posttrain.observe.signal import account_objective
from posttrain.preferences.base import PairBatch
from posttrain.preferences.dpo import DPO

NAN = math.nan
BETA = 0.7
REF = tensor([0.3, 0.3, 0.4], dtype=torch.float64).log()
UTILITIES = tensor([0.0, 1.0, 0.3], dtype=torch.float64)
ALL = torch.ones(2, 5, dtype=torch.bool)


def groups_of(rewards: Tensor, token_kl: Tensor, mask: Tensor | None = None, beta: float = BETA) -> Groups:
    return Groups(rewards, rewards.unsqueeze(-1), torch.ones(1), token_kl=token_kl, beta=beta, mask=mask)


def batch_of(objective: OnlineDPO, groups: Groups, new: Tensor, old: Tensor, mask: Tensor) -> TokenBatch:
    """All responses of the groups as one micro-batch; new, old and mask (P*G, T)."""
    streams = {name: values.reshape(-1, 1) for name, values in objective.advantages(groups).items()}
    return TokenBatch(new, old, mask, streams.pop("advantages"), streams=streams)


def rollout(
    rewards: Tensor, moved: float = 0.3, seed: int = 0
) -> tuple[Groups, Tensor, Tensor, Tensor, Tensor]:
    """Groups with these rewards and random log-probs: (groups, new, old, ref, mask), the latter (P*G, 6)."""
    generator = torch.Generator().manual_seed(seed)
    count = rewards.numel()
    old, ref = (-2 * torch.rand(count, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    new = old + moved * torch.randn(count, 6, generator=generator, dtype=torch.float64)
    mask = (torch.arange(6) < torch.randint(1, 7, (count, 1), generator=generator)).double()
    inside = mask.view(*rewards.shape, 6)
    groups = groups_of(rewards.double(), (old - ref).view_as(inside) * inside, inside)
    return groups, new.requires_grad_(), old, ref, mask


def test_the_best_and_the_worst_by_hand():
    rewards = tensor([[0.5, 2.0, -1.0, 2.0, NAN], [NAN, 1.0, NAN, NAN, NAN]])
    drawn = draw_pairs(rewards, ALL, "best_worst")
    assert drawn.sign.tolist() == [[0, 1, -1, 0, 0], [0, 0, 0, 0, 0]]  # one answer alone is no pair
    assert not drawn.tie.any()
    usable = ALL.clone()
    usable[0, 2] = usable[0, 1] = False  # cut off, so that there is nothing to learn from
    assert draw_pairs(rewards, usable, "best_worst").sign.tolist()[0] == [-1, 0, 0, 1, 0]
    ties = draw_pairs(tensor([[1.0, 1.0, NAN]]), torch.ones(1, 3, dtype=torch.bool), "best_worst")
    assert ties.sign.tolist() == [[0, 0, 0]]
    assert ties.tie.tolist() == [[True, True, False]]


def test_drawn_pairs_are_neighbours_among_those_that_can_be_compared():
    rewards = tensor([[0.0, NAN, 1.0, 3.0, 2.0], [1.0, 1.0, 5.0, 4.0, 9.0]])
    drawn = draw_pairs(rewards, ALL, "drawn")
    assert drawn.sign.tolist() == [[-1, 0, 1, 1, -1], [0, 0, 1, -1, 0]]  # of five the last is left over
    assert drawn.pair.tolist() == [[0, 0, 0, 1, 1], [0, 0, 3, 3, 0]]
    assert drawn.tie.tolist() == [[False] * 5, [True, True, False, False, False]]
    shares = OnlineDPO(pairs="drawn").rollout_metrics(groups_of(rewards, torch.zeros(2, 5, 1)))
    assert shares["paired"] == 3 / 4
    assert shares["ties"] == 1 / 4
    assert shares["reward_gap"] == 1.0


@pytest.mark.parametrize("split", [[12], [1, 4, 7]], ids=["whole", "pairs across micro-batches"])
@pytest.mark.parametrize("pairs", ["best_worst", "drawn"])
def test_on_given_pairs_it_is_dpo(pairs, split):
    """Loss, and the gradient of every token, on samples that the policy has moved away from."""
    rewards = tensor([[0.0, 1.0], [2.0, -1.0], [0.3, 0.2], [5.0, 4.0], [1.0, 0.0], [0.0, 9.0]])
    groups, new, old, ref, mask = rollout(rewards)
    sums, ref_sums = ((values * mask).sum(1).view(6, 2) for values in (new, ref))
    better = rewards.argmax(1, keepdim=True)
    given = PairBatch(
        *(sums.gather(1, one)[:, 0] for one in (better, 1 - better)),
        *(ref_sums.gather(1, one)[:, 0] for one in (better, 1 - better)),
        *(mask.sum(1).view(6, 2).gather(1, one)[:, 0] for one in (better, 1 - better)),
        beta=BETA,
    )
    expected = DPO().pair_loss(given).mean()
    (wanted,) = torch.autograd.grad(expected, new)

    objective = OnlineDPO(pairs=pairs)
    whole = batch_of(objective, groups, new, old, mask)
    parts, first = [], 0
    for size in split:
        rows = slice(first, first + size)
        streams = {name: values[rows] for name, values in whole.streams.items()}
        parts.append(TokenBatch(new[rows], old[rows], mask[rows], whole.advantages[rows], streams=streams))
        first += size
    loss = torch.stack(step_losses(objective, parts, max_completion_length=6).losses).sum()
    (found,) = torch.autograd.grad(loss, new)
    assert_close(loss, expected)
    assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert wanted.abs().max() > 0.01


def test_a_larger_group_is_a_mean_over_groups_and_the_rest_hears_nothing():
    rewards = tensor([[0.0, 1.0, 0.5, 0.5], [1.0, 1.0, 1.0, 1.0]])
    groups, new, old, ref, mask = rollout(rewards)
    objective = OnlineDPO()
    batch = batch_of(objective, groups, new, old, mask)
    result = step_losses(objective, [batch], max_completion_length=6)
    (found,) = torch.autograd.grad(result.losses[0], new, retain_graph=True)
    h = ((new - ref) * mask).sum(1)
    expected = -torch.nn.functional.logsigmoid(BETA * (h[1] - h[0])) / 2  # two groups, one of them a tie
    (wanted,) = torch.autograd.grad(expected, new)
    assert_close(result.losses[0], expected)
    assert_close(found, wanted)
    assert (found[2:] == 0).all()
    shares = objective.rollout_metrics(groups)
    assert (shares["paired"], shares["ties"], shares["unpaired"]) == (0.5, 0.5, 0.0)

    counts = account_objective(
        objective,
        replace(result.batches[0], streams=batch.streams),
        generated=mask,
        equal_rewards=tensor([[False]] * 4 + [[True]] * 4),
        unjudged=torch.zeros(8, 1, dtype=torch.bool),
    ).as_dict()
    lengths = mask.sum(1).int().tolist()
    assert counts["carried"] == sum(lengths[:2])
    assert counts["left_out"] == sum(lengths[2:4])
    assert counts["equal_rewards"] == sum(lengths[4:])
    assert sum(counts.values()) == sum(lengths)


def test_the_published_formula_in_numbers():
    """Three arms: the whole gradient, and online DPO's part alone."""
    theta = tensor([0.2, -0.1, 0.4], dtype=torch.float64, requires_grad=True)
    logprobs = theta.log_softmax(0)
    h = (logprobs - REF).detach()
    difference = BETA * (h[:, None] - h)
    preference = torch.sigmoid(UTILITIES[:, None] - UTILITIES)
    often = (logprobs[:, None] + logprobs).detach().exp()
    slope = BETA * pair_slope(difference, preference)
    online = (often * slope * (logprobs[:, None] - logprobs)).sum()
    parl = (often * pair_value(difference, preference) * (logprobs[:, None] + logprobs)).sum()
    (alone,) = torch.autograd.grad(online, theta, retain_graph=True)
    (whole,) = torch.autograd.grad(online + parl, theta)
    printed = {"rtol": 0, "atol": 5e-9}
    assert_close(alone, tensor([-0.05098905, 0.06312761, -0.01213856], dtype=torch.float64), **printed)
    assert_close(whole, tensor([-0.05054324, 0.05640888, -0.00586564], dtype=torch.float64), **printed)


# The bilevel problem: a reward nu above, the policy that is best for it below


def policy(theta: Tensor) -> Tensor:
    """log pi of three arms; the last logit is held at 0, or the Hessian below would be singular."""
    return torch.cat([theta, theta.new_zeros(1)]).log_softmax(0)


def lower(nu: Tensor, theta: Tensor) -> Tensor:
    logprobs = policy(theta)
    return (logprobs.exp() * (nu - BETA * (logprobs - REF))).sum()


def upper(nu: Tensor, theta: Tensor) -> Tensor:
    preference = torch.sigmoid(UTILITIES[:, None] - UTILITIES)
    logprobs = policy(theta)
    return ((logprobs[:, None] + logprobs).exp() * pair_value(nu[:, None] - nu, preference)).sum()


def best_policy(nu: Tensor) -> Tensor:
    logits = REF + nu / BETA
    return logits[:2] - logits[2]


def hypergradient(nu: Tensor) -> Tensor:
    """dG/dnu = grad_nu G - grad^2_nu,theta V (grad^2_theta V)^-1 grad_theta G at theta*(nu), with the exact Hessian."""
    theta = best_policy(nu)
    curvature = hessian(lower, argnums=1)(nu, theta)
    mixed = jacrev(grad(lower, argnums=1), argnums=0)(nu, theta)  # (theta, nu)
    return grad(upper)(nu, theta) - mixed.T @ torch.linalg.solve(curvature, grad(upper, argnums=1)(nu, theta))


def test_the_bilevel_gradient_in_full_is_the_methods():
    """All pairs of three arms, each as often as the policy draws it: the gradient of the two-level problem whose reward
    is the policy's own log-ratio."""
    arms = [0] * 2 + [1] * 3 + [2] * 5  # pi = (.2, .3, .5), so that ten draws are the policy exactly
    shares = tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    theta = (shares.log()[:2] - shares.log()[2]).requires_grad_()
    nu = BETA * (policy(theta.detach()) - REF)
    expected = hypergradient(nu)
    assert_close(expected, grad(lambda one: upper(one, best_policy(one)))(nu), rtol=1e-10, atol=1e-12)
    to_theta = jacrev(lambda one: BETA * (policy(one) - REF))(theta.detach())

    drawn = tensor([[a, b] for a in arms for b in arms])  # (100, 2)
    logprobs = policy(theta)[drawn].view(-1, 1)
    kl = (policy(theta).detach() - REF)[drawn].unsqueeze(2)
    groups = groups_of(UTILITIES[drawn], kl, torch.ones_like(kl))
    found = {}
    for coef in (0.0, 1.0):
        objective = OnlineDPO(
            pairs="drawn", preference_scale=1.0, parl_coef=coef, parl_baseline="indifferent"
        )
        batch = batch_of(objective, groups, logprobs, logprobs.detach(), torch.ones_like(logprobs))
        (loss,) = step_losses(objective, [batch], max_completion_length=1).losses
        (found[coef],) = torch.autograd.grad(-loss, theta, retain_graph=True)
    assert_close(found[1.0], to_theta.T @ expected, rtol=1e-10, atol=1e-12)
    assert (found[0.0] - found[1.0]).abs().max() > 1e-3  # what ordinary RLHF drops


def test_parls_term_by_hand_on_samples_that_are_not_fresh():
    rewards = tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    groups, new, old, ref, mask = rollout(rewards, moved=0.4, seed=2)
    moved = ((new - old) * mask).sum(1).detach()
    h = ((new - ref) * mask).sum(1).detach()
    values = torch.nn.functional.logsigmoid(BETA * torch.stack([h[0] - h[1], h[3] - h[2]]))
    ratios = torch.stack([(moved[0] + moved[1]).exp(), (moved[2] + moved[3]).exp()])
    assert ratios.min() < 1.15 < ratios.max()  # one of the two is held
    weights = 0.3 * ratios.clamp(max=1.15) * (values - values.flip(0))  # each one's baseline is the other
    plain, whole = OnlineDPO(), OnlineDPO(parl_coef=0.3, parl_ratio_max=1.15)
    found = []
    for objective in (plain, whole):
        batch = batch_of(objective, groups, new, old, mask)
        result = step_losses(objective, [batch], max_completion_length=6)
        found.append((result.losses[0], torch.autograd.grad(result.losses[0], new)[0]))
        logged = objective.finish_step(result.batches, lambda one: one)
        assert logged["pair_loss"] == pytest.approx(-float(values.mean()))
    assert logged["parl_size"] == pytest.approx(float(weights.abs().mean()))
    assert_close(found[0][0], found[1][0])  # the term has no value of its own
    expected = torch.zeros_like(mask)
    expected[:4] = -weights.repeat_interleave(2).unsqueeze(1) * mask[:4] / 3
    assert_close(found[1][1] - found[0][1], expected)


def test_baselines_by_hand():
    values, present = tensor([-1.0, -2.0, -6.0, -9.0]), tensor([True, True, True, False])
    assert baselines(values, present, "others")[:3].tolist() == [-4.0, -3.5, -1.5]
    alone = baselines(values, tensor([True, False, False, False]), "others")
    assert alone[0] == pytest.approx(math.log(0.5)) == INDIFFERENT
    assert baselines(values, present, "none").tolist() == [0.0] * 4


def test_half_a_pair_and_no_reference_are_refused():
    groups, new, old, _, mask = rollout(tensor([[0.0, 1.0], [1.0, 0.0]]))
    objective = OnlineDPO()
    whole = batch_of(objective, groups, new, old, mask)
    part = replace(
        whole,
        logprobs=new[:3], old_logprobs=old[:3], mask=mask[:3], advantages=whole.advantages[:3],
        streams={name: values[:3] for name, values in whole.streams.items()},
    )  # fmt: skip
    with pytest.raises(ValueError, match="one answer of a pair without the other"):
        step_losses(objective, [part], max_completion_length=6)
    with pytest.raises(ValueError, match="no log-probs of a reference"):
        objective.advantages(Groups(groups.rewards, groups.rewards_per_function, groups.weights))


def test_plan_refuses_what_would_part_a_pair(load: Load):
    from posttrain.run.plan import make_plan

    def plan(train: dict[str, Any], **objective: Any) -> Any:
        base = {**POLICY, "method": "online_dpo", "objective": objective}
        return make_plan(load(base, train=train))

    whole = {"beta": 0.1, "per_device_train_batch_size": 8, "steps_per_generation": 2}
    assert not plan(whole).refusals
    assert any(
        "leaves method 'online_dpo' without its reference" in one for one in plan({"beta": 0.0}).refusals
    )
    parted = plan({**whole, "per_device_train_batch_size": 6, "steps_per_generation": 4}).refusals
    assert any("needs both answers of a pair in one optimizer step" in one for one in parted)
    masked = plan({**whole, "off_policy_mask_threshold": 0.1}).refusals
    assert any("'off_policy_mask_threshold' has no place with method 'online_dpo'" in one for one in masked)
    idle = plan(whole, parl_baseline="none").refusals
    assert any("parl_coef: 0 switches off" in one for one in idle)
    biased = plan(whole, parl_coef=0.1).warnings
    assert any("take pairs: drawn" in one for one in biased)
    assert not any("outweighs" in one for one in biased)
    assert any("parl_coef 0.3 outweighs DPO's part" in one for one in plan(whole, parl_coef=0.3).warnings)
