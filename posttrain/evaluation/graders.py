"""What judges a response, by the name in a benchmark's YAML. Runs inside worker processes: no torch here.

A verdict is a plain mapping, because it becomes a line of grades.jsonl:

    score    1.0 right, 0.0 wrong, None cannot be judged
    answer   the answer as the response has it, None where there is none
    class    what equal answers share, for majority votes; None without an answer
    reason   how the answer was found, or why there is none
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, get_args

from posttrain.evaluation.punkt import NEEDED, find_punkt

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


def ifeval_checkers() -> Callable[[Any, list[str]], dict[str, Any]]:
    """lm-eval's `process_results` for IFEval. ImportError or LookupError with what to install, and where."""
    find_punkt()
    try:
        import langdetect
        from lm_eval.tasks.ifeval.utils import process_results
    except ModuleNotFoundError as error:
        raise ImportError(NEEDED.format(error.name)) from None
    langdetect.DetectorFactory.seed = 0  # its guesses are random otherwise, and grading twice would differ
    return process_results


def missing_for(grader: str) -> str | None:
    """Why this grader could not judge here, said before anything is generated; None where it can."""
    try:
        if grader == "ifeval":
            for name in ("lm_eval", "langdetect"):
                if find_spec(name) is None:
                    raise ImportError(NEEDED.format(name))
            find_punkt()
    except (ImportError, LookupError) as error:
        return str(error)
    return None


GRADERS: dict[str, Callable[..., Judge]] = {
    "math": _math,
    "countdown": _countdown,
    "sudoku": _sudoku,
    "ifeval": _ifeval,
}
"""name -> maker of what judges one response."""
