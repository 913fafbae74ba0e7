"""Rows as exchanges for a judge of a policy: a response, its prompt, and where there is one the label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.data.decoding import DataError
from posttrain.data.values import has_column, lookup, plain
from posttrain.judges.precedents import COMPLIES, VIOLATES, Exchange, label_of

TEXTS = ("text", "response", "completion", "output")
PROMPTS = ("prompt", "instruction", "question")
LABELS = ("label", "verdict")


@dataclass(frozen=True)
class LabelledExchange:
    exchange: Exchange
    label: str | None


def labelled_exchanges(
    rows: Iterable[Mapping[str, Any]],
    where: str,
    *,
    text: str | None = None,
    prompt: str | None = None,
    label: str | None = None,
    needs_label: bool = False,
) -> list[LabelledExchange]:
    """All rows in order. DataError names the row that cannot be read, or the columns there are.

    text, prompt, label  columns; None: the first of TEXTS, PROMPTS, LABELS that the first row has
    """
    given = list(rows)
    if not given:
        raise DataError(f"{where}: holds no row")
    text = _column(given[0], where, "text", text, TEXTS, needed=True)
    prompt = _column(given[0], where, "prompt", prompt, PROMPTS)
    label = _column(given[0], where, "label", label, LABELS, needed=needs_label)
    found = []
    for number, row in enumerate(given, start=1):
        said = _said(lookup(row, text or ""))
        if said is None:
            raise DataError(f"{where}: row {number} has no text in column {text!r}")
        before = "" if prompt is None else _said(lookup(row, prompt)) or ""
        found.append(LabelledExchange(Exchange(before, said), _label(row, label, where, number)))
    return found


def _column(
    row: Mapping[str, Any],
    where: str,
    role: str,
    named: str | None,
    usual: tuple[str, ...],
    needed: bool = False,
) -> str | None:
    if named is not None:
        if not has_column(row, named):
            raise DataError(f"{where}: no column {named!r}; its columns are {', '.join(row)}")
        return named
    found = next((name for name in usual if name in row), None)
    if found is None and needed:
        raise DataError(
            f"{where}: no column {' or '.join(usual)}; its columns are {', '.join(row)}: name one with --{role}"
        )
    return found


def _label(row: Mapping[str, Any], column: str | None, where: str, number: int) -> str | None:
    value = None if column is None else plain(lookup(row, column))
    if value is None:
        return None
    found = label_of(value)
    if found is None:
        raise DataError(
            f"{where}: row {number}: the label {value!r} says neither {COMPLIES} (safe) nor {VIOLATES} (unsafe); write "
            "one of these words"
        )
    return found


def _said(value: Any) -> str | None:
    """A text, or what a conversation's messages say, one below the other."""
    value = plain(value)
    if isinstance(value, list) and all(isinstance(one, Mapping) for one in value):
        return "\n".join(str(one.get("content") or "") for one in value)
    return value if isinstance(value, str) else None
