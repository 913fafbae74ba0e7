"""Values of a row as people store them: numbers where text is meant, gaps, lists of one, columns inside columns."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import Any

from posttrain.data.decoding import DataError

_ABSENT = object()


def lookup(row: Mapping[str, Any], column: str) -> Any:
    """The value under a column; `reward_model.ground_truth` is a key inside a column where no column has that name."""
    found = _walk(row, column)
    return None if found is _ABSENT else found


def has_column(row: Mapping[str, Any], column: str) -> bool:
    """Whether the row has the column, or the key inside a column."""
    return _walk(row, column) is not _ABSENT


def _walk(row: Mapping[str, Any], column: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        value = plain(value)
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return _ABSENT
    return value


def plain(value: Any) -> Any:
    """numpy's and pandas' scalars and arrays as Python's own; a gap (NaN, NaT, NA) as None."""
    kind = type(value)
    if kind.__module__.split(".")[0] == "numpy":
        value = value.tolist()
    elif kind.__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, (float, Decimal)) and math.isnan(value):
        return None
    return value


def text_of(value: Any, column: str, remedy: str = "") -> str | None:
    """A value as text: 111.0 is "111", a list of one is its item, a gap is None.

    Raises DataError for a container of several, with what to write instead.
    """
    value = plain(value)
    while isinstance(value, list) and len(value) <= 1:
        value = plain(value[0]) if value else None
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        raise DataError(
            f"column {column!r} holds a list of {len(value)}, not one text{remedy or _one_item(column)}"
        )
    if isinstance(value, Mapping):
        keys = [str(key) for key in value]
        raise DataError(
            f"column {column!r} holds a mapping ({', '.join(keys[:6])}); name the key to use, "
            f"e.g. {column}.{keys[0] if keys else 'key'}"
        )
    if isinstance(value, (float, Decimal)):
        return _number(value)
    if isinstance(value, bytes):
        raise DataError(f"column {column!r} holds bytes, not text")
    return str(value)


def _one_item(column: str) -> str:
    return f"; name one item, e.g. {column}.0"


def _number(value: float | Decimal) -> str:
    """As short as it can be written without a loss: a pandas column with gaps makes floats of whole numbers."""
    if isinstance(value, Decimal):
        return format(value.normalize(), "f") if value.is_finite() else str(value)
    # Beyond 2^53 a float stands for many whole numbers: its own notation says so.
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(value)


def columns_in(present: Collection[str], column: str) -> bool:
    """Whether `present` may hold the column: itself, or the one that a dotted name begins with."""
    return column in present or column.split(".")[0] in present
