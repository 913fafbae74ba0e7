"""COPO: worked vectors, a float64 reference written apart, its edge cases, and the blend of losses."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from posttrain.objectives.base import Groups, StepTotals, TokenBatch
from posttrain.objectives.copo import COPO, answer_entropy, global_advantages, local_weight
from posttrain.objectives.grpo import GRPO

NAN = float("nan")
REWARDS = tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=torch.float64)
ANSWERS = [[7, 7, 3, 4], [1, 2, 3, 4], [5, 5, 5, 5], [9, 9, 9, 9], [2, 8, 8, 8]]


def groups_of(rewards: Tensor, answers) -> Groups:
    return Groups(rewards, rewards.unsqueeze(-1), torch.ones(1), answers)


def as_batch(streams: dict[str, Tensor], new: Tensor, old: Tensor, mask: Tensor) -> TokenBatch:
    flat = {name: values.reshape(-1, 1) for name, values in streams.items()}
    return TokenBatch(new, old, mask, flat.pop("advantages"), streams=flat)


def vector_batch(objective: COPO) -> TokenBatch:
    i = torch.arange(60, dtype=torch.float64).view(20, 3)
    old = -1 - 0.05 * i
    mask = torch.ones(5, 4, 3, dtype=torch.float64)
    for p, g, t in ((0, 1, 2), (3, 0, 1), (3, 0, 2), (4, 2, 2)):
        mask[p, g, t] = 0
    streams = objective.advantages(groups_of(REWARDS, ANSWERS))
    return as_batch(streams, old + 0.35 * torch.sin(1.7 * i + 0.3), old, mask.view(20, 3))


def loss_of(objective: COPO, batch: TokenBatch) -> Tensor:
    totals = StepTotals(batch.mask.sum(), tensor(float(len(batch.mask))), 3)
    return objective.reduce(objective.token_loss(batch), batch.mask, totals)


def test_vectors():
    entropy = answer_entropy(ANSWERS)
    assert_close(entropy, tensor([1.5, 2.0, 0.0, 0.0, 0.8112781245]))
    between = tensor(
        [0.3585677257, -0.8366580265, 1.5537934779, -0.8366580265, -0.2390451504], dtype=torch.float64
    )
    assert_close(global_advantages(REWARDS), between, atol=1e-9, rtol=0)
    local = COPO().advantages(groups_of(REWARDS, ANSWERS))["advantages"]
    expected = torch.zeros(5, 4, dtype=torch.float64)
    expected[0] = tensor([0.8660239038, 0.8660239038, -0.8660239038, -0.8660239038])
    expected[4] = tensor([1.4999970000, -0.4999990000, -0.4999990000, -0.4999990000])
    assert_close(local, expected, atol=1e-7, rtol=0)
    soft = local_weight(entropy.double(), REWARDS, gamma=5, rho=1.0, selective="none")
    column = tensor(
        [0.9241418200, 0.9933071491, 0.0066928509, 0.0066928509, 0.2801718420], dtype=torch.float64
    )
    assert_close(soft, column.unsqueeze(1).expand(5, 4), atol=1e-7, rtol=0)


@pytest.mark.parametrize(("selective", "loss"), [("response", -0.0585236303), ("none", -0.1172019587)])
def test_vector_of_the_loss(selective, loss):
    objective = COPO(gamma=5, rho=1.0, selective=selective)
    assert float(loss_of(objective, vector_batch(objective))) == pytest.approx(loss, abs=2e-8)


def reference(
    rewards, answers, new, old, mask, *, gamma, rho, selective, coefficient
) -> tuple[list, list, list, float]:
    """Sections 1 and 4 of the paper's algorithm as plain loops over Python floats: (B, A, w, loss)."""
    p_count, g_count = len(rewards), len(rewards[0])

    def standardise(values):
        mean = sum(values) / len(values)
        if len(values) < 2:
            return [0.0] * len(values)
        std = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        return [(v - mean) / (std + 1e-6) for v in values]

    entropies = []
    for group in answers:
        shares = [n / g_count for n in Counter(group).values()]
        entropies.append(-sum(s * math.log2(s) for s in shares))
    slope = (1 - 1 / g_count) / math.log2(g_count)
    scale = [1 - slope * h if coefficient else 1.0 for h in entropies]
    between = standardise([s * sum(group) / g_count for s, group in zip(scale, rewards, strict=True)])
    local = [standardise(group) for group in rewards]
    weights, total = [], 0.0
    for p in range(p_count):
        row = []
        for g in range(g_count):
            gate = {
                "response": rewards[p][g] != 0,
                "group": any(r != 0 for r in rewards[p]),
                "degenerate": len(set(rewards[p])) > 1,
                "none": True,
            }[selective]
            row.append(gate / (1 + math.exp(-gamma * (entropies[p] - rho))))
            b = p * g_count + g
            tokens = []
            for t in range(len(new[b])):
                if not mask[b][t]:
                    continue
                r = math.exp(new[b][t] - old[b][t])
                clipped = min(max(r, 0.8), 1.2)

                def surrogate(x, r=r, clipped=clipped):
                    loss = max(-x * r, -x * clipped)
                    return min(loss, -3 * x) if x < 0 else loss

                tokens.append(row[-1] * surrogate(local[p][g]) + (1 - row[-1]) * surrogate(between[p]))
            total += sum(tokens) / max(1, len(tokens))
        weights.append(row)
    return between, local, weights, total / (p_count * g_count)


@pytest.mark.parametrize("selective", ["response", "group", "degenerate", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float64_reference_on_random_batches(selective, dtype):
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        rewards = torch.randint(0, 3, (6, 5), generator=generator).to(dtype) / 2
        rewards[0], rewards[1] = 0.0, 1.0
        answers = torch.randint(0, 4, (6, 5), generator=generator).tolist()
        old = -torch.rand(30, 7, generator=generator).to(dtype)
        new = old + 0.6 * torch.randn(30, 7, generator=generator).to(dtype)
        mask = (torch.rand(30, 7, generator=generator) < 0.8).to(dtype)
        coefficient = seed % 2 == 1
        objective = COPO(gamma=4.0, rho=1.2, selective=selective, entropy_coefficient=coefficient)
        streams = objective.advantages(groups_of(rewards, answers))
        between, local, weights, loss = reference(
            rewards.tolist(),
            answers,
            new.tolist(),
            old.tolist(),
            mask.tolist(),
            gamma=4.0,
            rho=1.2,
            selective=selective,
            coefficient=coefficient,
        )
        expand = tensor(between, dtype=torch.float64).unsqueeze(1).expand(6, 5)
        close = {"rtol": 1e-5, "atol": 1e-6}
        assert_close(streams["global_advantages"].double(), expand, **close)
        assert_close(streams["advantages"].double(), tensor(local, dtype=torch.float64), **close)
        assert_close(streams["local_weight"].double(), tensor(weights, dtype=torch.float64), **close)
        found = loss_of(objective, as_batch(streams, new, old, mask))
        assert float(found) == pytest.approx(loss, rel=1e-5, abs=1e-7)


# Answers


def test_entropy_is_in_bits_and_counts_symbols():
    found = answer_entropy([["a", "b"], ["a", "a"], ["a", "b", "c", "d"], []])
    assert_close(found, tensor([1.0, 0.0, 2.0, 0.0]))
    assert not torch.signbit(found).any()


def test_no_answer_is_one_shared_symbol():
    assert_close(answer_entropy([[None, None, None, "7"]]), answer_entropy([["x", "x", "x", "7"]]))


def test_answers_are_asked_for_loudly():
    with pytest.raises(ValueError, match="math_answer"):
        COPO().advantages(groups_of(REWARDS, None))
    with pytest.raises(ValueError, match="one list per prompt"):
        COPO().advantages(groups_of(REWARDS, ANSWERS[:4]))
    with pytest.raises(ValueError, match="at least 2"):
        COPO().advantages(groups_of(torch.ones(3, 1), [[1], [1], [1]]))
    assert COPO.needs_answers


# Global advantage


def test_standardised_over_prompts_not_over_completions():
    found = global_advantages(REWARDS)
    per_completion = REWARDS.mean(1, keepdim=True).expand(5, 4).reshape(-1)
    other = (per_completion - per_completion.mean()) / (per_completion.std() + 1e-6)
    assert not torch.allclose(found, other.view(5, 4)[:, 0], atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_means_and_a_single_prompt_have_no_global_advantage(value, dtype):
    equal = torch.full((7, 3), value, dtype=dtype)
    assert_close(global_advantages(equal), torch.zeros(7, dtype=dtype), atol=1e-9, rtol=0)
    assert_close(global_advantages(equal[:1]), torch.zeros(1, dtype=dtype))
    assert_close(
        COPO().advantages(groups_of(equal, [[1, 1, 1]] * 7))["advantages"],
        torch.zeros(7, 3, dtype=dtype),
        atol=1e-9,
        rtol=0,
    )


def test_unjudged_prompts_and_responses():
    rewards = tensor([[1.0, NAN], [NAN, NAN], [0.0, 0.0], [1.0, 1.0]])
    expected = global_advantages(tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]))
    found = global_advantages(rewards)
    assert_close(found[[0, 2, 3]], expected)
    assert found[1] == 0
    streams = COPO().advantages(groups_of(rewards, [[1, 1]] * 4))
    for name in ("advantages", "global_advantages"):
        assert torch.equal(streams[name][rewards.isnan()], torch.zeros(3))
    assert not any(values.isnan().any() for values in streams.values())


# The gate


def test_gates_by_hand():
    rewards = tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    entropy = torch.full((3,), 1.5)  # the sigmoid is 1/2 everywhere
    expected = {
        "response": [[0.5, 0.0], [0.0, 0.0], [0.5, 0.5]],
        "group": [[0.5, 0.5], [0.0, 0.0], [0.5, 0.5]],
        "degenerate": [[0.5, 0.5], [0.0, 0.0], [0.0, 0.0]],
        "none": [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]],
    }
    for selective, weights in expected.items():
        found = local_weight(entropy, rewards, gamma=20, rho=1.5, selective=selective)
        assert_close(found, tensor(weights))


def test_incorrect_is_a_reward_at_or_below_the_mark():
    entropy = torch.full((1,), 1.5)
    signed = local_weight(entropy, tensor([[1.0, -1.0]]), gamma=1, rho=1.5, selective="response")
    assert signed.tolist() == [[0.5, 0.0]]
    with_format = tensor([[1.1, 0.1]])
    found = local_weight(entropy, with_format, gamma=1, rho=1.5, selective="response", incorrect_at=0.1)
    assert found.tolist() == [[0.5, 0.0]]


def test_without_a_gate_diverse_wrong_groups_get_no_signal():
    weight = local_weight(tensor([2.0]), torch.zeros(1, 4), gamma=20, rho=1.5, selective="none")
    assert (1 - weight < 1e-4).all()
    assert (
        local_weight(tensor([2.0]), torch.zeros(1, 4), gamma=20, rho=1.5, selective="response") == 0
    ).all()


# The blend


def test_losses_are_blended_not_advantages():
    """Ratio 1.5, A = +1, B = -1, w = 1/2: the losses -1.2 and 1.5 give 0.15, the blended advantage 0 would
    give 0."""
    objective = COPO()
    half = tensor([[0.5]])
    batch = TokenBatch(
        tensor([[1.5]]).log(),
        torch.zeros(1, 1),
        torch.ones(1, 1),
        tensor([[1.0]]),
        streams={"global_advantages": tensor([[-1.0]]), "local_weight": half, "global_weight": half},
    )
    assert_close(objective.token_loss(batch), tensor([[0.15]]))
    assert_close(objective.effective_advantages(batch), tensor([[0.0]]))
    assert_close(objective.metrics(batch), {"global_loss_share": tensor(1.5 / 2.7)})


def test_dual_clip_holds_both_losses():
    batch = TokenBatch(
        tensor([[5.0]]).log(),
        torch.zeros(1, 1),
        torch.ones(1, 1),
        tensor([[-1.0]]),
        streams={
            "global_advantages": tensor([[-2.0]]),
            "local_weight": tensor([[0.25]]),
            "global_weight": tensor([[0.75]]),
        },
    )
    assert_close(COPO().token_loss(batch), tensor([[0.25 * 3 + 0.75 * 6]]))
    assert_close(COPO(dual_clip=None).token_loss(batch), tensor([[0.25 * 5 + 0.75 * 10]]))


def test_weight_one_is_grpo():
    objective = COPO(dual_clip=None)
    batch = vector_batch(objective)
    ones = torch.ones_like(batch.advantages)
    alone = {**batch.streams, "local_weight": ones, "global_weight": 0 * ones}
    assert_close(objective.token_loss(replace(batch, streams=alone)), GRPO().token_loss(batch))


def test_a_text_is_no_list_of_answers():
    with pytest.raises(TypeError, match="group 1 is the text '42'; it must be a list of answers"):
        answer_entropy([["4", "2"], "42"])


def test_a_small_global_weight_keeps_its_digits_in_float32():
    """1 - sigmoid(20 (2 - 1.5)) = 4.5398e-5, of which float32 has one part in 1000 once it was taken from 1."""
    answers = [["1", "2", "3", "4"], ["1", "1", "1", "1"]]
    rewards = tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    weight = COPO(selective="none").advantages(groups_of(rewards, answers))["global_weight"]
    assert weight.dtype == torch.float32
    assert weight[0, 0].item() == pytest.approx(1 / (1 + math.exp(10)), rel=1e-6)
    assert weight[1, 0].item() == pytest.approx(1 / (1 + math.exp(-30)), rel=1e-6)


def test_bounds_above_and_below_are_not_the_same():
    objective = COPO(clip_low=0.1, clip_high=0.3)
    batch = TokenBatch(
        tensor([[0.8, 1.2, 1.4]]).log(),
        torch.zeros(1, 3),
        torch.ones(1, 3),
        tensor([[-1.0]]),
        streams={
            "global_advantages": tensor([[1.0]]),
            "local_weight": tensor([[0.25]]),
            "global_weight": tensor([[0.75]]),
        },
    )
    assert objective.clip_bounds(batch) == (0.9, 1.3)
    # local: -min(-r, -clip(r)) = max(r, clip(r)); global: -min(r, clip(r))
    expected = tensor([[0.25 * 0.9 - 0.75 * 0.8, 0.25 * 1.2 - 0.75 * 1.2, 0.25 * 1.4 - 0.75 * 1.3]])
    assert_close(objective.token_loss(batch), expected)
    # weighted shares of |loss|: tokens outside the mask are in neither
    half = replace(batch, mask=tensor([[1.0, 0.0, 0.0]]))
    share = 0.75 * 0.8 / (0.25 * 0.9 + 0.75 * 0.8)
    assert_close(objective.metrics(half), {"global_loss_share": tensor(share)})


def test_unjudged_responses_make_a_group_neither_all_wrong_nor_all_right():
    nan = float("nan")
    rewards = tensor([[nan, nan], [nan, 0.0], [nan, 1.0], [1.0, 0.0]])
    found = COPO(rho=0.5).rollout_metrics(groups_of(rewards, [["1", "2"]] * 4))
    assert found["all_wrong"].item() == 0.25  # the second; of the first nothing is known
    assert found["all_right"].item() == 0.25  # the third


def test_every_response_gets_gradient_where_grpo_has_few():
    """Two of five groups carry a local advantage; with the global one all do (no mean equals the batch
    mean)."""
    objective = COPO()
    batch = vector_batch(objective)
    leaf = batch.logprobs.clone().requires_grad_()
    flat = replace(batch, logprobs=leaf, old_logprobs=leaf.detach(), mask=torch.ones_like(leaf))
    (blended,) = torch.autograd.grad(loss_of(objective, flat), leaf)
    (plain,) = torch.autograd.grad(GRPO().token_loss(flat).sum(), leaf)
    assert (blended != 0).any(1).double().mean() == 1.0
    assert (plain != 0).any(1).double().mean() == 0.4


def test_rollout_metrics():
    found = {k: float(v) for k, v in COPO().rollout_metrics(groups_of(REWARDS, ANSWERS)).items()}
    assert found["answer_entropy"] == pytest.approx((1.5 + 2 + 0.8112781245) / 5)
    assert (found["all_wrong"], found["all_right"]) == pytest.approx((0.4, 0.2))
    assert found["global_advantage_abs"] == pytest.approx(0.7649444814)
    weight = COPO().advantages(groups_of(REWARDS, ANSWERS))["local_weight"]
    names = ("local_weight_mean", "local_weight_min", "local_weight_max")
    assert [found[name] for name in names] == pytest.approx(
        [float(weight.mean()), float(weight.min()), float(weight.max())]
    )


def test_rewards_may_be_integers():
    whole, real = tensor([[1, 1, 0], [0, 0, 0]]), tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert_close(global_advantages(whole), global_advantages(real))
    entropy = tensor([1.5, 0.3])
    for selective in ("response", "group", "degenerate", "none"):
        settings = {"gamma": 5.0, "rho": 1.0, "selective": selective}
        assert_close(local_weight(entropy, whole, **settings), local_weight(entropy, real, **settings))


def test_an_unknown_gate_is_named():
    with pytest.raises(ValueError, match="'groups'; it must be one of response, group"):
        local_weight(tensor([1.5]), tensor([[1.0, 0.0]]), gamma=5.0, rho=1.0, selective="groups")
