"""Stage two: generations to grades and metrics, without the model. Writes grades.jsonl and metrics.json.

Grading runs in worker processes with a deadline for each response, never in threads: one comparison may
take for ever. An interrupted grading goes on where it stopped; a finished one is done afresh when asked for
again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from posttrain.evaluation import store
from posttrain.evaluation.grade_metrics import summarise
from posttrain.evaluation.graders import Attempt, Verdict, responses_a_call
from posttrain.rewards.grading_pool import CHUNK, in_chunks
from posttrain.rewards.worker_pool import Outcome, WorkerPool

BLOCK = 1024
"""Responses between two writes to disk, at most; fewer where few workers would be silent for long."""
BLOCK_OF_WORKER = 128
_PARTIAL = "grades.partial.jsonl"


def grade(
    folder: Path,
    *,
    workers: int = 1,
    timeout_s: float = 10.0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Grades the generations in `folder`; the metrics. `progress(done, of)`.

    ValueError where generation has not finished, or the benchmark is a judge's.
    """
    run = store.read_json(folder / store.RUN)
    answer = (run["task"].get("definition") or {}).get("answer", {"grader": "judge"})
    if answer["grader"] == "judge":
        raise ValueError(f"{folder}: {run['benchmark']} is judged by a model; use `posttrain eval judge`")
    rows = generations(folder, run)
    arguments = dict(answer.get("args", {}))
    if answer["grader"] == "math":
        arguments["opens_reasoning"] = run["tokenizer"]["opens_reasoning"]
    verdicts = _verdicts(folder, answer["grader"], arguments, rows, workers, timeout_s, progress)
    grades = [_line(row, verdict) for row, verdict in zip(rows, verdicts, strict=True)]
    metrics = summarise(run, grades)
    store.write_lines(folder / store.GRADES, grades)
    store.write_json(folder / store.METRICS, metrics)
    (folder / _PARTIAL).unlink(missing_ok=True)
    return metrics


def generations(folder: Path, run: dict[str, Any]) -> list[dict[str, Any]]:
    """All responses of a finished generation, in the order of the file."""
    rows = store.read_lines(folder / store.GENERATIONS)
    wanted = run["task"]["problems"] * run["sampling"]["samples"]
    if len(rows) != wanted:
        raise ValueError(
            f"{folder}: {len(rows)} of {wanted} responses are there; run the same `posttrain eval generate` again, it "
            "goes on where it stopped"
        )
    return rows


def _line(row: dict[str, Any], verdict: Verdict) -> dict[str, Any]:
    return {
        "id": row["id"],
        "sample": row["sample"],
        "group": row["group"],
        **verdict,
        "tokens": row["tokens"],
        "truncated": _cut_off(row),
    }


def _cut_off(row: dict[str, Any]) -> bool:
    return row["finish"] == "length"


def _verdicts(
    folder: Path,
    grader: str,
    arguments: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    workers: int,
    timeout_s: float,
    progress: Callable[[int, int], None] | None,
) -> list[Verdict]:
    """Verdicts in order; those of an interrupted attempt at the same responses by the same rule are kept."""
    path = folder / _PARTIAL
    key = {
        "key": store.digest(
            [grader, arguments, store.versions(), [[row["text"], _cut_off(row)] for row in rows]]
        )
    }
    kept = store.read_lines(path)
    if not kept or kept[0] != key:
        store.write_lines(path, [key])
        kept = [key]
    found: list[Verdict] = kept[1:]
    pool = WorkerPool(
        "posttrain.evaluation.graders:make_grader",
        {"name": grader, "arguments": arguments},
        workers,
        timeout_s,
    )
    if progress is not None:
        progress(len(found), len(rows))
    try:
        with store.LineWriter(path) as writer:
            size = min(BLOCK, BLOCK_OF_WORKER * workers)
            for start in range(len(found), len(rows), size):
                items = [
                    Attempt(row["gold"], row["text"], _cut_off(row)) for row in rows[start : start + size]
                ]
                block = judge_in_workers(pool, items)
                writer.write(block)
                found += block
                if progress is not None:
                    progress(len(found), len(rows))
    finally:
        pool.close()
    return found


def judge_in_workers(pool: WorkerPool, items: Sequence[Attempt]) -> list[Verdict]:
    """Verdicts in order. A response that takes too long is wrong ("timeout"); one on which the grader fails
    cannot be judged ("error: ...")."""
    at_a_time = responses_a_call(pool.arguments.get("name", ""))
    return in_chunks(pool, items, _ungraded, chunk=at_a_time or CHUNK)


def _ungraded(item: Attempt, outcome: Outcome) -> Verdict:
    timed_out = outcome.failure == "timeout"
    return {
        "score": 0.0 if timed_out else None,
        "answer": None,
        "class": None,
        "reason": "timeout" if timed_out else f"error: {outcome.message}",
    }
