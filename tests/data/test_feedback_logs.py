"""Dissatisfaction logs: each shape gives the same complaints, seeds are repairs, and nothing vanishes uncounted."""

from __future__ import annotations

import json

import pytest

from posttrain.data.feedback_logs import Complaint, SeedPair, feedback_log, read_feedback_log
from posttrain.data.files import DataError

TURNS = [
    ("user", "capital of Australia?", None),
    ("assistant", "Sydney", None),
    ("user", "no, that is wrong", "dissatisfied"),
    ("assistant", "Canberra", None),
    ("user", "thanks!", "satisfied"),
    ("assistant", "You are welcome", None),
]
PROMPT = [{"role": "user", "content": "capital of Australia?"}]
COMPLAINT = Complaint(PROMPT, "Sydney", "no, that is wrong")
SEED = SeedPair(PROMPT, chosen="Canberra", rejected="Sydney")


def as_wildfeedback(turns):
    return [
        {
            "UtterranceId": i,
            "TurnId": i // 2 + 1,
            "Role": "User" if role == "user" else "Agent",
            "Content": content,
            "Satisfaction": mark == "satisfied",
            "Disatisfaction": mark == "dissatisfied",
        }
        for i, (role, content, mark) in enumerate(turns)
    ]


def as_messages(turns):
    return {
        "messages": [
            {"role": role, "content": content} | ({"feedback": mark} if mark else {})
            for role, content, mark in turns
        ]
    }


@pytest.mark.parametrize(
    "rows", [as_wildfeedback(TURNS), [as_messages(TURNS)]], ids=["wildfeedback", "plain"]
)
def test_a_complaint_and_its_repair(rows):
    log = feedback_log(rows)
    assert log.complaints == [COMPLAINT]
    assert log.seeds == [SEED]
    assert (log.found, log.dropped) == (1, {})


def test_the_published_shape():
    row = {
        "prompt": PROMPT,
        "rejected": [{"role": "assistant", "content": "Sydney"}],
        "user_preference": {"role": "user", "content": "no, that is wrong"},
    }
    assert feedback_log([row]).complaints == [COMPLAINT]


def test_wildfeedback_conversations_end_where_the_numbers_begin_again():
    rows = as_wildfeedback(TURNS[:3]) + as_wildfeedback(TURNS[3:])
    log = feedback_log(rows)
    assert log.complaints == [COMPLAINT]
    assert log.seeds == []  # the repair belongs to another conversation
    text = [{**row, "Disatisfaction": str(row["Disatisfaction"])} for row in rows]
    assert feedback_log(text).complaints == [COMPLAINT]


def test_a_second_complaint_ends_the_wait_for_a_repair():
    turns = [
        *TURNS[:3],
        ("assistant", "Melbourne", None),
        ("user", "wrong again", "dissatisfied"),
        *TURNS[3:5],
    ]
    log = feedback_log([as_messages(turns)])
    assert [row.rejected for row in log.complaints] == ["Sydney", "Melbourne"]
    assert len(log.complaints[1].prompt) == 3
    assert [(seed.rejected, seed.chosen) for seed in log.seeds] == [("Melbourne", "Canberra")]


def test_unusable_complaints_are_counted_by_reason():
    base = {"prompt": PROMPT, "rejected": "Sydney", "user_preference": "no"}
    rows = [
        base,
        {**base, "rejected": " "},
        {**base, "user_preference": ""},
        {**base, "prompt": [*PROMPT, {"role": "assistant", "content": "Perth"}]},
        {**base, "prompt": [*PROMPT, {"role": "assistant", "content": "Sydney"}, *PROMPT]},
    ]
    log = feedback_log(rows)
    assert log.found == 5 == len(log.complaints) + sum(log.dropped.values())
    assert sorted(log.dropped) == [
        "complaint is empty",
        "prompt does not end with a user turn",
        "rejected answer also stands in the prompt",
        "rejected answer is empty",
    ]


def test_files_that_are_no_feedback_log_say_so(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"question": "?"}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="not a feedback log: columns are \\['question'\\]"):
        read_feedback_log(path)
    with pytest.raises(DataError, match="no user turn carries a judgement"):
        feedback_log([as_messages([(role, text, None) for role, text, _ in TURNS])])
    with pytest.raises(DataError, match="feedback 'angry'"):
        feedback_log([as_messages([*TURNS[:2], ("user", "no", "angry")])])
    with pytest.raises(DataError, match="role 'tool'"):
        feedback_log([as_messages([("tool", "x", None)])])
