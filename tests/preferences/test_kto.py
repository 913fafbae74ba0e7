"""KTO's loss by hand and by a float64 loop; its reference point; what it says of the balance of its rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from posttrain.preferences.kto import KTO, balance, balance_warnings, estimated_point, kto_loss

GOOD = torch.tensor([True, False, True, False])


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_loss_by_hand():
    # beta 1, z_0 = ln 2: a good answer at r = ln 6 stands ln 3 above, sigma(ln 3) = 3/4; a bad one there has 1/4
    r = torch.full((2,), math.log(6.0), dtype=torch.float64)
    found = kto_loss(
        r,
        torch.tensor([True, False]),
        reference_point=math.log(2.0),
        beta=1.0,
        good_weight=2.0,
        bad_weight=3.0,
    )
    assert_close(found, torch.tensor([2 * 0.25, 3 * 0.75], dtype=torch.float64))


def test_the_loss_equals_a_loop_in_float64():
    generator = torch.Generator().manual_seed(0)
    r = 4 * torch.randn(64, generator=generator, dtype=torch.float64)
    good = torch.rand(64, generator=generator) < 0.3
    found = kto_loss(r, good, reference_point=torch.tensor(0.7), beta=0.3, good_weight=1.3, bad_weight=0.8)
    z = float(torch.tensor(0.7))
    for value, mark, loss in zip(r.tolist(), good.tolist(), found.tolist(), strict=True):
        # lambda_y - v(x, y) of eq. 8
        worth = 1.3 * sigma(0.3 * (value - z)) if mark else 0.8 * sigma(0.3 * (z - value))
        assert loss == pytest.approx((1.3 if mark else 0.8) - worth, abs=1e-12)


def test_the_gradient_pushes_good_up_and_bad_down_and_fades_on_both_sides():
    r = torch.tensor([0.0, 0.0, 80.0, -80.0], dtype=torch.float64, requires_grad=True)
    good = torch.tensor([True, False, True, True])
    kto_loss(r, good, reference_point=0.0, beta=1.0).sum().backward()
    assert r.grad is not None
    # -lambda beta sigma (1 - sigma): a quarter at the reference point
    assert_close(r.grad[:2], torch.tensor([-0.25, 0.25], dtype=torch.float64))
    assert r.grad[2:].abs().max() < 1e-30


def test_no_gradient_flows_through_the_reference_point():
    mismatched = torch.tensor([1.0, 3.0], requires_grad=True)
    r = torch.zeros(4, requires_grad=True)
    kto_loss(r, GOOD, reference_point=mismatched.mean(), beta=1.0).sum().backward()
    assert mismatched.grad is None
    assert not estimated_point(mismatched.sum(), torch.tensor(2.0)).requires_grad


def test_the_reference_point_is_the_mean_held_at_zero():
    assert estimated_point(torch.tensor(6.0), torch.tensor(4.0)) == 1.5
    assert estimated_point(torch.tensor(-6.0), torch.tensor(4.0)) == 0.0


def test_at_zero_it_is_apo_zeros_unpaired_form():
    r = torch.linspace(-3, 3, 4, dtype=torch.float64)
    found = kto_loss(r, GOOD, reference_point=0.0, beta=0.5)
    assert_close(found, torch.where(GOOD, 1 - torch.sigmoid(0.5 * r), torch.sigmoid(0.5 * r)))


def test_balance_and_what_would_mend_it():
    assert balance(30, 10) == 3.0
    assert balance(10, 100, good_weight=12.0) == pytest.approx(1.2)
    assert balance(5, 0) == math.inf
    for good, bad in ((100, 100), (140, 100), (98, 100)):
        assert list(balance_warnings(good, bad, 1.0, 1.0)) == []
    # the paper's example: 1 to 10 asks for a weight of 10 to 15 on the good answers
    (few,) = balance_warnings(10, 100, 1.0, 1.0)
    assert "objective.good_weight of 10 to 15" in few
    assert list(balance_warnings(10, 100, 12.0, 1.0)) == []
    (many,) = balance_warnings(300, 100, 1.0, 1.0)
    assert "objective.bad_weight of 2 to 3" in many
    assert list(balance_warnings(300, 100, 1.0, 2.5)) == []
    assert "nothing says what a bad one is" in next(balance_warnings(3, 0, 1.0, 1.0))
    rows = [{"label": True}] * 3 + [{"label": False}]
    assert list(KTO().row_facts(rows)) == [
        "marked good 3, bad 1; good_weight x good / (bad_weight x bad) = 3"
    ]
    assert len(list(KTO().row_warnings(rows))) == 1


def test_weights_that_would_learn_nothing_are_refused():
    with pytest.raises(ValueError, match="nothing would be learned"):
        KTO(good_weight=0.0, bad_weight=0.0)
    with pytest.raises(ValueError, match="good_weight"):
        KTO(good_weight=-1.0)
