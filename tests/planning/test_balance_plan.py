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


FAMILY = {"beta_family": [0.0, 0.1]}


def test_a_family_s_beta_is_its_largest(load: Load, refused: Refused) -> None:
    recipe = load(train=FAMILY)
    assert vars(recipe.train)["beta"] == 0.1
    assert make_plan(recipe).refusals == []
    assert any("beta is the largest of them" in line for line in refused(train={**FAMILY, "beta": 0.3}))
    assert any("both say the coefficient" in line for line in refused(train={**FAMILY, **BY_RATE}))


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ({**POLICY, "model": {"path": "somewhere/model", "peft": {"r": 4}}}, "with model: 'peft'"),
        (
            {**POLICY, "method": "reinforce_pp", "objective": {}},
            "'beta_family' is of a KL penalty in the loss",
        ),
        ({**POLICY, "train": {**POLICY["train"], "sync_ref_model": True}}, "only ever asked with a prefix"),
    ],
)
def test_what_a_family_does_not_go_with(base: dict[str, Any], words: str, load: Load) -> None:
    found = make_plan(load(base=base, train=FAMILY)).refusals
    assert any(words in line for line in found), found


def test_a_balance_model_is_looked_for(load: Load) -> None:
    train = {"beta": 0.1, "beta_by": "learned", "beta_low": 0.0, "beta_model": "nowhere.json"}
    assert any("no file 'nowhere.json'" in line for line in make_plan(load(train=train)).refusals)
