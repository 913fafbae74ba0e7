"""The built-in rewards, by hand."""

from __future__ import annotations

import csv
import itertools
import json

import pytest

from posttrain.rewards.builtin import exact_match, format_regex, length_penalty, math_answer
from posttrain.rewards.puzzles import countdown, sudoku
from posttrain.rewards.runner import RewardRunner


def test_math_answer_is_right_wrong_or_cannot_be_judged():
    texts = [r"so \boxed{\frac12}", r"so \boxed{2}", "so 1/2", r"so \boxed{0.5", r"so \boxed{1}"]
    gold = ["0.5", "0.5", "0.5", "0.5", r"\frac{1}{"]
    assert math_answer(texts, answer=gold) == [1.0, 0.0, 0.0, 0.0, None]
    assert math_answer(["... #### 1,080"], answer=["work\n#### 1080"], answer_format="hash") == [1.0]
    assert math_answer([r"\boxed{72}"], answer=[72]) == [1.0]


def test_math_answers_share_a_spelling_if_equal():
    texts = [r"\boxed{\frac{1}{2}}", r"\boxed{0.5}", r"\boxed{x = 1/2}", r"\boxed{2}", "none", r"\boxed{1"]
    assert math_answer.answers(texts) == ["1/2", "1/2", "1/2", "2", None, None]
    assert math_answer.answers([r"\boxed{,}", r"\boxed{\,}"]) == [None, None]  # boxes with nothing in them
    assert math_answer.answers(
        [r"\boxed{\{2,1\}}", r"\boxed{1, 2}", r"\boxed{\sqrt{8}}", r"\boxed{2\sqrt2}"]
    )[0::2] == (math_answer.answers([r"\boxed{1,2}", r"\boxed{\sqrt{8}}"]))


def test_exact_match_and_its_settings():
    assert exact_match([" abc\n", "Abc", ""], answer=["abc", "abc", None]) == [1.0, 0.0, None]
    assert exact_match(
        ["A b!"], answer=["ab"], ignore_case=True, ignore_whitespace=True, ignore_punctuation=True
    ) == [1.0]
    assert exact_match(["12"], answer=[12]) == [1.0]
    assert exact_match.answers([" Ab ", ""], ignore_case=True) == ["ab", None]


def test_format_regex_searches_over_lines():
    pattern = r"\A<think>.*</think>\s*\S"
    assert format_regex(["<think>a\nb</think> 5", "<think>a"], pattern=pattern) == [1.0, 0.0]


def test_length_penalty_is_the_papers_three_pieces():
    # limit 20480, buffer 4096: free up to 16384, half-way down at 18432, -1 from the limit on
    tokens = [0, 16384, 17408, 18432, 20480, 30000]
    assert length_penalty(["x"] * 6, completion_tokens=tokens, max_tokens=20480, buffer=4096) == [
        0.0, 0.0, -0.25, -0.5, -1.0, -1.0,
    ]  # fmt: skip


def test_length_penalty_gets_its_tokens_from_the_run():
    spec = {"name": "length_penalty", "args": {"max_tokens": 4, "buffer": 2}}
    with RewardRunner([spec], workers=1) as runner:
        scores = runner.score(["a", "b"], columns={"completion_ids": [[1, 2, 3], [1, 2, 3, 4]]}, group_size=2)
    assert scores.values == [[-0.5], [-1.0]]


# ---- Countdown


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("30-100+93", 1.0),
        ("30 - 100 + 93 = 23", 1.0),
        (r"so \boxed{(93 - 100) + 30}", 1.0),
        ("<answer>93+30-100</answer>", 1.0),
        (r"<think>maybe \boxed{1}</think> <answer>93 − 100 + 30</answer>", 1.0),
        (r"\boxed{30-100+93=23}", 1.0),
        ("30-100+93 = 24", 0.0),  # a false equation
        ("93-100+30+0", 0.0),  # a number that was not given
        ("30-100+93-93+93", 0.0),  # one used three times
        ("30-7", 0.0),
        ("23", 0.0),
        ("-100+30+93", 0.0),  # only the four operations between numbers
        ("30-100+93; import os", 0.0),
        ("__import__('os').getpid()", 0.0),
        ("9**9**9**9", 0.0),
        ("30//100+93", 0.0),
        ("(" * 3000 + "30-100+93" + ")" * 3000, 0.0),
        (r"\boxed{30-100+93", 0.0),
        ("<answer>30-100+93", 0.0),
        ("<think>30-100+93", 0.0),
        ("", 0.0),
    ],
)
def test_countdown(text, verdict):
    assert countdown([text], numbers=["30,100,93"], target=["23"]) == [verdict]


def test_countdown_is_exact_and_reads_its_columns():
    assert countdown(["8/(3-8/3)"], numbers=[[8, 3, 8, 3]], target=[24]) == [1.0]  # 8/3 is no float here
    assert countdown([r"\frac{8}{4} \times 3"], numbers=["8 4 3"], target=[6]) == [1.0]
    assert countdown(["5+1", "1/0"], numbers=[[5, 1], [1, 0]], target=["six", 3]) == [None, 0.0]
    assert countdown(["5+1"], numbers=[[5, 1, 2]], target=[6]) == [0.0]
    assert countdown(["5+1"], numbers=[[5, 1, 2]], target=[6], use_all=False) == [1.0]


def test_countdown_accepts_a_solution_of_every_stored_puzzle(shared_data):
    rows = [json.loads(line) for line in (shared_data / "countdown/cd3_test.jsonl").open()][:40]
    for row in rows:
        numbers = row["input"].split(",")
        solutions = [
            expression
            for a, b, c in itertools.permutations(numbers)
            for p, q in itertools.product("+-*/", repeat=2)
            for expression in (f"({a}{p}{b}){q}{c}", f"{a}{p}({b}{q}{c})")
            if countdown([expression], numbers=[row["input"]], target=[row["output"]]) == [1.0]
        ]
        assert solutions, row


# ---- Sudoku

PUZZLE = "3102200002100320"
SOLVED = "3142243142131324"


def test_sudoku_is_judged_by_rules_and_givens():
    other = "4312214312343421"  # a right grid of another puzzle
    grid = "\n".join(" ".join(SOLVED[r : r + 4]) for r in (0, 4, 8, 12))
    texts = [
        SOLVED,
        rf"so \boxed{{{SOLVED}}}",
        f"<answer>\n{grid}\n</answer>",
        f"The grid is:\n{grid}",
        other,
        "3142243142131342",  # a row is right, a column is not
        SOLVED[:-1],
        SOLVED + "1",
        rf"\boxed{{{SOLVED}",
        "1" * 16,
    ]
    assert sudoku(texts, puzzle=[PUZZLE] * 10) == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_sudoku_needs_rows_columns_and_boxes():
    grids = ["1234341221434321", "1234234134124123", "1234341212343412", "1122334411223344"]
    assert sudoku(grids, puzzle=["0" * 16] * 4) == [1.0, 0.0, 0.0, 0.0]  # the second breaks its boxes alone


def test_sudoku_puzzles_that_cannot_be_read_are_none_and_lost_zeros_come_back():
    assert sudoku([SOLVED] * 3, puzzle=["12", None, "9" * 16]) == [None, None, None]
    solution = "2143432114323214"
    assert sudoku([solution], puzzle=[int("0140432014020000")]) == [1.0]


def test_sudoku_accepts_every_stored_solution(shared_data):
    with (shared_data / "sudoku4x4/test.csv").open() as file:
        rows = list(csv.DictReader(file))
    solutions, puzzles = [row["Solution"] for row in rows], [row["Puzzle"] for row in rows]
    assert sudoku(solutions, puzzle=puzzles) == [1.0] * len(rows)
    assert 0.0 in sudoku(solutions[1:] + solutions[:1], puzzle=puzzles)
