"""The task of six tools: rows that follow from a seed, calls that can be read, mistakes that are mistakes."""

from __future__ import annotations

import random

import pytest

from posttrain.answers.tool_calls import call_credit, read_calls
from posttrain.data.api_calls import TOOLS, ApiCalls, mistake, spelled
from posttrain.data.rows import task_settings


def test_a_call_by_hand() -> None:
    call = spelled("book", {"start": "Oslo", "end": "Rome", "seats": 2, "window": True})
    assert call == '[book(start="Oslo", end="Rome", seats=2, window=True)]'
    (read,) = read_calls(call) or []
    assert read.arguments == {"start": "Oslo", "end": "Rome", "seats": 2, "window": True}


def test_rows_follow_from_the_seed_and_splits_share_no_request() -> None:
    task = task_settings("api_calls", {"size": 300, "held_out": 50})
    train, test = (list(task.rows(split, completions=False)) for split in ("train", "test"))
    assert (len(train), len(test)) == (300, 50)
    assert train == list(ApiCalls(size=300, held_out=50).rows("train", completions=False))
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    assert test == list(ApiCalls(size=9, held_out=50).rows("test", completions=False))
    assert train != list(ApiCalls(size=300, held_out=50, seed=1).rows("train", completions=False))
    for row in train:
        (call,) = read_calls(row["answer"]) or []
        assert (call.name in TOOLS, len(call.arguments)) == (True, row["difficulty"])
        for value in call.arguments.values():  # the request says all of it
            assert str(value) in row["prompt"] or isinstance(value, bool)
    assert {(read_calls(row["answer"]) or [])[0].name for row in train} == set(TOOLS)


def test_the_largest_task_is_drawn_to_its_end() -> None:
    rows = list(ApiCalls(size=2000, held_out=400).rows("train", completions=False))
    assert len({row["prompt"] for row in rows}) == 2000
    assert {row["difficulty"] for row in rows} == {1, 2, 3, 4}


def test_easy_rows_come_first_and_come_again() -> None:
    plain = [row["prompt"] for row in ApiCalls(size=300).rows("train", completions=False)]
    rows = list(ApiCalls(size=300, easy_first=True).rows("train", completions=False))
    assert {row["prompt"] for row in rows} == set(plain)
    assert len(rows) == 100 + 2 * 200
    difficulty = [row["difficulty"] for row in rows]
    thirds = [difficulty[:100], difficulty[100:300:2], difficulty[300::2]]  # the new rows
    assert all(max(a) <= min(b) for a, b in zip(thirds, thirds[1:], strict=False))
    assert [row["prompt"] for row in rows[:100]] != sorted(plain)[:100]
    again, before = rows[301::2], {row["prompt"] for row in rows[:300]}
    assert all(row["prompt"] in before for row in again)


def test_a_mistake_is_never_right_and_the_teacher_errs_as_often_as_asked() -> None:
    rng = random.Random(0)
    for _, name, arguments in ApiCalls(size=400, held_out=1).requests("train"):
        gold = read_calls(spelled(name, arguments)) or []
        wrong = read_calls(mistake(name, arguments, rng))
        assert wrong is not None
        assert call_credit(wrong, gold) < 1
    rows = list(ApiCalls(size=500, demonstrations=2, teacher_accuracy=0.3).rows("train", completions=True))
    assert sum(row["completion"] == row["answer"] for row in rows) / 1000 == pytest.approx(0.3, abs=0.04)
