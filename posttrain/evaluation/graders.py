"""What judges a response, by the name in a benchmark's YAML. Runs inside worker processes: no torch here.

A verdict is a plain mapping, because it becomes a line of grades.jsonl:

    score    1.0 right, 0.0 wrong, None cannot be judged
    answer   the answer as the response has it, None where there is none
    class    what equal answers share, for majority votes; None without an answer
    reason   how the answer was found, or why there is none
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, get_args

from posttrain.answers.ifeval import ifeval_checkers
from posttrain.answers.punkt import NEEDED, find_punkt

Verdict = dict[str, Any]
Judge = Callable[["Attempt"], Verdict]


@dataclass(frozen=True)
class Attempt:
    """Gold, the model's text, and whether that was cut off at the token limit."""

    gold: Any
    text: str
    cut_off: bool = False


def make_grader(name: str, arguments: dict[str, Any]) -> Callable[[list[Attempt]], list[Verdict]]:
    """The factory a worker runs; ValueError for arguments the grader does not have."""
    grade_one = GRADERS[name](**arguments)
    return lambda items: [grade_one(item) for item in items]


def _math(
    rule: str = "boxed",
    opens_reasoning: bool = False,
    relative_tolerance: float = 0.0,
    flexible: bool = True,
    number_words: bool = False,
) -> Judge:
    """The reward `math_answer`'s rule and equality. `flexible` stands beside the strict score."""
    from posttrain.answers.fallback import prepare
    from posttrain.answers.grading import AnswerFormat, canonical_answer, grade

    if rule not in get_args(AnswerFormat):
        raise ValueError(f"grader math: rule {rule!r} is none of {', '.join(get_args(AnswerFormat))}")
    prepare()

    def judge(item: Attempt) -> Verdict:
        reference, tolerance = _reference(item.gold)
        limits = {
            "rel_tol": relative_tolerance,
            "abs_tol": tolerance,
            "prompt_opens_reasoning": opens_reasoning,
            "cut_off": item.cut_off,
            "number_words": number_words,
        }
        strict = grade(reference, item.text, rule, **limits)  # type: ignore[arg-type]  # checked by grade
        verdict = {
            "score": None if strict.correct is None else float(strict.correct),
            "answer": strict.answer,
            "class": canonical_answer(strict.answer),
            "reason": strict.reason,
        }
        if flexible:
            loose = grade(reference, item.text, "flexible", **limits)  # type: ignore[arg-type]  # as above
            verdict["flexible"] = None if loose.correct is None else float(loose.correct)
        return verdict

    return judge


def _reference(gold: Any) -> tuple[str, float]:
    """Gold and absolute tolerance: OlympiadBench gives several answers and, once, a tolerance."""
    if not isinstance(gold, dict):
        return str(gold), 0.0
    answer = gold["answer"]
    text = ",".join(map(str, answer)) if isinstance(answer, list) else str(answer)
    return text.replace("$", ""), float(gold.get("tolerance") or 0.0)


def _countdown(use_all: bool = True) -> Judge:
    from posttrain.rewards.puzzles import countdown

    answers: Any = vars(countdown)["answers"]  # attached by its decorator

    def judge(item: Attempt) -> Verdict:
        gold, text = item.gold, item.text
        score = countdown([text], numbers=[gold["numbers"]], target=[gold["target"]], use_all=use_all)[0]
        return _puzzle_verdict(score, answers([text])[0])

    return judge


def _sudoku() -> Judge:
    from posttrain.rewards.puzzles import sudoku

    answers: Any = vars(sudoku)["answers"]

    def judge(item: Attempt) -> Verdict:
        return _puzzle_verdict(sudoku([item.text], puzzle=[item.gold["puzzle"]])[0], answers([item.text])[0])

    return judge


def _puzzle_verdict(score: float | None, answer: str | None) -> Verdict:
    if score is None:
        reason = "unreadable gold"
    elif answer is None:
        reason = "no answer"
    else:
        reason = "right" if score == 1 else "wrong"
    return {"score": score, "answer": answer, "class": answer, "reason": reason}


def _ifeval() -> Judge:
    """lm-eval's instruction checkers: strict, loose, and each instruction by itself."""
    process = ifeval_checkers()

    def judge(item: Attempt) -> Verdict:
        found = process(item.gold, [item.text])
        return {
            "score": float(found["prompt_level_strict_acc"]),
            "answer": None,
            "class": None,
            "reason": "checked",
            "prompt_loose": float(found["prompt_level_loose_acc"]),
            "instructions": [float(x) for x in found["inst_level_strict_acc"]],
            "instructions_loose": [float(x) for x in found["inst_level_loose_acc"]],
        }

    return judge


def _code(seconds: float = 6.0, memory_mb: int = 1024, allow_unsafe: bool = False) -> Judge:
    """The reward `code_tests`: 1.0 for a program that passes all tests of its problem, in the reward's sandbox."""
    from posttrain.rewards.code_reward import in_words, judge_program, require_protection, score_of
    from posttrain.rewards.program_text import program_of
    from posttrain.rewards.sandbox.limits import ProgramLimits

    enclosure = require_protection(allow_unsafe).enclosure
    limits = ProgramLimits(seconds=seconds, memory_mb=memory_mb)

    def judge(item: Attempt) -> Verdict:
        verdict = judge_program(item.text, item.gold, limits, enclosure)
        score = score_of(verdict, all_or_nothing=True)
        kind = "passed" if score == 1.0 else verdict.why.partition(":")[0]
        return {
            "score": score,
            "answer": program_of(item.text),
            "class": None,
            "reason": kind if score is not None else f"cannot judge: {verdict.why}",
            "tests": in_words(verdict),
        }

    return judge


def missing_for(grader: str, arguments: Mapping[str, Any] | None = None) -> str | None:
    """Why this grader could not judge here, said before anything is generated; None where it can."""
    try:
        if grader == "code":
            return _without_sandbox(arguments or {})
        if grader == "ifeval":
            for name in ("lm_eval", "langdetect"):
                if find_spec(name) is None:
                    raise ImportError(NEEDED.format(name))
            find_punkt()
    except (ImportError, LookupError) as error:
        return str(error)
    return None


def _without_sandbox(arguments: Mapping[str, Any]) -> str | None:
    from posttrain.rewards.code_reward import require_protection

    try:
        require_protection(bool(arguments.get("allow_unsafe")))
    except RuntimeError as error:  # NoSandbox among them
        return f"grader code: {error}"
    return None


def responses_a_call(grader: str) -> int | None:
    """How many responses go to a worker at a time, whose deadline they share; None: the pool's own number."""
    return 1 if grader == "code" else None  # starting and ending a program takes a good part of a second


GRADERS: dict[str, Callable[..., Judge]] = {
    "math": _math,
    "countdown": _countdown,
    "sudoku": _sudoku,
    "ifeval": _ifeval,
    "code": _code,
}
"""name -> maker of what judges one response."""
