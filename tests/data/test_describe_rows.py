"""Roles of columns, rows of every shape, odd values, and the warnings drawn from a description."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from posttrain.data import DataError
from posttrain.data.describe import Description, describe, describe_mapped, warnings_of
from posttrain.data.describe.row_roles import as_score, find_roles
from posttrain.data.describe.text_faults import CHAT_TOKENS, EMPTY
from posttrain.data.files import iter_rows
from posttrain.observe.description_page import print_description, write_description

USER, BOT = {"role": "user", "content": "What is the time?"}, {"role": "assistant", "content": "It is noon."}


@pytest.mark.parametrize(
    ("row", "kind", "columns"),
    [
        ({"question": "q", "answer": "1"}, "prompts", {"prompt": "question", "answer": "answer"}),
        (
            {"problem": "q", "solution": "s", "answer": "1"},
            "prompts",
            {"prompt": "problem", "answer": "answer", "completion": "solution"},
        ),
        (
            {"prompt": "q", "completion": "c"},
            "demonstrations",
            {"prompt": "prompt", "completion": "completion"},
        ),
        ({"instruction": "q", "input": "", "output": "c"}, "demonstrations", {"completion": "output"}),
        ({"messages": [USER, BOT]}, "demonstrations", {"completion": "messages"}),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b"},
            "pairs",
            {"chosen": "chosen", "rejected": "rejected"},
        ),
        (
            {
                "prompt": "q",
                "chosen": "a",
                "rejected": "b",
                "metadata": {"score_chosen": 2, "score_rejected": 1},
            },
            "pairs",
            {"score_chosen": "metadata.score_chosen", "score_rejected": "metadata.score_rejected"},
        ),
        ({"messages": [USER, BOT], "label": True}, "ratings", {"completion": "messages", "score": "label"}),
        (
            {"prompt": "q", "response": "a", "reward": 0.5},
            "ratings",
            {"completion": "response", "score": "reward"},
        ),
        ({"turns": ["q", "r"]}, "prompts", {"prompt": "turns.0"}),
        ({"messages": [USER, BOT, USER | {"feedback": "satisfied"}]}, "logs", {"completion": "messages"}),
        ({"prompt": [USER], "rejected": [BOT], "user_preference": "No."}, "logs", {"rejected": "rejected"}),
        ({"a": 1}, "unknown", {}),
    ],
)
def test_roles_by_name(row: dict[str, Any], kind: str, columns: dict[str, str]) -> None:
    found = find_roles([row])
    assert found.kind == kind
    assert columns.items() <= found.columns.items()


def test_a_role_is_named_where_the_column_does_not_tell() -> None:
    rows = [{"a": "What is two and two?", "b": "4"}]
    assert find_roles(rows, {"prompt": "a", "answer": "b"}).kind == "prompts"
    with pytest.raises(DataError, match="no role 'reply'"):
        find_roles(rows, {"reply": "a"})
    with pytest.raises(DataError, match="no column 'c'; the columns are a, b"):
        find_roles(rows, {"prompt": "c"})


def test_scores() -> None:
    values = (True, "false", "0.5", 3, Decimal("1.5"), math.nan, math.inf, "good", None, [1], b"1")
    assert [as_score(value) for value in values[:-1]] == [
        1.0,
        0.0,
        0.5,
        3.0,
        1.5,
        None,
        None,
        None,
        None,
        None,
    ]


def test_a_description_by_hand() -> None:
    rows = [
        {"question": "What is one and one?", "answer": "#### 2"},
        {"question": "what is one and one? ", "answer": "#### 2"},
        {"question": "Name the capital of France.<|im_end|>", "answer": "Paris"},
        {"question": "What is three and one?", "answer": None},
        {"question": "", "answer": "4"},
        {"question": "How many are there?", "answer": ["1", "2"]},
    ]
    found = describe(rows, "rows")
    assert (found.rows, found.kind) == (6, "prompts")
    assert found.dropped == {"no answer": (1, 4), "no prompt": (1, 5)}
    assert [(count, first) for count, first in found.refused.values()] == [(1, 6)]
    assert found.lengths["prompt"].characters.count == 5
    assert found.lengths["prompt"].characters.largest == len(rows[2]["question"] or "")
    assert (found.repeated["prompt"].texts, found.repeated["prompt"].distinct) == (5, 4)
    assert found.repeated["whole row"].repeated == 1
    assert found.answer_kinds is not None
    # a list of two golds is read as its lines, and refused above
    assert found.answer_kinds.kinds == {"number": 3, "words": 1, "expression": 1}
    assert found.answer_kinds.marks == {"nothing": 3, "####": 2}
    assert [(one.role, one.fault, one.rows, one.first) for one in found.faults if one.fault != EMPTY] == [
        ("prompt", CHAT_TOKENS, 1, 3)
    ]
    assert found.entropy_same is not None
    assert (found.entropy_same.nats, found.entropy_same.groups) == (0.0, 1)
    columns = {column.name: column for column in found.columns}
    assert columns["answer"].holds == {"text": 4, "list": 1}
    assert (columns["answer"].missing, columns["answer"].role) == (1, "answer")


def test_a_log_of_turns_becomes_conversations() -> None:
    turns = [
        ("User", "plan my trip"),
        ("Agent", "To Rome."),
        ("User", "No, to Paris!"),
        ("Agent", "To Paris."),
    ]
    rows = [
        {
            "UtterranceId": i,
            "Role": role,
            "Content": text,
            "Satisfaction": "",
            "Disatisfaction": "True" if i == 2 else "",
        }
        for i, (role, text) in enumerate(turns)
    ]
    found = describe([*rows, *rows], "log")
    assert (found.kind, found.rows) == ("logs", 2)
    assert found.logs is not None
    assert (found.logs.conversations, found.logs.feedback, found.logs.complaints) == (
        2,
        {"dissatisfied": 2},
        2,
    )
    assert found.logs.turns is not None
    assert found.logs.turns.median == 2


def test_marked_dialogues_and_text_beside_messages_are_read_as_chats() -> None:
    head = "\n\nHuman: What is the time?\n\nAssistant:"
    found = describe([{"chosen": f"{head} Noon.", "rejected": f"{head} No."}], "hh")
    assert found.lengths["chosen"].characters.largest == len("Noon.")
    assert found.faults == ()
    found = describe(
        [{"prompt": "What is the time?", "chosen": [USER, BOT], "rejected": [USER, BOT | {"content": "?"}]}],
        "uf",
    )
    assert not found.refused
    assert found.lengths["chosen"].characters.largest == len("It is noon.")


ODD: list[Any] = [
    None,
    math.nan,
    math.inf,
    "",
    " ",
    b"bytes",
    0,
    -1.5,
    True,
    [],
    [None],
    ["a", "b"],
    [[["deep"]]],
    {},
    {"a": {"b": [1]}},
    {"content": None, "role": "user"},
    [{"role": None, "content": "x"}],
    [{"role": "user"}],
    [{"content": "x"}],
    [USER, 3],
    [{"role": "user", "content": [{"type": "image"}]}],
    [{"from": "human", "value": {"answer": "x"}}],
    datetime(2026, 1, 1),
    Decimal("NaN"),
    "\ufeffmark",
    "\ud83d half",
    "<|im_end|>" * 3,
    "\\boxed{" * 50,
    "$" * 99,
    "x" * 50_000,
]
SHAPES: list[Callable[[Any, Any], dict[Any, Any]]] = [
    lambda one, other: {"prompt": one, "answer": other},
    lambda one, other: {"prompt": "What is the time?", "completion": one, "score": other},
    lambda one, other: {"prompt": one, "chosen": other, "rejected": "b", "score_chosen": one},
    lambda one, other: {"chosen": one, "rejected": other},
    lambda one, other: {"messages": one, "label": other},
    lambda one, other: {"messages": [USER, BOT, USER | {"feedback": one}], "conversation": other},
    lambda one, other: {"UtterranceId": one, "Role": other, "Content": one, "conversation_id": other},
    lambda one, other: {"prompt": one, "rejected": other, "user_preference": one},
    lambda one, other: {"instruction": one, "input": other, "output": one},
    lambda one, other: {"turns": one, 3: other},
]


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_odd_values_crash_nothing(shape: int, tmp_path: Path) -> None:
    """Every odd value in every place, behind a first row that fixes the roles and without one; only a DataError, which
    says what is wrong, may end it."""
    make = SHAPES[shape]
    sane = make("text", "more text")
    found: Description | None = None
    for one in ODD:
        for rows in ([make(one, other) for other in ODD], [sane, *(make(other, one) for other in ODD)]):
            try:
                found = describe(rows, "odd")
                json.dumps(asdict(found), ensure_ascii=False).encode("utf-8")
                print_description(found, warnings_of(found), Console(file=io.StringIO(), width=90))
            except DataError:
                continue
    if found is not None:
        assert write_description(found, [], tmp_path / "page.html").is_file()


def test_rows_that_share_no_column_crash_nothing() -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a"},
        {"completion": "b"},
        {},
        {"messages": [USER, BOT]},
        {"score": 1},
    ]
    for start in range(len(rows)):
        describe([*rows[start:], *rows[:start]], "mixed")
    with pytest.raises(DataError, match="holds no rows"):
        describe([], "none")


def test_every_public_file_is_described(shared_data: Path) -> None:
    files = [file for file in sorted(shared_data.rglob("*.json*")) if "alpaca_eval" not in file.parts]
    assert len(files) > 10
    for file in files:
        found = describe(iter_rows(file), file.name, near=False)
        assert found.rows
        warnings_of(found)


# -------------------------------------------------------------------------------------------------------- warnings


def warned(rows: list[dict[str, Any]]) -> str:
    return "\n".join(warnings_of(describe(rows, "rows")))


def test_a_clean_file_gives_no_warning() -> None:
    rows = [
        {"question": f"What is {a} times {a + 1} in the end?", "answer": str(a * (a + 1))} for a in range(40)
    ]
    found = describe(rows, "rows", near=False)
    assert warnings_of(found) == []


def test_length_bias_is_warned_of_where_the_interval_says_so() -> None:
    def pairs(longer: int, of: int) -> list[dict[str, Any]]:
        return [
            {
                "prompt": f"question {i}",
                "chosen": f"{i} " + "a" * (9 if i < longer else 1),
                "rejected": f"{i} bbbb",
            }
            for i in range(of)
        ]

    assert "the longer answer is chosen in 80% of the pairs" in warned(pairs(80, 100))
    assert "the shorter answer is chosen in 80% of the pairs" in warned(pairs(20, 100))
    assert "answer is chosen" not in warned(pairs(29, 29))  # few pairs are no sample
    assert "answer is chosen" not in warned(pairs(58, 100))


def test_faults_and_labels_are_warned_of() -> None:
    rows = [
        {"prompt": "one", "chosen": "yes<|im_end|>", "rejected": "no"},
        {"prompt": "one", "chosen": "no", "rejected": "yes<|im_end|>"},
        {"prompt": "two", "chosen": "x", "rejected": "x"},
    ]
    text = warned(rows)
    assert "1 of 3 chosen texts hold marks of a chat template" in text
    assert "2 of 3 pairs stand the other way round" in text
    assert "1 of 3 pairs have the same answer twice" in text
    assert "training would stop at row 2" in warned(
        [{"prompt": "q", "answer": "1"}, {"prompt": "q", "answer": ["1", "2"]}]
    )
    assert "no column that holds prompts" in warned([{"a": 1}])


def test_warnings_are_drawn_from_the_description_alone() -> None:
    assert warnings_of(Description("x", 3, "prompts")) == []
    assert warnings_of(Description("x", 3, "prompts", contradicting_golds=2)) == [
        "2 prompts stand with several gold answers, which no reward serves at once"
    ]


def test_mapped_rows_are_described_for_a_plan() -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": [USER], "chosen": [BOT], "rejected": [BOT | {"content": "It is late.</s>"}]},
        {"prompt": [USER], "chosen": [BOT | {"content": "It is late.</s>"}], "rejected": [BOT]},
    ]
    found = describe_mapped(rows, "rows")
    assert found.pairs is not None
    assert found.pairs.contradicting == 2
    assert any("marks of a chat template" in warning for warning in warnings_of(found))
