"""Logged answers in a recipe: what is senseless is refused before anything is loaded, and where they stand is said."""

from __future__ import annotations

from typing import Any

import pytest
from small_recipe import POLICY, Load, Refused

from posttrain.observe.logged_table import logged_table
from posttrain.run.plan import make_plan

GOLD = {"column": "answer"}


def refusals(load: Load, logged: Any = None, **changes: Any) -> str:
    rollout = {"logged": GOLD if logged is None else logged} | changes.pop("rollout", {})
    return "\n".join(make_plan(load(rollout=rollout, **changes)).refusals)


@pytest.mark.parametrize(
    ("logged", "words"),
    [
        ({}, "column"),
        ({**GOLD, "share": 1.0}, "share"),
        ({**GOLD, "treatment": "behavior"}, "treatment"),
        ({**GOLD, "treatment": "behaviour"}, "treatment: behaviour needs logprobs_column"),
        ({**GOLD, "logprobs_column": "p"}, "'logprobs_column' does nothing with treatment: none"),
        ({**GOLD, "gamma": 0.2}, "'gamma' does nothing with treatment: none"),
        ({**GOLD, "treatment": "shaped", "gamma": 0.0}, "gamma"),
    ],
)
def test_a_senseless_section_is_refused(logged: dict[str, Any], words: str, refused: Refused) -> None:
    assert any(words in line for line in refused(rollout={"logged": logged}))


def test_the_plan_says_which_places_are_not_sampled(load: Load) -> None:
    plan = make_plan(load(rollout={"logged": {**GOLD, "treatment": "shaped"}}))
    assert plan.refusals == []
    assert (
        "logged answers: column 'answer' takes up to 1 of 4 places of a group, treatment shaped; samples fill what it "
        "leaves"
    ) in plan.batch
    assert not any("logged" in line for line in make_plan(load()).batch)


def test_what_does_not_go_together_is_refused(load: Load) -> None:
    assert "no column 'anser' in the data; did you mean 'answer'?" in refusals(load, {"column": "anser"})
    found = refusals(load, {**GOLD, "treatment": "behaviour", "logprobs_column": "logp"})
    assert "logprobs_column: no column 'logp' in the data" in found
    assert "leaves no place for a logged answer" in refusals(load, {**GOLD, "share": 0.05})
    assert "'logged' does not go with partial_budget" in refusals(load, rollout={"partial_budget": 4})
    assert "train.cache_implementation generates without it" in refusals(
        load, train={"cache_implementation": "static"}
    )
    found = refusals(load, base={**POLICY, "method": "ppo", "objective": {}})
    assert "objective has no place for them: its critic learns what the policy earns" in found
    found = refusals(load, base={**POLICY, "method": "capo", "objective": {"base": "grpo"}})
    assert "'logged'" not in found


def test_the_report_lists_their_tokens_by_themselves() -> None:
    lines = [
        {
            "step": 1,
            "logged/tokens": 10.0,
            "logged/carried": 0.5,
            "logged/clipped_high": 0.5,
            "logged/reward": 1.0,
        },
        {
            "step": 2,
            "logged/tokens": 30.0,
            "logged/carried": 1.0,
            "logged/clipped_high": 0.0,
            "logged/reward": 0.5,
        },
        {"step": 3, "logged/tokens": 0.0, "logged/carried": 0.0},
    ]
    found = logged_table(lines)
    assert found is not None
    assert {name: share for name, _, share in found.classes} == {"carried": 0.875, "clipped_high": 0.125}
    assert {name: value for name, _, value in found.numbers} == {"reward": 0.75}
    assert "clipped_high" in found.html()
    assert found.table().row_count == 3
    assert logged_table([{"step": 1, "reward": 1.0}]) is None
