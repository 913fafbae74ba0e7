"""Which column of a data set plays which role, found by names and first values; the user's own word comes first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.data.column_names import ALPACA, PAIRS, PROMPTS, first_column
from posttrain.data.conversations import is_dialogue
from posttrain.data.files import DataError, Row
from posttrain.data.mapping import template_columns
from posttrain.data.row_layout import CONVERSATIONS, Layout, Needs, layout_of
from posttrain.data.values import has_column, lookup, plain
from posttrain.recipe.data_sections import DataSection

LOOKED_AT = 200
"""First rows whose columns and values decide."""
ROLES = ("prompt", "completion", "chosen", "rejected", "answer", "score", "score_chosen", "score_rejected")
"""What `--role` may name. answer: the gold answer; score: a reward, rating or label of the row's answer."""
KINDS = {
    "pairs": "pairs of answers, for preference methods",
    "logs": "conversations with feedback",
    "ratings": "answers with a score or label each",
    "prompts": "prompts, for RL",
    "demonstrations": "prompts with an answer to learn from",
    "unknown": "no column that holds prompts was found",
}
_FURTHER_PROMPTS = (*PROMPTS, "puzzle", "query_text", "user")
_GOLDS = ("answer", "final_answer", "gold", "gold_answer", "ground_truth", "target", "label", "solution")
_COMPLETIONS = ("completion", "output", "response", "canonical_solution", "code", "solution")
_SCORES = ("score", "reward", "rating", "return", "label")
_PAIR_SCORES = ("score_{}", "{}_score", "rating_{}", "{}_rating", "reward_{}", "{}_reward")
TURN_OF_LOG = {"UtterranceId", "Role", "Content"}


@dataclass(frozen=True)
class RowRoles:
    """kind: a key of KINDS; columns: role -> column; section and layout: how rows are read; notes: for the reader."""

    kind: str
    columns: Mapping[str, str]
    section: DataSection
    layout: Layout
    notes: tuple[str, ...] = ()

    def role_of(self, column: str) -> str:
        """The roles of a column in words, "" for none."""
        read = set(template_columns(self.section.template)) if self.section.template is not None else set()
        found = ["prompt"] if column in read else []
        found += [role for role, name in self.columns.items() if column in (name, name.split(".")[0])]
        return ", ".join(dict.fromkeys(found))


def find_roles(rows: Sequence[Row], given: Mapping[str, str] | None = None) -> RowRoles:
    """The roles by the first rows; DataError for a `given` role or column that there is not."""
    given = dict(given or {})
    row = first_values(rows)
    for role, column in given.items():
        if role not in ROLES:
            raise DataError(f"--role {role}={column}: no role {role!r}; the roles are {', '.join(ROLES)}")
        if not has_column(row, column):
            raise DataError(f"--role {role}={column}: no column {column!r}; the columns are {', '.join(row)}")
    columns = dict(given)
    _find_texts(row, columns)
    template = _find_prompt(row, columns)
    _find_scores(rows[:LOOKED_AT], row, columns)
    whole = _conversations(row)
    kind = _kind(rows, row, columns, template is not None or whole is not None)
    # beside a gold answer a completion is a worked solution, which no method reads
    read = ("chosen", "rejected") if kind == "prompts" else ("completion", "chosen", "rejected")
    texts = tuple(name for name in read if name in columns)
    if not texts and whole is not None and "prompt" not in columns and "answer" not in columns:
        texts = ("completion",)
    notes = []
    chat = any(_is_marked(lookup(row, name)) for name in columns.values())
    if chat:
        notes.append(
            'marked dialogues ("Human: ... Assistant: ...") are read as turns, as data.chat: true does'
        )
    asked = plain(lookup(row, columns["prompt"])) if "prompt" in columns else None
    if isinstance(asked, str) and any(_is_messages(lookup(row, columns[name])) for name in texts):
        chat = True
        notes.append("prompts are text and answers are messages: read as data.chat: true does")
    section = DataSection(
        path="rows",
        chat=chat,
        template=template,
        prompt=columns.get("prompt"),
        completion=columns.get("completion") if "completion" in texts else None,
        chosen=columns.get("chosen") if "chosen" in texts else None,
        rejected=columns.get("rejected") if "rejected" in texts else None,
    )
    layout = layout_of(section, Needs(texts=texts), row)
    for role, column in layout.texts.items():
        columns.setdefault(role, column)
    if layout.prompt is not None and has_column(row, layout.prompt):
        columns.setdefault("prompt", layout.prompt)
    return RowRoles(kind, columns, section, layout, (*notes, *layout.notes))


def first_values(rows: Sequence[Row]) -> Row:
    """Every column of the first rows with its first value that is no gap."""
    found: Row = {}
    for row in rows[:LOOKED_AT]:
        for name, value in row.items():
            if name not in found or plain(found[name]) is None:
                found[name] = value
    return {str(name): value for name, value in found.items()}


def _find_texts(row: Row, columns: dict[str, str]) -> None:
    """Pairs, completions and gold answers."""
    for chosen, rejected in PAIRS:
        found = first_column(row, (chosen,)), first_column(row, (rejected,))
        if None not in found and "completion" not in columns:
            columns.setdefault("chosen", str(found[0]))
            columns.setdefault("rejected", str(found[1]))
            return
    if "user_preference" in row and "rejected" in row:  # DRIFT's rows: an answer and the complaint about it
        columns.setdefault("rejected", "rejected")
        return
    taken = set(columns.values())
    if "answer" not in columns:
        golds = [name for name in _GOLDS if (column := first_column(row, (name,))) and column not in taken]
        golds = [name for name in golds if not isinstance(row[str(first_column(row, (name,)))], bool)]
        if golds:
            columns["answer"] = str(first_column(row, golds))
    taken = set(columns.values())
    free = [name for name in row if name not in taken]
    completion = first_column(free, _COMPLETIONS)
    if completion is not None:
        columns.setdefault("completion", completion)


def _find_prompt(row: Row, columns: dict[str, str]) -> str | None:
    """Puts the prompt's column among the columns; a template where two columns make the prompt."""
    if "prompt" in columns or row.keys() >= TURN_OF_LOG:
        return None
    taken = set(columns.values())
    free = [name for name in row if name not in taken]
    if "prompt" in row and "prompt" not in taken:
        columns["prompt"] = "prompt"
        return None
    if _conversations(row) is not None:
        return None  # read by its name
    if "chosen" in columns and first_column(free, _FURTHER_PROMPTS) is None:
        return None  # whole conversations, which hold their prompt
    if {"instruction", "input"} <= row.keys() and not {"instruction", "input"} & taken:
        return ALPACA
    found = first_column(free, _FURTHER_PROMPTS)
    turns = plain(row.get("turns"))
    if found is None and isinstance(turns, list) and turns and isinstance(turns[0], str):
        found = "turns.0"  # MT-Bench: the user's turns
    if found is not None:
        columns["prompt"] = found
    return None


def _find_scores(rows: Sequence[Row], row: Row, columns: dict[str, str]) -> None:
    taken = set(columns.values())
    if "chosen" in columns:
        for role in ("chosen", "rejected"):
            names = [form.format(role) for form in _PAIR_SCORES]
            found = next((name for name in _nested(row, names) if _is_numeric(rows, name)), None)
            if found is not None:
                columns.setdefault(f"score_{role}", found)
        return
    if "score" not in columns:
        names = [name for name in _nested(row, _SCORES) if name not in taken and _is_numeric(rows, name)]
        if names:
            columns["score"] = names[0]


def _nested(row: Row, names: Sequence[str]) -> Iterator[str]:
    """Columns of these names, then keys of these names inside columns."""
    for name in names:
        found = first_column(row, (name,))
        if found is not None:
            yield found
    for column, value in row.items():
        if isinstance(value, Mapping):
            yield from (f"{column}.{name}" for name in names if name in value)


def _is_numeric(rows: Sequence[Row], column: str) -> bool:
    values = [score for row in rows if (score := plain(lookup(row, column))) is not None]
    return bool(values) and all(as_score(value) is not None for value in values)


def as_score(value: Any) -> float | None:
    """A reward, rating or label as a number: true is 1, "0.5" is 0.5; None for what is none."""
    value = plain(value)
    if isinstance(value, str):
        value = {"true": 1.0, "false": 0.0}.get(value.strip().lower(), value)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) < float("inf") else None  # false for NaN as well


def _kind(rows: Sequence[Row], row: Row, columns: Mapping[str, str], prompts: bool) -> str:
    if row.keys() >= TURN_OF_LOG or has_column(row, "user_preference") or _has_feedback(rows):
        return "logs"
    if "chosen" in columns and "rejected" in columns:
        return "pairs"
    if "prompt" not in columns and not prompts:
        return "unknown"
    if "score" in columns and ("completion" in columns or _conversations(row) is not None):
        return "ratings"
    if "answer" in columns:
        return "prompts"
    return "demonstrations" if "completion" in columns or _conversations(row) is not None else "prompts"


def _has_feedback(rows: Sequence[Row]) -> bool:
    return any(
        isinstance(message, Mapping) and plain(message.get("feedback")) is not None
        for row in rows[:LOOKED_AT]
        for name in CONVERSATIONS
        if isinstance(found := plain(row.get(name)), list)
        for message in found
    )


def _conversations(row: Row) -> str | None:
    for name in CONVERSATIONS:
        value = plain(row.get(name))
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            return name
    return None


def _is_messages(value: Any) -> bool:
    value = plain(value)
    return isinstance(value, Mapping) or (
        isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)
    )


def _is_marked(value: Any) -> bool:
    return isinstance(value, str) and is_dialogue(value)
