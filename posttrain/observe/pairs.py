"""Completions of a run to read side by side: what it wrote before training and after, with the verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.observe import writer

_WEIGHTED = "rewards/"  # columns of single reward functions, the one that may say right or wrong first


@dataclass(frozen=True)
class BeforeAfter:
    """One prompt (or one slot) before and after training, for reading side by side."""

    prompt: str
    before: str
    after: str
    before_verdict: str = ""
    after_verdict: str = ""
    answer: str = ""


def read_pairs(run_dir: Path, last_step: int) -> tuple[list[BeforeAfter], tuple[str, str]]:
    """Held-out completions of the same prompts before and after; failing that, first and last rollout."""
    before, after = read_held_out(run_dir, "before"), read_held_out(run_dir, "after")
    if any("completion" not in rows[0] for rows in (before, after) if rows):
        return [], ("", "")  # images, which the page shows as such
    if before and after:
        graded = is_graded([*before, *after])
        matched = [(b, a) for b, a in zip(before, after, strict=False) if b["prompt"] == a["prompt"]]
        # what training changed comes first, then what it did not; the order is otherwise the file's
        matched.sort(key=lambda pair: _score(pair[0], graded) - _score(pair[1], graded))
        chosen = matched[:4] + matched[-2:] if len(matched) > 6 else matched
        return [_pair(b, a, graded) for b, a in chosen], ("before training", "after training")
    files = {step: file for step, file in writer.completion_files(run_dir).items() if step <= last_step}
    if len(files) < 2:
        return [], ("", "")
    first, last = min(files), max(files)
    rollouts = list(zip(read_parquet(files[first]), read_parquet(files[last]), strict=False))
    # a logged answer is nothing that the run has written
    rollouts = [pair for pair in rollouts if not any(row.get("logged") for row in pair)]
    if rollouts and "completion" not in rollouts[0][0]:
        return [], ("", "")
    graded = is_graded([row for rollout in rollouts for row in rollout])
    # spread over the prompts, whose responses are neighbours
    chosen = rollouts[:: max(1, len(rollouts) // 6)][:6]
    pairs = [
        BeforeAfter(
            prompt="",
            before=f"{b['prompt']} → {said(b)}",
            after=f"{a['prompt']} → {said(a)}",
            before_verdict=verdict(b, graded),
            after_verdict=verdict(a, graded),
        )
        for b, a in chosen
    ]
    return pairs, (f"rollout of step {first}", f"rollout of step {last}")


def read_held_out(run_dir: Path, when: str) -> list[dict[str, Any]]:
    """The held-out responses `before` or `after` training; [] where there are none."""
    path = run_dir / writer.EVALUATION / f"{when}.parquet"
    return read_parquet(path) if path.exists() else []


def read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


def said(row: Mapping[str, Any]) -> str:
    """A response to read: with tools the whole exchange, what they answered included."""
    return str(row.get("transcript") or row["completion"])


def is_graded(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the first reward gives more than right (1) and wrong (0): then neither word is its verdict."""
    first = next((name for row in rows[:1] for name in row if name.startswith(_WEIGHTED)), None)
    return first is not None and any(row.get(first) not in (None, 0, 1) for row in rows)


def verdict(row: Mapping[str, Any], graded: bool = False) -> str:
    """`right`, `wrong`, `reward 0.40`, or "" where nothing is known."""
    if row.get("correct") is not None and not graded:
        return "right" if row["correct"] else "wrong"
    return "" if row.get("reward") is None else f"reward {float(row['reward']):.2f}"


def _pair(before: Mapping[str, Any], after: Mapping[str, Any], graded: bool) -> BeforeAfter:
    return BeforeAfter(
        prompt=str(before["prompt"]),
        before=said(before),
        after=said(after),
        before_verdict=verdict(before, graded),
        after_verdict=verdict(after, graded),
        answer="" if before.get("answer") is None else str(before["answer"]),
    )


def _score(row: Mapping[str, Any], graded: bool) -> float:
    value = None if graded else row.get("correct")
    value = row.get("reward") if value is None else value
    return float(value) if value is not None else 0.0
