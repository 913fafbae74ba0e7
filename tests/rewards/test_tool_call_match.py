"""The reward for calls of tools: by structure, and by words as released."""

from __future__ import annotations

import pytest

from posttrain.rewards.tool_call_reward import tool_call_match

GOLD = '[weather(city="Paris", days=3)]'


def test_right_wrong_and_not_to_be_judged() -> None:
    texts = [GOLD, '[weather(city="Rome", days=3)]', "It will rain.", GOLD]
    assert tool_call_match(texts, answer=[GOLD, GOLD, GOLD, None]) == [1.0, pytest.approx(2 / 3), 0.0, None]
    assert tool_call_match(texts[:3], answer=[GOLD] * 3, partial_credit=False) == [1.0, 0.0, 0.0]


def test_where_no_call_is_wanted_none_is_right() -> None:
    assert tool_call_match(["Hello.", GOLD], answer=["Good day."] * 2) == [1.0, 0.0]


def test_the_released_measure_takes_swapped_values_for_right() -> None:
    gold, swapped = "[f(a=1, b=2)]", "[f(a=2, b=1)]"
    assert tool_call_match([swapped], answer=[gold], compat="reference") == [1.0]
    assert tool_call_match([swapped], answer=[gold]) == [pytest.approx(1 / 3)]
