"""Calls of tools: both spellings, unfinished ones, what is right about them piece by piece."""

from __future__ import annotations

import pytest

from posttrain.answers.tool_calls import (
    ToolCall,
    call_credit,
    finished_share,
    read_calls,
    read_open_calls,
    word_overlap,
)

GOLD = '[weather(city="Paris", days=3)]'


def test_both_spellings_are_one_call() -> None:
    call = ToolCall("weather", {"city": "Paris", "days": 3})
    json_call = '{"name": "weather", "arguments": {"city": "Paris", "days": 3}}'
    for text in (
        GOLD,
        "weather(city='Paris', days=3)",
        json_call,
        f"[{json_call}]",
        f"<tool_call>\n{json_call}\n</tool_call>",
        f"<think>three days</think>\n{GOLD}",
    ):
        assert read_calls(text) == [call], text
    two = '[Get Weather.now(a=[1, {"b": "x, )"}], ok=true), clock()]'
    assert read_calls(two) == [
        ToolCall("Get Weather.now", {"a": [1, {"b": "x, )"}], "ok": True}),
        ToolCall("clock", {}),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no call",
        GOLD[:-1],
        GOLD[:-2],
        f"{GOLD} and more",
        "[f(3)]",
        "[f(a=1, a=2)]",
        '{"name": "f", "arguments": ',
        '{"name": 3}',
        "[f(a=1),]",
        "[1f(a=1)]",
    ],
)
def test_what_is_no_call(text: str) -> None:
    assert read_calls(text) is None


def test_an_unfinished_call_is_read_as_far_as_values_have_ended() -> None:
    steps = {
        "[wea": [],
        "[weather(": [ToolCall("weather", {}, closed=False)],
        '[weather(city="Pa': [ToolCall("weather", {}, closed=False)],
        '[weather(city="Paris, days=4': [ToolCall("weather", {}, closed=False)],
        '[weather(city="Paris", da': [ToolCall("weather", {"city": "Paris"}, closed=False)],
        GOLD[:-2]: [ToolCall("weather", {"city": "Paris"}, closed=False)],
        GOLD[:-1]: [ToolCall("weather", {"city": "Paris", "days": 3})],
    }
    for text, calls in steps.items():
        assert read_open_calls(text) == calls, text
    assert finished_share(read_open_calls("[wea"), read_calls(GOLD) or []) is None
    # name right, city wrong: one of two pieces
    assert finished_share(read_open_calls('[weather(city="Rome", '), read_calls(GOLD) or []) == 0.5


@pytest.mark.parametrize(
    ("text", "credit"),
    [
        (GOLD, 1.0),
        ('[weather(days=3, city="Paris")]', 1.0),
        ('[weather(city="Paris", days=4)]', 2 / 3),
        ('[weather(city="Paris", days="3")]', 2.5 / 3),  # the value in another type
        ('[weather(city="Paris")]', 2 / 3),
        ('[weather(city="Paris", days=3, unit="C")]', 3 / 4),
        ('[clock(city="Paris", days=3)]', 0.0),
        (f"{GOLD[:-1]}, clock()]", 3 / 4),
    ],
)
def test_credit_by_hand(text: str, credit: float) -> None:
    assert call_credit(read_calls(text) or [], read_calls(GOLD) or []) == pytest.approx(credit)


def test_calls_are_paired_whatever_their_order_and_types_are_types() -> None:
    gold = read_calls("[f(a=1), f(a=2)]") or []
    assert call_credit(read_calls("[f(a=2), f(a=1)]") or [], gold) == 1.0
    assert call_credit(read_calls("[f(a=2)]") or [], gold) == 0.5
    true = read_calls("[f(a=true)]") or []
    assert call_credit(read_calls("[f(a=1)]") or [], true) == 0.5
    assert call_credit(read_calls("[f(a=1.0)]") or [], read_calls("[f(a=1)]") or []) == 1.0
    assert call_credit([], []) == 1.0
    assert call_credit(true, []) == 0.0


def test_word_overlap_sees_no_structure() -> None:
    assert word_overlap("f(a=1, b=2)", "f(a=2, b=1)") == 1.0
    assert word_overlap("a b", "b c d") == 0.5
    assert word_overlap("a b", "b c") == word_overlap("b c", "a b")
    assert word_overlap("", "a") == 0.0
