"""Grading many answers in worker processes, each comparison with a deadline: what evaluation calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.answers.fallback import prepare
from posttrain.answers.grading import AnswerFormat, Grade, extract_answer, grade
from posttrain.rewards.worker_pool import Outcome, WorkerPool, run_pools

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
    arguments: dict[str, Any] = {
        "answer_format": answer_format,
        "prompt_opens_reasoning": prompt_opens_reasoning,
    }

    def ungraded(item: Item, outcome: Outcome) -> Grade:
        found = extract_answer(item.text, answer_format, prompt_opens_reasoning=prompt_opens_reasoning)
        return Grade(None, found.answer, str(outcome.failure))

    pool = WorkerPool("posttrain.rewards.grading_pool:grading_handler", arguments, workers, timeout_s)
    try:
        return in_chunks(pool, items, ungraded, on_progress=on_progress)
    finally:
        pool.close()


def in_chunks(
    pool: WorkerPool,
    items: Sequence[Any],
    failed: Callable[[Any, Outcome], Any],
    *,
    chunk: int = CHUNK,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Any]:
    """Results of a handler that maps a list to a list, in order, `chunk` items a call.

    A call that fails is repeated item by item; `failed(item, outcome)` is the result of one that fails alone.
    """
    results: list[Any] = [None] * len(items)
    finished = 0

    def submit(rows: range) -> None:
        pool.submit([items[row] for row in rows], lambda outcome: settle(rows, outcome))

    def settle(rows: range, outcome: Outcome) -> None:
        nonlocal finished
        if outcome.failure is not None and len(rows) > 1:
            for row in rows:
                submit(range(row, row + 1))
            return
        if outcome.failure is None:
            for row, result in zip(rows, outcome.result, strict=True):  # too few would shift all that follow
                results[row] = result
        else:
            results[rows.start] = failed(items[rows.start], outcome)
        finished += len(rows)
        if on_progress is not None:
            on_progress(finished, len(items))

    for start in range(0, len(items), chunk):
        submit(range(start, min(start + chunk, len(items))))
    run_pools([pool])
    return results
