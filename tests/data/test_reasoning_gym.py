"""Problems of reasoning-gym as rows, and its scorer as a reward."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from small_recipe import POLICY, Load

from posttrain.data import DataError
from posttrain.data.rows import task_settings
from posttrain.rewards.reasoning_gym_reward import answer_in
from posttrain.run.plan import make_plan

needs_it = pytest.mark.reasoning_gym
ARGS: dict[str, Any] = {"task": "leg_counting", "size": 40, "held_out": 8, "config": {"max_animals": 4}}


def test_the_answer_is_the_last_one_marked() -> None:
    assert answer_in("<answer>1</answer> no, <answer>\n 2 </answer>.") == "2"
    assert answer_in("the answer is 2") is None
    assert answer_in(" 2\n", "whole") == "2"


def test_without_the_package_the_plan_says_how_to_get_it(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    found = make_plan(load({**POLICY, "data": {"name": "reasoning_gym", "args": ARGS}})).refusals
    assert any(
        "needs the package reasoning-gym" in line and "posttrain[reasoning-gym]" in line for line in found
    )


@needs_it
def test_rows_follow_from_the_seed_and_splits_share_no_problem() -> None:
    task = task_settings("reasoning_gym", ARGS)
    train, test = (list(task.rows(split, completions=False)) for split in ("train", "test"))
    assert len(test) == 8
    assert 30 < len(train) <= 40
    assert train == list(task_settings("reasoning_gym", ARGS).rows("train", completions=False))
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    assert set(train[0]) == {"prompt", "answer", "puzzle"}
    (shown, *_) = task.rows("test", completions=True)
    assert shown["completion"] == f"<answer>{test[0]['answer']}</answer>"


@needs_it
@pytest.mark.parametrize(
    "name", ["leg_counting", "countdown", "zebra_puzzles", "simple_equations", "word_sorting"]
)
def test_its_own_scorer_judges(name: str) -> None:
    from posttrain.rewards.reasoning_gym_reward import reasoning_gym

    rows = list(
        task_settings("reasoning_gym", {"task": name, "size": 4, "held_out": 3}).rows(
            "test", completions=True
        )
    )
    puzzles = [row["puzzle"] for row in rows]
    assert reasoning_gym([row["completion"] for row in rows], puzzle=puzzles) == [1.0] * 3
    assert reasoning_gym(["<answer>no such thing</answer>"] * 3, puzzle=puzzles) != [1.0] * 3
    assert reasoning_gym([str(row["answer"]) for row in rows], puzzle=puzzles) == [0.0] * 3
    assert reasoning_gym([str(row["answer"]) for row in rows], puzzle=puzzles, read="whole") == [1.0] * 3


@needs_it
@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"task": "leg_countin"}, "no task 'leg_countin'; did you mean 'leg_counting'?"),
        ({"config": {"max_anmals": 3}}, "unexpected keyword argument 'max_anmals'"),
        ({"config": {"max_animals": -1}}, "leg_counting: max_animals must be"),
        ({"config": {"seed": 1}}, "'seed' is written beside task"),
    ],
)
def test_what_the_package_does_not_know_is_refused(args: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words.replace("?", r"\?")):
        next(task_settings("reasoning_gym", {**ARGS, **args}).rows("train", completions=False))


@needs_it
def test_a_recipe_of_it_can_start(load: Load) -> None:
    base = {
        **POLICY,
        "model": {"scratch": {"max_positions": 512}},
        "data": {"name": "reasoning_gym", "args": ARGS, "eval": {"limit": 4}},
        "rewards": [{"name": "reasoning_gym"}],
    }
    plan = make_plan(load(base))
    assert plan.refusals == []
    assert plan.rewards[0].startswith("reasoning_gym x 1, reads puzzle")
