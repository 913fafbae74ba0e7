"""One row of a dataset to one row of training: prompt, answer, completion or pair, and the reward's columns."""

from __future__ import annotations

import string
from collections.abc import Collection, Iterable
from typing import Any

from posttrain.data.files import DataError, Row
from posttrain.sections import AnswerSection, DataSection

Messages = list[dict[str, Any]]
_ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names
_TEXTS = ("completion", "chosen", "rejected")


class Dropped(Exception):
    """This row is not trained on; the message is the reason it is counted under."""


def needed_columns(section: DataSection, present: Iterable[str]) -> list[str]:
    """The dataset's columns that the section reads, those named by default only where `present`."""
    present = set(present)
    needed: list[str] = []
    if section.template is not None:
        needed += template_columns(section.template)
    elif section.prompt is not None or not _implicit_prompt(section, present):
        needed.append(section.prompt or "prompt")
    for name in _TEXTS:
        column = section.__dict__[name]
        if column is not None or name in present:
            needed.append(column or name)
    if section.answer is not None:
        needed.append(section.answer.column)
    return list(dict.fromkeys([*needed, *section.columns.values()]))


def out_columns(section: DataSection, present: Iterable[str]) -> set[str]:
    """The columns that rewards see, given the dataset's own."""
    made = {"answer"} if section.answer is not None else set()
    return {*present, "prompt", *made, *section.columns}


def missing_columns(section: DataSection, present: Iterable[str]) -> list[str]:
    """A sentence for each column the section reads and the dataset lacks."""
    present = list(present)
    lacking = [column for column in needed_columns(section, present) if column not in present]
    return [f"no column {column!r}; the columns are {', '.join(present)}" for column in lacking]


def _implicit_prompt(section: DataSection, present: set[str]) -> bool:
    """Preference rows whose two conversations begin with the prompt."""
    pair = {section.chosen or "chosen", section.rejected or "rejected"}
    return "prompt" not in present and pair <= present


def template_columns(template: str) -> list[str]:
    """The {columns} a template names. Braces meant as text are doubled: {{ }}."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise DataError(f"template: {error}; write braces that are text twice: {{{{ }}}}") from None
    names = [name for _, name, _, _ in parsed if name is not None]
    if not all(name.isidentifier() for name in names):
        raise DataError("template: a {column} is a plain name; write braces that are text twice: {{ }}")
    return names


def given_texts(section: DataSection, columns: Collection[str]) -> set[str]:
    """Which of completion, chosen and rejected a dataset of these columns holds; each of its rows must."""
    return {name for name in _TEXTS if section.__dict__[name] or name in columns}


def map_row(row: Row, section: DataSection, given: Collection[str]) -> Row:
    """The row as training and rewards see it. Raises Dropped where it cannot serve, or lacks a `given` text.

    The dataset's other columns stay, under their own names. With chat or messages, prompt and completions are
    message lists; otherwise they are text.
    """
    out = dict(row)
    texts = {name: row.get(section.__dict__[name] or name) for name in sorted(given)}
    for name, value in texts.items():
        if value in (None, "", []):
            raise Dropped(f"no {name}")
    if _implicit_prompt(section, set(row)) and section.prompt is None and section.template is None:
        prompt, texts["chosen"], texts["rejected"] = split_pair(texts["chosen"], texts["rejected"])
    else:
        prompt = build_prompt(row, section)
    if "chosen" in texts and texts["chosen"] == texts.get("rejected"):
        raise Dropped("chosen equals rejected")
    out["prompt"] = prompt
    talks = isinstance(prompt, list)
    out |= {
        name: as_messages(value, "assistant") if talks else _text(value, name)
        for name, value in texts.items()
    }
    if section.answer is not None:
        out["answer"] = gold_answer(row.get(section.answer.column), section.answer)
    return out | {name: row.get(column) for name, column in section.columns.items()}


def build_prompt(row: Row, section: DataSection) -> str | Messages:
    """Text, or messages where the column holds them or the recipe says `chat: true`."""
    if section.template is not None:
        values = {column: row.get(column) for column in template_columns(section.template)}
        if any(value in (None, "") for value in values.values()):
            raise Dropped("no prompt")
        prompt: Any = section.template.format(**values)
    else:
        prompt = row.get(section.prompt or "prompt")
    if prompt is None or not (prompt.strip() if isinstance(prompt, str) else prompt):
        raise Dropped("no prompt")
    if isinstance(prompt, str) and not section.chat:
        return prompt
    messages = as_messages(prompt, "user")
    if section.system is not None:
        messages = [
            {"role": "system", "content": section.system},
            *(m for m in messages if m["role"] != "system"),
        ]
    return messages


def as_messages(value: Any, role: str) -> Messages:
    """Text of `role`, one message, or a list of them, as [{"role", "content"}]; ShareGPT's names are translated."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    found = value if isinstance(value, list) else [value]
    messages = []
    for message in found:
        if not isinstance(message, dict):
            raise DataError(f"a message is a mapping with role and content, not {type(message).__name__}")
        if "from" in message and "value" in message:
            message = {"role": _ROLES.get(message["from"], message["from"]), "content": message["value"]}
        if not {"role", "content"} <= message.keys():
            raise DataError(
                f"a message needs role and content (or from and value); this one has {', '.join(message)}"
            )
        messages.append(message)
    return messages


def split_pair(chosen: Any, rejected: Any) -> tuple[Messages, Messages, Messages]:
    """Two conversations with a common beginning -> prompt, and what each goes on with."""
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise DataError(
            "chosen and rejected are text without a prompt column; name the column in data.prompt"
        )
    first, second = as_messages(chosen, "assistant"), as_messages(rejected, "assistant")
    shared = 0
    while shared < min(len(first), len(second)) - 1 and first[shared] == second[shared]:
        shared += 1
    if shared == 0:
        raise Dropped("no prompt")
    return first[:shared], first[shared:], second[shared:]


def gold_answer(value: Any, rule: AnswerSection) -> str:
    """The gold answer as text, by the recipe's rule."""
    text = "" if value is None else str(value)
    if rule.boxed:
        from posttrain.rewards.math_grading import extract_answer

        text = extract_answer(text, "boxed").answer or ""
    if rule.after is not None:
        text = text.rpartition(rule.after)[2] if rule.after in text else ""
    if rule.before is not None:
        text = text.partition(rule.before)[0]
    if not text.strip():
        raise Dropped("no answer")
    return text.strip()


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"column {name!r} holds messages but the prompt is text; set data.chat: true")
    return value
