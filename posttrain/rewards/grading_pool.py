"""Grading many answers in worker processes, each comparison with a deadline: what evaluation calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.rewards.math_grading import AnswerFormat, Grade, extract_answer, grade
from posttrain.rewards.maths.fallback import prepare
from posttrain.rewards.pool import Outcome, WorkerPool, run_pools

CHUNK = 64  # gradings a call; a chunk that fails is repeated one by one


@dataclass(frozen=True)
class Item:
    """One grading: the gold answer, the model's text, and tolerances for a gold that is a measurement."""

    gold: str | int | float | None
    text: str
    rel_tol: float = 0.0
    abs_tol: float = 0.0


def grading_handler(
    answer_format: AnswerFormat, prompt_opens_reasoning: bool
) -> Callable[[list[Item]], list[Grade]]:
    """The factory a worker runs."""
    prepare()

    def handle(items: list[Item]) -> list[Grade]:
        return [
            grade(
                item.gold,
                item.text,
                answer_format,
                prompt_opens_reasoning=prompt_opens_reasoning,
                rel_tol=item.rel_tol,
                abs_tol=item.abs_tol,
            )
            for item in items
        ]

    return handle


def grade_many(
    items: Sequence[Item],
    answer_format: AnswerFormat = "boxed",
    *,
    prompt_opens_reasoning: bool = False,
    workers: int = 1,
    timeout_s: float = 10.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Grade]:
    """Grades in order. An item whose comparison takes longer than `timeout_s`, or kills its worker, gets
    `Grade(None, answer, "timeout")` or `Grade(None, answer, "error")`. `on_progress(done, of)`."""
    grades: list[Grade | None] = [None] * len(items)
    arguments: dict[str, Any] = {
        "answer_format": answer_format,
        "prompt_opens_reasoning": prompt_opens_reasoning,
    }
    pool = WorkerPool("posttrain.rewards.grading_pool:grading_handler", arguments, workers, timeout_s)
    finished = 0

    def submit(rows: range) -> None:
        pool.submit([items[row] for row in rows], lambda outcome: settle(rows, outcome))

    def settle(rows: range, outcome: Outcome) -> None:
        nonlocal finished
        if outcome.failure is not None and len(rows) > 1:
            for row in rows:
                submit(range(row, row + 1))
            return
        for position, row in enumerate(rows):
            if outcome.failure is None:
                grades[row] = outcome.result[position]
            else:
                found = extract_answer(
                    items[row].text, answer_format, prompt_opens_reasoning=prompt_opens_reasoning
                )
                grades[row] = Grade(None, found.answer, outcome.failure)
        finished += len(rows)
        if on_progress is not None:
            on_progress(finished, len(items))

    try:
        for start in range(0, len(items), CHUNK):
            submit(range(start, min(start + CHUNK, len(items))))
        run_pools([pool])
    finally:
        pool.close()
    return [each for each in grades if each is not None]
