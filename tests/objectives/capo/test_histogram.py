"""Quantiles and joint thresholds out of counts, against the sorted values."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from posttrain.objectives.capo.histogram import joint_counts, joint_thresholds, quantile

BIN = 10 ** (16 / 512)  # width of a bin as a factor


def lognormal(seed: int, n: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, generator=generator)
    first = torch.exp(shared + 0.5 * torch.randn(n, generator=generator) - 6)
    return first, torch.exp(2 * shared + torch.randn(n, generator=generator) - 12)


def test_quantiles_are_those_of_the_values_to_a_bin():
    first, second = lognormal(0)
    counts = joint_counts(first, second, torch.ones_like(first))
    assert counts.sum() == len(first)
    for level in (0.1, 0.5, 0.95):
        for values, marginal in ((first, counts.sum(1)), (second, counts.sum(0))):
            exact = values.sort().values[int(level * len(values)) - 1].double()
            assert 1 - 1e-6 < quantile(marginal, level) / exact < BIN * 1.02


def test_joint_thresholds_reject_what_was_asked():
    first, second = lognormal(1)
    for rejection in (0.05, 0.2):
        counts = joint_counts(first, second, torch.ones_like(first))
        at_first, at_second = joint_thresholds(counts, rejection)
        rejected = ((first >= at_first) | (second >= at_second)).double().mean()
        assert 0.8 * rejection < rejected <= rejection
        alone = ((first >= at_first).double().mean(), (second >= at_second).double().mean())
        assert_close(alone[0], alone[1], atol=0.02, rtol=0)  # the two tests share the burden


def test_weights_leave_tokens_out_and_counts_add_up():
    first, second = lognormal(2, 100)
    weights = (torch.arange(100) < 60).float()
    whole = joint_counts(first, second, weights)
    parts = joint_counts(first[:30], second[:30], weights[:30]) + joint_counts(
        first[30:60], second[30:60], weights[30:60]
    )
    assert torch.equal(whole, parts)


def test_zeros_and_giants_fall_into_the_outer_bins():
    counts = joint_counts(torch.tensor([0.0, 1e9]), torch.tensor([1e9, 0.0]), torch.ones(2))
    assert counts[0, -1] == 1
    assert counts[-1, 0] == 1
