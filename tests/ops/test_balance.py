"""KL coefficients per prompt, by hand."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from posttrain.ops.balance import balance_factors, pass_rates, quantiles


def test_factors_lie_between_low_and_high_and_an_unjudged_prompt_keeps_beta() -> None:
    signals = torch.tensor([0.0, 0.25, 1.0, 1.5, -2.0, torch.nan])
    assert_close(balance_factors(signals, 0.2, 1.0), torch.tensor([0.2, 0.4, 1.0, 1.0, 0.2, 1.0]))
    assert_close(balance_factors(signals, 2.0, 0.0), torch.tensor([2.0, 1.5, 0.0, 0.0, 2.0, 1.0]))


def test_pass_rates_leave_out_what_was_not_judged() -> None:
    rewards = torch.tensor([[1.0, 0.0, torch.nan, 1.0], [torch.nan] * 4])
    rates = pass_rates(rewards)
    assert_close(rates[0], torch.tensor(2 / 3))
    assert rates[1].isnan()


def test_quantiles_say_where_a_prompt_stands_whatever_the_scale() -> None:
    values = torch.tensor([0.3, 9.0, 0.3, 2.0, 0.1])
    assert_close(quantiles(values), torch.tensor([0.375, 1.0, 0.375, 0.75, 0.0]))
    assert_close(quantiles(values * 1000), quantiles(values))
    assert_close(quantiles(torch.tensor([4.0])), torch.tensor([0.5]))
