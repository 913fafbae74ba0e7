"""Logged answers among samples, over the whole table of methods: what the loss makes of them, what no statistic
sees."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_contract import LIMIT, POLICY, G, P, T, make, make_batch
from torch import Tensor
from torch.testing import assert_close

from posttrain.objectives.base import Groups, Objective, TokenBatch
from posttrain.objectives.copo import COPO
from posttrain.objectives.logged_rows import logged_in_words, seen_by_method
from posttrain.objectives.step import step_losses
from posttrain.observe.recorder import load_record, record_step
from posttrain.observe.replay import build_objective, replay_step
from posttrain.observe.signal import account_objective

KNOWN = {"learning_rate": 0.01, "peak_learning_rate": 0.01}
TAKES = [name for name in POLICY if make(name).refuses_logged is None]
LAST = (torch.arange(P * G) % G == G - 1).unsqueeze(1)  # the last place of each group


def mixed(objective: Objective, gamma: float | None = None, spread: float = 0.3) -> TokenBatch:
    """The contract's batch with the last answer of each group logged, old log-probs as the trainer gives them."""
    batch = make_batch(objective, spread=spread)
    mask = torch.where(LAST, (torch.arange(T) < 4).double(), batch.mask)
    shaping = None if gamma is None else torch.full((P * G, 1), gamma, dtype=torch.float64)
    old = torch.where(LAST, batch.logprobs, batch.old_logprobs)
    return replace(batch, old_logprobs=old, mask=mask, logged=LAST, shaping=shaping)


def gradient_of(objective: Objective, batch: TokenBatch) -> tuple[Tensor, TokenBatch]:
    """Of one step, over the log-probs, and the batch as the loss saw it."""
    leaf = batch.logprobs.detach().clone().requires_grad_()
    result = step_losses(objective, [replace(batch, logprobs=leaf)], max_completion_length=LIMIT, known=KNOWN)
    (gradient,) = torch.autograd.grad(result.losses[0], leaf)
    return gradient, result.batches[0]


def test_the_methods_that_have_no_place_for_them_say_why() -> None:
    assert sorted(set(POLICY) - set(TAKES)) == ["online_dpo", "opd", "ppo", "ppo_max"]
    assert POLICY["capo"](base="grpo").refuses_logged is None


@pytest.mark.parametrize("name", TAKES)
def test_shaped_tokens_have_luffys_gradient_and_samples_their_own(name: str) -> None:
    """-A gamma p / (p + gamma)^2 times what the method's reduction gives a token, which a plain -A log p tells."""
    objective, gamma = make(name), 0.2
    batch = mixed(objective, gamma)
    gradient, seen = gradient_of(objective, batch)
    p = batch.logprobs.exp()
    unit = torch.zeros_like(p).requires_grad_()
    keep = objective.keep(seen)
    kept = batch.mask if keep is None else batch.mask * (keep | LAST)
    totals = step_losses(make(name), [batch], max_completion_length=LIMIT, known=KNOWN).totals
    (weight,) = torch.autograd.grad(objective.reduce(unit, kept, totals), unit)
    expected = -objective.effective_advantages(seen) * gamma * p / (p + gamma).square() * weight
    rows = LAST.expand_as(p)
    assert_close(gradient[rows], expected.expand_as(p)[rows])
    assert (gradient[rows] != 0).any()
    # a sample's gradient is what it is where the last answers are samples with a ratio of one
    other, _ = gradient_of(make(name), replace(batch, shaping=None))
    if not objective.observes_step and keep is None:
        assert_close(gradient[~rows], other[~rows], rtol=0, atol=0)


@pytest.mark.parametrize("name", TAKES)
def test_untreated_tokens_are_fresh_samples_of_the_policy_of_now(name: str) -> None:
    """Their ratio is one at every step, so that nothing clips them, however far the samples have moved."""
    objective = make(name)
    batch = mixed(objective, spread=3.0)
    gradient, seen = gradient_of(objective, batch)
    ratio = objective.ratio(seen).expand_as(seen.mask)[LAST.squeeze(1)]
    assert_close(ratio, torch.ones_like(ratio))
    same, _ = gradient_of(make(name), replace(batch, logged=None))
    assert torch.equal(gradient, same)


def test_no_statistic_of_the_method_sees_a_shaped_token() -> None:
    batch = mixed(make("bapo"), 0.1)
    assert (seen_by_method(batch).mask[LAST.squeeze(1)] == 0).all()
    found = [
        make("bapo").observe_step([one], lambda v: v)
        for one in (seen_by_method(batch), replace(batch, mask=batch.mask * ~LAST))
    ]
    assert str(found[0]) == str(found[1])
    far = replace(batch, logprobs=torch.where(LAST, batch.logprobs - 5, batch.logprobs))
    _, moved = gradient_of(make("bapo"), far)
    _, still = gradient_of(make("bapo"), batch)
    assert str(moved.step) == str(still.step)


def test_capo_rejects_no_shaped_token() -> None:
    objective = make("capo")
    batch = mixed(objective, 0.1)
    result = step_losses(objective, [batch], max_completion_length=LIMIT, known=KNOWN)
    assert torch.equal(result.masks[0][LAST.squeeze(1)], batch.mask[LAST.squeeze(1)])
    dropped = (batch.mask > 0) & (result.masks[0] == 0)
    assert dropped.any()


def test_the_signal_account_tells_shaped_tokens_from_clipped_ones() -> None:
    """The same tokens, far above the bound with a positive advantage: clipped as the method's, carried when shaped."""
    objective = make("grpo")
    logprobs = torch.full((2, 3), -0.5, dtype=torch.float64)
    batch = TokenBatch(
        logprobs, logprobs - 1.0, torch.ones(2, 3).double(), torch.ones(2, 1).double(),
        logged=torch.tensor([[False], [True]]),
    )  # fmt: skip
    generated = torch.ones(2, 3, dtype=torch.bool)
    assert account_objective(objective, batch, generated=generated).as_dict()["clipped_high"] == 6
    shaped = replace(batch, shaping=torch.full((2, 1), 0.1, dtype=torch.float64))
    counts = account_objective(objective, shaped, generated=generated).as_dict()
    assert (counts["clipped_high"], counts["carried"]) == (3, 3)


def test_copo_by_hand() -> None:
    """Three samples and a logged answer. The samples agree, so their entropy is 0 and only the logged one is compared
    inside its group; the means between prompts are those of the samples: 0 and 1."""
    rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    logged = torch.tensor([[False, False, False, True]] * 2)
    groups = Groups(
        rewards,
        rewards.unsqueeze(-1),
        torch.ones(1),
        [["1", "1", "1", "7"], ["2", "2", "2", "2"]],
        logged=logged,
    )
    streams = COPO().advantages(groups)
    assert_close(streams["local_weight"][:, 3], torch.ones(2, dtype=torch.float64))
    assert_close(streams["global_weight"][:, 3], torch.zeros(2, dtype=torch.float64))
    assert (streams["local_weight"][:, :3] < 1e-12).all()
    between = 0.5 / (0.5**0.5 + 1e-6)  # means 0 and 1: their standard deviation is sqrt(1/2)
    assert_close(streams["global_advantages"][:, 0], torch.tensor([-between, between], dtype=torch.float64))
    assert_close(streams["advantages"][0, 3], torch.tensor(0.75 / (0.5 + 1e-6), dtype=torch.float64))
    metrics = COPO().rollout_metrics(groups)
    assert (metrics["answer_entropy"], metrics["all_wrong"], metrics["all_right"]) == (0.0, 0.5, 0.5)


def test_a_record_replays_with_the_shaped_loss(tmp_path) -> None:
    batch = mixed(make("grpo"), 0.1)
    result = step_losses(make("grpo"), [batch], max_completion_length=LIMIT)
    path = record_step(tmp_path, 1, result.batches, result.totals, "grpo", {})
    record = load_record(path)
    replayed = replay_step(record, build_objective("grpo", {}), "grpo")
    assert replayed.loss == pytest.approx(float(result.losses[0]))
    assert_close(replayed.gradients[0], gradient_of(make("grpo"), batch)[0])
    assert f"{P} of {P * G} responses are logged answers" in replayed.notes[0]
    assert "gamma 0.1" in replayed.notes[0]
    assert logged_in_words([replace(batch, logged=None, shaping=None)]) == []
