"""BAPO: the one-pass search against both sequential ones, its edge cases, and the objective around it."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from posttrain.objectives.bapo import BAPO, search_bounds
from posttrain.objectives.base import Groups, StepTotals, TokenBatch
from posttrain.objectives.step import step_losses
from posttrain.ops.surrogate import clipped_surrogate

X = tensor([[2.53, 0.91, 1.62], [0.51, 1.43, 0.72]], dtype=torch.float64).log()
X_ADVANTAGES = tensor([1.0, -1.0], dtype=torch.float64)
ONES = torch.ones(2, 3, dtype=torch.float64)

PAPER = {"low": (0.6, 0.9, 0.02), "high": (1.2, 3.0, 0.05)}
RELEASED = {"low": (0.6, 0.8, 0.05), "high": (1.2, 2.0, 0.05), "order": "lower_first", "metric": "ratio"}


def share_at(
    log_ratio: Tensor, advantages: Tensor, mask: Tensor, low: float, high: float, metric: str
) -> float:
    positive = negative = 0.0
    for row, advantage, used in zip(log_ratio.tolist(), advantages.tolist(), mask.tolist(), strict=True):
        for value, m in zip(row, used, strict=True):
            r = math.exp(max(-20.0, min(20.0, value)))
            if advantage > 0:
                positive += m * min(r, high) * advantage
            elif advantage < 0:
                negative += m * max(r, low) * -advantage
    if metric == "ratio":
        return math.inf if negative <= 0 else positive / (negative + 1e-8)
    return 1.0 if positive + negative == 0 else positive / (positive + negative)


def paper_search(batch, target, low, high, metric) -> tuple[float, float, float]:
    """Algorithm 1, step by step."""
    n_low, n_high = 0, 0
    measure = lambda: share_at(*batch, low[0] + n_low * low[2], high[0] + n_high * high[2], metric)  # noqa: E731
    while measure() < target and low[0] + (n_low + 1) * low[2] <= low[1] + 1e-9:
        if high[0] + (n_high + 1) * high[2] <= high[1] + 1e-9:
            n_high += 1
        else:
            n_low += 1
    return low[0] + n_low * low[2], high[0] + n_high * high[2], measure()


def released_search(batch, target, low, high, metric) -> tuple[float, float, float]:
    """The released code's two loops: lower bound, then upper, last step cut to the end."""
    at_low, at_high = low[0], high[0]
    n_low = n_high = 0
    while share_at(*batch, at_low, at_high, metric) < target and at_low < low[1] - 1e-9:
        n_low += 1
        at_low = min(low[0] + n_low * low[2], low[1])
    while share_at(*batch, at_low, at_high, metric) < target and at_high < high[1] - 1e-9:
        n_high += 1
        at_high = min(high[0] + n_high * high[2], high[1])
    return at_low, at_high, share_at(*batch, at_low, at_high, metric)


def random_case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scale = 0.1 + 1.5 * torch.rand((), generator=generator).item()
    log_ratio = scale * torch.randn(6, 8, generator=generator, dtype=torch.float64)
    advantages = torch.randn(6, generator=generator, dtype=torch.float64) - 0.4
    advantages[0] = 0.0
    mask = (torch.rand(6, 8, generator=generator) < 0.7).double()
    return log_ratio, advantages, mask


def target_inside(case, seed: int, *, low: float, high: tuple[float, float, float], metric: str) -> float:
    """A target met between two grid points of the upper bound; every fifth case beyond the last one."""
    if seed % 5 == 0:
        return share_at(*case, low, high[1], metric) * 1.01
    between = high[0] + (0.05 + 0.9 * (seed % 7) / 7) * (high[1] - high[0])
    return share_at(*case, low, between, metric) * (1 - 1e-9)  # away from ties, which rounding would decide


def batch_of(log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> TokenBatch:
    return TokenBatch(
        log_ratio.clone().requires_grad_(), torch.zeros_like(log_ratio), mask, advantages.unsqueeze(1)
    )


# The search


def test_vector_paper():
    bounds = search_bounds(X, X_ADVANTAGES, ONES, target=0.6)
    assert [float(b) for b in bounds] == pytest.approx([0.6, 1.65, 0.6031746032], abs=1e-10)
    low, high, _ = bounds
    losses = clipped_surrogate(X.exp(), X_ADVANTAGES.unsqueeze(1), low, high)
    assert_close(losses.mean(), tensor(-0.2383333333, dtype=torch.float64), atol=1e-10, rtol=0)


def test_vector_released_recipe():
    objective = BAPO(preset="recipe", target=1.4)
    result = step_losses(objective, [batch_of(X, X_ADVANTAGES, ONES)], max_completion_length=3)
    assert_close(result.losses[0].detach(), tensor(-0.2083333333, dtype=torch.float64), atol=1e-10, rtol=0)
    found = {name: float(value) for name, value in objective.metrics(result.batches[0]).items()}
    assert found["clip_low"] == pytest.approx(0.8)
    assert found["clip_high"] == pytest.approx(1.75)
    assert found["positive_share"] == pytest.approx(1.4125412495, abs=1e-9)
    assert found["negative_ratio_max"] == pytest.approx(1.43)


@pytest.mark.parametrize("metric", ["share", "ratio"])
def test_one_pass_is_the_papers_loop(metric):
    moved = 0
    for seed in range(60):
        case = random_case(seed)
        target = target_inside(case, seed, low=0.6, high=PAPER["high"], metric=metric)
        expected = paper_search(case, target, PAPER["low"], PAPER["high"], metric)
        found = search_bounds(*case, target=target, metric=metric, **PAPER)
        assert [float(v) for v in found] == pytest.approx(list(expected), rel=1e-9, abs=1e-12)
        moved += 1.2 < expected[1] < 3.0
    assert moved > 20  # the cases reach inside the grid, not only its ends


@pytest.mark.parametrize("metric", ["share", "ratio"])
def test_one_pass_is_the_released_loop(metric):
    low, high = (0.6, 0.83, 0.05), (1.2, 2.03, 0.05)  # neither range is whole steps: the last one is cut
    moved = 0
    for seed in range(60):
        case = random_case(seed)
        target = target_inside(case, seed, low=low[1], high=high, metric=metric)
        expected = released_search(case, target, low, high, metric)
        found = search_bounds(*case, target=target, low=low, high=high, order="lower_first", metric=metric)
        assert [float(v) for v in found] == pytest.approx(list(expected), rel=1e-9, abs=1e-12)
        moved += 1.2 < expected[1] < 2.03
    assert moved > 20


def test_the_paper_takes_no_partial_step_and_the_code_does():
    case = (X, -X_ADVANTAGES.abs(), ONES)  # no positives: everything runs to its end
    options = {"low": (0.6, 0.75, 0.1), "high": (1.2, 1.5, 0.2)}
    assert [float(v) for v in search_bounds(*case, **options)] == pytest.approx([0.7, 1.4, 0.0])
    found = search_bounds(*case, order="lower_first", **options)
    assert [float(v) for v in found] == pytest.approx([0.75, 1.5, 0.0])


def test_the_cap_is_reached_exactly():
    bounds = search_bounds(X, -X_ADVANTAGES.abs(), ONES)
    assert float(bounds.low) == 0.9
    assert float(bounds.high) == 3.0


def test_a_grid_loses_no_step_to_rounding():
    """(0.95 - 0.8) / 0.05 is 2.9999999999999982 in floating point, and is three steps."""
    case = (X, -X_ADVANTAGES.abs(), ONES)
    for order in ("upper_first", "lower_first"):
        assert float(search_bounds(*case, low=(0.8, 0.95, 0.05), order=order).low) == 0.95


def test_a_fractional_mask_weighs():
    whole = search_bounds(X, X_ADVANTAGES * tensor([0.5, 1.0]), ONES, target=0.4)
    halved = search_bounds(X, X_ADVANTAGES, ONES * tensor([[0.5], [1.0]]), target=0.4)
    assert [float(v) for v in halved] == pytest.approx([float(v) for v in whole])


def test_share_and_ratio_targets_are_the_same_search():
    for seed in range(20):
        case = random_case(seed)
        share = search_bounds(*case, target=0.4)
        ratio = search_bounds(*case, target=0.4 / 0.6, metric="ratio")
        assert_close(torch.stack(share[:2]), torch.stack(ratio[:2]))
        assert float(share.share) == pytest.approx(float(ratio.share) / (1 + float(ratio.share)), abs=1e-6)


def test_the_share_never_rises_with_the_lower_bound():
    for seed in range(50):
        case = random_case(seed)
        shares = [share_at(*case, low, 1.5, "share") for low in (0.5, 0.7, 0.9, 0.99)]
        assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize(
    ("advantages", "mask", "bounds", "share", "ratio"),
    [
        (tensor([1.0, 2.0]), ONES, (0.6, 1.2), 1.0, math.inf),  # no negatives: nothing to balance
        (tensor([-1.0, -2.0]), ONES, (0.9, 3.0), 0.0, 0.0),  # no positives: both bounds at their end
        (tensor([1.0, -1.0]), torch.zeros(2, 3), (0.6, 1.2), 1.0, math.inf),  # empty mask: satisfied
        (tensor([0.0, 0.0]), ONES, (0.6, 1.2), 1.0, math.inf),  # no advantage at all
    ],
)
def test_edges(advantages, mask, bounds, share, ratio):
    found = search_bounds(X, advantages, mask)
    assert [float(v) for v in found] == pytest.approx([*bounds, share])
    found = search_bounds(X, advantages, mask, metric="ratio")
    assert [float(v) for v in found] == pytest.approx([*bounds, ratio])


def test_on_policy_nothing_can_be_moved():
    found = search_bounds(torch.zeros(2, 3), tensor([1.0, -3.0]), ONES)
    assert [float(v) for v in found] == pytest.approx([0.9, 3.0, 0.25])


def test_masked_tokens_do_not_count_even_when_not_finite():
    log_ratio = X.clone()
    mask = ONES.clone()
    mask[0, 0] = mask[1, 1] = 0
    expected = search_bounds(log_ratio, X_ADVANTAGES, mask, target=0.65)
    log_ratio[0, 0], log_ratio[1, 1] = math.nan, math.inf
    found = search_bounds(log_ratio, X_ADVANTAGES, mask, target=0.65)
    assert [float(v) for v in found] == [float(v) for v in expected]


def test_advantages_broadcast_and_the_ratio_is_held():
    case = random_case(3)
    expected = search_bounds(*case)
    per_token = case[1].unsqueeze(1).expand_as(case[0])
    assert search_bounds(case[0], case[1].unsqueeze(1), case[2]) == expected
    assert search_bounds(case[0], per_token, case[2]) == expected
    runaway = search_bounds(tensor([[500.0]]), tensor([-1.0]), torch.ones(1, 1))
    assert float(runaway.share) == 0.0


def test_half_precision_masks_and_integers_are_taken():
    found = search_bounds(X.float(), X_ADVANTAGES.float(), ONES.bool(), target=0.6)
    assert float(found.high) == pytest.approx(1.65)


def test_no_gradient_flows_through_the_bounds():
    log_ratio = X.clone().requires_grad_()
    assert not any(b.requires_grad for b in search_bounds(log_ratio, X_ADVANTAGES, ONES))


def test_two_ranks_agree_with_one():
    """Two threads stand for two ranks; their sum waits for both."""
    case = random_case(59)  # its ranks alone would choose 3.0 and 1.5, together 2.3
    expected = search_bounds(*case, target=0.3)
    assert 1.2 < float(expected.high) < 3.0
    barrier, shared, found = threading.Barrier(2), {}, {}

    def rank(number: int, rows: slice) -> None:
        def all_sum(values: Tensor) -> Tensor:
            shared[number] = values
            barrier.wait()
            return shared[0] + shared[1]

        found[number] = search_bounds(
            case[0][rows], case[1][rows], case[2][rows], target=0.3, all_sum=all_sum
        )

    threads = [
        threading.Thread(target=rank, args=(0, slice(0, 2))),
        threading.Thread(target=rank, args=(1, slice(2, 6))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_close(torch.stack(found[0]), torch.stack(expected))
    assert_close(torch.stack(found[1]), torch.stack(expected))


# Counting gradients, our departure


def carried_share(case, low: float, high: float) -> float:
    """Of the summed |r A| of the tokens whose surrogate still has a gradient, the part with A > 0."""
    batch = batch_of(*case)
    losses = clipped_surrogate((batch.logprobs - batch.old_logprobs).exp(), batch.advantages, low, high)
    (losses * batch.mask).sum().backward()  # d/d log r = -r A where nothing clips, else 0
    pushes = -batch.logprobs.grad
    return float(pushes.clamp(min=0).sum() / pushes.abs().sum())


@pytest.mark.parametrize("order", ["upper_first", "lower_first"])
def test_counted_gradients_are_autograds_and_the_first_point_of_the_path_is_chosen(order):
    low, high = (0.6, 0.9, 0.1), (1.2, 2.0, 0.2)
    lows, highs = [0.6, 0.7, 0.8, 0.9], [1.2, 1.4, 1.6, 1.8, 2.0]
    first = [(0.6, b) for b in highs] if order == "upper_first" else [(a, 1.2) for a in lows]
    then = [(a, 2.0) for a in lows[1:]] if order == "upper_first" else [(0.9, b) for b in highs[1:]]
    chosen = set()
    for seed in range(40):
        case = random_case(seed)
        shares = [carried_share(case, *point) for point in first + then]
        assert all(b >= a - 1e-12 for a, b in zip(shares, shares[1:], strict=False))  # each step helps
        target = shares[0] + (seed % 10) / 9 * (shares[-1] - shares[0]) + (0.01 if seed % 10 == 9 else -1e-9)
        place = next((i for i, share in enumerate(shares) if share >= target), len(shares) - 1)
        found = search_bounds(*case, target=target, low=low, high=high, order=order, counted="gradient")
        expected = [*(first + then)[place], shares[place]]
        assert [float(v) for v in found] == pytest.approx(expected, abs=1e-9)
        chosen.add(place)
    assert len(chosen) > 5


def test_counted_gradients_answer_to_the_lower_bound_where_values_do_not():
    """Half of the push down is at .85: a bound above takes it out of the gradient, and raises its value."""
    ratio = tensor([[1.1, 1.1], [0.85, 1.0]], dtype=torch.float64)
    advantages = tensor([1.0, -1.5], dtype=torch.float64)
    ranges = {"low": (0.8, 0.9, 0.1), "high": (1.2, 1.2, 0.0), "target": 0.55}
    mask = torch.ones(2, 2, dtype=torch.float64)
    found = search_bounds(ratio.log(), advantages, mask, counted="gradient", **ranges)
    assert [float(v) for v in found] == pytest.approx([0.9, 1.2, 2.2 / (2.2 + 1.5)])
    assert float(search_bounds(ratio.log(), advantages, mask, **ranges).share) == pytest.approx(
        2.2 / (2.2 + 1.5 * 1.9)
    )
    objective = BAPO(counted="gradient", low=(0.8, 0.9, 0.1), high=(1.2, 1.2, 0.0), target=0.55)
    result = step_losses(objective, [batch_of(ratio.log(), advantages, mask)], max_completion_length=2)
    step = result.batches[0].step
    assert float(step["clip_low"]) == pytest.approx(0.9)
    assert float(step["positive_share_before"]) == pytest.approx(2.2 / (2.2 + 1.5 * 1.85))


# The objective


def test_bounds_are_those_of_the_whole_step():
    case = random_case(5)
    whole = batch_of(*case)
    parts = [batch_of(*(part[rows] for part in case)) for rows in (slice(0, 1), slice(1, 4), slice(4, 6))]
    objective = BAPO(target=0.5)
    one = step_losses(objective, [whole], max_completion_length=8)
    many = step_losses(objective, parts, max_completion_length=8)
    for batch in many.batches:
        assert_close(
            torch.stack(objective.clip_bounds(batch)), torch.stack(objective.clip_bounds(one.batches[0]))
        )
    assert_close(sum(many.losses), one.losses[0])
    expected = search_bounds(*case, target=0.5)
    assert_close(one.batches[0].step["positive_share"], expected.share)
    assert_close(torch.stack(objective.clip_bounds(one.batches[0])), torch.stack(expected[:2]))
    start = share_at(*case, 0.6, 1.2, "share")
    assert float(one.batches[0].step["positive_share_before"]) == pytest.approx(start)


def test_microbatch_scope_searches_each_by_itself():
    case = random_case(5)
    parts = [tuple(part[rows] for part in case) for rows in (slice(0, 2), slice(2, 6))]
    objective = BAPO(target=0.5, scope="microbatch")
    result = step_losses(objective, [batch_of(*part) for part in parts], max_completion_length=8)
    expected = [search_bounds(*part, target=0.5) for part in parts]
    assert float(expected[0].high) != float(expected[1].high)
    for bounds, batch in zip(expected, result.batches, strict=True):
        assert_close(torch.stack(objective.clip_bounds(batch)), torch.stack(bounds[:2]))
    with pytest.raises(ValueError, match="index"):
        objective.clip_bounds(replace(result.batches[0], index=None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_target_below_the_share_is_a_fixed_clip_bit_for_bit(dtype):
    case = tuple(part.to(dtype) for part in random_case(5))
    adaptive, fixed = batch_of(*case), batch_of(*case)
    result = step_losses(BAPO(target=0.01), [adaptive], max_completion_length=8)
    result.losses[0].backward()
    ratio = (fixed.logprobs - fixed.old_logprobs).exp()
    losses = clipped_surrogate(ratio, fixed.advantages, 0.6, 1.2)
    loss = (losses * fixed.mask).sum() / fixed.mask.sum()
    loss.backward()
    assert result.losses[0].dtype == dtype
    assert torch.equal(result.losses[0], loss)
    assert torch.equal(adaptive.logprobs.grad, fixed.logprobs.grad)


def test_equal_start_and_end_are_a_fixed_clip():
    case = random_case(6)
    objective = BAPO(low=(0.8, 0.8, 0.0), high=(1.28, 1.28, 0.0), target=0.99)
    result = step_losses(objective, [batch_of(*case)], max_completion_length=8)
    assert [float(b) for b in objective.clip_bounds(result.batches[0])] == [0.8, 1.28]


def test_a_lower_bound_held_fixed_leaves_the_upper_one_free():
    found = search_bounds(X, X_ADVANTAGES, ONES, target=0.6, low=(0.6, 0.6, 0.02))
    assert float(found.high) == pytest.approx(1.65)


def test_dual_clip_by_hand():
    ratio = tensor([[5.0, 2.0], [5.0, 2.0]], dtype=torch.float64)
    batch = batch_of(
        ratio.log(), tensor([1.0, -1.0], dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)
    )
    objective = BAPO(low=(0.8, 0.8, 0.0), high=(1.2, 1.2, 0.0), dual_clip=3.0)
    result = step_losses(objective, [batch], max_completion_length=2)
    # A=+1: -1.2 twice; A=-1: 5 is capped at 3, and 2
    assert_close(result.losses[0].detach(), tensor((-1.2 - 1.2 + 3.0 + 2.0) / 4, dtype=torch.float64))


def test_presets_and_what_is_set_by_hand():
    paper, released = BAPO(), BAPO(preset="recipe")
    assert (paper.target, paper.low, paper.high) == (0.4, (0.6, 0.9, 0.02), (1.2, 3.0, 0.05))
    assert (paper.order, paper.metric, paper.scope, paper.dual_clip) == ("upper_first", "share", "step", None)
    assert (released.target, released.low, released.high) == (1.0, (0.6, 0.8, 0.05), (1.2, 2.0, 0.05))
    assert released.dual_clip == 3.0
    assert (released.order, released.metric, released.scope) == ("lower_first", "ratio", "microbatch")
    assert BAPO(preset="recipe", target=0.4).target == 0.4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"low": (0.9, 0.6, 0.02)}, "start <= end"),
        ({"high": (1.2, 3.0, 0.0)}, "step above 0"),
        ({"low": (0.6, 1.3, 0.02)}, "above|rise"),
        ({"target": 1.4}, "no share"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BAPO(**settings)


def test_without_observe_step_it_says_so():
    with pytest.raises(ValueError, match="observe_step"):
        BAPO().token_loss(batch_of(*random_case(0)))


def test_the_divisor_is_the_steps_tokens():
    batch = batch_of(*random_case(2))
    losses = torch.ones_like(batch.mask)
    totals = StepTotals(tensor(100.0), tensor(6.0), 8)
    assert_close(BAPO().reduce(losses, batch.mask, totals), (batch.mask.sum() / 100).to(losses.dtype))


def test_advantages_are_grpos():
    rewards = tensor([[1.0, 0.0, 0.0]])
    groups = Groups(rewards, rewards.unsqueeze(-1), torch.ones(1))
    expected = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    assert_close(BAPO().advantages(groups), {"advantages": expected})
