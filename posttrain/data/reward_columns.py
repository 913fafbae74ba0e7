"""Columns for the rewards on their way through a trainer that must not read them.

TRL's policy trainer looks into a row for names of its own (`images`, `image`, `environment`), and a data set may hold
such a column by chance. From a recipe's rows only the prompt travels under its name; the rest is marked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

_MARK = "column: "


def marked(rows: Dataset) -> Dataset:
    """The rows with every column but the prompt under a name that no trainer knows."""
    return rows.rename_columns({name: _MARK + name for name in rows.column_names if name != "prompt"})


def value_of(row: Mapping[str, Any], name: str) -> Any:
    """What the row has in the column of this name, marked or not; None where it has none."""
    return row.get(_MARK + name, row.get(name))


def unmarked(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row under the names of its own columns, for what is told of it beside the trainer."""
    return {name.removeprefix(_MARK): value for name, value in row.items()}


def reward_columns(row: Mapping[str, Any], own: Iterable[str]) -> dict[str, str]:
    """The rewards' name -> the row's, of all columns but the trainer's `own`."""
    own = set(own)
    names = {key.removeprefix(_MARK): key for key in row}
    return {name: key for name, key in names.items() if name not in own}
