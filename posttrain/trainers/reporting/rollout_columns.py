"""What the run folder keeps of a rollout: one row a response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.rewards.messages import transcript_of
from posttrain.trainers.engines.scored_images import HELD_OUT, ScoredImages, image_columns
from posttrain.trainers.engines.scored_rollout import Rollout


def last_rollout(trainer: Any) -> dict[str, list[Any]] | None:
    """Of the rollout just scored; None for families without one."""
    rollout = getattr(trainer, "rollout", None)  # SFT and preference trainers have none
    if isinstance(rollout, ScoredImages):
        return image_columns(rollout, trainer.reward_func_names, trainer.reward_weights.tolist())
    return None if rollout is None else rollout_columns([rollout], trainer)


def held_out_rollouts(trainer: Any) -> dict[str, list[Any]] | None:
    """Of the evaluation just made; None where it generated nothing."""
    rollouts = getattr(trainer, "held_out", None)
    if rollouts and isinstance(rollouts[0], ScoredImages):
        names, weights = trainer.reward_func_names, trainer.reward_weights.tolist()
        return image_columns(rollouts[0], names, weights, kept=HELD_OUT)
    return rollout_columns(rollouts, trainer) if rollouts else None


def rollout_columns(rollouts: Sequence[Rollout], trainer: Any) -> dict[str, list[Any]]:
    """One row a response, in the columns `RunWriter.write_completions` knows."""
    names = trainer.reward_func_names
    weights = trainer.reward_weights.tolist()
    end_tokens = set(trainer.eos_token_ids)
    columns: dict[str, list[Any]] = {}

    def add(name: str, values: Sequence[Any]) -> None:
        columns.setdefault(name, []).extend(values)

    for rollout in rollouts:
        per_function = [[None if v != v else v for v in row] for row in rollout.rewards_per_function.tolist()]
        add("prompt", rollout.prompts)
        add("completion", rollout.completions)
        add("reward", [_weighted(row, weights) for row in per_function])
        for k, name in enumerate(names):
            add(f"rewards/{name}", [row[k] for row in per_function])
        add("advantage", rollout.advantages or [None] * len(per_function))
        if rollout.weight_versions is not None:
            add("weight_version", [None if version < 0 else version for version in rollout.weight_versions])
        if rollout.given is not None:
            add("logged", rollout.given)
        gold = rollout.columns.get("answer")
        add("answer", gold if gold is not None else [None] * len(per_function))
        add("tokens", [len(ids) for ids in rollout.completion_ids])
        if rollout.messages is not None and rollout.written is not None:
            add("written_tokens", rollout.written)
            add("transcript", [transcript_of(messages) for messages in rollout.messages])
            calls = [
                sum(len(one.get("tool_calls") or ()) for one in messages) for messages in rollout.messages
            ]
            add("tool_calls", calls)
        add("truncated", [not ids or ids[-1] not in end_tokens for ids in rollout.completion_ids])
        for name in {name: None for one in rollouts for name in one.extra}:  # what rewards logged
            add(f"extra/{name}", rollout.extra.get(name, [None] * len(per_function)))
    columns["correct"] = _correct(columns[f"rewards/{names[0]}"])
    return {name: _one_kind(v) if name.startswith("extra/") else v for name, v in columns.items()}


def _correct(first: Sequence[float | None]) -> list[bool | None]:
    """Whether the first reward calls a response right; None where it did not judge, and of all where it gives grades
    between right and wrong."""
    graded = any(value not in (None, 0.0, 1.0) for value in first)
    return [None if graded or value is None else value == 1.0 for value in first]


def _one_kind(values: list[Any]) -> list[Any]:
    """A column of a table: numbers, or text, or, where a reward logged both, all as text."""
    present = [value for value in values if value is not None]
    if all(isinstance(value, int | float) for value in present):
        return values
    return [None if value is None else str(value) for value in values]


def _weighted(row: Sequence[float | None], weights: Sequence[float]) -> float | None:
    judged = [value * weight for value, weight in zip(row, weights, strict=True) if value is not None]
    return sum(judged) if judged else None
