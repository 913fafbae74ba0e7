"""Pair losses: the methods' worked vectors, special cases by hand, gradients, properties over the family."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from posttrain.preferences.base import PairBatch, PairLoss
from posttrain.preferences.dpo import DPO, dpo_loss
from posttrain.preferences.drift import DRIFT
from posttrain.preferences.hinge import Hinge, hinge_loss
from posttrain.preferences.ipo import IPO, ipo_loss
from posttrain.preferences.rpo import RPO, imitation_loss, rpo_loss
from posttrain.preferences.seppo import SePPO, flip_sign, seppo_loss
from posttrain.preferences.sft import token_mean_nll
from posttrain.preferences.simpo import SimPO, simpo_loss

FAMILY: list[PairLoss] = [DPO(), IPO(), Hinge(), SimPO(), RPO(eta=0.5), SePPO(), DRIFT(nll_weight=0.1)]


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_batch(size: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> PairBatch:
    generator = torch.Generator().manual_seed(seed)
    draw = [
        (-20 * torch.rand(size, generator=generator, dtype=dtype)).requires_grad_(i < 2) for i in range(4)
    ]
    lengths = [torch.randint(1, 9, (size,), generator=generator) for _ in range(2)]
    return PairBatch(*draw, *lengths, beta=0.1)


# RPO

RPO_CHOSEN = ([-0.5, -1.5, -2.0], [-0.25, -0.75, -1.0, -3.0])
RPO_REJECTED = ([-1.0, -2.0, -3.0], [-0.5, -0.5, -1.0, -1.0, -1.0])


def rpo_arguments() -> dict[str, Tensor]:
    return {
        "chosen_logps": f64(*(sum(row) for row in RPO_CHOSEN)),
        "rejected_logps": f64(*(sum(row) for row in RPO_REJECTED)),
        "ref_chosen_logps": f64(-4.5, -5.0),
        "ref_rejected_logps": f64(-5.0, -5.5),
    }


def test_rpo_vectors():
    arguments = rpo_arguments()
    assert_close(dpo_loss(**arguments, beta=0.1).mean().item(), 0.695957047789, atol=1e-11, rtol=0)
    cumulative = rpo_loss(**arguments, beta=0.1, eta=0.005)
    assert_close(cumulative.mean().item(), 0.698207047790, atol=1e-11, rtol=0)
    lengths = torch.tensor([len(row) for row in RPO_CHOSEN])
    average = rpo_loss(**arguments, beta=0.5, eta=0.2, form="average", chosen_lengths=lengths)
    assert_close(average.mean().item(), 1.020204339448, atol=1e-11, rtol=0)


def test_rpo_imitation_carries_eta_times_beta_by_hand():
    # log pi(chosen) -4 and -5, eta 0.5, beta 0.1: adds 0.2 and 0.25; the average form 0.5*4/3 and 0.5*5/4
    logps = f64(-4.0, -5.0)
    assert_close(imitation_loss(logps, beta=0.1, eta=0.5), f64(0.2, 0.25))
    average = imitation_loss(logps, beta=0.1, eta=0.5, form="average", lengths=torch.tensor([3, 4]))
    assert_close(average, f64(2 / 3, 0.625))


def test_rpo_with_eta_zero_is_dpo_bit_for_bit():
    arguments = rpo_arguments()
    for form in ("cumulative", "average", "token_mean"):
        loss = rpo_loss(**arguments, beta=0.3, eta=0.0, form=form, chosen_lengths=torch.tensor([3, 4]))
        assert torch.equal(loss, dpo_loss(**arguments, beta=0.3))


def test_rpo_gradient_is_dpo_gradient_minus_eta_beta_on_the_chosen():
    beta, eta = 0.2, 0.05
    arguments = rpo_arguments()
    chosen, rejected = arguments["chosen_logps"], arguments["rejected_logps"]
    chosen.requires_grad_()
    rejected.requires_grad_()
    rpo_loss(**arguments, beta=beta, eta=eta).sum().backward()
    z = beta * ((chosen + f64(4.5, 5.0)) - (rejected + f64(5.0, 5.5))).detach()
    pull = beta * torch.sigmoid(-z)  # the reward model's doubt
    assert_close(chosen.grad, -pull - eta * beta)
    assert_close(rejected.grad, pull)


def test_rpo_token_mean_is_one_number_a_micro_batch():
    # 4 + 5 nats over 3 + 4 tokens
    assert_close(
        token_mean_nll(f64(-4.0, -5.0), torch.tensor([3, 4])), torch.tensor(9 / 7, dtype=torch.float64)
    )
    batch = replace(random_batch(2), chosen_lengths=torch.tensor([3, 4]))
    method = RPO(form="token_mean", eta=0.7)
    added = method.pair_loss(batch) - DPO().pair_loss(batch)
    expected = -0.7 * batch.chosen_logps.sum() / 7
    assert_close(added, expected.expand(2))
    # The function of the three forms: 9 nats over 7 tokens, weighted by eta alone.
    arguments = rpo_arguments() | {"chosen_lengths": torch.tensor([3, 4])}
    loss = rpo_loss(**arguments, beta=0.1, eta=0.7, form="token_mean")
    without = rpo_loss(**arguments, beta=0.1, eta=0.0)
    assert_close(loss - without, f64(0.9, 0.9))


def test_rpo_imitates_what_it_was_told_to():
    batch = random_batch(2)
    other = replace(batch, imitation_logps=f64(-1.0, -3.0), imitation_lengths=torch.tensor([1, 3]))
    method = RPO(imitate="reference", eta=0.5)
    assert_close(method.pair_loss(other) - DPO().pair_loss(batch), f64(0.05, 0.15))
    with pytest.raises(ValueError, match="imitate 'reference'"):
        method.pair_loss(batch)


def test_rpo_refuses_what_it_cannot_do():
    arguments = rpo_arguments()
    with pytest.raises(ValueError, match="no form 'sum'; choose cumulative, average or token_mean"):
        rpo_loss(**arguments, beta=0.1, eta=0.1, form="sum")
    for form in ("average", "token_mean"):
        with pytest.raises(ValueError, match=f"form '{form}' divides by the answers' lengths"):
            rpo_loss(**arguments, beta=0.1, eta=0.1, form=form)
    with pytest.raises(ValueError, match="imitation_data"):
        RPO(imitate="dataset")
    with pytest.raises(ValueError, match="imitation_data"):
        RPO(imitation_data="answers.jsonl")


# SePPO

SEPPO = {
    "winner_logps": f64(-10, -14, -9),
    "ref_winner_logps": f64(-12, -13, -9),
    "sample_logps": f64(-20, -21, -18),
    "ref_sample_logps": f64(-19, -23, -18),
}


def test_seppo_vectors():
    sign = flip_sign(SEPPO["winner_logps"] - SEPPO["ref_winner_logps"])
    assert sign.tolist() == [1.0, -1.0, 1.0]
    expected = f64(0.554355244469, 0.644396660074, math.log(2))
    assert_close(seppo_loss(**SEPPO, beta=0.1), expected, atol=1e-11, rtol=0)


def test_seppo_sign_in_the_diffusion_convention():
    # errors e = -reward: winner .1000 against .1004, reference sample .2003 against .2000, kappa 2500
    sign = flip_sign(f64(-0.1000 + 0.1004))
    loss = seppo_loss(
        winner_logps=f64(-0.1000),
        ref_winner_logps=f64(-0.1004),
        sample_logps=f64(-0.2003),
        ref_sample_logps=f64(-0.2000),
        beta=2500,
    )
    assert sign.item() == 1.0
    assert_close(loss.item(), 0.160224150438, atol=1e-9, rtol=0)


def test_flip_sign_ties_dead_band_and_modes():
    margin = f64(-2.0, -0.5, -0.0, 0.0, 0.5)
    assert flip_sign(margin).tolist() == [-1, -1, 1, 1, 1]
    assert flip_sign(margin, deadband=0.5).tolist() == [-1, 1, 1, 1, 1]
    assert flip_sign(margin, flip="indicator").tolist() == [0, 0, 1, 1, 1]
    assert flip_sign(margin, flip="none").tolist() == [1, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="indicator"):
        flip_sign(margin, flip="sgn")
    with pytest.raises(ValueError, match="deadband"):
        flip_sign(margin, deadband=-0.1)


@pytest.mark.parametrize(("flip", "low"), [("sign", -1.0), ("indicator", 0.0), ("none", 1.0)])
def test_seppo_gradients_by_hand(flip: str, low: float):
    beta = 0.1
    tensors = {name: value.clone().requires_grad_() for name, value in SEPPO.items()}
    seppo_loss(**tensors, beta=beta, flip=flip).sum().backward()
    winner = (SEPPO["winner_logps"] - SEPPO["ref_winner_logps"]).tolist()
    sample = (SEPPO["sample_logps"] - SEPPO["ref_sample_logps"]).tolist()
    for i, (rw, rs) in enumerate(zip(winner, sample, strict=True)):
        s = low if rw < 0 else 1.0
        doubt = 1 / (1 + math.exp(beta * (rw - s * rs)))
        assert_close(tensors["winner_logps"].grad[i].item(), -beta * doubt)
        assert_close(tensors["sample_logps"].grad[i].item(), s * beta * doubt)


def test_seppo_without_flip_is_the_dpo_loss():
    batch = random_batch()
    assert torch.equal(SePPO(flip="none").pair_loss(batch), DPO().pair_loss(batch))


def test_the_deadband_is_the_methods_own_too():
    batch = random_batch()
    margin = batch.chosen_margin
    wide = float(margin.detach().abs().max()) + 1  # every pair is a tie, so none is flipped
    assert bool((margin < 0).any())
    assert torch.equal(SePPO(deadband=wide).pair_loss(batch), DPO().pair_loss(batch))
    assert not torch.equal(SePPO().pair_loss(batch), DPO().pair_loss(batch))
    assert SePPO(deadband=wide).metrics(batch)["flip_rate"].sum() == 0
    assert SePPO().metrics(batch)["flip_rate"].sum() == (margin < 0).sum()


def test_seppo_pulls_a_flipped_pair_up_on_both_sides():
    tensors = {name: value.clone().requires_grad_() for name, value in SEPPO.items()}
    seppo_loss(**tensors, beta=0.1).sum().backward()
    assert tensors["winner_logps"].grad[1] < 0
    assert tensors["sample_logps"].grad[1] < 0
    assert tensors["sample_logps"].grad[0] > 0


def test_seppo_method_equals_function_and_reports_its_flips():
    batch = PairBatch(
        SEPPO["winner_logps"],
        SEPPO["sample_logps"],
        SEPPO["ref_winner_logps"],
        SEPPO["ref_sample_logps"],
        torch.ones(3),
        torch.ones(3),
        beta=0.1,
    )
    assert torch.equal(SePPO().pair_loss(batch), seppo_loss(**SEPPO, beta=0.1))
    assert SePPO().metrics(batch)["flip_rate"].tolist() == [0, 1, 0]
    assert SePPO(flip="none").metrics(batch)["flip_rate"].tolist() == [0, 0, 0]


# DRIFT and the neighbours


def test_drift_vectors():
    batch = PairBatch(
        f64(-12, -30.5, -8.25),
        f64(-15, -28, -40),
        f64(-13, -29, -8),
        f64(-14, -29.5, -20),
        torch.tensor([4, 10, 3]),
        torch.tensor([5, 9, 12]),
        beta=0.1,
    )
    loss = DRIFT(nll_weight=0.0).pair_loss(batch).mean()
    assert_close(loss.item(), 0.527478405768, atol=1e-11, rtol=0)
    at_reference = replace(
        batch, chosen_logps=batch.ref_chosen_logps, rejected_logps=batch.ref_rejected_logps
    )
    assert_close(DRIFT(nll_weight=0.0).pair_loss(at_reference), f64(*[math.log(2)] * 3))
    # 50.75 nats over 17 tokens, weighted 0.001
    added = DRIFT().pair_loss(batch) - DRIFT(nll_weight=0.0).pair_loss(batch)
    assert_close(added, f64(*[0.001 * 50.75 / 17] * 3))


def test_drift_without_imitation_is_dpo():
    batch = random_batch()
    assert_close(DRIFT(nll_weight=0.0).pair_loss(batch), DPO().pair_loss(batch), rtol=0, atol=0)


def test_neighbours_by_hand():
    arguments = {
        "chosen_logps": f64(-4.0),
        "rejected_logps": f64(-9.0),
        "ref_chosen_logps": f64(-5.0),
        "ref_rejected_logps": f64(-7.0),
    }  # log-ratios +1 and -2
    assert_close(dpo_loss(**arguments, beta=0.5), f64(math.log1p(math.exp(-1.5))))
    assert_close(hinge_loss(**arguments, beta=0.1), f64(0.7))
    assert_close(hinge_loss(**arguments, beta=0.5), f64(0.0))
    lengths = {"chosen_lengths": torch.tensor([2]), "rejected_lengths": torch.tensor([4])}
    # 1/2 - (-2/4) - 1/(2*0.1) = -4
    assert_close(ipo_loss(**arguments, **lengths, beta=0.1), f64(16.0))
    simpo = simpo_loss(chosen_logps=f64(-4.0), rejected_logps=f64(-9.0), **lengths, beta=2.0, margin=0.5)
    # 2 * (-4/2 + 9/4) - 0.5 = 0
    assert_close(simpo, f64(math.log(2)))


@pytest.mark.parametrize("method", FAMILY, ids=lambda m: type(m).__name__)
def test_a_better_chosen_answer_never_costs_more(method: PairLoss):
    batch = random_batch(7, seed=3)
    method.pair_loss(batch).sum().backward()
    if isinstance(method, IPO):  # a square: beyond its target it pulls back
        return
    assert (batch.chosen_logps.grad <= 0).all()
    assert (batch.chosen_logps.grad < 0).any()


@pytest.mark.parametrize("method", FAMILY, ids=lambda m: type(m).__name__)
def test_gradients_agree_with_finite_differences(method: PairLoss):
    batch = random_batch(4, seed=1)

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return method.pair_loss(replace(batch, chosen_logps=chosen, rejected_logps=rejected)).sum()

    assert torch.autograd.gradcheck(loss, (batch.chosen_logps, batch.rejected_logps))


@pytest.mark.parametrize(
    "method", [DPO(), IPO(), Hinge(), SimPO(), RPO(), SePPO()], ids=lambda m: type(m).__name__
)
def test_pairs_do_not_see_each_other(method: PairLoss):
    """Micro-batching changes nothing, except for token means, which are defined on the micro-batch."""
    batch = random_batch(6, seed=2)
    whole = method.pair_loss(batch)
    parts = [
        method.pair_loss(
            PairBatch(**{k: v[i : i + 2] if isinstance(v, Tensor) else v for k, v in vars(batch).items()})
        )
        for i in (0, 2, 4)
    ]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("method", FAMILY, ids=lambda m: type(m).__name__)
def test_no_gradient_reaches_the_reference(method: PairLoss):
    batch = random_batch(3)
    frozen = replace(
        batch,
        ref_chosen_logps=batch.ref_chosen_logps.detach(),
        ref_rejected_logps=batch.ref_rejected_logps.detach(),
    )
    assert torch.equal(method.pair_loss(batch), method.pair_loss(frozen))
    assert batch.ref_chosen_logps.grad is None


def test_a_batch_is_checked_at_the_door():
    batch = random_batch(3)
    with pytest.raises(ValueError, match="float32"):
        replace(batch, chosen_logps=batch.chosen_logps.bfloat16())
    with pytest.raises(ValueError, match="of one B"):
        replace(batch, rejected_logps=batch.rejected_logps[:2])
    with pytest.raises(ValueError, match="of one B"):
        PairBatch(*[torch.zeros(2, 1)] * 6)
