from __future__ import annotations

import json
import time

import pytest

from posttrain.evaluation import grade as grading
from posttrain.evaluation import grade_metrics, store
from posttrain.evaluation.graders import Attempt, make_grader
from posttrain.rewards.worker_pool import WorkerPool


def verdict(name, gold, text, **arguments):
    return make_grader(name, arguments)([Attempt(gold, text)])[0]


# ---- graders


@pytest.mark.parametrize(
    ("text", "score", "flexible", "reason"),
    [
        ("so\n#### 18", 1, 1, "equal"),
        ("so\n#### $18", 1, 1, "equal"),
        ("the answer is 18", 0, 1, "no ####"),
        (r"\boxed{18}", 0, 1, "no ####"),
        ("18 eggs\n#### 17", 0, 0, "different"),
        ("no idea", 0, 0, "no ####"),
    ],
)
def test_gsm8k_is_strict_and_flexible_stands_beside(text, score, flexible, reason):
    found = verdict("math", "18", text, rule="hash")
    assert (found["score"], found["flexible"], found["reason"]) == (score, flexible, reason)


def test_a_number_cut_off_at_the_token_limit_is_not_half_right():
    grade_one = make_grader("math", {"rule": "hash"})
    for text, score in (("so\n#### 1", 0), ("#### 1\nSo", 1), ("it is 1", 0), ("it is 1 egg", 0)):
        found = grade_one([Attempt("1", text, cut_off=True)])[0]
        assert found["score"] == score, text
        assert found["flexible"] == float(score or text == "it is 1 egg"), text


@pytest.mark.parametrize(
    ("text", "score", "reason"),
    [
        (r"\boxed{0.5}", 1, "equal"),
        (r"first \boxed{3}, no: \boxed{\frac12}", 1, "equal"),
        (r"\boxed{\frac{1}{2}", 0, "unclosed box"),
        (r"<think>\boxed{\frac12}", 0, "unclosed reasoning"),
        ("one half", 0, "no box"),
    ],
)
def test_boxed_answers(text, score, reason):
    found = verdict("math", r"\frac{1}{2}", text, rule="boxed")
    assert (found["score"], found["reason"]) == (score, reason)


def test_a_prompt_that_opens_reasoning_wants_it_closed():
    settings = {"rule": "boxed", "opens_reasoning": True}
    assert verdict("math", "5", r"hm \boxed{5}", **settings)["reason"] == "unclosed reasoning"
    assert verdict("math", "5", r"hm</think> \boxed{5}", **settings)["score"] == 1


def test_equal_answers_share_a_class():
    classes = {verdict("math", "7", rf"\boxed{{{x}}}")["class"] for x in ("1/2", "0.5", r"\frac{1}{2}")}
    assert len(classes) == 1
    assert verdict("math", "7", "nothing")["class"] is None


def test_tolerances():
    assert verdict("math", "1.6", r"\boxed{1.60001}", relative_tolerance=1e-4)["score"] == 1
    assert verdict("math", "1.6", r"\boxed{1.601}", relative_tolerance=1e-4)["score"] == 0
    gold = {"answer": ["$4.2$"], "tolerance": "1e-1"}
    assert verdict("math", gold, r"\boxed{4.25}")["score"] == 1
    assert verdict("math", gold, r"\boxed{4.35}")["score"] == 0


def test_several_answers_in_one_gold():
    gold = {"answer": ["$69$,$84$"], "tolerance": None}
    assert verdict("math", gold, r"\boxed{69, 84}")["score"] == 1
    assert verdict("math", gold, r"\boxed{69}")["score"] == 0


def test_puzzles():
    countdown = {"numbers": "30,100,93", "target": "23"}
    assert verdict("countdown", countdown, "<answer>30-(100-93)</answer>")["score"] == 1
    assert verdict("countdown", countdown, "<answer>23</answer>")["score"] == 0
    sudoku = {"puzzle": "0000432014020000", "solution": "2143432114323214"}
    other = "1243432124121324"
    assert verdict("sudoku", sudoku, "<answer>2143 4321 1432 3214</answer>")["score"] == 1
    assert verdict("sudoku", sudoku, f"<answer>{other}</answer>")["score"] == 0
    assert verdict("sudoku", sudoku, "<answer>unfinished")["reason"] == "no answer"


def test_an_unknown_rule_is_refused_not_scored():
    with pytest.raises(ValueError, match="none of boxed, hash, flexible"):
        make_grader("math", {"rule": "box"})


# ---- worker processes


def slow_or_broken():
    """A factory for a worker: "sleep" hangs, "crash" kills its process, "raise" raises, anything else is
    right."""

    def handle(items):
        for text in [item.text for item in items]:
            if text == "sleep":
                time.sleep(60)
            if text == "crash":
                import os

                os._exit(3)
            if text == "raise":
                raise RuntimeError("broken")
        return [{"score": 1.0, "answer": i.text, "class": i.text, "reason": "equal"} for i in items]

    return handle


def test_a_hanging_response_costs_itself_alone():
    pool = WorkerPool("test_grade:slow_or_broken", {}, 1, timeout_s=1.0)
    texts = ["a", "sleep", "b", "raise", "c", "crash"]
    try:
        found = list(grading.judge_in_workers(pool, [Attempt("", text) for text in texts]))
    finally:
        pool.close()
    assert [v["score"] for v in found] == [1, 0, 1, None, 1, None]
    assert found[1]["reason"] == "timeout"
    assert "broken" in found[3]["reason"]
    assert found[5]["reason"].startswith("error")


@pytest.fixture
def in_process(monkeypatch):
    """Grades here instead of in a worker: starting one takes seconds."""
    monkeypatch.setattr(
        grading, "judge_in_workers", lambda pool, items: make_grader(**pool.arguments)(list(items))
    )


# ---- the stage

RUN = {
    "format": 1,
    "benchmark": "sums",
    "model": {"path": "tiny"},
    "tokenizer": {"opens_reasoning": False},
    "task": {
        "hash": "t" * 64,
        "problems": 3,
        "of": 3,
        "definition": {"answer": {"grader": "math", "args": {"rule": "hash"}}},
    },
    "sampling": {"samples": 2},
}
TEXTS = [["#### 3", "#### 4"], ["it is 5", "#### 5"], ["cut of", ""]]


def write_run(folder, texts=TEXTS, run=RUN):
    store.write_json(folder / store.RUN, run)
    rows = [
        {
            "id": str(i),
            "sample": j,
            "group": "easy" if i < 2 else "hard",
            "prompt": "q",
            "gold": str(2 * i + 3),
            "text": text,
            "tokens": 5 + j,
            "finish": "length" if text == "cut of" else "stop",
        }
        for i, row in enumerate(texts)
        for j, text in enumerate(row)
    ]
    store.write_lines(folder / store.GENERATIONS, rows)
    return folder


def test_metrics_by_hand(tmp_path, in_process):
    found = grading.grade(write_run(tmp_path))
    values = {name: m["value"] for name, m in found["metrics"].items()}
    # problem means 1/2, 1/2, 0; flexible 1/2, 1, 0; pass@2 1, 1, 0; majority: tie (1/2), one voter (1),
    # nobody (0)
    assert values == pytest.approx({"accuracy": 1 / 3, "flexible": 1 / 2, "pass@2": 2 / 3, "maj@2": 1 / 2})
    assert (found["problems"], found["samples"]) == (3, 6)
    assert (found["truncated"], found["no_answer"], found["timeouts"], found["cannot_judge"]) == (1, 3, 0, 0)
    assert found["reasons"] == {"no ####": 3, "equal": 2, "different": 1}
    assert found["groups"]["easy"]["value"] == pytest.approx(0.5)
    assert found["groups"]["hard"]["problems"] == 1
    accuracy = found["metrics"]["accuracy"]
    assert accuracy["interval"][0] <= accuracy["value"] <= accuracy["interval"][1]
    assert accuracy["samples"] == 6
    assert not list(tmp_path.glob("*partial*"))


def test_grading_again_is_identical(tmp_path):
    folder = write_run(tmp_path)
    grading.grade(folder)
    before = {name: (folder / name).read_bytes() for name in (store.GRADES, store.METRICS)}
    for name in before:
        (folder / name).unlink()
    grading.grade(folder, workers=2)
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_interrupted_grading_goes_on(tmp_path, monkeypatch, in_process):
    whole = write_run(tmp_path / "whole")
    grading.grade(whole)
    part = write_run(tmp_path / "part")
    monkeypatch.setattr(grading, "BLOCK", 2)
    seen = []

    def stop(done, of):
        seen.append(done)
        if done == 4 and seen.count(4) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grading.grade(part, progress=stop)
    grading.grade(part, progress=stop)
    assert seen == [0, 2, 4, 4, 6]  # the second begins with what is done
    assert (part / store.GRADES).read_bytes() == (whole / store.GRADES).read_bytes()


def test_unfinished_generation_is_refused(tmp_path):
    folder = write_run(tmp_path)
    path = folder / store.GENERATIONS
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match="5 of 6 responses"):
        grading.grade(folder)


def test_two_runs_compared_by_problem(tmp_path, in_process):
    first = write_run(tmp_path / "a")
    second = write_run(tmp_path / "b", [["#### 3", "#### 3"], ["#### 5", "#### 5"], ["", "#### 7"]])
    grading.grade(first)
    grading.grade(second)
    found = grade_metrics.compare(first, second)
    assert found.value == pytest.approx(0.5)  # differences 1/2, 1/2, 1/2
    assert found.p_value == pytest.approx(0.25)  # all three of one sign: 2 of 8
    assert (found.better, found.worse) == (3, 0)


def test_other_tasks_or_problems_are_not_compared(tmp_path, in_process):
    first = write_run(tmp_path / "a")
    other = json.loads(json.dumps(RUN))
    other["task"]["hash"] = "u" * 64
    second = write_run(tmp_path / "b", run=other)
    grading.grade(first)
    grading.grade(second)
    with pytest.raises(ValueError, match="not the same task"):
        grade_metrics.compare(first, second)
    third = write_run(tmp_path / "c")
    grading.grade(third)
    grades = store.read_lines(third / store.GRADES)
    store.write_lines(third / store.GRADES, grades[:4])
    with pytest.raises(ValueError, match="different problems"):
        grade_metrics.compare(first, third)


def test_what_cannot_be_judged_is_counted_and_left_out():
    rows = [
        {
            "id": str(i),
            "sample": 0,
            "score": s,
            "answer": "1",
            "class": "1",
            "reason": r,
            "tokens": 1,
            "truncated": False,
        }
        for i, (s, r) in enumerate([(1.0, "equal"), (0.0, "timeout"), (None, "unreadable gold")])
    ]
    found = grade_metrics.summarise(RUN, rows)
    assert found["metrics"]["accuracy"]["value"] == 0.5
    assert (found["cannot_judge"], found["timeouts"], found["problems"]) == (1, 1, 2)


def test_instruction_level_error_is_clustered():
    rows = [
        {
            "id": str(i), "sample": 0, "score": float(all(parts)), "answer": None, "class": None, "reason": "checked",
            "tokens": 1, "truncated": False, "prompt_loose": float(all(parts)), "instructions": parts,
            "instructions_loose": parts,
        }
        for i, parts in enumerate([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0], [1.0, 0.0]])
    ]  # fmt: skip
    found = grade_metrics.summarise(RUN, rows)["metrics"]
    assert found["accuracy"]["value"] == 0.5
    assert found["instruction_strict"]["value"] == pytest.approx(5 / 9)
    # cluster sums of deviations from 5/9: 12/9, -15/9, 4/9, -1/9; sqrt(4/3 * 386/81) / 9
    assert found["instruction_strict"]["standard_error"] == pytest.approx((4 / 3 * 386 / 81) ** 0.5 / 9)
