"""Logs of conversations in which users complained, as rows for DRIFT: the prompt, the bad answer, the complaint.

Three shapes of file are told apart by their keys:

    rows of DRIFT's own release      {"prompt": [...], "rejected": [...], "user_preference": {...}}
    WildFeedback's annotated turns   one turn a row: UtterranceId, Role, Content, Satisfaction, Disatisfaction (sic);
                                     UtterranceId 0 begins a conversation, a user's row judges the answer before it
    plain chat logs                  {"messages": [...]}, a user message carrying "feedback": "dissatisfied" or
                                     "satisfied" about the answer before it

The last two also yield seed pairs: a bad answer, and the answer that repaired it (the user was satisfied with it).
The turn-by-turn shape follows third parties' accounts of the published file, which was not at hand here.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.data.conversations import Dropped, Messages, as_messages, is_whole
from posttrain.data.files import DataError, Row, iter_rows
from posttrain.data.mapping import continued
from posttrain.data.values import plain, text_of

logger = logging.getLogger(__name__)

Message = dict[str, str]

_IDS = ("ConversationId", "conversation_id", "ConversationID", "conversation_hash")
"""Columns that tell conversations apart, where a log has one."""

_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "agent": "assistant", "gpt": "assistant"}
_JUDGEMENTS = {"dissatisfied": False, "dsat": False, "satisfied": True, "sat": True}


@dataclass(frozen=True)
class Complaint:
    """One answer a user was dissatisfied with.

    prompt     the conversation up to and including the user turn that was answered
    rejected   the answer's text
    complaint  the user's next message
    """

    prompt: list[Message]
    rejected: str
    complaint: str


@dataclass(frozen=True)
class SeedPair:
    """A bad answer and the later one that satisfied the user, to the same prompt."""

    prompt: list[Message]
    chosen: str
    rejected: str


@dataclass
class FeedbackLog:
    """What a log holds. found == len(complaints) + sum(dropped.values()), counted in complaints."""

    complaints: list[Complaint] = field(default_factory=list)
    seeds: list[SeedPair] = field(default_factory=list)
    found: int = 0
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class JudgedTurn:
    """One message of a conversation, and what a user's says about the answer before it."""

    role: str
    content: str
    satisfied: bool | None  # of a user turn: about the answer before it
    dissatisfied: bool | None


def read_feedback_log(path: str | Path) -> FeedbackLog:
    """Reads a log of any of the three shapes; DataError says what is wrong with the file."""
    return feedback_log(iter_rows(path), str(path))


def feedback_log(rows: Iterable[Row], name: str = "log") -> FeedbackLog:
    """The complaints and seed pairs of `rows`, in file order, with unusable complaints counted by reason."""
    rows = list(rows)
    if not rows:
        raise DataError(f"{name}: no rows")
    keys = rows[0].keys()
    if {"prompt", "rejected", "user_preference"} <= keys:
        return _log_of(
            (_published(row, f"{name}: row {number}") for number, row in enumerate(rows, start=1)), []
        )
    if {"UtterranceId", "Role", "Content"} <= keys:
        conversations = conversations_of(rows, name)
    elif "messages" in keys or "conversation" in keys:
        conversations = (_plain(row, name) for row in rows)
    else:
        raise DataError(
            f"{name}: not a feedback log: columns are {sorted(keys)}; expected prompt, rejected and user_preference, "
            "or WildFeedback's UtterranceId, Role, Content, ..., or messages with marked user turns"
        )
    complaints: list[Complaint] = []
    seeds: list[SeedPair] = []
    judged = 0
    for turns in conversations:
        judged += sum(turn.dissatisfied is not None or turn.satisfied is not None for turn in turns)
        found, repaired = _harvest(turns)
        complaints += found
        seeds += repaired
    if not judged:
        raise DataError(
            f'{name}: no user turn carries a judgement; mark complaints with "feedback": "dissatisfied" on the '
            "user message that follows the bad answer"
        )
    return _log_of(complaints, seeds)


def read_seed_pairs(path: str | Path) -> list[SeedPair]:
    """Seed pairs from a file of rows with prompt, chosen and rejected, as `posttrain data feedback` writes them."""
    pairs: list[SeedPair] = []
    dropped: Counter[str] = Counter()
    for number, row in enumerate(iter_rows(path), start=1):
        missing = {"prompt", "chosen", "rejected"} - row.keys()
        if missing:
            raise DataError(f"{path}: row {number}: no column {sorted(missing)[0]!r}")
        try:
            prompt, texts = continued(
                as_messages(row["prompt"], "user"),
                {"chosen": row["chosen"], "rejected": row["rejected"]},
                turns=False,
            )
        except Dropped as reason:
            dropped[str(reason)] += 1
            continue
        except DataError as error:
            raise DataError(f"{path}: row {number}: {error}") from None
        pairs.append(SeedPair(prompt, _said(texts["chosen"]), _said(texts["rejected"])))
    for reason, count in sorted(dropped.items()):
        logger.warning("%s: %d seed pairs left out: %s", path, count, reason)
    return pairs


def check_complaint(row: Complaint) -> str | None:
    """Why this complaint cannot be trained on, or None."""
    if not row.prompt or row.prompt[-1]["role"] != "user":
        return "prompt does not end with a user turn"
    if not row.rejected.strip():
        return "rejected answer is empty"
    if not row.complaint.strip():
        return "complaint is empty"
    if any(m["role"] == "assistant" and m["content"] == row.rejected for m in row.prompt):
        return "rejected answer also stands in the prompt"
    return None


def _log_of(complaints: Iterable[Complaint | str], seeds: list[SeedPair]) -> FeedbackLog:
    """`complaints`, those that cannot be read as the reason."""
    log, dropped = FeedbackLog(seeds=seeds), Counter()
    for complaint in complaints:
        log.found += 1
        reason = complaint if isinstance(complaint, str) else check_complaint(complaint)
        if reason is None and isinstance(complaint, Complaint):
            log.complaints.append(complaint)
        elif reason is not None:
            dropped[reason] += 1
    log.dropped = dict(dropped)
    return log


def _published(row: Row, where: str) -> Complaint | str:
    try:
        return _as_published(row)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _as_published(row: Row) -> Complaint | str:
    """A row of DRIFT's release, or why it is none. A rejected conversation is cut behind the prompt."""
    try:
        prompt = as_messages(row.get("prompt"), "user")
        answer, said = plain(row.get("rejected")), plain(row.get("user_preference"))
        rejected: Messages = as_messages(answer, "assistant") if answer else []
        if is_whole(rejected):
            prompt, answers = continued(prompt, {"rejected": rejected}, turns=False)
            rejected = answers["rejected"]
        complaint = as_messages(said, "user") if said else []
    except Dropped as reason:
        return str(reason)
    return Complaint(
        prompt=[{"role": m["role"], "content": m["content"]} for m in prompt],
        rejected=_said(rejected),
        complaint=_said(complaint),
    )


def _said(messages: Messages) -> str:
    return "\n\n".join(message["content"] for message in messages)


def conversations_of(rows: list[Row], name: str) -> Iterator[list[JudgedTurn]]:
    """The conversations of a log of turns: one ends where the numbers do not go up, or the id beside them changes."""
    turns: list[JudgedTurn] = []
    last: tuple[int, Any] | None = None
    first_seen: dict[Any, int] = {}
    for row in rows:
        first_seen.setdefault(_conversation_id(row), len(first_seen))
    # Rows of several conversations may lie between each other where an id tells them apart.
    together = sorted(
        enumerate(rows, start=1), key=lambda numbered: first_seen[_conversation_id(numbered[1])]
    )
    for number, row in together:
        where = f"{name}: row {number}"
        place = _number(row.get("UtterranceId"), where), _conversation_id(row)
        if last is not None and (place[0] <= last[0] or place[1] != last[1]):
            yield turns
            turns = []
        last = place
        turns.append(
            JudgedTurn(
                role=_role(row.get("Role"), where),
                content=text_of(row.get("Content"), "Content") or "",
                satisfied=_flag(row.get("Satisfaction")),
                dissatisfied=_flag(row.get("Disatisfaction")),
            )
        )
    yield turns


def _number(value: Any, where: str) -> int:
    """The place of a turn in its conversation, which CSV holds as text and pandas perhaps as a float."""
    try:
        return int(float(text_of(value, "UtterranceId") or ""))
    except (ValueError, OverflowError):
        raise DataError(
            f"{where}: UtterranceId {value!r} is no number, so conversations cannot be told apart"
        ) from None


def _conversation_id(row: Row) -> Any:
    found = next((plain(row[name]) for name in _IDS if name in row), None)
    return found if isinstance(found, Hashable) else str(found)


def _flag(value: Any) -> bool | None:
    """A judgement that may be missing, and that CSV or JSON made by hand may hold as text or a number."""
    value = plain(value)
    if isinstance(value, str):
        return {
            "true": True,
            "yes": True,
            "1": True,
            "1.0": True,
            "false": False,
            "no": False,
            "0": False,
            "0.0": False,
        }.get(value.strip().lower())
    return None if value is None else bool(value)


def _plain(row: Row, name: str) -> list[JudgedTurn]:
    turns = []
    found = plain(row["messages"] if "messages" in row else row.get("conversation")) or []
    if not isinstance(found, list) or not all(isinstance(message, dict) for message in found):
        raise DataError(f"{name}: a conversation is a list of messages")
    for message in found:
        if "from" in message and "value" in message:  # ShareGPT
            message = {**message, "role": message["from"], "content": message["value"]}
        if "role" not in message or "content" not in message:
            raise DataError(f"{name}: a message needs role and content; this one has {', '.join(message)}")
        mark = plain(message.get("feedback"))
        if mark is not None and (not isinstance(mark, str) or mark not in _JUDGEMENTS):
            raise DataError(f"{name}: feedback {mark!r} is none of {', '.join(_JUDGEMENTS)}")
        happy = None if mark is None else _JUDGEMENTS[mark]
        turns.append(
            JudgedTurn(
                role=_role(message["role"], name),
                content=text_of(message["content"], "content") or "",
                satisfied=happy,
                dissatisfied=None if happy is None else not happy,
            )
        )
    return turns


def _role(value: Any, where: str) -> str:
    role = value.strip().lower() if isinstance(value, str) else ""
    if role == "system":
        return role
    if role not in _ROLES:
        raise DataError(f"{where}: role {value!r} is none of {', '.join(['system', *_ROLES])}")
    return _ROLES[role]


def _harvest(turns: list[JudgedTurn]) -> tuple[list[Complaint], list[SeedPair]]:
    """The complaints of one conversation, and those that a later answer repaired.

    A repair is the first later answer that satisfied the user, if no other answer was complained about between.
    """
    complaints, seeds = [], []
    for i in range(2, len(turns)):
        if turns[i].role != "user" or not turns[i].dissatisfied or turns[i - 1].role != "assistant":
            continue
        prompt = [{"role": turn.role, "content": turn.content} for turn in turns[: i - 1]]
        bad = turns[i - 1].content
        complaints.append(Complaint(prompt, bad, turns[i].content))
        for j in range(i + 2, len(turns)):
            if turns[j].role != "user" or turns[j - 1].role != "assistant":
                continue
            if turns[j].satisfied and not turns[j].dissatisfied and prompt[-1]["role"] == "user":
                seeds.append(SeedPair(prompt, turns[j - 1].content, bad))
            if turns[j].satisfied or turns[j].dissatisfied:
                break
    return complaints, seeds
