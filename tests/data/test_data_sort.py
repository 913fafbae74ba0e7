"""The built-in task: rows follow from the seed, splits are disjoint, the teacher errs exactly as often as told."""

from __future__ import annotations

import random

import pytest

from posttrain.data import DataError, load_rows
from posttrain.data.rows import task_settings
from posttrain.data.sort import Sort, mistake
from posttrain.recipe.data_sections import DataSection


def test_answers_are_the_sorted_digits() -> None:
    for row in Sort(size=200).rows("train", completions=False):
        digits = row["prompt"].removesuffix(">")
        assert 4 <= len(digits) <= 7
        assert row["answer"] == "".join(sorted(digits))
        assert set(row) == {"prompt", "answer"}


def test_splits_share_no_prompt_and_have_their_sizes() -> None:
    task = Sort(size=3000, held_out=500)
    train, test = task.problems("train"), task.problems("test")
    assert (len(train), len(test)) == (3000, 500)
    assert len({*train, *test}) == 3500


def test_the_test_split_does_not_depend_on_the_size_of_the_other() -> None:
    assert Sort(size=10).problems("test") == Sort(size=900).problems("test")
    assert Sort(size=10).problems("train") == Sort(size=900).problems("train")[:10]


def test_rows_follow_from_the_seed() -> None:
    def rows(**settings: object) -> list[dict[str, str]]:
        return list(Sort(size=50, teacher_accuracy=0.4, **settings).rows("train", completions=True))  # type: ignore[arg-type]  # seeds

    assert rows() == rows()
    assert rows(seed=1) != rows()


def test_the_teacher_is_right_as_often_as_told() -> None:
    rows = list(Sort(size=1000, demonstrations=10, teacher_accuracy=0.4).rows("train", completions=True))
    assert len(rows) == 10_000
    share = sum(row["completion"] == row["answer"] for row in rows) / len(rows)
    assert abs(share - 0.4) < 0.02  # four standard errors
    assert len({row["completion"] for row in rows[:10]}) > 1  # each demonstration is drawn anew


@pytest.mark.parametrize("digits", ["1234", "7654321", "5555", "1112", "52913"])
def test_a_mistake_is_never_right(digits: str) -> None:
    rng = random.Random(0)
    drawn = {mistake(digits, rng) for _ in range(300)}
    assert "".join(sorted(digits)) not in drawn
    assert drawn


def test_kinds_of_mistake() -> None:
    rng = random.Random(0)
    drawn = {mistake("3124", rng) for _ in range(300)}
    assert drawn == {"2134", "1324", "1243", "4321", "3124"}
    assert {mistake("5555", rng) for _ in range(50)} == {"555"}


def test_completions_come_only_when_asked_for() -> None:
    plain = load_rows(DataSection(name="sort", args={"size": 5}))
    taught = load_rows(DataSection(name="sort", args={"size": 5, "teacher_accuracy": 1.0}))
    named = load_rows(DataSection(name="sort", args={"size": 5}, completion="completion"))
    assert set(plain.rows.column_names) == {"prompt", "answer"}
    assert set(taught.rows.column_names) == {"prompt", "answer", "completion"}
    assert list(named.rows["completion"]) == list(named.rows["answer"])
    assert plain.counts.used == 5


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ({"sise": 3}, "task 'sort' has no argument 'sise'; did you mean 'size'"),
        ({"size": "3"}, "'size' must be a whole number, not '3'"),
        ({"teacher_accuracy": 1.5}, "'teacher_accuracy' must be at most 1, not 1.5"),
    ],
)
def test_wrong_arguments(args: dict[str, object], complaint: str) -> None:
    with pytest.raises(DataError) as caught:
        task_settings("sort", args)
    assert complaint in str(caught.value)


def test_unknown_split() -> None:
    with pytest.raises(DataError, match="no split 'dev'; it has train and test"):
        load_rows(DataSection(name="sort", split="dev"))
