"""Dynamic sampling in a recipe: what is senseless is refused, what it may cost is said."""

from __future__ import annotations

from typing import Any

import pytest
from small_recipe import POLICY, Load, Refused

from posttrain.run.plan import make_plan


def refusals(load: Load, resample: Any = None, **changes: Any) -> str:
    rollout = {"resample": {} if resample is None else resample} | changes.pop("rollout", {})
    return "\n".join(make_plan(load(rollout=rollout, **changes)).refusals)


@pytest.mark.parametrize(
    ("resample", "words"),
    [
        (
            {"until": "pass_rate", "low": 0.8, "high": 0.2},
            "'low' 0.8 must be below 'high' 0.2: no group lies between",
        ),
        ({"until": "pass_rate", "low": 1.0}, "'low' 1 must be below 'high' 1"),
        ({"low": 0.1}, "'low' does nothing with until: unequal"),
        ({"high": 0.9}, "'high' does nothing with until: unequal"),
        ({"max_rounds": 1}, "max_rounds"),
        ({"on_short": "drop"}, "on_short"),
        ({"until": "varied"}, "until"),
    ],
)
def test_a_senseless_rule_is_refused(resample: dict[str, Any], words: str, refused: Refused) -> None:
    assert any(words in line for line in refused(rollout={"resample": resample}))


def test_the_plan_says_what_a_rollout_may_take(load: Load) -> None:
    plan = make_plan(load(rollout={"resample": {"max_rounds": 3}}))
    assert plan.refusals == []
    assert any(
        line.startswith("dynamic sampling: up to 3 rounds, so at most 6 prompts") for line in plan.batch
    )
    assert not any("dynamic sampling" in line for line in make_plan(load()).batch)


def test_what_does_not_go_together_is_refused(load: Load) -> None:
    assert "resample does not go with partial_budget" in refusals(load, rollout={"partial_budget": 4})
    assert "train.cache_implementation generates without it" in refusals(
        load, train={"cache_implementation": "static"}
    )
    found = refusals(load, base={**POLICY, "method": "reinforce", "objective": {"baseline": "none"}})
    assert "'resample' throws groups with equal rewards away, and objective learns from them" in found


def test_what_a_method_is_built_on_is_asked_too(load: Load) -> None:
    settings = {"base": "reinforce", "base_settings": {"baseline": "none"}}
    found = refusals(load, base={**POLICY, "method": "capo", "objective": settings})
    assert "objective.base_settings learns from them: with baseline none" in found


def test_methods_without_groups_have_no_use_for_it(load: Load) -> None:
    base: dict[str, Any] = {
        "method": "drift",
        "model": {"scratch": {}},
        "data": {"name": "sort"},
        "rollout": {"resample": {}},
        "train": {"num_train_epochs": 1},
    }
    found = make_plan(load(base)).refusals
    assert any("rollout: 'resample' does nothing with method 'drift'" in line for line in found)
