"""CAPO: worked vectors, a float64 reference with full tensors, the identities behind the model, and the
objective."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from posttrain.objectives.bapo import search_bounds
from posttrain.objectives.base import Groups, TokenBatch
from posttrain.objectives.capo import CAPO, candidate_scores, candidate_shifts, keep_tokens, predicted_shifts
from posttrain.objectives.capo.moments import Moments, RowGradients
from posttrain.objectives.capo.shifts import step_weights
from posttrain.objectives.step import StepResult, step_losses
from posttrain.ops.logprobs import top_candidates
from posttrain.recipe.methods import bases_of

BASES = [*bases_of(CAPO)]
B, T, V, H, K = 2, 3, 6, 4, 4
LR = 0.02


def one_rank(values: Tensor) -> Tensor:
    return values


def flat(values: Tensor) -> Tensor:
    return values.reshape(B * T, *values.shape[2:])


VECTOR_LOGITS = torch.arange(B * T * V, dtype=torch.float64).view(B, T, V)
VECTOR_LOGITS = 1.5 * torch.sin(0.9 * VECTOR_LOGITS + 0.2) + 0.3 * torch.cos(2.3 * VECTOR_LOGITS)
VECTOR_HIDDEN = 2 * torch.cos(0.7 * torch.arange(B * T * H, dtype=torch.float64).view(B, T, H) - 0.4)
VECTOR_ACTIONS = tensor([[2, 3, 2], [5, 5, 2]])
VECTOR_ADVANTAGES = tensor([[1.2], [-0.8]], dtype=torch.float64).expand(B, T)
VECTOR_MASK = tensor([[1, 1, 1], [1, 1, 0]], dtype=torch.float64)
VECTOR = [flat(part) for part in (VECTOR_LOGITS, VECTOR_HIDDEN, VECTOR_ACTIONS, VECTOR_ADVANTAGES)]
SGD_H = [
    [1.3635901022e-01, 1.8153429349e-01, 2.7554850182e-01],
    [8.6698032918e-02, 3.8756989458e-02, 1.1986758254e-01],
]
SGD_F = [
    [6.1566781877e-03, 1.0692893549e-02, 2.2436544123e-02],
    [6.2432147741e-03, 1.1770924428e-03, 1.3136610085e-02],
]
ADAM_H = [
    [1.4769989526e-01, 1.4792713592e-01, 2.2902104565e-01],
    [9.3981873246e-02, 4.7240287053e-02, 9.4906714354e-02],
]
ADAM_F = [
    [7.1898774665e-03, 7.2383220441e-03, 1.5869179361e-02],
    [7.3506917545e-03, 1.7285238436e-03, 7.9662084879e-03],
]


def random_tokens(
    seed: int, n: int = 12, vocabulary: int = 20, hidden: int = 5, scale: float = 2.0
) -> list[Tensor]:
    """Logits (N, V), hidden (N, H), actions (N,), advantages (N,), in float64."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, vocabulary, generator=generator, dtype=torch.float64)
    states = torch.randn(n, hidden, generator=generator, dtype=torch.float64)
    actions = torch.randint(0, vocabulary, (n,), generator=generator)
    return [logits, states, actions, torch.randn(n, generator=generator, dtype=torch.float64)]


class DenseAdam:
    """The optimizer model with dense (V, H) moments and explicit (K, H) matrices, one token at a time."""

    def __init__(self, vocabulary: int, hidden: int) -> None:
        self.first = torch.zeros(vocabulary, hidden, dtype=torch.float64)
        self.second = torch.zeros(vocabulary, hidden, dtype=torch.float64)
        self.step = 0

    def plan(self, ids: Tensor, gradient: Tensor) -> Tensor:
        if self.step == 0:
            return gradient
        n = self.step + 1
        first = 0.9 * self.first[ids] + 0.1 * gradient
        second = 0.999 * self.second[ids] + 0.001 * gradient * gradient
        return (first / (1 - 0.9**n)) / ((second / (1 - 0.999**n)).sqrt() + 1e-8)

    def update(self, tokens: list[tuple[Tensor, Tensor]]) -> None:
        sums, counts = torch.zeros_like(self.first), torch.zeros(len(self.first), dtype=torch.float64)
        for ids, gradient in tokens:
            sums[ids] += gradient
            counts[ids] += 1
        seen = counts > 0
        mean = sums[seen] / counts[seen].unsqueeze(1)
        self.first[seen] = 0.9 * self.first[seen] + 0.1 * mean
        self.second[seen] = 0.999 * self.second[seen] + 0.001 * mean * mean
        self.step += 1


def reference_token(logits, hidden, action, advantage, *, lr, k, adam: DenseAdam | None):
    """(m_H, m_F, ids, G) of one token from the definitions: K x K Fisher matrix, K x H step."""
    ids = logits.topk(min(k, len(logits))).indices
    if action not in ids.tolist():
        ids = torch.cat([ids[:-1], tensor([action])])
    policy = logits[ids].softmax(0)
    score = (ids == action).double() - policy
    gradient = advantage * torch.outer(score, hidden)
    planned = gradient if adam is None else adam.plan(ids, gradient)
    change = planned @ hidden
    fisher = torch.diag(policy) - torch.outer(policy, policy)
    curvature = (score @ change) ** 2 - change @ fisher @ change
    objective = lr * (gradient * planned).sum() + lr**2 / 2 * advantage * curvature
    return float(objective), float(lr**2 / 2 * (score @ change) ** 2), ids, gradient


def reference(tokens: list[Tensor], *, lr: float, k: int, adam: DenseAdam | None = None):
    logits, hidden, actions, advantages = (
        part.double() if part.is_floating_point() else part for part in tokens
    )
    rows = zip(logits, hidden, actions.tolist(), advantages.tolist(), strict=True)
    return [reference_token(*row, lr=lr, k=k, adam=adam) for row in rows]


def row_gradients(tokens: list[Tensor], k: int, weights: Tensor | None = None) -> RowGradients:
    logits, hidden, actions, advantages = tokens
    ids, values = top_candidates(logits, actions, k)
    _, score = candidate_scores(ids, values, actions)
    weights = torch.ones_like(advantages) if weights is None else weights
    return RowGradients(ids, (advantages.unsqueeze(1) * score).to(hidden.dtype), hidden, weights)


# The prediction


def test_vector_sgd():
    for moments in (None, Moments()):  # Adam before its first update is the raw gradient
        objective_shift, policy_shift = predicted_shifts(*VECTOR, lr=LR, top_k=K, moments=moments)
        assert_close(objective_shift.view(B, T), tensor(SGD_H, dtype=torch.float64), rtol=1e-9, atol=0)
        assert_close(policy_shift.view(B, T), tensor(SGD_F, dtype=torch.float64), rtol=1e-9, atol=0)


def test_vector_adam_after_one_meta_step():
    moments = Moments()
    moments.update([row_gradients(VECTOR, K, flat(VECTOR_MASK))], one_rank)
    objective_shift, policy_shift = predicted_shifts(*VECTOR, lr=LR, top_k=K, moments=moments)
    assert_close(objective_shift.view(B, T), tensor(ADAM_H, dtype=torch.float64), rtol=1e-9, atol=0)
    assert_close(policy_shift.view(B, T), tensor(ADAM_F, dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("model", ["sgd", "adam"])
def test_float64_reference_on_random_batches(model, dtype):
    for seed in range(4):
        moments = Moments() if model == "adam" else None
        dense = DenseAdam(20, 5) if model == "adam" else None
        for step in range(3):
            tokens = random_tokens(10 * seed + step, scale=1.0 + 3 * (seed % 2))
            tokens = [part.to(dtype) if part.is_floating_point() else part for part in tokens]
            expected = reference(tokens, lr=0.3, k=7, adam=dense)
            objective_shift, policy_shift = predicted_shifts(*tokens, lr=0.3, top_k=7, moments=moments)
            assert objective_shift.dtype == dtype
            close = {"rtol": 1e-5, "atol": 1e-9}
            assert_close(
                objective_shift.double(), tensor([e[0] for e in expected], dtype=torch.float64), **close
            )
            assert_close(
                policy_shift.double(), tensor([e[1] for e in expected], dtype=torch.float64), **close
            )
            if moments is not None and dense is not None:
                moments.update([row_gradients(tokens, 7)], one_rank)
                dense.update([(e[2], e[3]) for e in expected])


def test_the_gradient_is_autograds():
    """G is the gradient of A log pi(a) with respect to the head's candidate rows."""
    (logits, hidden, actions, advantages), k = random_tokens(3), 20
    head = torch.zeros(20, 5, dtype=torch.float64, requires_grad=True)
    for n in range(4):
        logprob = (logits[n] + head @ hidden[n]).log_softmax(0)[actions[n]]
        (expected,) = torch.autograd.grad(advantages[n] * logprob, head)
        *_, ids, gradient = reference(
            [part[n : n + 1] for part in (logits, hidden, actions, advantages)], lr=1, k=k
        )[0]
        assert_close(gradient, expected[ids])


def test_objective_shift_is_second_order_in_the_learning_rate():
    """Its error against A (pi'(a) / pi(a) - 1), pi' after the SGD step of that token, falls 8-fold when lr
    halves."""
    logits, hidden, actions, advantages = random_tokens(5, hidden=3)

    def error(lr: float) -> Tensor:
        shift, _ = predicted_shifts(logits, hidden, actions, advantages, lr=lr, top_k=20)
        policy = logits.softmax(1)
        score = torch.nn.functional.one_hot(actions, 20) - policy
        moved = logits + lr * advantages.unsqueeze(1) * score * hidden.square().sum(1, keepdim=True)
        chosen = actions.unsqueeze(1)
        ratio = moved.log_softmax(1).gather(1, chosen) - logits.log_softmax(1).gather(1, chosen)
        return (shift - advantages * ratio.squeeze(1).expm1()).abs().sum()

    for lr in (0.02, 0.01):
        assert float(error(lr) / error(lr / 2)) == pytest.approx(8, rel=0.1)


def test_policy_shift_averages_to_the_kl_of_a_common_step():
    """Averaged over the sampled id, lr^2/2 (v.u)^2 for one fixed u is lr^2/2 u'Fu, and KL(pi || pi') to
    second order."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, generator=generator, dtype=torch.float64)
    u = torch.randn(8, generator=generator, dtype=torch.float64)
    policy, lr = logits.softmax(0), 1e-3
    scores = torch.eye(8, dtype=torch.float64) - policy
    mean = (policy * lr**2 / 2 * (scores @ u).square()).sum()
    fisher = torch.diag(policy) - torch.outer(policy, policy)
    assert_close(mean, lr**2 / 2 * (u @ fisher @ u))
    moved = (logits + lr * u).log_softmax(0)
    assert_close((policy * (logits.log_softmax(0) - moved)).sum(), mean, rtol=1e-2, atol=0)


def test_adams_shifts_follow_the_sgd_formula_with_its_own_change():
    """<G, D> = A s, so both shifts follow from u = D h alone."""
    tokens = random_tokens(6)
    moments = Moments()
    moments.update([row_gradients(tokens, 6)], one_rank)
    logits, hidden, actions, advantages = random_tokens(7)
    ids, values = top_candidates(logits, actions, 6)
    policy, score = candidate_scores(ids, values, actions)
    change = moments.logit_change(ids, advantages.unsqueeze(1) * score, hidden)
    along = (score * change).sum(1)
    objective_shift, policy_shift = candidate_shifts(
        ids, values, hidden, actions, advantages, lr=0.1, moments=moments
    )
    spread = (policy * change**2).sum(1) - (policy * change).sum(1) ** 2
    assert_close(policy_shift, 0.005 * along**2)
    assert_close(objective_shift, 0.1 * advantages * along + 0.005 * advantages * (along**2 - spread))


def test_without_advantage_sgd_does_nothing_and_adam_still_moves_by_momentum():
    tokens = random_tokens(8)
    moments = Moments()
    moments.update([row_gradients(tokens, 6)], one_rank)
    tokens[3] = torch.zeros_like(tokens[3])
    for shift in predicted_shifts(*tokens, lr=0.1, top_k=6):
        assert torch.equal(shift, torch.zeros(12, dtype=torch.float64))
    objective_shift, policy_shift = predicted_shifts(*tokens, lr=0.1, top_k=6, moments=moments)
    assert torch.equal(objective_shift, torch.zeros(12, dtype=torch.float64))
    assert (policy_shift > 0).all()


def test_at_learning_rate_zero_nothing_shifts():
    for shift in predicted_shifts(*random_tokens(9), lr=0.0, top_k=6):
        assert torch.equal(shift, torch.zeros(12, dtype=torch.float64))


def test_a_confident_token_keeps_its_precision():
    logits = tensor([[16.0, 0.0, -1.0]])
    hidden = tensor([[1.0, 2.0]])
    exact = predicted_shifts(logits.double(), hidden.double(), tensor([0]), tensor([1.0]), lr=0.1, top_k=3)
    found = predicted_shifts(logits, hidden, tensor([0]), tensor([1.0]), lr=0.1, top_k=3)
    assert float(exact[0]) > 0
    for ours, theirs in zip(found, exact, strict=True):
        assert float(ours) == pytest.approx(float(theirs), rel=1e-6)


# The rule


def test_the_rule_is_strict_and_zero_switches_off():
    m_h = tensor([-0.01, -0.0099, 0.0, 0.0099, 0.01, math.nan])
    m_f = tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0])

    def kept(h: float, f: float, symmetric: bool = True, shift: Tensor = m_f) -> list[bool]:
        return keep_tokens(
            m_h, shift, objective_threshold=h, policy_threshold=f, symmetric=symmetric
        ).tolist()

    assert kept(0.01, 0.0) == [False, True, True, True, False, False]
    assert kept(0.01, 0.0, symmetric=False) == [False, False, True, True, False, False]
    assert kept(0.0, 0.0) == [True] * 6
    shift = tensor([0.0, 1e-4, 0.99e-4, 1.0, math.nan, 0.0])
    assert kept(0.0, 1e-4, shift=shift) == [True, False, True, False, False, True]


# The objective


def forward_of(tokens: list[Tensor], shape: tuple[int, int], k: int) -> dict[str, Tensor]:
    logits, hidden, actions, _ = tokens
    ids, values = top_candidates(logits, actions, k)
    return {
        "hidden": hidden.view(*shape, -1),
        "actions": actions.view(shape),
        "candidate_ids": ids.view(*shape, -1),
        "candidate_logits": values.view(*shape, -1),
    }


def make_batch(seed: int, rows: int = 4, columns: int = 5, k: int = 6) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)
    tokens = random_tokens(seed, n=rows * columns)
    old = -torch.rand(rows, columns, generator=generator, dtype=torch.float64)
    new = old + 0.2 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    mask = (torch.rand(rows, columns, generator=generator) < 0.8).double()
    advantages = torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    streams = {
        "global_advantages": torch.randn(rows, 1, generator=generator, dtype=torch.float64),
        "local_weight": torch.rand(rows, 1, generator=generator, dtype=torch.float64),
    }
    streams["global_weight"] = 1 - streams["local_weight"]
    forward = forward_of(tokens, (rows, columns), k)
    return TokenBatch(new.requires_grad_(), old, mask, advantages, streams=streams, forward=forward)


def run(objective: CAPO, batches: list[TokenBatch], lr: float = 0.05) -> StepResult:
    known = {"learning_rate": lr, "peak_learning_rate": 2 * lr}
    return step_losses(objective, batches, max_completion_length=5, known=known)


def tight(base: str, **settings) -> CAPO:
    """Thresholds that reject some of `make_batch`'s tokens and keep others."""
    return CAPO(base=base, objective_threshold=0.2, policy_threshold=0.03, num_candidates=6, **settings)


@pytest.mark.parametrize("base", BASES)
def test_thresholds_off_is_the_base(base):
    batches = [make_batch(0), make_batch(1)]
    objective = CAPO(base=base, objective_threshold=0, policy_threshold=0)
    found = run(objective, batches)
    expected = step_losses(objective.base_objective, batches, max_completion_length=5)
    for ours, theirs in zip(found.losses, expected.losses, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(found.totals.num_tokens, expected.totals.num_tokens)


@pytest.mark.parametrize("base", BASES)
def test_rejected_tokens_leave_numerator_and_divisor(base):
    """The same as the base on a batch whose mask never had them."""
    batches = [make_batch(0), make_batch(1)]
    objective = tight(base)
    found = run(objective, batches)
    kept = sum(float(mask.sum()) for mask in found.masks)
    assert 0.3 < kept / sum(float(b.mask.sum()) for b in batches) < 0.95
    without = [replace(batch, mask=mask) for batch, mask in zip(batches, found.masks, strict=True)]
    expected = step_losses(objective.base_objective, without, max_completion_length=5)
    for ours, theirs in zip(found.losses, expected.losses, strict=True):
        assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    sum(found.losses).backward()
    for batch, mask in zip(batches, found.masks, strict=True):
        assert (batch.logprobs.grad[mask == 0] == 0).all()


def test_masks_are_the_references():
    for model in ("sgd", "adam"):
        objective = tight("grpo", optimizer_model=model)
        dense = DenseAdam(20, 5) if model == "adam" else None
        for step in range(3):
            batch = make_batch(step)
            result = run(objective, [batch])
            tokens = random_tokens(step, n=20)
            tokens[3] = batch.advantages.expand(4, 5).reshape(-1)
            expected = reference(tokens, lr=0.05, k=6, adam=dense)
            keep = tensor([abs(m_h) < 0.2 and m_f < 0.03 for m_h, m_f, *_ in expected]).view(4, 5)
            assert torch.equal(result.masks[0], batch.mask * keep)
            objective.finish_step(result.batches, one_rank)
            if dense is not None:
                counted = result.masks[0].reshape(-1).tolist()
                dense.update([(e[2], e[3]) for e, m in zip(expected, counted, strict=True) if m])


def test_bapos_sums_use_the_kept_mask():
    """At a target of .6 the kept tokens fall short of it; all tokens together would not."""
    batches = [make_batch(0), make_batch(1)]
    objective = tight("bapo", base_settings={"target": 0.6})
    assert objective.observes_step
    found = run(objective, batches)
    new, old = (
        torch.cat([getattr(b, name) for b in batches]).detach() for name in ("logprobs", "old_logprobs")
    )
    advantages = torch.cat([b.advantages for b in batches])
    kept = search_bounds(new - old, advantages, torch.cat(found.masks), target=0.6)
    without = search_bounds(new - old, advantages, torch.cat([b.mask for b in batches]), target=0.6)
    assert float(kept.high) != float(without.high)
    low, high = objective.clip_bounds(found.batches[0])
    assert_close(torch.stack([low, high]), torch.stack(kept[:2]))


def test_copos_shifts_are_of_the_blended_advantage():
    batch = make_batch(2)
    weight = batch.streams["local_weight"]
    blended = weight * batch.advantages + (1 - weight) * batch.streams["global_advantages"]
    mine = run(tight("copo"), [batch]).batches[0].forward["policy_shift"]
    plain = run(tight("grpo"), [replace(batch, advantages=blended)]).batches[0].forward["policy_shift"]
    assert_close(mine, plain)


def test_the_bases_numbers_are_of_the_kept_tokens():
    batch = make_batch(2, rows=8, columns=8)
    objective = tight("copo")
    prepared = run(objective, [batch]).batches[0]
    kept = replace(prepared, mask=prepared.mask * objective.keep(prepared))
    assert 0 < kept.mask.sum() < prepared.mask.sum()
    base = objective.base_objective
    found = objective.metrics(prepared)["global_loss_share"]
    assert_close(found, base.metrics(kept)["global_loss_share"])
    assert not torch.isclose(found, base.metrics(prepared)["global_loss_share"])


def test_the_wrapper_answers_for_its_base():
    assert CAPO(base="copo").needs_answers
    assert not CAPO(base="grpo").needs_answers
    assert CAPO(base="bapo").observes_step
    assert not CAPO(base="dr_grpo").observes_step  # so no second forward is called for
    assert CAPO(
        base="bnpo", base_settings={"aggregate": "per_token"}
    ).observes_step  # its divisor counts kept tokens
    rewards = tensor([[1.0, 0.0, 1.0]])
    groups = Groups(rewards, rewards.unsqueeze(-1), torch.ones(1), [["1", "2", "1"]])
    assert set(CAPO(base="copo").advantages(groups)) == {
        *("advantages", "global_advantages", "local_weight", "global_weight")
    }
    assert "answer_entropy" in CAPO(base="copo").rollout_metrics(groups)
    batch = make_batch(0)
    assert CAPO(base="reinforce").clip_bounds(batch) is None
    assert CAPO(base="grpo", base_settings={"clip_high": 0.3}).clip_bounds(batch) == (0.8, 1.3)


def test_thresholds_default_to_the_papers_for_the_base():
    assert CAPO().thresholds == (1e-2, 1e-4)
    assert CAPO(base="dr_grpo").thresholds == (5e-4, 1e-3)
    assert CAPO(base="reinforce").thresholds == (1e-1, 1e-5)
    assert CAPO(base="bnpo").thresholds == (1e-2, 1e-4)
    assert CAPO(base="dr_grpo", policy_threshold=1e-2).thresholds == (5e-4, 1e-2)


def test_sizes_that_would_broadcast_are_refused():
    given = {
        "logits": torch.randn(4, 9, requires_grad=True),
        "hidden": torch.randn(4, 3, requires_grad=True),
        "actions": torch.arange(4),
        "advantages": torch.ones(4),
    }
    for moments in (None, Moments(cold_start="adam")):
        objective_shift, _ = predicted_shifts(**given, lr=0.1, top_k=9, moments=moments)
        assert objective_shift.shape == (4,)
        assert not objective_shift.requires_grad
    wrong = {
        "logits": given["logits"][0],
        "hidden": given["hidden"][:1],
        "actions": given["actions"].unsqueeze(1),
        "advantages": given["advantages"].unsqueeze(1),
    }
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=r"wants \(N, V\), \(N, H\), \(N,\), \(N,\); got"):
            predicted_shifts(**{**given, name: value}, lr=0.1, top_k=5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"calibrate": True, "policy_threshold": 1e-3}, "leave"),
        ({"calibrate": True, "symmetric": False}, "symmetric"),
        ({"excess": "scale", "symmetric": False}, "symmetric"),
        ({"calibration_holds": True}, "without calibrate"),
        ({"calibration_follows": True}, "without calibrate"),
        ({"optimizer_model": "sgd", "cold_start": "adam"}, "no effect"),
        ({"moment_decay": (0.9, 1.0)}, "moment_decay"),
        ({"moment_decay": (0.9,)}, "moment_decay"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CAPO(**settings)


def test_a_setting_the_base_does_not_have_is_named():
    with pytest.raises(ValueError, match="did you mean 'clip_high'"):
        _ = CAPO(base_settings={"clip_hihg": 0.3}).base_objective
    with pytest.raises(
        ValueError, match=r"CAPO: base: 'gspo' is none of grpo, dr_grpo, .*; did you mean 'sapo'"
    ):
        _ = CAPO(base="gspo").base_objective  # no token of its own to reject


def test_the_learning_rate_is_asked_for():
    with pytest.raises(ValueError, match="learning_rate"):
        CAPO().keep(make_batch(0))
    with pytest.raises(ValueError, match="peak_learning_rate"):
        CAPO(calibrate=True).keep(replace(make_batch(0), step={"learning_rate": 0.1}))


def test_prepared_or_not_the_mask_is_the_same():
    objective = tight("grpo")
    batch = replace(make_batch(3), step={"learning_rate": 0.05})
    assert torch.equal(objective.keep(batch), objective.keep(objective.prepare(batch)))
    expected = objective.metrics(batch)
    assert_close(objective.metrics(objective.prepare(batch)), expected)


def test_moments_move_once_a_step_over_kept_tokens_of_all_micro_batches():
    batches = [make_batch(4), make_batch(5)]
    split, whole = tight("grpo"), tight("grpo")
    joined = TokenBatch(
        torch.cat([b.logprobs.detach() for b in batches]).requires_grad_(),
        torch.cat([b.old_logprobs for b in batches]),
        torch.cat([b.mask for b in batches]),
        torch.cat([b.advantages for b in batches]),
        forward={name: torch.cat([b.forward[name] for b in batches]) for name in batches[0].forward},
    )
    for _ in range(2):
        split.finish_step(run(split, batches).batches, one_rank)
        whole.finish_step(run(whole, [joined]).batches, one_rank)
    assert split.moments.step == 2
    assert_close(split.moments.state_dict(), whole.moments.state_dict())
    with pytest.raises(ValueError, match="micro-batches"):
        split.finish_step([], one_rank)


def test_metrics():
    objective = tight("grpo")
    batch = run(objective, [make_batch(6)]).batches[0]
    found = {name: float(value) for name, value in objective.metrics(batch).items()}
    loss_tokens = batch.mask > 0
    m_h = batch.forward["objective_shift"][loss_tokens]
    m_f = batch.forward["policy_shift"][loss_tokens]
    by_objective, by_policy = m_h.abs() >= 0.2, m_f >= 0.03
    assert found["rejected_by_objective"] == pytest.approx(float(by_objective.double().mean()))
    assert found["rejected_by_policy"] == pytest.approx(float(by_policy.double().mean()))
    assert found["rejected_share"] == pytest.approx(float((by_objective | by_policy).double().mean()))
    assert 0 < found["rejected_share"] < 1
    assert found["policy_shift_mean"] == pytest.approx(float(m_f.mean()))
    assert found["uncovered_share"] == 0.0
    empty = objective.metrics(
        replace(batch, mask=torch.zeros_like(batch.mask), forward=make_batch(6).forward)
    )
    assert float(empty["rejected_share"]) == 0.0


def test_masked_tokens_are_not_predicted_and_may_hold_anything():
    batch = make_batch(7)
    broken = {**batch.forward, "hidden": batch.forward["hidden"].clone()}
    broken["hidden"][batch.mask == 0] = math.nan
    objective = tight("grpo")
    result = run(objective, [replace(batch, forward=broken)])
    assert torch.equal(result.masks[0], run(objective, [batch]).masks[0])
    assert torch.isfinite(result.batches[0].forward["policy_shift"]).all()


def test_weights_by_hand():
    """Over the objective's threshold by 2: half a step; over the policy's by 9: a third; the smaller of both counts."""
    objective_shift = tensor([0.1, -0.4, 0.1, 0.4, 0.0, math.nan])
    policy_shift = tensor([0.01, 0.01, 0.9, 0.9, 0.0, 0.01])
    found = step_weights(objective_shift, policy_shift, objective_threshold=0.2, policy_threshold=0.1)
    assert_close(found, tensor([1, 1 / 2, 1 / 3, 1 / 3, 1, 0]))
    off = step_weights(objective_shift[:5], policy_shift[:5], objective_threshold=0, policy_threshold=0)
    assert (off == 1).all()


def test_a_scaled_token_comes_to_lie_on_its_threshold():
    """Under SGD exactly for the policy's shift: a gradient of w times the length moves by w."""
    logits, hidden, actions, advantages = random_tokens(7)
    _, policy_shift = predicted_shifts(logits, hidden, actions, advantages, lr=0.1, top_k=20)
    weights = step_weights(
        torch.zeros_like(policy_shift), policy_shift, objective_threshold=0, policy_threshold=0.01
    )
    assert 0 < (weights < 1).sum() < len(weights)
    _, after = predicted_shifts(logits, hidden, actions, weights * advantages, lr=0.1, top_k=20)
    assert_close(after, policy_shift.clamp(max=0.01))


@pytest.mark.parametrize("base", BASES)
def test_scaled_tokens_keep_their_place_in_the_divisor(base):
    batches = [make_batch(0), make_batch(1)]
    objective, rejecting = tight(base, excess="scale"), tight(base)
    found = run(objective, batches)
    for share, mask, batch in zip(found.batches, found.masks, batches, strict=True):
        assert torch.equal(mask, batch.mask)
        kept = rejecting.keep(share)
        expected = objective.base_objective.token_loss(share)
        weights = objective.token_loss(share) / expected
        assert_close(weights[kept & (expected != 0)], torch.ones_like(weights[kept & (expected != 0)]))
        over = ~kept & (share.mask > 0) & (expected != 0)
        assert over.any()
        assert ((weights[over] > 0) & (weights[over] < 1)).all()
    numbers = objective.metrics(found.batches[0])
    assert numbers["scaled_share"] == rejecting.metrics(found.batches[0])["rejected_share"]
    assert "rejected_share" not in numbers
    assert 0 < numbers["step_weight_mean"] < 1


def test_scaled_tokens_move_the_adam_model_by_what_they_are_scaled_to():
    batch = make_batch(3)
    objective = tight("grpo", excess="scale")
    result = run(objective, [batch])
    objective.finish_step(result.batches, one_rank)
    shifts = result.batches[0].forward
    weights = step_weights(
        shifts["objective_shift"], shifts["policy_shift"], objective_threshold=0.2, policy_threshold=0.03
    )
    tokens = random_tokens(3, n=20)
    tokens[3] = (batch.advantages * weights).reshape(-1)
    moments = Moments()
    moments.update([row_gradients(tokens, 6, batch.mask.reshape(-1))], one_rank)
    first, second = objective.moments.state_dict(), moments.state_dict()
    assert first.keys() == second.keys()
    for name, values in first.items():
        assert_close(values, second[name])


def test_calibration_measures_with_the_tests_off_and_proposes():
    settings = {"base": "grpo", "num_candidates": 6, "optimizer_model": "sgd"}
    objective = CAPO(calibrate=True, calibration_steps=2, target_rejection=0.1, **settings)
    batches = [make_batch(seed, rows=20, columns=20) for seed in (8, 9)]
    first = run(objective, batches)
    assert all(torch.equal(mask, batch.mask) for mask, batch in zip(first.masks, batches, strict=True))
    assert objective.finish_step(first.batches, one_rank) == {}
    found = objective.finish_step(run(objective, batches).batches, one_rank)
    h, f = objective.thresholds
    assert (float(found["proposed_objective_threshold"]), float(found["proposed_policy_threshold"])) == (h, f)
    assert float(found["calibration/policy_shift_q50"]) < float(found["calibration/policy_shift_q99"])
    # at the learning rate it measured for, it rejects about what was asked; at a lower one, less
    fresh = CAPO(objective_threshold=h, policy_threshold=f, **settings)
    at_peak, at_half = (run(fresh, batches, lr=lr) for lr in (0.1, 0.05))
    tokens = sum(float(b.mask.sum()) for b in batches)
    rejected = [1 - sum(float(m.sum()) for m in r.masks) / tokens for r in (at_peak, at_half)]
    assert 0.05 < rejected[0] <= 0.1
    assert rejected[1] < rejected[0]


@pytest.mark.parametrize("base", BASES)
def test_calibration_can_hold_the_policy(base):
    """Same thresholds and moments as with the tests off, but no loss until they are found."""
    settings = {"base": base, "calibrate": True, "calibration_steps": 2, "num_candidates": 6}
    holding, moving = CAPO(calibration_holds=True, **settings), CAPO(**settings)
    for seed in range(3):  # one cold step, two measured
        batches = [make_batch(seed), make_batch(seed + 10)]
        held, moved = run(holding, batches), run(moving, batches)
        assert all((mask == 0).all() for mask in held.masks)
        assert sum(held.losses).item() == 0.0
        gradients = torch.autograd.grad(sum(held.losses), [b.logprobs for b in held.batches])
        assert all((gradient == 0).all() for gradient in gradients)
        assert sum(moved.losses).item() != 0.0
        holding.finish_step(held.batches, one_rank)
        moving.finish_step(moved.batches, one_rank)
    assert not holding.calibrating
    assert holding.thresholds == moving.thresholds
    assert_close(holding.moments.state_dict(), moving.moments.state_dict())
    found = run(holding, [make_batch(5)])
    assert torch.equal(found.masks[0], run(moving, [make_batch(5)]).masks[0])
    assert found.masks[0].sum() > 0


def test_only_tokens_with_an_advantage_are_measured():
    """One response in five teaches: a share of all tokens as large as theirs would reject every one of them."""
    settings = {"optimizer_model": "sgd", "calibrate": True, "calibration_steps": 1, "num_candidates": 6}
    objective, alone = (CAPO(target_rejection=0.2, **settings) for _ in range(2))
    batch = make_batch(8, rows=20, columns=20)
    taught = (torch.arange(20) % 5 == 0).unsqueeze(1)
    sparse = replace(batch, advantages=batch.advantages * taught)
    objective.finish_step(run(objective, [sparse]).batches, one_rank)
    alone.finish_step(run(alone, [replace(batch, mask=batch.mask * taught)]).batches, one_rank)
    assert objective.thresholds == alone.thresholds
    kept = run(objective, [sparse], lr=0.1).masks[0]
    tokens = batch.mask * taught
    assert 0.8 <= float((kept * tokens).sum() / tokens.sum()) < 0.95


def test_a_step_without_advantages_says_nothing_about_thresholds():
    settings = {"optimizer_model": "sgd", "calibrate": True, "calibration_steps": 1, "num_candidates": 6}
    objective = CAPO(calibration_follows=True, **settings)
    batch = make_batch(8, rows=20, columns=20)
    nothing = replace(batch, advantages=0 * batch.advantages)
    masked = replace(batch, mask=0 * batch.mask)
    for empty in (nothing, masked):
        assert objective.finish_step(run(objective, [empty]).batches, one_rank) == {}
        assert objective.calibrating
    objective.finish_step(run(objective, [batch]).batches, one_rank)
    before = objective.thresholds
    assert 0 < before[0] < 100
    for empty in (nothing, masked):
        assert objective.finish_step(run(objective, [empty]).batches, one_rank) == {}
    assert objective.thresholds == before


@pytest.mark.parametrize(("lr", "words"), [(1e-30, "no token moves"), (1e6, "beyond all measure")])
def test_thresholds_at_the_end_of_what_is_counted_are_refused(lr, words):
    objective = CAPO(optimizer_model="sgd", calibrate=True, calibration_steps=1, num_candidates=6)
    batches = run(objective, [make_batch(8, rows=20, columns=20)], lr=lr).batches
    with pytest.raises(ValueError, match=words):
        objective.finish_step(batches, one_rank)


def test_thresholds_do_not_follow_beyond_what_is_counted():
    """At 100 they would reject nothing, where the updates are at their worst."""
    settings = {"num_candidates": 6, "optimizer_model": "sgd", "calibrate": True, "calibration_steps": 1}
    following = CAPO(calibration_follows=True, target_rejection=0.1, **settings)
    batches = [make_batch(seed, rows=20, columns=20) for seed in (8, 9)]
    following.finish_step(run(following, batches).batches, one_rank)
    before = following.thresholds
    for _ in range(40):
        following.finish_step(run(following, batches, lr=1e6).batches, one_rank)
    assert following.thresholds == before
    assert all((mask == 0).any() for mask in run(following, batches, lr=1e6).masks)


def test_quantiles_are_of_the_magnitude_of_the_objectives_shift():
    """Almost every shift of the objective is negative here; a count of their signed values would see none of them."""
    objective = CAPO(optimizer_model="sgd", calibrate=True, calibration_steps=1, num_candidates=6)
    batches = run(objective, [make_batch(8, rows=20, columns=20)], lr=0.05).batches
    shifts = batches[0].forward["objective_shift"]
    turned = [replace(batches[0], forward={**batches[0].forward, "objective_shift": -shifts.abs()})]
    found = objective.finish_step(turned, one_rank)
    taken = shifts.abs()[batches[0].mask > 0]
    assert_close(
        found["calibration/objective_shift_abs_q50"].item(), taken.median().item(), rtol=0.08, atol=0
    )
    q99 = objective.metrics(turned[0])["objective_shift_abs_q99"].item()
    assert_close(q99, taken.quantile(0.99).item(), rtol=1e-5, atol=0)


def test_a_token_that_is_not_a_number_is_left_out_of_moments_and_counts():
    settings = {"calibrate": True, "calibration_steps": 1, "num_candidates": 6, "cold_start": "adam"}
    torn, clean = CAPO(**settings), CAPO(**settings)
    batch = make_batch(3)
    hidden = batch.forward["hidden"].clone()
    hidden[0, 0] = float("nan")
    mask = batch.mask.clone()
    mask[0, 0] = 1.0
    torn_batch = replace(batch, mask=mask, forward={**batch.forward, "hidden": hidden})
    mask = mask.clone()
    mask[0, 0] = 0.0
    for objective, one in ((torn, torn_batch), (clean, replace(batch, mask=mask))):
        objective.finish_step(run(objective, [one]).batches, one_rank)
    assert torn.thresholds == clean.thresholds
    assert_close(torn.moments.state_dict(), clean.moments.state_dict())


def test_thresholds_can_follow_rising_shifts_but_never_fall():
    settings = {"num_candidates": 6, "optimizer_model": "sgd", "calibrate": True, "calibration_steps": 1}
    following = CAPO(calibration_follows=True, target_rejection=0.1, **settings)
    batches = [make_batch(seed, rows=20, columns=20) for seed in (8, 9)]
    tokens = sum(float(b.mask.sum()) for b in batches)

    def step(lr: float) -> float:
        result = run(following, batches, lr=lr)
        following.finish_step(result.batches, one_rank)
        return 1 - sum(float(mask.sum()) for mask in result.masks) / tokens

    step(0.05)  # calibrates at the peak, which `run` puts at twice the rate: 0.1
    first = following.thresholds
    assert step(0.02) < 0.05
    assert following.thresholds == first
    rejected = [step(0.3) for _ in range(90)]  # until the first steps' counts have faded
    assert rejected[0] > 0.15
    assert 0.05 < rejected[-1] <= 0.1
    assert all(new > old for new, old in zip(following.thresholds, first, strict=True))
    raised = following.thresholds
    restored = CAPO(calibration_follows=True, target_rejection=0.1, **settings)
    restored.load_state_dict(following.state_dict())
    for objective in (following, restored):
        objective.finish_step(run(objective, batches, lr=0.4).batches, one_rank)
    assert restored.thresholds == following.thresholds
    assert following.thresholds > raised


def test_calibration_waits_for_the_adam_model_to_act():
    objective = CAPO(calibrate=True, calibration_steps=1, num_candidates=6)
    assert objective.finish_step(run(objective, [make_batch(0)]).batches, one_rank) == {}
    assert objective.thresholds == (0.0, 0.0)
    assert objective.finish_step(run(objective, [make_batch(0)]).batches, one_rank)
    warm = CAPO(calibrate=True, calibration_steps=1, num_candidates=6, cold_start="adam")
    assert warm.finish_step(run(warm, [make_batch(0)]).batches, one_rank)


@pytest.mark.parametrize("calibrate", [False, True])
def test_state_survives_a_checkpoint(calibrate):
    settings = {"num_candidates": 6, "calibrate": calibrate, "calibration_steps": 1}
    objective, restored = CAPO(base="bapo", **settings), CAPO(base="bapo", **settings)
    for seed in range(2):
        objective.finish_step(run(objective, [make_batch(seed)]).batches, one_rank)
    restored.load_state_dict(objective.state_dict())
    assert restored.thresholds == objective.thresholds
    later = make_batch(5)
    ours, theirs = run(objective, [later]), run(restored, [later])
    assert torch.equal(ours.losses[0], theirs.losses[0])
    assert torch.equal(ours.batches[0].forward["policy_shift"], theirs.batches[0].forward["policy_shift"])


def test_a_checkpoint_of_other_settings_is_refused():
    with pytest.raises(ValueError, match="optimizer_model"):
        CAPO(optimizer_model="sgd").load_state_dict(CAPO().state_dict())
