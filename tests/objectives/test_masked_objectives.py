"""The diffusion objectives: the page's vectors, the bound and where it touches, and constant memory as an
identity."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from posttrain.objectives.base import Groups, StepTotals
from posttrain.objectives.bgpo import BGPO, bgpo_terms, exp_limit
from posttrain.objectives.coupled_grpo import CoupledGRPO
from posttrain.objectives.diffu_grpo import DiffuGRPO
from posttrain.objectives.masked_base import DiffusionBatch, reduced_loss, term_coefficients
from posttrain.objectives.vrpo_ol import VRPOOL, vrpo_objective
from posttrain.ops.masked_elbo import elbo_terms, masked_logprobs, sample_noise

F64 = torch.float64
ELBO = tensor([[-3.0, -2.5, -4.0, -3.2], [-6.0, -5.0, -5.5, -6.5], [-1.0, -1.5, -0.5, -2.0]], dtype=F64)
OLD = tensor([[-3.2, -2.4, -4.5, -3.0], [-5.5, -5.5, -5.5, -6.0], [-1.2, -1.1, -0.9, -2.4]], dtype=F64)
ADVANTAGES = tensor([1.2, -0.7, -0.5], dtype=F64)


def totals(responses, tokens=1.0):
    return StepTotals(tensor(float(tokens)), tensor(float(responses)), 8)


def batch_of(terms, old, advantages, mask=None, num_passes=None):
    mask = torch.ones(len(terms), 5) if mask is None else mask
    return DiffusionBatch(terms, old, advantages, mask, num_passes or terms.shape[1], canvas_length=8)


# The page's vectors


def test_bound_and_objective_by_the_page():
    assert_close(
        bgpo_terms(ELBO, OLD, ADVANTAGES).sum(1),
        tensor([1.32, -0.6758119532719441, -0.6094215249347937], dtype=F64),
        rtol=1e-12,
        atol=0,
    )
    assert_close(
        vrpo_objective(ELBO, OLD, ADVANTAGES),
        tensor([1.326205101690777, -0.6177478318092167, -0.5809171213641415], dtype=F64),
        rtol=1e-12,
        atol=0,
    )


@pytest.mark.parametrize(
    ("objective", "loss", "row"),
    [
        (
            BGPO(samples=4),
            -0.011588840597754077,
            [0.03538095515, 0.096175407458, 0.058333333333, 0.03538095515],
        ),
        (VRPOOL(samples=4), -0.0425133828391396, [0.051478985984] * 4),
    ],
)
def test_losses_and_gradients_by_the_page(objective, loss, row):
    elbo = ELBO.clone().requires_grad_()
    value = reduced_loss(objective, batch_of(elbo, OLD, ADVANTAGES), totals(3))
    value.backward()
    assert_close(value.item(), loss, rtol=1e-12, atol=0)
    assert_close(elbo.grad[1], tensor(row, dtype=F64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("objective", [BGPO(samples=4), VRPOOL(samples=4)])
def test_on_policy_by_the_page(objective):
    elbo = ELBO.clone().requires_grad_()
    value = reduced_loss(objective, batch_of(elbo, ELBO, ADVANTAGES), totals(3))
    value.backward()
    assert_close(value.item(), 0.0, rtol=0, atol=1e-15)
    rows = tensor([-0.1, 0.058333333333333334, 0.041666666666666664], dtype=F64)[:, None].expand(3, 4)
    assert_close(elbo.grad, rows, rtol=1e-12, atol=0)


# The bound


def test_bound_is_never_above_the_objective_and_touches_it_on_policy():
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(20000, 5, generator=generator, dtype=F64)
    elbo = old + 2 * torch.randn(20000, 5, generator=generator, dtype=F64)
    advantages = torch.randn(20000, generator=generator, dtype=F64)
    gap = vrpo_objective(elbo, old, advantages) - bgpo_terms(elbo, old, advantages).sum(1)
    assert gap.min() >= -1e-12
    assert gap.max() > 1
    assert_close(bgpo_terms(old, old, advantages).sum(1), advantages)


def test_either_lemma_alone_breaks_the_bound():
    # the tangent for a negative advantage, or Jensen for a positive one, lies on the wrong side
    d = tensor([[2.0, -1.0]], dtype=F64)
    zero = torch.zeros_like(d)
    for sign in (1.0, -1.0):
        objective = vrpo_objective(d, zero, tensor([sign], dtype=F64))
        tangent, jensen = sign * (1 + d).mean(1), sign * d.exp().mean(1)
        wrong = tangent if sign < 0 else jensen
        assert wrong > objective
        assert bgpo_terms(d, zero, tensor([sign], dtype=F64)).sum(1) <= objective


def test_gradient_of_one_term_by_hand():
    # -A/n where A >= 0, -A e^d/n where A < 0; nothing where A = 0
    elbo = tensor([[0.5, -2.0], [0.5, -2.0], [0.5, -2.0]], dtype=F64, requires_grad=True)
    terms = bgpo_terms(elbo, torch.zeros(3, 2, dtype=F64), tensor([2.0, -2.0, 0.0], dtype=F64))
    terms.sum().backward()
    expected = [[1.0, 1.0], [-(0.5**0) * torch.e**0.5, -(torch.e**-2)], [0.0, 0.0]]
    assert_close(elbo.grad, tensor(expected, dtype=F64))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("size", [50.0, 100.0, 1e3, 1e6, 1e30])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("advantage", [1.7, -1.7, 0.0])
def test_huge_drift_gives_finite_values_and_gradients(dtype, size, sign, advantage):
    elbo = torch.full((1, 3), sign * size, dtype=dtype, requires_grad=True)
    terms = bgpo_terms(elbo, torch.zeros(1, 3, dtype=dtype), tensor([advantage], dtype=dtype))
    terms.sum().backward()
    for values in (terms, elbo.grad):
        assert torch.isfinite(values).all()
    if advantage < 0 and size <= exp_limit(dtype):
        exact = advantage / 3 * tensor(sign * size, dtype=F64).exp().item()
        assert_close(terms[0, 0].item(), exact, rtol=1e-4, atol=0)
    if advantage < 0 and sign > 0:
        assert (elbo.grad < 0).all()  # the direction survives the hold
    if advantage > 0:
        assert_close(elbo.grad, torch.full_like(elbo, advantage / 3))


def test_vrpo_at_huge_drift_is_finite():
    elbo = torch.full((2, 3), 1e4, requires_grad=True)
    value = vrpo_objective(elbo, torch.zeros(2, 3), tensor([1.0, -1.0]))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(elbo.grad).all()


def test_mixed_and_low_precision_are_computed_in_float32():
    elbo, old = (ELBO - 500).bfloat16(), (OLD - 500).bfloat16()
    expected = bgpo_terms(elbo.float(), old.float(), ADVANTAGES.float())
    assert_close(bgpo_terms(elbo, old, ADVANTAGES.float()), expected)
    assert bgpo_terms(elbo.half(), old, ADVANTAGES.bfloat16()).dtype == torch.float32
    assert bgpo_terms(ELBO.float(), OLD, ADVANTAGES.float()).dtype == F64
    leaf = ELBO.bfloat16().requires_grad_()
    bgpo_terms(leaf, OLD.float(), ADVANTAGES).sum().backward()
    assert leaf.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("shapes", [((3, 4), (3, 1), (3,)), ((3, 4), (3, 4), (3, 1)), ((3, 4), (3, 4), (4,))])
def test_shapes_that_would_broadcast_are_refused(shapes):
    with pytest.raises(ValueError, match="bgpo_terms"):
        bgpo_terms(*(torch.zeros(shape) for shape in shapes))


# Constant memory, shown on a small network: whatever is accumulated pass by pass equals the joint graph


class Net(torch.nn.Module):
    def __init__(self, vocab=6):
        super().__init__()
        self.embed = torch.nn.Embedding(vocab + 1, 8, dtype=F64)
        self.mix = torch.nn.Linear(8, 8, dtype=F64)
        self.out = torch.nn.Linear(8, vocab, dtype=F64)

    def forward(self, ids):
        x = self.embed(ids)
        return self.out(torch.tanh(self.mix(x) + x.mean(1, keepdim=True)))


@pytest.fixture
def setting():
    torch.manual_seed(0)
    net, old = Net(), Net()
    tokens = torch.randint(0, 6, (4, 7))
    scored = tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()
    advantages = tensor([1.0, -1.3, 0.6, -0.3], dtype=F64)
    return net, old, tokens, scored, advantages


def terms_of(objective, net, tokens, noise):
    if objective.level == "sequence":
        return elbo_terms(net, tokens, 2, noise, mask_id=6)
    passes = [
        masked_logprobs(net, tokens, 2, noise.passes(j, j + 1), mask_id=6) for j in range(noise.num_passes)
    ]
    return torch.stack(passes, 1)


OBJECTIVES = [
    BGPO(samples=4),
    BGPO(samples=4, noise="count", clip_low=0.2, clip_high=0.2, dual_clip=3.0),
    BGPO(samples=4, noise="count", length_normalise="response", d_clamp=0.05),
    VRPOOL(samples=4, noise="count"),
    VRPOOL(samples=2, noise="complementary"),
    DiffuGRPO(),
    CoupledGRPO(),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_one_backward_a_pass_equals_the_joint_graph_off_policy(setting, objective, beta):
    net, old, tokens, scored, advantages = setting
    noise = objective.draw_noise(
        scored, torch.ones(4, 2, dtype=torch.bool), 1, torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        old_terms = terms_of(objective, old, tokens, noise)
    counts = totals(4, scored.sum())
    terms = terms_of(objective, net, tokens, noise)
    batch = batch_of(terms, old_terms, advantages, scored.to(F64))
    batch = replace(batch, ref_terms=old_terms)
    joint = torch.autograd.grad(reduced_loss(objective, batch, counts, beta), list(net.parameters()))
    assert max(g.abs().max() for g in joint) > 1e-6

    net.zero_grad()
    whole = replace(batch, terms=batch.terms.detach())
    coefficients = term_coefficients(objective, whole, counts, beta)
    for j in range(objective.num_passes):
        terms = terms_of(objective, net, tokens, noise.passes(j, j + 1))
        if objective.separable:
            loss = reduced_loss(objective, replace(whole.passes(j, j + 1), terms=terms), counts, beta)
        else:
            loss = (coefficients[:, j : j + 1] * terms).sum()
        loss.backward()
    for parameter, expected in zip(net.parameters(), joint, strict=True):
        assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-12)


def test_on_policy_bgpo_and_vrpo_share_one_gradient(setting):
    net, _, tokens, scored, advantages = setting
    gradients = []
    for objective in (BGPO(samples=4), VRPOOL(samples=4)):
        noise = objective.draw_noise(scored, scored[:, :2], 1, torch.Generator().manual_seed(0))
        terms = terms_of(objective, net, tokens, noise)
        batch = batch_of(terms, terms.detach(), advantages, scored.to(F64))
        gradients.append(
            torch.autograd.grad(reduced_loss(objective, batch, totals(4)), list(net.parameters()))
        )
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_off_policy_bgpo_and_vrpo_differ(setting):
    net, old, tokens, scored, advantages = setting
    noise = sample_noise("count", scored, 4, generator=torch.Generator().manual_seed(0))
    terms, old_terms = (elbo_terms(model, tokens, 2, noise, mask_id=6) for model in (net, old))
    batch = batch_of(terms, old_terms, advantages)
    one, other = (reduced_loss(method, batch, totals(4)) for method in (BGPO(samples=4), VRPOOL(samples=4)))
    assert (one - other).abs() > 1e-3


# Advantages


def test_standard_deviation_of_the_sample_or_the_population():
    groups = Groups(tensor([[1.0, 0, 0, 1, 0, 0, 0, 0]]), torch.zeros(1, 8, 1), torch.ones(1))
    high, low = 1.6201851746019651, -0.5400617248673217
    expected = tensor([[high, low, low, high, low, low, low, low]])
    assert_close(BGPO().advantages(groups)["advantages"], expected)
    assert_close(BGPO(ddof=0).advantages(groups)["advantages"][0, 0].item(), 1.7320508, rtol=1e-6, atol=0)


def test_flat_and_unjudged_groups_get_no_advantage():
    nan = float("nan")
    rewards = tensor([[0.1] * 4, [nan] * 4, [nan, 1.0, 0.0, nan], [nan, nan, nan, 1.0]])
    groups = Groups(rewards, rewards.unsqueeze(-1), torch.ones(1))
    advantages = BGPO().advantages(groups)["advantages"]
    assert (advantages[[0, 1, 3]] == 0).all()
    assert_close(advantages[2], tensor([0.0, 0.5**0.5, -(0.5**0.5), 0.0]))


def test_leave_one_out_by_hand():
    groups = Groups(tensor([[1.0, 0.0, 0.0], [2.0, float("nan"), 0.0]]), torch.zeros(2, 3, 1), torch.ones(1))
    expected = tensor([[1.0, -0.5, -0.5], [2.0, 0.0, -2.0]])
    assert_close(CoupledGRPO().advantages(groups)["advantages"], expected)


# Departures and token-level peers by hand


def test_departures_by_hand():
    d = tensor([[1.0], [-1.0], [1.0], [-1.0], [2.0]])
    advantages = tensor([1.0, 1.0, -1.0, -1.0, -1.0])
    batch = batch_of(d, torch.zeros_like(d), advantages)
    clipped = BGPO(samples=1, clip_low=0.2, clip_high=0.3)
    # A > 0: ratio 2 -> 1.3; ratio 0 stays. A < 0: e^1 stays (pessimistic), e^-1 -> 0.8
    expected = [-1.3, 0.0, torch.e, 0.8, torch.e**2]
    assert_close(clipped.losses(batch), tensor(expected))
    assert_close(replace(clipped, dual_clip=3.0).losses(batch)[4].item(), 3.0)
    assert_close(BGPO(samples=1, length_normalise="response").losses(batch)[0].item(), -1.2)  # d = 1/5
    assert_close(BGPO(samples=1, length_normalise="canvas").losses(batch)[0].item(), -1.125)  # d = 1/8
    assert_close(BGPO(samples=1, d_clamp=0.5).losses(batch)[2].item(), torch.e**0.5)


def test_measures_by_hand():
    """Sums and counts; d = 1 and 200, where exp is held in float32, for A > 0, A < 0 and A = 0."""
    d = tensor([[1.0, 1.0, 200.0], [1.0, 200.0, 200.0], [1.0, 1.0, -200.0]])
    batch = batch_of(d, torch.zeros_like(d), tensor([1.0, -1.0, 0.0]))
    found = BGPO(samples=3, d_clamp=50.0).measures(batch)
    # only the exponentials of A < 0 are held
    assert [float(part) for part in found["held"]] == [2.0, 9.0]
    assert [float(part) for part in found["clamped"]] == [4.0, 9.0]
    small = tensor([[0.5, 0.1], [0.5, 0.1]])
    gap, count = BGPO(samples=2).measures(batch_of(small, torch.zeros_like(small), tensor([1.0, -2.0])))[
        "bound_gap"
    ]
    up = torch.e**0.3 - 1.3  # exp(mean d) - (1 + mean d)
    down = -2 * torch.e**0.3 + (torch.e**0.5 + torch.e**0.1)  # -2 exp(mean d) + 2 mean exp(d)
    assert_close(gap.item(), up + down)
    assert up > 0
    assert down > 0
    assert count == 2
    assert "clamped" not in BGPO(samples=3).measures(batch)


def test_canvas_and_response_lengths_are_two():
    d = tensor([[4.0]])
    batch = batch_of(d, torch.zeros_like(d), tensor([1.0]), mask=tensor([[1.0, 1.0, 0.0, 0.0, 0.0]]))
    assert_close(
        BGPO(samples=1, length_normalise="response").losses(batch).item(), -3.0
    )  # 1 + 4/2, its own tokens
    assert_close(BGPO(samples=1, length_normalise="canvas").losses(batch).item(), -1.5)  # 1 + 4/8


def test_peers_start_from_their_papers_settings():
    assert asdict(DiffuGRPO()) == {
        "clip_low": 0.5,
        "clip_high": 0.5,
        "p_mask_prompt": 0.15,
        "scale": "none",
        "average": "token",
        "tail": "mask",
    }
    assert asdict(CoupledGRPO()) == {
        "clip_low": 0.5,
        "clip_high": 0.5,
        "t_low": 0.2,
        "t_high": 0.8,
        "tail": "mask",
    }
    shared = {"noise": "bernoulli", "t_floor": 1e-3, "ddof": 1}
    assert asdict(VRPOOL()).items() >= {**shared, "samples": 4}.items()
    assert (
        asdict(BGPO()).items()
        >= {**shared, "samples": 16, "length_normalise": "none", "clip_low": None}.items()
    )
    assert (DiffuGRPO().num_passes, CoupledGRPO().num_passes) == (1, 3)


def test_token_peers_by_hand():
    # two tokens, ratios e^1 and e^-1: clip at 0.5 and 1.5
    terms = tensor([[[1.0, -1.0]], [[1.0, -1.0]]])
    batch = batch_of(terms, torch.zeros_like(terms), tensor([2.0, -1.0]), torch.ones(2, 2))
    expected = tensor([[-3.0, -2 * torch.e**-1], [torch.e, 0.5]])
    assert_close(DiffuGRPO().losses(batch), expected)
    counts = totals(2, tokens=4)
    assert_close(reduced_loss(DiffuGRPO(), batch, counts), expected.sum() / 4)
    assert_close(reduced_loss(DiffuGRPO(average="response"), batch, counts), expected.mean(1).sum() / 2)
    three = batch_of(terms.expand(-1, 3, -1), torch.zeros(2, 3, 2), tensor([2.0, -1.0]), torch.ones(2, 2))
    assert_close(CoupledGRPO().losses(three), expected)


def test_penalties_by_hand():
    terms = tensor([[1.0, 3.0]])
    batch = replace(batch_of(terms, terms, tensor([0.0])), ref_terms=tensor([[0.0, 1.0]]))
    assert_close(BGPO(samples=2).penalty(batch), tensor([(0.5 + 2.0) / 2]))
    token = tensor([[[0.5]]])
    batch = replace(batch_of(token, token, tensor([0.0]), torch.ones(1, 1)), ref_terms=tensor([[[0.0]]]))
    assert_close(DiffuGRPO().penalty(batch).item(), torch.e**-0.5 + 0.5 - 1)


def test_noise_each_method_draws():
    scored, prompt = torch.ones(3, 6, dtype=torch.bool), torch.ones(3, 4, dtype=torch.bool)
    draws = {
        type(o).__name__: o.draw_noise(scored, prompt, 2, torch.Generator().manual_seed(0))
        for o in (BGPO(), VRPOOL(), DiffuGRPO(), CoupledGRPO())
    }
    assert {name: noise.num_passes for name, noise in draws.items()} == {
        "BGPO": 16, "VRPOOL": 4, "DiffuGRPO": 2, "CoupledGRPO": 6,
    }  # fmt: skip
    hidden = draws["DiffuGRPO"].prompt_masks
    assert not torch.equal(hidden[:, 0], hidden[:, 1])
    assert draws["DiffuGRPO"].masks.all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"noise": "complementary", "samples": 3}, "even"), ({"clip_low": 0.2}, "go together")],
)
def test_refused_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        BGPO(**settings)


def test_zero_advantage_gives_zero_gradient():
    for objective, sign in itertools.product(OBJECTIVES, (1, -1)):
        shape = (2, objective.num_passes) if objective.level == "sequence" else (2, objective.num_passes, 5)
        terms = (sign * torch.ones(shape)).requires_grad_()
        batch = batch_of(terms, torch.zeros(shape), torch.zeros(2))
        assert (term_coefficients(objective, batch, totals(2, 10)) == 0).all()
