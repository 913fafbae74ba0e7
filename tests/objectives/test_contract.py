"""What holds for every method that learns from rewards, over the whole table."""

from __future__ import annotations

import ast
import importlib.util
import math
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from posttrain.objectives import OBJECTIVES, Groups, Objective, TokenBatch
from posttrain.objectives.step import step_losses
from posttrain.recipe.methods import METHODS

P, G, T, V, H = 3, 4, 6, 15, 5
LIMIT = 8
POLICY = {
    name: cls
    for name, cls in OBJECTIVES.items()
    if METHODS[name].family == "policy" and issubclass(cls, Objective)
}
KNOWN = {"learning_rate": 0.01, "peak_learning_rate": 0.01}


def make(name: str) -> Objective:
    """The method with its defaults; CAPO's thresholds so that it rejects some of `make_batch`'s tokens."""
    if name == "capo":
        return POLICY[name](base="bapo", objective_threshold=0.03, policy_threshold=0.01, num_candidates=7)
    return POLICY[name]()


def make_groups(seed: int = 0, objective: Objective | None = None) -> Groups:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.bernoulli(torch.full((P, G), 0.5, dtype=torch.float64), generator=generator)
    rewards[0], rewards[1, :2] = 1.0, torch.tensor([0.0, 1.0])
    answers = [[str(a) for a in row] for row in torch.randint(0, 3, (P, G), generator=generator).tolist()]
    gap = torch.randn(
        (P, G, T), generator=generator, dtype=torch.float64
    )  # read by those that have a teacher
    groups = Groups(rewards, rewards.unsqueeze(-1), torch.ones(1), answers, teacher_gap=gap)
    if (
        objective is not None and objective.pairs_answers
    ):  # which are compared by what a reference says about them
        return replace(groups, token_kl=0.3 * gap, beta=0.5)
    return groups


def make_batch(objective: Objective, seed: int = 0, spread: float = 0.3) -> TokenBatch:
    """A rollout batch as one micro-batch: real advantages, ragged lengths, forward outputs as `needs`
    asks."""
    generator = torch.Generator().manual_seed(seed)
    streams = {
        name: v.reshape(P * G, -1) for name, v in objective.advantages(make_groups(seed, objective)).items()
    }
    shape = (P * G, T)
    old = -2 * torch.rand(shape, generator=generator, dtype=torch.float64)
    new = old + spread * torch.randn(shape, generator=generator, dtype=torch.float64)
    lengths = torch.randint(0, T + 1, (P * G, 1), generator=generator)
    lengths[1] = 0
    forward = {}
    if objective.needs:
        logits = 2 * torch.randn((*shape, V), generator=generator, dtype=torch.float64)
        values, ids = logits.topk(objective.num_candidates)
        forward = {
            "hidden": torch.randn((*shape, H), generator=generator, dtype=torch.float64),
            "actions": ids[..., 1].clone(),
            "candidate_ids": ids,
            "candidate_logits": values,
        }
    mask = (torch.arange(T) < lengths).double()
    return TokenBatch(new, old, mask, streams.pop("advantages"), streams=streams, forward=forward)


def rows(batch: TokenBatch, part: slice | Tensor) -> TokenBatch:
    cut = {name: getattr(batch, name)[part] for name in ("logprobs", "old_logprobs", "mask", "advantages")}
    streams = {name: values[part] for name, values in batch.streams.items()}
    return replace(batch, **cut, streams=streams, forward={k: v[part] for k, v in batch.forward.items()})


def gradients(
    objective: Objective, batches: list[TokenBatch], all_sum: Callable[[Tensor], Tensor] = lambda v: v
) -> tuple[Tensor, Tensor]:
    """(loss, gradient on the log-probs of all micro-batches in one tensor) of one optimizer step."""
    batches = [replace(b, logprobs=b.logprobs.detach().clone().requires_grad_()) for b in batches]
    result = step_losses(objective, batches, max_completion_length=LIMIT, known=KNOWN, all_sum=all_sum)
    loss = torch.stack(result.losses).sum()
    loss.backward()
    objective.finish_step(result.batches, all_sum)
    leaves = [b.logprobs for b in batches]
    return loss.detach(), torch.cat([torch.zeros_like(x) if x.grad is None else x.grad for x in leaves])


@pytest.mark.parametrize("name", POLICY)
def test_padding_gets_no_gradient_and_has_no_say(name):
    objective = make(name)
    batch = make_batch(objective)
    loss, gradient = gradients(objective, [batch])
    padding = batch.mask == 0
    assert (gradient[padding] == 0).all()
    assert (gradient[~padding] != 0).any()
    noise = torch.where(padding, 1.7, 0.0)
    forward = dict(batch.forward)
    if "hidden" in forward:
        forward["hidden"] = forward["hidden"] + 5 * noise.unsqueeze(-1)
    other = replace(batch, logprobs=batch.logprobs + noise, forward=forward)
    changed_loss, changed = gradients(make(name), [other])
    assert_close(changed_loss, loss, rtol=0, atol=0)
    assert torch.equal(changed, gradient)


@pytest.mark.parametrize("name", POLICY)
def test_zero_advantage_gives_zero_gradient(name):
    objective = make(name)
    batch = make_batch(objective)
    nothing = {k: torch.zeros_like(v) if "advantage" in k else v for k, v in batch.streams.items()}
    batch = replace(batch, advantages=torch.zeros_like(batch.advantages), streams=nothing)
    loss, gradient = gradients(objective, [batch])
    assert loss == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("name", POLICY)
def test_micro_batching_changes_nothing(name):
    whole, split = make(name), make(name)
    for seed in range(2):  # a second step, so that running statistics count too
        batch = make_batch(whole, seed)
        parts = [rows(batch, part) for part in (slice(0, 1), slice(1, 2), slice(2, 7), slice(7, 12))]
        one, many = gradients(whole, [batch]), gradients(split, parts)
        assert_close(many, one, rtol=1e-10, atol=1e-13)


def counted(**settings: Any) -> Objective:
    return POLICY["capo"](
        num_candidates=7, calibrate=True, calibration_follows=True, target_rejection=0.3, **settings
    )


SUMMING: dict[str, Callable[[], Objective]] = {
    **{name: lambda name=name: make(name) for name in POLICY},
    "bapo, a bound a micro-batch": lambda: POLICY["bapo"](scope="microbatch"),
    "capo, calibrated": counted,
    "capo on bapo, calibrated, sgd": lambda: counted(
        base="bapo", optimizer_model="sgd", calibration_holds=True
    ),
}
"""Every sum over ranks that an objective takes: counts, bounds, moments, histograms."""


@pytest.mark.parametrize("name", SUMMING)
def test_two_ranks_equal_one(name):
    """Two threads stand for two ranks; a sum over ranks waits for both."""
    alone, *ranks = (SUMMING[name]() for _ in range(3))
    for seed in range(4 if "calibrated" in name else 2):
        batch = make_batch(alone, seed)
        # the same two micro-batches on both sides, for bounds that are chosen for each
        places = [[*range(0, 3), 5], [3, 4, *range(6, 12)]] if "micro-batch" in name else [range(12)]
        order = torch.tensor([place for part in places for place in part])
        cut = [rows(batch, torch.tensor(list(part))) for part in places]
        loss, gathered = gradients(alone, cut)
        gradient = torch.empty_like(gathered).index_copy(0, order, gathered)
        shares = [
            [rows(batch, slice(0, 3)), rows(batch, slice(3, 5))],
            [rows(batch, slice(5, 6)), rows(batch, slice(6, 12))],
        ]
        barrier, posted, found = threading.Barrier(2, timeout=20), {}, {}

        def work(rank: int, barrier=barrier, posted=posted, found=found, shares=shares) -> None:
            def all_sum(values: Tensor) -> Tensor:
                posted[rank] = values
                barrier.wait()
                total = posted[0] + posted[1]
                barrier.wait()
                return total

            found[rank] = gradients(ranks[rank], shares[rank], all_sum)

        threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert_close(found[0][0] + found[1][0], loss, rtol=1e-10, atol=1e-13)
        assert_close(torch.cat([found[0][1], found[1][1]]), gradient, rtol=1e-10, atol=1e-13)
        assert_close(ranks[0].state_dict(), ranks[1].state_dict(), rtol=0, atol=0)
    assert_close(ranks[0].state_dict(), alone.state_dict(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", POLICY)
def test_at_ratio_one_the_push_follows_the_effective_advantage(name):
    objective = make(name)
    batch = make_batch(objective, spread=0.0)
    _, gradient = gradients(objective, [batch])
    push = objective.effective_advantages(batch).expand_as(gradient)
    moved = gradient != 0
    assert (gradient[moved].sign() == -push[moved].sign()).all()
    if objective.keep(replace(batch, step=KNOWN)) is None:
        assert torch.equal(moved, (push != 0) & (batch.mask > 0))


@pytest.mark.parametrize("name", POLICY)
def test_advantages_are_streams_of_groups(name):
    objective = make(name)
    groups = make_groups(objective=objective)
    streams = objective.advantages(groups)
    assert "advantages" in streams
    shape = (P, G, T) if objective.uses_teacher else (P, G)
    assert all(values.shape == shape for values in streams.values())
    order = [2, 0, 1]  # prompts have no order
    assert groups.answers is not None
    shuffled = replace(
        groups,
        rewards=groups.rewards[order],
        rewards_per_function=groups.rewards_per_function[order],
        answers=[groups.answers[p] for p in order],
        teacher_gap=None if groups.teacher_gap is None else groups.teacher_gap[order],
        token_kl=None if groups.token_kl is None else groups.token_kl[order],
    )
    again, streams = (
        {k: v for k, v in found.items() if k != "pair"}  # numbers of pairs, in order
        for found in (objective.advantages(shuffled), streams)
    )
    assert_close(again, {k: v[order] for k, v in streams.items()})


@pytest.mark.parametrize("name", POLICY)
def test_unjudged_responses_carry_no_advantage(name):
    objective = make(name)
    groups = make_groups(objective=objective)
    if objective.uses_teacher:  # which speaks about these too; here it agrees with the policy
        groups = replace(groups, teacher_gap=torch.zeros(P, G, T, dtype=torch.float64))
    rewards = groups.rewards.clone()
    rewards[1, 2] = rewards[2] = math.nan
    streams = objective.advantages(
        replace(groups, rewards=rewards, rewards_per_function=rewards.unsqueeze(-1))
    )
    assert not any(values.isnan().any() for values in streams.values())
    for stream, values in streams.items():
        if "advantage" in stream:
            assert (values[rewards.isnan()] == 0).all()
    assert all(v.isfinite() for v in objective.rollout_metrics(groups).values())


@pytest.mark.parametrize("name", POLICY)
def test_runaway_ratios_stay_finite(name):
    objective = make(name)
    batch = make_batch(objective)
    batch = replace(batch, logprobs=batch.logprobs + 400.0 * batch.advantages.sign())
    loss, gradient = gradients(objective, [batch])
    assert loss.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", POLICY)
def test_metrics_are_scalars_without_gradient(name):
    objective = make(name)
    batch = make_batch(objective)
    batch = replace(batch, logprobs=batch.logprobs.requires_grad_())
    result = step_losses(objective, [batch], max_completion_length=LIMIT, known=KNOWN)
    found = objective.metrics(result.batches[0]) | objective.rollout_metrics(make_groups(objective=objective))
    for key, value in found.items():
        assert value.shape == (), key
        assert not value.requires_grad, key
    bounds = objective.clip_bounds(result.batches[0])
    assert bounds is None or float(bounds[0]) <= 1 <= float(bounds[1])


@pytest.mark.parametrize("name", POLICY)
def test_state_of_another_shape_is_refused(name):
    with pytest.raises(ValueError, match="checkpoint"):
        make(name).load_state_dict({"strange": 1})


def test_no_setting_has_the_name_of_a_training_argument():
    """The trainers' configs are flat: a setting of that name would shadow TRL's."""
    taken: set[str] = set()
    for module, file, cls in (
        ("trl", "trainer/grpo_config.py", "GRPOConfig"),
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("transformers", "training_args.py", "TrainingArguments"),
    ):
        spec = importlib.util.find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        tree = ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))
        body = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == cls).body
        taken |= {
            n.target.id for n in body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
        }
    assert {"beta", "epsilon", "adam_beta1", "learning_rate"} <= taken
    for name, cls in POLICY.items():
        assert not {f.name for f in fields(cls)} & taken, name
