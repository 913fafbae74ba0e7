"""Dissatisfaction logs: each shape gives the same complaints, seeds are repairs, and nothing vanishes uncounted."""

from __future__ import annotations

import json

import pytest

from posttrain.data.feedback_logs import Complaint, SeedPair, feedback_log, read_feedback_log, read_seed_pairs
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


def _two_talks(number):
    """Two conversations whose turns are numbered by `number(place)`; the second begins with its own question."""
    second = [
        ("user", "write a poem", None),
        ("assistant", "No.", None),
        ("user", "bad answer", "dissatisfied"),
    ]
    rows = []
    for turns in (TURNS, second):
        rows += [{**row, "UtterranceId": number(place)} for place, row in enumerate(as_wildfeedback(turns))]
    return rows


@pytest.mark.parametrize("number", [str, lambda i: i + 1, lambda i: str(i + 1), float, lambda i: f"{i}.0"])
def test_conversations_are_told_apart_whatever_their_numbers_look_like(number):
    log = feedback_log(_two_talks(number))
    assert log.complaints == [
        COMPLAINT,
        Complaint([{"role": "user", "content": "write a poem"}], "No.", "bad answer"),
    ]
    assert log.seeds == [SEED]


def test_a_log_as_csv(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(
        "UtterranceId,Role,Content,Satisfaction,Disatisfaction\n"
        "1,User,plan my trip,,\n2,Agent,Go to the moon.,,\n3,User,no that is silly,False,True\n"
        "1,User,write a poem,,\n2,Agent,No.,,\n3,User,bad answer,0,1\n"
    )
    assert [row.prompt[0]["content"] for row in read_feedback_log(path).complaints] == [
        "plan my trip",
        "write a poem",
    ]


def test_an_id_beside_the_turns_tells_conversations_apart():
    one, two = _two_talks(lambda place: place)[:6], _two_talks(lambda place: place)[6:]
    rows = [{**row, "conversation_id": "a"} for row in one] + [{**row, "conversation_id": "b"} for row in two]
    mixed = [row for pair in zip(rows[:3], rows[6:], strict=True) for row in pair] + rows[3:6]
    assert feedback_log(mixed).complaints == feedback_log(rows).complaints
    assert len(feedback_log(rows).complaints) == 2


def test_an_id_that_is_no_number_is_refused():
    rows = [{**row, "UtterranceId": "x"} for row in as_wildfeedback(TURNS)]
    with pytest.raises(DataError, match="row 1: UtterranceId 'x' is no number"):
        feedback_log(rows)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [("UtterranceId", float("inf"), "UtterranceId inf is no number"), ("Role", None, "role None is none of")],
)
def test_a_turn_that_cannot_be_placed_is_refused(column, value, said):
    rows = as_wildfeedback(TURNS)
    with pytest.raises(DataError, match=f"row 2: {said}"):
        feedback_log([rows[0], {**rows[1], column: value}])


def test_a_rejected_conversation_is_cut_behind_its_prompt(tmp_path):
    whole = [*PROMPT, {"role": "assistant", "content": "Sydney"}]
    for prompt in (PROMPT, "capital of Australia?"):
        row = {"prompt": prompt, "rejected": whole, "user_preference": "no, that is wrong"}
        assert feedback_log([row]).complaints == [COMPLAINT]
    other = {"prompt": "other", "rejected": whole, "user_preference": "no"}
    assert feedback_log([other]).dropped == {"rejected does not continue the prompt": 1}
    path = tmp_path / "seeds.jsonl"
    better = [*PROMPT, {"role": "assistant", "content": "Canberra"}]
    path.write_text(json.dumps({"prompt": PROMPT, "chosen": better, "rejected": whole}))
    assert read_seed_pairs(path) == [SEED]
