"""Rows as a description sees them: prompt, answers and scores of each, and what training would drop or refuse."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from posttrain.data.conversations import Dropped, Messages
from posttrain.data.describe.row_roles import RowRoles, as_score
from posttrain.data.files import DataError, Row
from posttrain.data.mapping import alone, answers_to, build_prompt, continued
from posttrain.data.values import lookup, plain, text_of

Said = str | Messages
"""A text, or the messages of a conversation."""


@dataclass(frozen=True)
class DescribedRow:
    """prompt and answers as training reads them where it can, else as flat text.

    number   of the row in the file, from 1
    answers  role -> completion, chosen or rejected, as text or messages; an empty one stands here as ""
    gold     the text that the gold answer is read from; None where there is none
    scores   role of the answer -> its score
    whole    False where training would drop or refuse the row
    """

    number: int
    prompt: Said
    answers: Mapping[str, Said]
    gold: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    whole: bool = True

    def text(self, role: str) -> str | None:
        """The text under a role, "" where it is empty, None where the row has none."""
        if role == "prompt":
            return words_of_turns(self.prompt)
        if role == "answer":
            return self.gold
        return None if role not in self.answers else words_of_turns(self.answers[role])

    @property
    def learned(self) -> str | None:
        """The text of the answer that training would raise: the completion, the chosen one, or the gold."""
        return next(
            (t for role in ("completion", "chosen", "answer") if (t := self.text(role)) is not None), None
        )


@dataclass
class RowFaults:
    """reason -> [rows, number of the first]: dropped, those left out and counted; refused, those that stop a run."""

    dropped: dict[str, list[int]] = field(default_factory=dict)
    refused: dict[str, list[int]] = field(default_factory=dict)

    def add(self, where: dict[str, list[int]], reason: str, number: int) -> None:
        # reasons with lengths in them ("a list of 3") are one reason
        where.setdefault(re.sub(r"\d+", "N", reason), [0, number])[0] += 1


def described(rows: Iterable[Row], roles: RowRoles, faults: RowFaults) -> Iterator[DescribedRow]:
    """Every row, whatever it holds; what training would say of it goes into `faults`."""
    for number, row in enumerate(rows, start=1):
        yield _described(row, number, roles, faults)


def _described(row: Row, number: int, roles: RowRoles, faults: RowFaults) -> DescribedRow:
    whole = True
    empty = {
        name: ""
        for name, column in roles.layout.texts.items()
        if name in roles.columns and _is_blank(lookup(row, column))
    }
    try:
        prompt, answers = _read(row, roles, set(empty))
        answers = {**answers, **empty}
        if empty:
            faults.add(faults.dropped, f"no {next(iter(empty))}", number)
            whole = False
    except (Dropped, DataError) as error:
        where = faults.dropped if isinstance(error, Dropped) else faults.refused
        faults.add(where, str(error), number)
        whole, prompt = False, _flat_prompt(row, roles)
        answers = {
            name: flat(lookup(row, column), ANSWERS) or "" for name, column in roles.layout.texts.items()
        }
    if (
        "completion" in roles.columns and "completion" not in answers
    ):  # beside a gold answer: for reading only
        answers = {**answers, "completion": flat(lookup(row, roles.columns["completion"])) or ""}
    gold = None
    if "answer" in roles.columns:
        value = lookup(row, roles.columns["answer"])
        try:
            gold = text_of(value, roles.columns["answer"])
        except DataError as error:
            faults.add(faults.refused, str(error), number)
            gold, whole = flat(value), False
        if _is_blank(gold) and whole:
            faults.add(faults.dropped, "no answer", number)
            whole = False
    return DescribedRow(number, prompt, answers, gold, _scores(row, roles), whole)


def _read(row: Row, roles: RowRoles, without: set[str]) -> tuple[Said, dict[str, Any]]:
    """As data.mapping reads a row, but for equal answers, which are counted here, and those that are empty."""
    section, layout = roles.section, roles.layout
    texts = {name: plain(lookup(row, column)) for name, column in layout.texts.items() if name not in without}
    if layout.prompt is None and section.template is None:
        if without:
            raise Dropped(f"no {sorted(without)[0]}")
        return alone(texts, section, turns=False)
    prompt = build_prompt(row, section, layout)
    if isinstance(prompt, str):
        return prompt, answers_to(prompt, texts, layout)
    return continued(prompt, texts, turns=False) if texts else (prompt, {})


def _flat_prompt(row: Row, roles: RowRoles) -> str:
    if roles.layout.prompt is not None:
        return flat(lookup(row, roles.layout.prompt), ASKS) or ""
    return ""


def _scores(row: Row, roles: RowRoles) -> dict[str, float]:
    found = {}
    for role, answer in (("score", "completion"), ("score_chosen", "chosen"), ("score_rejected", "rejected")):
        if role in roles.columns:
            score = as_score(lookup(row, roles.columns[role]))
            if score is not None:
                found[answer] = score
    return found


def _is_blank(value: Any) -> bool:
    value = plain(value)
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


ASKS = ("user", "human", "system", "prompter")
ANSWERS = ("assistant", "gpt", "model", "bot", "chatgpt")


def flat(value: Any, said_by: Collection[str] | None = None) -> str | None:
    """Whatever a value holds in text: of messages and lists their parts one below another; None without any.

    said_by  roles whose messages count; None: all
    """
    value = plain(value)
    if value is None or isinstance(value, bytes):
        return None
    if isinstance(value, Mapping):
        role = value.get("role", value.get("from"))
        if said_by is not None and isinstance(role, str) and role.strip().lower() not in said_by:
            return None
        return flat(value.get("content", value.get("value")))
    if isinstance(value, list):
        parts = [part for one in value if (part := flat(one, said_by)) is not None]
        return "\n".join(parts) if parts else None
    return value if isinstance(value, str) else str(value)


def words_of_turns(said: Said) -> str:
    """A conversation's messages as one text, an empty line between two."""
    if isinstance(said, str):
        return said
    return "\n\n".join(str(message.get("content") or "") for message in said)
