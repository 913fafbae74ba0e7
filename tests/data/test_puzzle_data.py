"""data/countdown and data/sudoku: every problem is solvable, splits are apart, teachers err when they should."""

from __future__ import annotations

import csv
import json

import pytest

from posttrain.data.countdown import Countdown
from posttrain.data.files import DataError
from posttrain.data.sudoku import Sudoku, all_grids, mistake
from posttrain.rewards.puzzles import countdown, sudoku


def judge_countdown(rows, key):
    return countdown(
        [r[key] for r in rows], numbers=[r["numbers"] for r in rows], target=[r["target"] for r in rows]
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"numbers": 4, "largest": 20},
        {"numbers": 2, "largest": 40, "operators": "+-"},
        {"largest": 9, "operators": "+-", "in_order": True},
    ],
)
def test_countdown_answers_are_right(settings):
    rows = list(Countdown(size=120, held_out=20, **settings).rows("train", completions=False))
    assert len(rows) == 120
    assert judge_countdown(rows, "answer") == [1.0] * 120
    assert all(1 <= row["target"] <= 100 for row in rows)


def test_countdown_by_hand():
    row = next(iter(Countdown(size=3, held_out=1).rows("train", completions=False)))
    given = row["numbers"].split(",")
    assert row["prompt"] == f"{row['numbers']}={row['target']}>"
    assert len(given) == 3
    assert set(row) == {"prompt", "numbers", "target", "answer"}


def test_in_order_only_operators_are_to_choose():
    task = Countdown(size=300, held_out=20, largest=9, operators="+-", in_order=True, teacher_accuracy=0.5)
    for row in task.rows("train", completions=True):
        for text in (row["answer"], row["completion"]):
            assert text.translate(str.maketrans("+-", ",,")) == row["numbers"]


def test_brackets_only_where_needed():
    answers = [row["answer"] for row in Countdown(size=2000).rows("train", completions=False)]
    assert any("(" in a for a in answers)
    for answer in answers:
        # taking any one pair of brackets away must change the value or the meaning
        assert "((" not in answer
        assert not (answer.startswith("(") and answer.endswith(")") and answer.count("(") == 1)


def test_splits_share_no_problem_and_the_test_split_stays():
    task = Countdown(size=400, held_out=50, largest=9, numbers=3)
    key = lambda p: (tuple(sorted(p[0])), p[1])  # noqa: E731
    train, test = task.problems("train"), task.problems("test")
    assert not {key(p) for p in train} & {key(p) for p in test}
    assert Countdown(size=7, held_out=50, largest=9, numbers=3).problems("test") == test
    puzzles = Sudoku(size=400, held_out=50)
    assert not {p for p, _ in puzzles.problems("train")} & {p for p, _ in puzzles.problems("test")}


@pytest.mark.parametrize("accuracy", [0.0, 0.5, 1.0])
def test_teachers_are_as_right_as_asked(accuracy):
    rows = list(Countdown(size=400, teacher_accuracy=accuracy).rows("train", completions=True))
    share = sum(judge_countdown(rows, "completion")) / 400
    assert abs(share - accuracy) <= 5 * (accuracy * (1 - accuracy) / 400) ** 0.5
    grids = list(Sudoku(size=400, teacher_accuracy=accuracy).rows("train", completions=True))
    share = sum(sudoku([g["completion"] for g in grids], puzzle=[g["puzzle"] for g in grids])) / 400
    assert abs(share - accuracy) <= 5 * (accuracy * (1 - accuracy) / 400) ** 0.5


def test_demonstrations_repeat_a_problem():
    rows = list(Countdown(size=5, demonstrations=3, teacher_accuracy=0.5).rows("train", completions=True))
    assert len(rows) == 15
    assert len({row["prompt"] for row in rows}) == 5


def test_there_are_288_grids_and_all_obey_the_rules():
    grids = all_grids()
    assert len(set(grids)) == len(grids) == 288
    assert sudoku(grids, puzzle=["0" * 16] * 288) == [1.0] * 288


def test_puzzles_keep_their_givens():
    rows = list(Sudoku(size=200, fewest_empty=3, most_empty=5).rows("train", completions=False))
    assert sudoku([r["answer"] for r in rows], puzzle=[r["puzzle"] for r in rows]) == [1.0] * 200
    assert {r["puzzle"].count("0") for r in rows} == {3, 4, 5}


def test_a_sudoku_mistake_is_never_right():
    import random

    rng = random.Random(0)
    for puzzle, solution in Sudoku(size=100).problems("train"):
        assert sudoku([mistake(puzzle, solution, rng)], puzzle=[puzzle]) == [0.0]


def test_impossible_tasks_say_so():
    with pytest.raises(DataError, match="raise largest or lower size"):
        Countdown(size=5000, numbers=2, largest=3).problems("train")
    with pytest.raises(ValueError, match="some of"):
        Countdown(operators="^")
    with pytest.raises(ValueError, match="must not exceed"):
        Sudoku(fewest_empty=9, most_empty=3)


def test_rewards_read_the_benchmark_files(shared_data):
    lines = [
        json.loads(line) for line in (shared_data / "countdown" / "cd3_test.jsonl").read_text().splitlines()
    ]
    assert countdown(["93-(100-30)"], numbers=[lines[0]["input"]], target=[lines[0]["output"]]) == [1.0]
    with (shared_data / "sudoku4x4" / "test.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sudoku([r["Solution"] for r in rows], puzzle=[r["Puzzle"] for r in rows]) == [1.0] * len(rows)
