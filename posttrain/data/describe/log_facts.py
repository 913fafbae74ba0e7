"""What a log of conversations holds: turns, judgements of the users, and what `posttrain data feedback` makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.data.describe.duplicates import shown
from posttrain.data.describe.row_roles import TURN_OF_LOG
from posttrain.data.describe.spread import Spread, spread
from posttrain.data.feedback_logs import conversations_of, feedback_log
from posttrain.data.files import DataError, Row
from posttrain.data.row_layout import CONVERSATIONS
from posttrain.data.values import plain


@dataclass(frozen=True)
class LogFacts:
    """turns: user turns per conversation; feedback: judgement -> user turns that carry it; complaints and repairs: rows
    that `posttrain data feedback` would write, or None and the reason it refuses the log."""

    conversations: int
    turns: Spread | None
    feedback: Mapping[str, int]
    complaints: int | None
    repairs: int | None
    dropped: Mapping[str, int]
    why: str = ""


def log_facts(rows: Sequence[Row], name: str) -> LogFacts:
    """`rows` as `as_chats` gives them, or DRIFT's rows."""
    feedback: Counter[str] = Counter()
    turns = []
    for row in rows:
        messages = _messages(row)
        turns.append(sum(_role(message) in ("user", "human") for message in messages))
        feedback.update(
            shown(str(mark), 40)
            for message in messages
            if (mark := plain(message.get("feedback"))) is not None
        )
        if plain(row.get("user_preference")) is not None:
            feedback["complaint"] += 1
    try:
        log = feedback_log(rows, name)
    except DataError as error:
        return LogFacts(len(rows), spread(turns), dict(feedback), None, None, {}, str(error))
    return LogFacts(
        len(rows), spread(turns), dict(feedback), len(log.complaints), len(log.seeds), log.dropped
    )


def as_chats(rows: Sequence[Row], name: str) -> list[Row]:
    """A log of one turn a row as one conversation a row; other rows as they are. DataError where turns cannot be told
    apart."""
    if not rows or not rows[0].keys() >= TURN_OF_LOG:
        return list(rows)
    return [
        {
            "messages": [
                {"role": turn.role, "content": turn.content} | _feedback(turn) for turn in conversation
            ]
        }
        for conversation in conversations_of(list(rows), name)
    ]


def _feedback(turn: Any) -> dict[str, str]:
    if turn.dissatisfied:
        return {"feedback": "dissatisfied"}
    return {"feedback": "satisfied"} if turn.satisfied else {}


def _messages(row: Row) -> list[Mapping[str, Any]]:
    for name in (*CONVERSATIONS, "prompt"):
        value = plain(row.get(name))
        if isinstance(value, list):
            return [message for message in value if isinstance(message, Mapping)]
    return []


def _role(message: Mapping[str, Any]) -> str:
    role = message.get("role", message.get("from"))
    return role.strip().lower() if isinstance(role, str) else ""
