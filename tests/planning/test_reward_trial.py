"""`plan --try` runs each reward once on a row of the data; without it `plan` runs nothing of the user's."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
from small_recipe import Load

from posttrain.planning.trial import PLACEHOLDER, samples
from posttrain.run.plan import make_plan

USER = """
    import functools
    from pathlib import Path

    Path("imported").touch()

    def judge(completions, *, answer, scale: float = 1.0):
        return [scale * (text == gold) for text, gold in zip(completions, answer)]

    short = lambda completions, answer: [float(len(c)) for c in completions]
    halved = functools.partial(judge, scale=0.5)

    def made():
        return lambda completions, *, answer: [7.0] * len(completions)

    from_factory = made()

    def breaks(completions):
        raise KeyError("a broken grader")

    def hangs(completions):
        import time
        time.sleep(60)
"""


def plan_of(load: Load, names: list[Any], trial: bool, **changes: Any):
    recipe = load(
        rewards=[one if isinstance(one, dict) else {"name": f"mine.py:{one}"} for one in names], **changes
    )
    Path("mine.py").write_text(textwrap.dedent(USER))
    return make_plan(recipe, trial=trial)


def test_plan_runs_no_code_of_the_users(load: Load) -> None:
    names = ["judge", "short", "halved", "from_factory", "breaks"]
    plan = plan_of(load, names, trial=False)
    assert plan.refusals == []
    assert not Path("imported").exists()
    assert [line.partition(";")[0] for line in plan.rewards] == [
        "judge x 1, reads answer", "short x 1, reads answer", "halved x 1, reads answer", "from_factory x 1",
        "breaks x 1",
    ]  # fmt: skip
    assert plan.rewards[3].endswith(
        "its source does not show what it asks for: posttrain plan --try loads it and looks"
    )
    assert "--try" not in "".join(plan.rewards[:3])


def test_try_calls_each_reward_in_a_process_of_its_own(load: Load) -> None:
    plan = plan_of(load, ["judge", "from_factory", {"name": "math_answer"}], trial=True)
    gold = plan.rewards[3].partition(" for '")[2].partition("'")[0]
    assert plan.rewards[3] == (
        f"tried judge: 1 for {gold!r}, 0 for {f'{chr(92)}boxed{{{gold}}}'!r}, 0 for {f'#### {gold}'!r}, "
        f"0 for {PLACEHOLDER!r}"
    )
    assert plan.rewards[4].startswith(f"tried from_factory: 7 for {gold!r}, 7 for ")
    assert f"1 for {f'{chr(92)}boxed{{{gold}}}'!r}" in plan.rewards[5]
    assert plan.refusals == []
    assert Path("imported").exists()  # by the workers


def test_what_fails_when_tried_is_a_reason_not_to_start(load: Load) -> None:
    hanging = {"name": "mine.py:hangs", "timeout_s": 0.5, "on_error": "skip"}
    plan = plan_of(load, ["breaks", hanging], trial=True)
    (refusal,) = plan.refusals
    assert refusal.startswith(
        "rewards[0]: tried on the first row: reward 'breaks' failed on completions 0 to 3: KeyErr"
    )
    assert plan.rewards[2].startswith("tried breaks: failed (reward 'breaks' failed")
    assert "no result within 0.5 s" in plan.rewards[3]


def test_what_is_tried() -> None:
    assert samples({"answer": 42}) == ["42", "\\boxed{42}", "#### 42", PLACEHOLDER]
    assert samples({"completion": "own", "answer": 1}) == ["own", PLACEHOLDER]
    assert samples({"completion": [{"role": "assistant", "content": "own"}]}) == ["own", PLACEHOLDER]
    assert samples({"prompt": "?"}) == [PLACEHOLDER]


ROWS = '{"prompt": "1>", "answer": "1", "completion_tokens": 4000, "log_metric": 1}\n' * 8


def test_columns_of_the_runs_own_names_are_warned_of_and_cannot_be_mapped(load: Load) -> None:
    recipe = load(base=_without_task())
    Path("rows.jsonl").write_text(ROWS)
    plan = make_plan(recipe)
    assert plan.refusals == []
    assert [w for w in plan.warnings if "completion_tokens" in w] == [
        "data: the data's 'completion_tokens', 'log_metric' does not reach the rewards: the run gives them values of "
        "its own under that name; map the column to another name to read it (data.columns)"
    ]
    mapped = load(
        data={"path": "rows.jsonl", "columns": {"completions": "prompt", "count": "completion_tokens"}},
        base=_without_task(),
    )
    (refusal,) = make_plan(mapped).refusals
    assert refusal.startswith("data.columns: rewards are given 'completions' by the run")


def _without_task() -> dict[str, Any]:
    from small_recipe import POLICY

    return {**POLICY, "data": {"path": "rows.jsonl"}}


@pytest.mark.parametrize("trial", [False, True])
def test_a_reward_that_needs_environments_is_refused(load: Load, trial: bool) -> None:
    recipe = load(rewards=[{"name": "env.py:f"}])
    Path("env.py").write_text("def f(completions, environments):\n    return [0.0] * len(completions)\n")
    (refusal,) = make_plan(recipe, trial=trial).refusals
    assert refusal.startswith("rewards[0]: reward 'env.py:f' asks for environments, and this run has none")
