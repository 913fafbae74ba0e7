"""Reward models' loss by hand, what a margin and centring do, and a reliability table."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from posttrain.preferences.reward_model import centring, correct, ranking_loss, reliability


def test_the_loss_is_bradley_terrys():
    # sigma(log 3) = 3/4, sigma(-log 3) = 1/4
    gap = math.log(3)
    found = ranking_loss(tensor([gap, 0.0, 0.0]), tensor([0.0, gap, 0.0]))
    assert_close(found, tensor([-math.log(0.75), -math.log(0.25), math.log(2)]))


def test_a_margin_asks_for_more():
    chosen = tensor([2.0], requires_grad=True)
    assert_close(ranking_loss(chosen, tensor([0.0]), tensor([2.0])), tensor([math.log(2)]))
    ranking_loss(chosen, tensor([0.0])).sum().backward()
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(-1 / (1 + math.exp(2.0)))  # the chosen reward is pushed up


def test_centring_pulls_a_pair_to_either_side_of_zero():
    assert_close(centring(tensor([3.0, 1.0]), tensor([1.0, -1.0])), tensor([16.0, 0.0]))
    assert torch.equal(
        ranking_loss(tensor([3.0]), tensor([1.0])), ranking_loss(tensor([103.0]), tensor([101.0]))
    )


def test_ties_are_half_right():
    assert_close(correct(tensor([2.0, 0.0, -1.0])), tensor([1.0, 0.5, 0.0]))


def test_reliability_by_hand():
    # confidences .75, .75 (one wrong), .99 and .5: bins of a tenth from .5 on
    margins = tensor([math.log(3), -math.log(3), math.log(99), 0.0], dtype=torch.float64)
    found = reliability(margins)
    assert found.counts == [1, 2, 1]
    assert found.confidence == pytest.approx([0.5, 0.75, 0.99])
    assert found.accuracy == pytest.approx([0.5, 0.5, 1.0])
    assert found.error == pytest.approx((0.0 + 2 * 0.25 + 0.01) / 4)
    assert reliability(torch.zeros(0)).error == 0.0


def test_a_model_that_is_as_sure_as_it_is_right_has_no_error():
    generator = torch.Generator().manual_seed(0)
    sizes = 3 * torch.rand(200_000, generator=generator)
    right = torch.rand(200_000, generator=generator) < torch.sigmoid(sizes)
    assert reliability(torch.where(right, sizes, -sizes)).error < 0.005
    assert reliability(torch.where(right, 3 * sizes, -3 * sizes)).error > 0.1
