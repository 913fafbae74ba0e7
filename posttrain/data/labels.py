"""Answers marked good or bad: what a mark may look like, and pairs of answers read as two marked rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from posttrain.data.conversations import Dropped
from posttrain.data.decoding import DataError
from posttrain.data.row_layout import Needs
from posttrain.data.values import has_column, lookup, plain
from posttrain.recipe.data_sections import DataSection

Row = dict[str, Any]

_WORDS = {"true": True, "false": False, "1": True, "0": False}
"""As CSV files, which know text only, write the two marks."""
_EQUAL = object()
"""The mark of a pair's answers that are the same text: good and bad at once."""
PAIRS_SPLIT = "each pair is read as two rows: column '{}' marked good, column '{}' marked bad"


def label_of(value: Any, column: str = "label") -> bool:
    """True where the answer was good. Dropped where there is no mark, DataError where it is none of true, false, 1, 0.

    Words such as "thumbs up" or numbers such as -1 and 5 mean what their writer meant by them; they are not guessed at.
    """
    if value is _EQUAL:
        raise Dropped("chosen equals rejected")
    value = plain(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise Dropped("no label")
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    word = value.strip().lower() if isinstance(value, str) else None
    if word in _WORDS:
        return _WORDS[word]
    raise DataError(
        f"column {column!r} holds {value!r}, and a label is true or false, or 1 or 0; rewrite the column: true where "
        "the answer was good"
    )


def pair_columns(section: DataSection, needs: Needs, row: Mapping[str, Any]) -> tuple[str, str] | None:
    """The columns of the better and the worse answer where the rows are pairs and the method reads marked answers.

    Rows that have a label are no pairs, unless the recipe names the pair's columns. DataError where it names both, or
    a column that is not there.
    """
    if not needs.labels:
        return None
    named = {name: column for name in ("chosen", "rejected") if (column := vars(section)[name]) is not None}
    marked = {name: column for name in ("completion", "label") if (column := vars(section)[name]) is not None}
    if named and marked:
        raise DataError(
            f"'{next(iter(named))}' and '{next(iter(marked))}' are both named: rows are pairs (chosen and rejected) "
            "or marked answers (completion and label)"
        )
    chosen, rejected = named.get("chosen", "chosen"), named.get("rejected", "rejected")
    if named:
        for column in (chosen, rejected):
            if not has_column(row, column):
                raise DataError(f"no column {column!r}; the columns are {', '.join(map(str, row))}")
        return chosen, rejected
    if marked or "label" in row or not {"chosen", "rejected"} <= row.keys():
        return None
    return chosen, rejected


def unpaired(row: Mapping[str, Any], chosen: str, rejected: str) -> tuple[Row, Row]:
    """A row of a pair as two, with `completion` and `label` in the place of its answers."""
    answers = plain(lookup(row, chosen)), plain(lookup(row, rejected))
    others = {name: value for name, value in row.items() if name not in (chosen, rejected)}
    marks: tuple[Any, Any] = (_EQUAL, _EQUAL) if answers[0] == answers[1] else (True, False)
    good, bad = (
        {**others, "completion": said, "label": mark} for said, mark in zip(answers, marks, strict=True)
    )
    return good, bad


def all_unpaired(rows: Iterable[tuple[int, Row]], chosen: str, rejected: str) -> Iterator[tuple[int, Row]]:
    """Numbered rows of pairs as numbered rows of marked answers; both keep their pair's number."""
    for number, row in rows:
        for one in unpaired(row, chosen, rejected):
            yield number, one
