"""Data sets that are handed to a trainer in Python: what a row must have, said before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def require_columns(trainer: type, rows: Any, *kinds: Sequence[str], name: str = "train_dataset") -> None:
    """ValueError where `rows` has the columns of none of `kinds`. What does not tell its columns passes."""
    columns = vars(type(rows)).get("column_names") is not None and rows.column_names
    if not isinstance(columns, list):
        return
    if any(set(kind) <= set(columns) for kind in kinds):
        return
    wanted = " or ".join(" and ".join(f"'{column}'" for column in kind) for kind in kinds)
    raise ValueError(
        f"{trainer.__name__}: {name} has no {wanted}; the columns are {', '.join(columns)}. Rename them with "
        "dataset.rename_column(old, new)"
    )


def require_rewards(trainer: type, reward_funcs: Any, environment: Any) -> None:
    """ValueError where nothing would judge a response."""
    if environment is None and (reward_funcs is None or reward_funcs == []):
        raise ValueError(
            f"{trainer.__name__}: no reward: pass reward_funcs, a function f(completions, *, column, **_) -> "
            "list[float | None], the name of a built-in one ('math_answer'), or a list of them"
        )
