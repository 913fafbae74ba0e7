"""What a method reads of a row, and which of a dataset's columns hold it where the recipe does not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain.data.conversations import Dropped, as_messages, is_dialogue, is_whole
from posttrain.data.decoding import DataError
from posttrain.data.values import has_column, lookup, plain
from posttrain.recipe.data_sections import DataSection

TEXTS = ("completion", "chosen", "rejected")
CONVERSATIONS = ("messages", "conversations", "conversation")
"""Columns in which public datasets keep whole conversations."""


@dataclass(frozen=True)
class Needs:
    """What a method reads of a row; nothing else reaches its trainer.

    texts    of completion, chosen and rejected; None: those that the dataset has
    columns  further columns that the method reads where they are there
    others   True: all other columns go on too, to the reward functions
    turns    True: every answer in a conversation is learned from; False: its last one
    without_template  True: conversations of a model without a chat template are written in plain lines
    labels   True: the completion is marked good or bad; pairs of answers are read as two rows
    """

    texts: tuple[str, ...] | None = None
    columns: tuple[str, ...] = ()
    others: bool = True
    turns: bool = False
    without_template: bool = False
    labels: bool = False


@dataclass(frozen=True)
class Layout:
    """Where a dataset keeps what is read.

    prompt  column; None: made by the recipe's template, or standing in the texts, which are whole conversations
    texts   name -> column
    ends_with_answers  the prompt's column holds whole conversations, whose last answers are not part of the prompt
    notes   what was found without being named, a sentence each
    label   column of the completion's mark, where the method reads one
    """

    prompt: str | None
    texts: Mapping[str, str]
    ends_with_answers: bool = False
    notes: tuple[str, ...] = field(default=())
    label: str | None = None


def layout_of(section: DataSection, needs: Needs, row: Mapping[str, Any]) -> Layout:
    """The layout of a dataset by its first row; the recipe's own words come first."""
    found = _layout_of_texts(section, needs, row)
    return replace(found, label=section.label or "label") if needs.labels else found


def _layout_of_texts(section: DataSection, needs: Needs, row: Mapping[str, Any]) -> Layout:
    names = TEXTS if needs.texts is None else needs.texts
    texts = {name: section.__dict__[name] or name for name in names if section.__dict__[name] or name in row}
    column = None if section.template is not None else section.prompt or _held(row, "prompt")
    whole = next((name for name in CONVERSATIONS if _holds_turns(row.get(name))), None)
    if whole is not None and needs.texts == ("completion",) and not texts:
        said = "every answer in them is learned from" if needs.turns else "their last answer is learned from"
        note = f"conversations are read from column '{whole}'; {said}"
        return Layout(section.prompt, {"completion": whole}, notes=(note,))
    if column is not None or section.template is not None or (texts and _stand_alone(row, texts)):
        return Layout(column, texts)
    if whole is not None:
        note = f"prompts are read from column '{whole}', which holds conversations"
        return Layout(whole, texts, ends_with_answers=True, notes=(note,))
    return Layout("prompt", texts)


def read_columns(section: DataSection, layout: Layout, needs: Needs) -> list[str]:
    """The dataset's columns that are read, in no more words than the dataset's own."""
    from posttrain.data.mapping import template_columns

    read = [] if section.template is None else template_columns(section.template)
    read += [layout.prompt] if layout.prompt is not None else []
    read += layout.texts.values()
    read += [layout.label] if layout.label is not None else []
    read += [section.answer.column] if section.answer is not None else []
    return list(dict.fromkeys([*read, *section.columns.values()]))


def missing_columns(section: DataSection, layout: Layout, needs: Needs, row: Mapping[str, Any]) -> list[str]:
    """A sentence for each column that is read and that the dataset lacks."""
    lacking = [column for column in read_columns(section, layout, needs) if not has_column(row, column)]
    return [f"no column {column!r}; the columns are {', '.join(row)}{_hint(row)}" for column in lacking]


def _hint(row: Mapping[str, Any]) -> str:
    if {"instruction", "output"} <= row.keys():
        return '. Alpaca\'s rows are read with template: "{instruction}\\n\\n{input?}", completion: output'
    return ""


def _held(row: Mapping[str, Any], column: str) -> str | None:
    return column if column in row else None


def _holds_turns(value: Any) -> bool:
    value = plain(value)
    if not isinstance(value, list) or not value or not isinstance(value[0], Mapping):
        return False
    return {"role", "content"} <= value[0].keys() or {"from", "value"} <= value[0].keys()


def _stand_alone(row: Mapping[str, Any], texts: Mapping[str, str]) -> bool:
    """Whether the texts are whole conversations, which hold their prompt."""
    for column in texts.values():
        value = plain(lookup(row, column))
        if isinstance(value, str):
            if not is_dialogue(value):
                return False
            continue
        try:
            if not is_whole(as_messages(value, "assistant")):
                return False
        except (DataError, Dropped):
            return False
    return True
