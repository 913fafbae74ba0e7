"""The balance model and the choices of a family: by hand, at a stationary point, on rows that say which is best."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.testing import assert_close

from posttrain.ops.balance_choice import bin_of, by_bins, by_halves, earned, single
from posttrain.ops.balance_model import BalanceModel, fit_balance


def test_without_steps_every_coefficient_is_as_probable() -> None:
    features = torch.tensor([[1.0], [2.0], [6.0]])
    model = fit_balance((0.0, 0.1), ("length",), features, torch.rand(3, 2), steps=0)
    assert_close(model.probabilities(features), torch.full((3, 2), 0.5, dtype=torch.float64))
    assert_close(model.center, torch.tensor([3.0], dtype=torch.float64))
    assert_close(model.scale, torch.tensor([math.sqrt(14 / 3)], dtype=torch.float64))


def test_the_bias_is_where_reward_and_decay_balance() -> None:
    """Features that say nothing: with p = sigmoid(b0 - b1) and d the difference of the rewards in units of their
    spread, the gradient is p (1 - p) d - 2 decay b0 = 0 and b1 = -b0."""
    rewards = torch.tensor([[0.6, 0.2]]).expand(5, 2)
    model = fit_balance((0.0, 0.1), ("length",), torch.ones(5, 1), rewards, decay=0.05, steps=1200)
    d = 0.4 / float((rewards - rewards.mean(1, keepdim=True)).double().std())
    high, low = model.bias.tolist()
    p = 1 / (1 + math.exp(low - high))
    assert high > 0
    assert low == pytest.approx(-high, abs=1e-6)
    assert p * (1 - p) * d == pytest.approx(2 * 0.05 * high, abs=1e-5)
    assert_close(model.weights, torch.zeros(1, 2, dtype=torch.float64))


def test_it_picks_by_the_feature_that_decides() -> None:
    """Short prompts earn most at 0.1, long ones at 0; the second feature is noise, and NaN reads as its mean."""
    generator = torch.Generator().manual_seed(0)
    length = torch.tensor([4.0, 5.0, 4.0, 12.0, 11.0, 13.0])
    features = torch.stack([length, torch.rand(6, generator=generator)], dim=1)
    rewards = torch.where((length < 8)[:, None], torch.tensor([0.2, 0.9]), torch.tensor([0.8, 0.1]))
    model = fit_balance((0.0, 0.1), ("length", "noise"), features, rewards)
    assert model.places(features).tolist() == [1, 1, 1, 0, 0, 0]
    assert_close(model.signals(features), torch.tensor([1, 1, 1, 0, 0, 0], dtype=torch.float64))
    assert model.places(torch.tensor([[3.0, torch.nan], [20.0, torch.nan]])).tolist() == [1, 0]
    again = fit_balance((0.0, 0.1), ("length", "noise"), features, rewards)
    assert torch.equal(again.weights, model.weights)
    read = BalanceModel.from_plain(json.loads(json.dumps(model.to_plain())))
    assert_close(read.probabilities(features), model.probabilities(features))


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ValueError, match="finite rewards"):
        fit_balance((0.0, 1.0), ("length",), torch.ones(3, 1), torch.full((3, 2), torch.nan))
    with pytest.raises(ValueError, match="no balance model"):
        BalanceModel.from_plain({"values": [0.0]})
    plain = fit_balance((0.0, 1.0), ("length",), torch.ones(3, 1), torch.rand(3, 2), steps=1).to_plain()
    with pytest.raises(ValueError, match="weights of shape"):
        BalanceModel.from_plain({**plain, "values": [0.0, 0.1, 0.2]})


REWARDS = torch.tensor([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6], [1.0, 0.0], [1.0, 0.0], [1.0, 0.4]])
RATES = torch.tensor([0.0, 0.1, 0.2, 0.2, 0.5, 0.75, 1.0])


def test_choices_by_hand() -> None:
    assert single(REWARDS) == 0  # 4.0 against 3.4
    assert single(torch.tensor([[0.5, 0.5]])) == 0
    assert bin_of(RATES).tolist() == [0, 0, 0, 0, 1, 2, 2]
    assert by_bins(RATES, REWARDS) == [
        1,
        0,
        0,
    ]  # the upper bins are too small to choose, and take the single best


def test_what_a_choice_earns_by_hand() -> None:
    kl = torch.tensor([[2.0, 0.5]]).expand(7, 2)
    found = earned(torch.tensor([1, 1, 1, 1, 0, 0, 0]), REWARDS, kl, torch.zeros(7, dtype=torch.long))
    assert found.reward == pytest.approx(6 / 7)
    assert found.kl == pytest.approx((4 * 0.5 + 3 * 2) / 7)
    gains = torch.tensor([0.8, 0.6, 0.4, 0.2, 0.0, 0.0, 0.0])
    assert found.gain == pytest.approx(2.0 / 7)
    assert found.gain_error == pytest.approx(float(gains.std()) / math.sqrt(7))
    assert earned(torch.tensor([0]), REWARDS[:1], kl[:1]).reward_error is None


def test_own_samples_choose_by_one_half_and_earn_by_the_other() -> None:
    """Luck in the first half is no reward in the second."""
    samples = torch.tensor([[[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]])
    places, rewards = by_halves(samples)
    assert places.tolist() == [0]
    assert rewards.tolist() == [[0.0, 0.5]]
    with pytest.raises(ValueError, match="two samples or more"):
        by_halves(samples[..., :1])
