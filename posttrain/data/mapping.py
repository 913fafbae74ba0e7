"""One row of a dataset to one row of training: prompt, answer, completion or pair, and the reward's columns."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from typing import Any

from posttrain.data.conversations import (
    Dropped,
    Messages,
    after_prompt,
    as_messages,
    check_answer,
    cut,
    first_answer,
    is_dialogue,
    is_whole,
    last_question,
    shared_turns,
)
from posttrain.data.decoding import DataError
from posttrain.data.files import Row
from posttrain.data.labels import label_of
from posttrain.data.row_layout import Layout, Needs
from posttrain.data.values import lookup, plain, text_of
from posttrain.recipe.data_sections import AnswerSection, DataSection

__all__ = [
    "Dropped",
    "Messages",
    "as_messages",
    "build_prompt",
    "gold_answer",
    "map_row",
    "out_columns",
    "split_pair",
    "template_columns",
]

LONGEST_TEXT = 1_000_000
"""Characters, some 250,000 tokens."""
_ANSWER_MARK = "\n\nAssistant:"
MAY_BE_EMPTY = "?"
"""Behind a column's name in a template: an empty one is left out, with the white space before it."""


def out_columns(section: DataSection, present: Iterable[str]) -> set[str]:
    """The columns that rewards see, given the dataset's own."""
    made = {"answer"} if section.answer is not None else set()
    return {*present, "prompt", *made, *section.columns}


def template_columns(template: str) -> list[str]:
    """The {columns} a template names, {column?} included. Braces meant as text are doubled: {{ }}."""
    names = [name.removesuffix(MAY_BE_EMPTY) for _, name, _, _ in _parsed(template) if name is not None]
    if not all(name.isidentifier() for name in names):
        raise DataError("template: a {column} is a plain name; write braces that are text twice: {{ }}")
    return names


def _parsed(template: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(string.Formatter().parse(template))
    except ValueError as error:
        raise DataError(f"template: {error}; write braces that are text twice: {{{{ }}}}") from None


def map_row(row: Row, section: DataSection, layout: Layout, needs: Needs) -> Row:
    """The row as training and rewards see it. Raises Dropped where it cannot serve.

    With chat or messages, prompt and texts are message lists; otherwise they are text. The dataset's other columns
    stay under their own names where `needs.others`.
    """
    texts = {name: plain(lookup(row, column)) for name, column in layout.texts.items()}
    for name, value in texts.items():
        if value is None or value == [] or (isinstance(value, str) and not value.strip()):
            raise Dropped(f"no {name}")
    if layout.prompt is None and section.template is None:
        prompt, texts = alone(texts, section, turns=needs.turns)
    else:
        prompt = build_prompt(row, section, layout)
        texts = answers_to(prompt, texts, layout) if isinstance(prompt, str) else texts
        if isinstance(prompt, list) and texts:
            prompt, texts = continued(prompt, texts, turns=needs.turns)
    if "chosen" in texts and texts["chosen"] == texts.get("rejected"):
        raise Dropped("chosen equals rejected")
    out = dict(row) if needs.others else {}
    out |= {"prompt": prompt, **texts}
    if layout.label is not None:
        out["label"] = label_of(lookup(row, layout.label), layout.label)
    _refuse_endless(prompt, *texts.values())
    if section.answer is not None:
        out["answer"] = gold_answer(lookup(row, section.answer.column), section.answer)
    out |= {name: lookup(row, column) for name, column in section.columns.items()}
    return out | _further(row, prompt, needs)


def _refuse_endless(*texts: str | Messages) -> None:
    """Raises Dropped for texts that no model reads and that a tokenizer is busy with for minutes."""
    for text in texts:
        said = [text] if isinstance(text, str) else [message["content"] for message in text]
        if sum(map(len, said)) > LONGEST_TEXT:
            raise Dropped(f"a text of more than {LONGEST_TEXT:,} characters")


def build_prompt(row: Row, section: DataSection, layout: Layout) -> str | Messages:
    """Text, or messages where the column holds them or the recipe says `chat: true`."""
    if section.template is not None:
        prompt: Any = _filled(section.template, row)
    else:
        column = layout.prompt or "prompt"
        prompt = plain(lookup(row, column))
        if not _holds_messages(prompt):
            prompt = text_of(prompt, column)
    if prompt is None or not (prompt.strip() if isinstance(prompt, str) else prompt):
        raise Dropped("no prompt")
    if isinstance(prompt, str) and not section.chat:
        return prompt
    messages = as_messages(prompt, "user")
    if layout.ends_with_answers or isinstance(prompt, str):  # a marked dialogue ends with an empty answer
        messages = messages[: last_question(messages)]
    if not messages:
        raise Dropped("no prompt")
    return with_system(messages, section)


def with_system(messages: Messages, section: DataSection) -> Messages:
    """The recipe's system message in the place of the conversation's own, where the recipe has one."""
    if section.system is None:
        return messages
    turns = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": section.system}, *turns]


def _holds_messages(value: Any) -> bool:
    """One message or a list of them, rather than a text in whatever wrapping."""
    if isinstance(value, list) and len(value) >= 1:
        return isinstance(plain(value[0]), Mapping)
    return isinstance(value, Mapping) and ("content" in value or "value" in value)


def _filled(template: str, row: Row) -> str:
    values: dict[str, Any] = {}
    for column in template_columns(template):
        value = plain(row.get(column))
        if isinstance(value, list | Mapping):
            value = text_of(value, column)
        if value is None or (isinstance(value, str) and not value.strip()):
            values[column] = None
            continue
        # A whole number that a column with gaps made a float; other numbers keep their type for {column:.2f}.
        values[column] = int(value) if isinstance(value, float) and value.is_integer() else value
    return _written(template, values)


def _written(template: str, values: Mapping[str, Any]) -> str:
    """The template with its columns' values; Dropped where one is empty that must not be."""
    text = ""
    at_start = False  # what came so far was left out: nor does its white space stay
    for literal, name, spec, conversion in _parsed(template):
        text += literal.lstrip() if at_start else literal
        at_start = at_start and not text
        if name is None:
            continue
        value = values[name.removesuffix(MAY_BE_EMPTY)]
        if value is not None:
            text += string.Formatter().vformat(_field(spec, conversion), (value,), {})
            at_start = False
        elif name.endswith(MAY_BE_EMPTY):
            text = text.rstrip()
            at_start = not text
        else:
            raise Dropped("no prompt")
    return text


def _field(spec: str | None, conversion: str | None) -> str:
    return "{0" + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"


# ------------------------------------------------------------------------------------------ prompt and answers


def alone(
    texts: Mapping[str, Any], section: DataSection, *, turns: bool
) -> tuple[str | Messages, dict[str, Any]]:
    """Prompt and answers out of whole conversations."""
    if {"chosen", "rejected"} <= texts.keys():
        if not section.chat and all(isinstance(value, str) for value in texts.values()):
            return split_dialogues(texts["chosen"], texts["rejected"])
        messages, chosen, rejected = split_pair(texts["chosen"], texts["rejected"])
        return with_system(messages, section), {"chosen": chosen, "rejected": rejected}
    ((name, value),) = texts.items()
    if isinstance(value, str) and not section.chat:
        prompt, mark, answer = value.rpartition(_ANSWER_MARK)
        if not prompt or not answer.strip():
            raise Dropped(f"no {name}")
        return prompt + mark, {name: answer}
    messages, answer = cut(as_messages(value, "assistant"), first_answer if turns else last_question, name)
    return with_system(messages, section), {name: answer}


def split_pair(chosen: Any, rejected: Any) -> tuple[Messages, Messages, Messages]:
    """Two conversations with a common beginning -> prompt, and the answer that each goes on with."""
    first, second = as_messages(chosen, "assistant"), as_messages(rejected, "assistant")
    if not is_whole(first) or not is_whole(second):
        raise Dropped("no prompt")
    shared = min(shared_turns(first, second), len(first) - 1, len(second) - 1)
    if not any(message["role"] == "user" for message in first[:shared]):
        raise Dropped("no prompt that chosen and rejected share")
    for answer, name in ((first[shared:], "chosen"), (second[shared:], "rejected")):
        check_answer(answer, name, turns=False)
    return first[:shared], first[shared:], second[shared:]


def split_dialogues(chosen: str, rejected: str) -> tuple[str, dict[str, str]]:
    """Two marked dialogues as text: what stands before the last answer of both, and the answers."""
    prompt, mark, first = chosen.rpartition(_ANSWER_MARK)
    other, _, second = rejected.rpartition(_ANSWER_MARK)
    if not prompt or prompt != other:
        raise Dropped("no prompt that chosen and rejected share")
    for answer, name in ((first, "chosen"), (second, "rejected")):
        if not answer.strip():
            raise Dropped(f"no {name}")
    return prompt + mark, {"chosen": first, "rejected": second}


def continued(
    prompt: Messages, texts: Mapping[str, Any], *, turns: bool
) -> tuple[Messages, dict[str, Messages]]:
    """The answers to a conversation; those that are whole conversations are cut behind the prompt they begin with.

    A conversation may hold more of the way to the answer than the prompt's column: then its own turns are the prompt.
    """
    answers = {name: as_messages(value, "assistant") for name, value in texts.items()}
    whole = [name for name, answer in answers.items() if is_whole(answer)]
    if {"chosen", "rejected"} <= set(whole):
        shared, answers["chosen"], answers["rejected"] = split_pair(answers["chosen"], answers["rejected"])
        prompt = _extended(prompt, shared, "chosen")
        whole = []
    for name in whole:
        longer, answers[name] = after_prompt(prompt, answers[name], name)
        if not turns:
            start = last_question(answers[name])
            longer, answers[name] = [*longer, *answers[name][:start]], answers[name][start:]
        if len(answers) > 1 and len(longer) != len(prompt):
            raise Dropped(f"{name} goes on past the prompt, the other answer does not")
        prompt = longer
    for name, answer in answers.items():
        check_answer(answer, name, turns=turns)
    return prompt, answers


def _extended(prompt: Messages, shared: Messages, name: str) -> Messages:
    """The turns that both conversations share, once they are known to hold the prompt."""
    head, rest = after_prompt(prompt, shared, name)
    return [*head, *rest]


def answers_to(prompt: str, texts: Mapping[str, Any], layout: Layout) -> dict[str, str]:
    """The answers to a prompt of text."""
    return {name: _answer_text(prompt, value, name, layout.texts[name]) for name, value in texts.items()}


def _answer_text(prompt: str, value: Any, name: str, column: str) -> str:
    if _holds_messages(value):
        raise DataError(f"column {column!r} holds messages but the prompt is text; set data.chat: true")
    text = text_of(value, column)
    if text is None or not text.strip():
        raise Dropped(f"no {name}")
    if not is_dialogue(text):
        return text
    # A whole dialogue beside a prompt: with marks in it, it can only be the prompt's own continuation.
    head = prompt.rstrip()
    rest = text.removeprefix(head)
    if rest == text or rest.count(_ANSWER_MARK) + head.endswith(_ANSWER_MARK) != 1 or "\n\nHuman:" in rest:
        raise Dropped(f"{name} does not continue the prompt")
    return rest


def _further(row: Row, prompt: str | Messages, needs: Needs) -> Row:
    """The method's further columns, where the row has them; answers among them take the form of the prompt."""
    found = {name: plain(row[name]) for name in needs.columns if name in row}
    if isinstance(prompt, list):
        if found.get("imitation_prompt") is not None:
            found["imitation_prompt"] = as_messages(found["imitation_prompt"], "user")
        if found.get("imitation") is not None:
            to = found.get("imitation_prompt") or prompt
            found["imitation"] = continued(to, {"imitation": found["imitation"]}, turns=False)[1]["imitation"]
    return found


# --------------------------------------------------------------------------------------------------------- gold


def gold_answer(value: Any, rule: AnswerSection) -> str:
    """The gold answer as text, by the recipe's rule. DataError where the column holds no text but a container."""
    text = text_of(value, rule.column, _SEVERAL) or ""
    if rule.boxed:
        from posttrain.answers.grading import extract_answer

        text = extract_answer(text, "boxed").answer or ""
    if rule.after is not None:
        text = text.rpartition(rule.after)[2] if rule.after in text else ""
    if rule.before is not None:
        text = text.partition(rule.before)[0]
    if not text.strip():
        raise Dropped("no answer")
    return text.strip()


_SEVERAL = (
    ", and a gold answer is one text; name an item (answer.column: COLUMN.0), or leave data.answer out and let a "
    "reward of your own read the column"
)
