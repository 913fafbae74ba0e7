"""The calculator task: rows that follow from a seed, and a teacher whose mistakes are mistakes."""

from __future__ import annotations

import random

import pytest

from posttrain.data.calculator import Calculations, mistaken, other_digit, shown, value
from posttrain.data.rows import task_settings


def test_a_problem_and_its_completion_by_hand() -> None:
    assert [value("17*46"), value("12-30"), value("99+1")] == [782, -18, 100]
    call = {"type": "function", "function": {"name": "calc", "arguments": {"e": "17*46"}}}
    assert shown("17*46") == [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "calc", "content": "782"},
        {"role": "assistant", "content": "782"},
    ]
    for text in ("17", "17*", "a+b", "1+2+3", ""):
        with pytest.raises(ValueError, match="is not two numbers"):
            value(text)


def test_rows_follow_from_the_seed_and_splits_share_no_problem() -> None:
    task = task_settings("calculator", {"size": 300, "held_out": 50})
    train = list(task.rows("train", completions=False))
    test = list(task.rows("test", completions=False))
    assert (len(train), len(test)) == (300, 50)
    assert train == list(Calculations(size=300, held_out=50).rows("train", completions=False))
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    assert all(row["answer"] == str(value(row["prompt"])) for row in train)
    assert test == list(Calculations(size=9, held_out=50).rows("test", completions=False))
    assert train != list(Calculations(size=300, held_out=50, seed=1).rows("train", completions=False))


def test_the_teacher_is_right_as_often_as_asked() -> None:
    rows = list(
        Calculations(size=500, demonstrations=4, teacher_accuracy=0.3).rows("train", completions=True)
    )
    last = [row["completion"][-1]["content"] == row["answer"] for row in rows]
    assert len(rows) == 2000
    assert sum(last) / 2000 == pytest.approx(0.3, abs=0.03)
    called = [len(row["completion"]) == 3 for row in rows]
    assert sum(called) / 2000 == pytest.approx(0.3 + 0.7 * 0.4, abs=0.04)


def test_a_mistake_is_never_right() -> None:
    rng = random.Random(0)
    kinds = set()
    for problem in list(Calculations(size=200, held_out=1).problems("train")):
        made = mistaken(problem, rng)
        gold = str(value(problem))
        asked = made[0]["tool_calls"][0]["function"]["arguments"]["e"] if len(made) == 3 else None
        kinds.add((len(made), asked == problem))
        assert made[-1]["content"] != gold or (asked is not None and asked != problem)
    assert kinds == {(1, False), (3, False), (3, True)}
    assert other_digit("10+99", random.Random(1)) != "10+99"
