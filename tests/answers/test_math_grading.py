"""Grading of mathematics: a table of (gold, answer, verdict), the extraction rule, and what must never happen."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time

import pytest
from math_cases import cases

from posttrain.answers import equal, reading, second_opinion
from posttrain.answers.equal import equal_answers
from posttrain.answers.grading import Grade, canonical_answer, extract_answer, grade, read_gold
from posttrain.rewards.grading_pool import Item, grade_many, in_chunks
from posttrain.rewards.worker_pool import WorkerPool

TABLE = [pytest.param(*case[1:], id=f"{case[0]}: {case[1]} | {case[2]}") for case in cases()]


@pytest.mark.parametrize(("gold", "answer", "verdict"), TABLE)
def test_table(gold, answer, verdict):
    result = grade(gold, rf"Adding up, we find $\boxed{{{answer}}}$.")
    assert result.answer is not None
    assert result.correct is verdict
    if not set("=<>:_%") & set(gold + answer) and verdict:
        assert (
            grade(answer, rf"\boxed{{{gold}}}").correct is True
        )  # without names, bases and units it is symmetric


def test_the_table_is_large_enough():
    assert len(TABLE) >= 400


# ---- extraction

LAST_BOX = [
    (r"First \boxed{3}, no: \boxed{4}", "4"),
    (r"\boxed{\boxed{7}}", "{7}"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
    (r"\boxed {5}", "5"),
    ("\\boxed{\n5\n}", "5"),
    (r"\boxed{\frac{1}{2}. Again. So \boxed{5}", "5"),
    (r"<think>\boxed{3}</think> so \boxed{4}", "4"),
    (r"no tag was opened</think>\boxed{4}", "4"),
    (r"[THINK]\boxed{3}[/THINK]\boxed{4}", "4"),
    (r"◁think▷\boxed{3}◁/think▷\boxed{4}", "4"),
    (r"<|channel|>analysis<|message|>\boxed{3}<|end|><|channel|>final<|message|>\boxed{4}", "4"),
    (r"\fbox{5}", "5"),
    (r"\\boxed{5}", "5"),
]
NO_BOX = [
    ("the answer is 5", "no box"),
    ("", "no box"),
    (r"\boxed{5", "unclosed box"),
    (r"\boxed{\frac{1}{2}", "unclosed box"),
    (r"\boxed{\boxed{5}", "unclosed box"),
    (r"\boxed{3} then \boxed{4", "unclosed box"),
    (r"\boxed{3} then \box", "unclosed box"),
    (r"\boxed{}", "empty box"),
    (r"\boxed{3} then \fbox{4", "unclosed box"),
    (r"\boxed{3} then \fb", "unclosed box"),
    (r"\\boxed{5", "unclosed box"),
    (r"<think>\boxed{5}", "unclosed reasoning"),
    (r"<thought>\boxed{5}", "unclosed reasoning"),
    (r"<|channel|>analysis<|message|>\boxed{5}", "unclosed reasoning"),
    (r"<think>\boxed{5}</think> so the answer is", "no box"),
    (r"<think>a</think>b<think>\boxed{5}", "unclosed reasoning"),
]


@pytest.mark.parametrize(("text", "answer"), LAST_BOX)
def test_the_last_closed_box_is_the_answer(text, answer):
    assert extract_answer(text).answer == answer


@pytest.mark.parametrize(("text", "reason"), NO_BOX)
def test_a_text_without_a_closed_box_has_no_answer(text, reason):
    assert extract_answer(text) == extract_answer(text, "boxed")
    assert (extract_answer(text).answer, extract_answer(text).reason) == (None, reason)
    assert grade("5", text).correct is False


def test_a_prompt_that_opens_the_reasoning():
    assert extract_answer(r"\boxed{5}", prompt_opens_reasoning=True).reason == "unclosed reasoning"
    assert extract_answer(r"so</think>\boxed{5}", prompt_opens_reasoning=True).answer == "5"


def test_hash_and_flexible_formats():
    assert extract_answer("so 5+5=10\n#### 1,080\n", "hash").answer == "1,080"
    assert extract_answer("so 5+5=10", "hash").reason == "no ####"
    assert grade("work\n#### 18", "She has 18.\n#### 18", "hash") == Grade(True, "18", "equal")
    assert grade("18", "She has 18.", "hash").correct is False
    assert grade("18", "so 9 x 2 is $18.00 in all.", "flexible").correct is True
    assert grade("18", r"\boxed{17} and 18", "flexible").correct is False
    assert grade("18", r"18 \boxed{", "flexible").correct is False
    assert grade("18", "<think>18", "flexible").correct is False
    with pytest.raises(ValueError, match="choose boxed, hash or flexible"):
        extract_answer("5", "box")  # type: ignore[arg-type]  # the point of the test


@pytest.mark.parametrize("answer_format", ["hash", "flexible"])
def test_half_a_number_at_the_token_limit_is_no_answer(answer_format):
    for text in ("so 18\n#### 1", "so 18\n#### 18", "so 18\n####", "so 18\n#### 18."):
        found = extract_answer(text, answer_format, cut_off=True)
        assert (found.answer, found.reason) == (None, "cut off")
    assert extract_answer("#### 18\nAnd", answer_format, cut_off=True).answer == "18"


def test_half_a_number_without_a_mark():
    assert extract_answer("it is 1", "flexible", cut_off=True).reason == "cut off"
    assert extract_answer("it is 18.", "flexible", cut_off=True).reason == "cut off"  # 18.5, perhaps
    assert extract_answer("it is 18 of", "flexible", cut_off=True).answer == "18"
    assert extract_answer("it is 18", "flexible").answer == "18"


# ---- the gold answer


UNREADABLE = [None, "", "  ", float("nan"), r"\frac{1}{", r"\boxed{5", "???", "nothing follows\n####"]


@pytest.mark.parametrize("gold", UNREADABLE)
def test_a_gold_answer_that_cannot_be_read_is_none(gold):
    assert grade(gold, r"\boxed{5}").correct is None
    assert grade(gold, "no answer").reason == "unreadable gold"


def test_gold_answers_come_in_many_wrappings():
    wrapped = [
        5,
        5.0,
        "5",
        "$5$",
        r"thus \boxed{5}",
        r"thus $\boxed 5$",
        r"\fbox{5}",
        "2+3=<<2+3=5>>5\n#### 5",
    ]
    for gold in wrapped:
        assert grade(gold, r"\boxed{5}").correct is True, gold


def test_a_measured_gold_may_have_a_tolerance():
    assert grade("4.2", r"\boxed{4.25}").correct is False
    assert grade("4.2", r"\boxed{4.25}", abs_tol=0.1).correct is True
    assert grade("4.2", r"\boxed{4.35}", abs_tol=0.1).correct is False
    assert grade("3.83e35", r"\boxed{3.8 \times 10^{35}}", rel_tol=0.05).correct is True


FILES = {"math500/test.jsonl": "answer", "gsm8k/test.jsonl": "answer", "minerva_math/test.jsonl": "solution"}


@pytest.mark.parametrize(("file", "field"), FILES.items())
def test_every_gold_of_the_shared_benchmarks_is_read_and_equals_itself(shared_data, file, field):
    for line in (shared_data / file).open():
        gold = json.loads(line)[field]
        answer = read_gold(gold)
        assert answer is not None, gold
        if "####" in gold or "boxed" in gold:
            answer = gold.rpartition("####")[2] if "####" in gold else extract_answer(gold).answer or "5"
        if extract_answer(rf"\boxed{{{answer}}}").answer is not None:
            assert grade(gold, rf"so \boxed{{{answer}}}").correct is True, gold


# ---- what must never happen

CORRECT_TEXTS = [
    ("5", r"We get $2+3=\boxed{5}$."),
    ("5", r"<think>Is it \boxed{5}? Yes.</think> It is \boxed{5}, no doubt."),
    ("12", r"\boxed{\boxed{12}}"),
    (r"\frac{1}{2}", r"Half: \[\boxed{\frac{1}{2}}\]"),
    (r"\{1,2\}", r"The set is \boxed{\left\{1, 2\right\}}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}"),
]


@pytest.mark.parametrize(("gold", "text"), CORRECT_TEXTS)
def test_a_correct_text_cut_before_its_box_closes_is_never_right(gold, text):
    closes = text.rstrip("$.]\\, nodubt").rindex("}")  # the brace that ends the last box
    assert all(grade(gold, text[:end]).correct is False for end in range(closes + 1))
    assert all(grade(gold, text[:end]).correct is True for end in range(closes + 1, len(text) + 1))


def test_no_answer_of_the_table_survives_a_cut_inside_its_box():
    for _, _, answer, _ in cases():
        text = rf"so \boxed{{{answer}}}"
        assert all(extract_answer(text[:end]).answer is None for end in range(len(text))), answer


def test_random_answers_cut_inside_their_box_are_never_right():
    rng = random.Random(0)
    for _ in range(60):
        number = str(rng.randint(1, 10**6))
        text = rf"so \boxed{{{number}}}"
        assert grade(number, text).correct is True
        for gold in {number[:length] for length in range(1, len(number) + 1)}:
            for end in range(len(text)):
                assert grade(gold, text[:end]).correct is False


STRANGE = [
    "9^{9^{9^{9^{9}}}}", "10^{-10^{10^{10}}}", "99999999!", r"\binom{10^9}{5}", r"\sqrt[0]{5}", r"\log_1 5", "1/0",
    "0^0", "0^{-1}", "(((((" * 60, "{" * 400 + "}" * 400, r"\frac{1}{" * 50 + "2" + "}" * 50, "x" * 900, "1" * 900,
    "," * 300, "=" * 50, "<" * 40, "|" * 31, r"\pm" * 11 + "5", r"\text{" + "a " * 400 + "}", "^", "_", "\\",
    r"9.8\text{ m/s}^2(", "C((1,2),3)", r"4\text{ hours }3.0.1\text{ minutes}", r"\mathbf{i}\mathbf{j}",
    r"\cap", "10:0",
]  # fmt: skip


@pytest.mark.parametrize("answer", STRANGE)
def test_strange_answers_are_wrong_and_neither_raise_nor_hang(answer):
    assert grade("5", rf"\boxed{{{answer}}}").correct is False


def test_mutilated_answers_are_graded_without_an_error(monkeypatch):
    monkeypatch.setattr(
        second_opinion, "equal_by_math_verify", lambda gold, answer: False
    )  # its errors are not ours
    monkeypatch.setattr(equal, "parsed_by_math_verify", lambda text: ())
    rng = random.Random(4)
    answers = [answer for _, _, answer, _ in cases()]
    marks = [
        *r"\{}()[]^_,;:+-/=<>|% 0x",
        r"\frac",
        r"\text{",
        r"\pm",
        r"\cup",
        r"\le",
        r"\mathbf{i}",
        " and ",
    ]
    for _ in range(1500):
        answer = rng.choice(answers)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(answer) + 1)
            answer = answer[:at] + (rng.choice(marks) if rng.random() < 0.6 else "") + answer[at + 1 :]
        grade(rng.choice(answers), rf"\boxed{{{answer}}}")
        canonical_answer(answer)


# ---- canonical answers


def test_equal_answers_share_a_canonical_string():
    classes = [
        ["1/2", "0.5", r"\frac{1}{2}", "x = 1/2", r"\dfrac12"],
        ["1080", "1,080", r"1{,}080", r"1080 \text{ km}"],
        [r"\sqrt{8}", r"2\sqrt{2}", r"\sqrt8"],
        ["(1,2)", r"\left(1, 2\right)"],
        ["1, 2", r"\{2,1\}", r"x = 2 \text{ or } x = 1"],
        ["x > 2", r"(2, \infty) \cup (3,\infty)"],
        [r"2(k+1)", "2k+2"],
        [r"\text{Monday}", "monday", "Monday."],
    ]
    spellings = [{canonical_answer(answer) for answer in group} for group in classes]
    assert all(len(spelling) == 1 for spelling in spellings), spellings
    assert len(set.union(*spellings)) == len(classes)
    assert canonical_answer(None) is None
    assert canonical_answer(" ") is None


# ---- in processes


def test_grading_many_keeps_the_order_and_survives_a_hang(monkeypatch):
    items = [Item(str(n), rf"\boxed{{{n if n % 3 else n + 1}}}") for n in range(150)]
    progress = []
    grades = grade_many(items, workers=2, on_progress=lambda done, of: progress.append((done, of)))
    assert [each.correct for each in grades] == [bool(n % 3) for n in range(150)]
    assert progress[-1] == (150, 150)


def all_but_the_last():
    """A factory for a worker that returns one result too few."""
    return lambda items: items[:-1]


def test_a_handler_that_returns_too_few_results_is_an_error_and_shifts_nothing():
    pool = WorkerPool("test_math_grading:all_but_the_last", {}, 1, timeout_s=10.0)
    try:
        with pytest.raises(ValueError, match="shorter"):
            in_chunks(pool, list(range(6)), lambda item, outcome: None, chunk=3)
    finally:
        pool.close()


def test_a_grading_over_its_deadline_is_no_verdict():
    slow = r"\sum_{k=1}^{10^7} \sin(k^2)"  # sympy would add ten million terms
    grades = grade_many(
        [Item("5", r"\boxed{5}"), Item(slow, r"\boxed{\sum_{k=1}^{10^7} \sin(k^3)}")], timeout_s=2.0
    )
    assert grades[0] == Grade(True, "5", "equal")
    assert grades[1].correct in (None, False)


def test_ordinary_gradings_never_import_sympy():
    code = (
        "import sys\nfrom posttrain.answers.grading import grade\n"
        r"print(grade('\\frac{1}{2}', r'\boxed{0.5}').correct, grade('(1,2)', r'\boxed{(1, 2)}').correct)"
        "\nprint('sympy' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "False", "False"]


@pytest.mark.parametrize("answer", ["72", r"\frac{1}{2}", "x^2+3x-1", r"3\sqrt{2}"])
def test_one_answer_is_read_once(answer, monkeypatch):
    calls = []
    read = reading._read
    monkeypatch.setattr(reading, "_read", lambda text, depth: calls.append(text) or read(text, depth))
    reading.read_shape.__wrapped__(answer)
    assert len(calls) == 1


def test_speed_is_printed(capsys):
    """Distinct ordinary answers, so that no cache helps: half right, half wrong."""
    rng = random.Random(1)
    golds, texts = [], []
    for n in range(400):
        a, b = rng.randint(2, 999), rng.randint(2, 99)
        gold = [f"{a}{n}", rf"\frac{{{a}}}{{{b}}}", rf"{a}\sqrt{{{b}}}", f"({a},{b})", f"{a}x^2+{b}x-{n}"][
            n % 5
        ]
        golds.append(gold)
        texts.append(
            "Let us see. " * 100 + rf"So \boxed{{{gold if n % 2 else gold.replace(str(a), str(a + 1))}}}."
        )
    equal_answers.cache_clear()
    began = time.perf_counter()
    verdicts = [grade(gold, text).correct for gold, text in zip(golds, texts, strict=True)]
    rate = len(golds) / (time.perf_counter() - began)
    assert verdicts == [bool(n % 2) for n in range(400)]
    with capsys.disabled():
        print(f"\n{rate:.0f} gradings/s on one core")
