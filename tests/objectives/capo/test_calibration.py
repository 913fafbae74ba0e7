"""Thresholds that follow: what earlier steps weigh, and that they only rise."""

from __future__ import annotations

import torch

from posttrain.objectives.capo.calibration import Calibration
from posttrain.objectives.capo.histogram import HIGHEST_EDGE, joint_counts, joint_thresholds


def counts_at(shift: float, tokens: int = 1000) -> torch.Tensor:
    """Tokens whose two shifts lie around `shift`, a factor of e apart."""
    shifts = shift * torch.linspace(-0.5, 0.5, tokens, dtype=torch.float64).exp()
    return joint_counts(shifts, shifts, torch.ones(tokens, dtype=torch.bool))


def proposed(first: torch.Tensor) -> Calibration:
    calibration = Calibration()
    calibration.add(first)
    calibration.propose(0.1)
    return calibration


def test_a_step_keeps_nine_tenths_of_its_weight_in_the_next():
    first, second, third = counts_at(1e-3), counts_at(1e-2), counts_at(1e-1)
    calibration = proposed(first)
    calibration.follow(second, 0.1)
    torch.testing.assert_close(calibration.counts, 0.9 * first + second)
    calibration.follow(third, 0.1)
    torch.testing.assert_close(calibration.counts, 0.81 * first + 0.9 * second + third)
    assert calibration.thresholds == tuple(float(one) for one in joint_thresholds(calibration.counts, 0.1))


def test_thresholds_rise_and_never_fall():
    calibration = proposed(counts_at(1e-2))
    before = calibration.thresholds
    calibration.follow(counts_at(1e-4, 50_000), 0.1)
    assert calibration.thresholds == before
    calibration.follow(counts_at(1e-1, 500_000), 0.1)
    assert before is not None
    assert calibration.thresholds is not None
    assert all(new > old for new, old in zip(calibration.thresholds, before, strict=True))


def test_thresholds_do_not_follow_to_the_end_of_what_is_counted():
    calibration = proposed(counts_at(1e-2))
    before = calibration.thresholds
    calibration.follow(counts_at(100 * HIGHEST_EDGE, 500_000), 0.1)
    assert calibration.thresholds == before
