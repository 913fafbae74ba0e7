"""A KL coefficient per prompt in a recipe: what would do nothing is refused, and what no method can do."""

from __future__ import annotations

from typing import Any

import pytest
from small_recipe import POLICY, Load, Refused

from posttrain.run.plan import make_plan

BY_RATE = {"beta": 0.1, "beta_by": "pass_rate", "beta_low": 0.2}


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"beta_by": "pass_rate", "beta_low": 0.2}, "does nothing without a KL penalty"),
        ({"beta": 0.1, "beta_high": 2.0}, "'beta_high' does nothing without beta_by"),
        ({"beta": 0.1, "beta_by": "pass_rate"}, "does nothing while beta_low and beta_high are both 1"),
        ({"beta": 0.1, "beta_by": "passrate", "beta_low": 0.2}, "beta_by"),
    ],
)
def test_what_would_do_nothing_is_refused(train: dict[str, Any], words: str, refused: Refused) -> None:
    assert any(words in line for line in refused(train=train))


def test_what_no_method_can_do_is_refused(load: Load) -> None:
    assert make_plan(load(train=BY_RATE)).refusals == []
    found = make_plan(
        load(base={**POLICY, "method": "reinforce_pp", "objective": {}}, train=BY_RATE)
    ).refusals
    assert any("'beta_by' is of a KL penalty in the loss" in line for line in found)
    adapter = {**POLICY, "model": {"path": "somewhere/model", "peft": {"r": 4}}}
    found = make_plan(load(base=adapter, train={**BY_RATE, "beta_by": "reference_entropy"})).refusals
    assert any("an adapter's is its own base" in line for line in found)
