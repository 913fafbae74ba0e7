"""The reward for instructions that a program can check: IFEval's, and those of `data: {name: instructions}`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from posttrain.answers.ifeval import followed, ifeval_checkers
from posttrain.rewards.hooks import judges_each, prepares


def _prepare() -> None:
    ifeval_checkers()


@prepares(_prepare)
@judges_each
def instructions_followed(
    completions: Sequence[str],
    *,
    instruction_id_list: Sequence[Any],
    kwargs: Sequence[Any],
    loose: bool = False,
    all_or_nothing: bool = False,
    **_: Any,
) -> list[float | None]:
    """The share of a row's instructions that the completion follows, by lm-eval's IFEval checkers; 0.0 where it is
    empty.

    `instruction_id_list` and `kwargs` are columns as IFEval has them: names, and for each its settings; both may be
    JSON text. With `loose`, a first or last line and asterisks are forgiven, as in IFEval's loose accuracy; with
    `all_or_nothing`, 1.0 for all of them and else 0.0 (IFEval's prompt-level accuracy). None where a row's columns
    cannot be read, name no known instruction, or leave a setting out.
    """
    scores: list[float | None] = []
    for text, names, settings in zip(completions, instruction_id_list, kwargs, strict=True):
        names, settings = read_column(names), read_column(settings)
        if not names or settings is None or len(names) != len(settings):
            scores.append(None)
            continue
        try:
            found = followed(text, names, settings, loose=loose)
        except (KeyError, TypeError, ValueError):  # an instruction or a setting the checkers do not know
            scores.append(None)
            continue
        scores.append(float(all(found)) if all_or_nothing else sum(found) / len(found))
    return scores


def read_column(column: Any) -> list[Any] | None:
    """One row's names or settings, a list or JSON text of one; None where it is neither."""
    if isinstance(column, str):
        try:
            column = json.loads(column)
        except ValueError:
            return None
    return list(column) if isinstance(column, list | tuple) else None
