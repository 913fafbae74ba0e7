"""What a reward reads of a conversation, and what it may log."""

from __future__ import annotations

import pytest

from posttrain.rewards.journal import Journal, RewardOutputError, plain_value
from posttrain.rewards.messages import messages_of, text_of, transcript_of

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "text": "é"}}}


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "plain"}, "plain"),
        ({"content": None}, ""),
        ({"content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]}, "ab"),
        (
            {"content": "", "tool_calls": [CALL]},
            '<tool_call>\n{"name": "add", "arguments": {"a": 1, "text": "é"}}\n</tool_call>',
        ),
        (
            {
                "content": "Let me add.",
                "tool_calls": [{"name": "add", "arguments": '{"a": 1}'}, {"name": "x", "arguments": "{"}],
            },
            'Let me add.\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n'
            '<tool_call>\n{"name": "x", "arguments": "{"}\n</tool_call>',
        ),
        ({"content": "5", "reasoning_content": "2+3"}, "<think>\n2+3\n</think>\n\n5"),
        ({"content": "5", "thinking": "2+3"}, "<think>\n2+3\n</think>\n\n5"),
        ({"content": "5", "reasoning_content": None, "tool_calls": None}, "5"),
    ],
)  # fmt: skip
def test_a_message_as_text(message, text):
    assert text_of([{"role": "assistant", **message}]) == text


def test_a_conversation_s_text_is_the_assistant_s_with_its_messages_apart():
    talk = [
        {"role": "assistant", "content": "It is 5"},
        {"role": "tool", "name": "add", "content": "6"},
        {"role": "assistant", "content": "6"},
    ]
    assert text_of(talk) == "It is 5\n6"  # not "56"
    assert text_of("as it is") == "as it is"


def test_messages_of_text_and_of_messages():
    assert messages_of("a") == [{"role": "assistant", "content": "a"}]
    talk = [{"role": "assistant", "content": "a"}]
    assert messages_of(talk) == talk
    assert messages_of(talk)[0] is not talk[0]


def test_the_journal_takes_one_value_a_completion_and_plain_ones():
    import numpy as np

    journal = Journal(2)
    journal.log_extra("a", [np.float32(0.5), None])
    journal.log_extra("b", ({"x": 1}, "text"))
    journal.log_metric("m", True)
    journal.log_metric("m", np.float64(2.5))
    assert journal.extra == {"a": [0.5, None], "b": ["{'x': 1}", "text"]}
    assert journal.metrics == {"m": [1.0, 2.5]}
    assert plain_value(np.array([1, 2])) == "[1 2]"
    with pytest.raises(RewardOutputError, match=r"log_extra\('a'\) got 1 values for 2 completions"):
        journal.log_extra("a", [1])


def test_a_transcript_says_who_said_what() -> None:
    calls = [{"type": "function", "function": {"name": "calc", "arguments": {"e": "1+2"}}}]
    messages = [
        {"role": "assistant", "content": "Let me see.", "tool_calls": calls},
        {"role": "tool", "name": "calc", "content": "3"},
        {"role": "assistant", "content": "3"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "x", "arguments": "{"}]},
    ]
    assert transcript_of(messages).splitlines() == [
        "[model] Let me see.",
        "[model calls] calc(e='1+2')",
        "[calc] 3",
        "[model] 3",
        "[model calls] x({)",
    ]
