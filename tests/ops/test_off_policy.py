"""Off-policy sequence masking, by hand."""

from __future__ import annotations

import math

import pytest
from small_recipe import POLICY, Load
from torch import tensor
from torch.testing import assert_close

from posttrain.ops.off_policy import on_policy_enough, sequence_kl
from posttrain.planning.idle import idle_options


def test_kl_is_the_mean_over_loss_tokens_and_has_no_gradient():
    logprobs = tensor([[-2.0, -3.0, -9.0], [-1.0, -1.0, -1.0], [0.0, 0.0, 0.0]], requires_grad=True)
    sampled = tensor([[-1.0, -1.0, 0.0], [-2.0, math.nan, -2.0], [-5.0, -5.0, -5.0]])
    mask = tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    found = sequence_kl(logprobs, sampled, mask)
    assert_close(found, tensor([[1.5], [-2 / 3], [0.0]]))
    assert not found.requires_grad


def test_only_what_is_pushed_down_from_afar_is_masked():
    kl = tensor([[0.6], [0.6], [0.5], [0.6]])
    found = on_policy_enough(tensor([[-1.0], [1.0], [-1.0], [0.0]]), kl, 0.5)
    assert found.tolist() == [[False], [True], [True], [True]]
    assert on_policy_enough(tensor([[-1.0, 1.0]]), kl[:1], 0.5).tolist() == [[False, True]]  # per token


@pytest.mark.parametrize(
    ("train", "idle"),
    [({}, True), ({"num_iterations": 2}, False), ({"steps_per_generation": 2}, False)],
)
def test_on_fresh_samples_the_threshold_is_refused(load: Load, train: dict[str, int], idle: bool):
    recipe = load(POLICY, train={"off_policy_mask_threshold": 0.1, **train})
    assert any("off_policy_mask_threshold" in one for one in idle_options(recipe)) == idle
