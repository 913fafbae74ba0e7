"""Dynamic sampling's decisions, by hand: which groups teach, which make the batch, what is drawn and thrown away."""

from __future__ import annotations

import pytest

from posttrain.rollout.resample import (
    JudgedGroup,
    PromptOrder,
    ResampleRule,
    SampledGroup,
    account_of,
    choose,
    short_in_words,
    wanted,
    why_silent,
)

UNEQUAL, RATE = ResampleRule(), ResampleRule(until="pass_rate", low=0.2, high=0.8)


def group(*values: float | None, first: list[float | None] | None = None) -> JudgedGroup:
    return JudgedGroup(values, [values], list(values) if first is None else first)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((1.0, 0.0, 1.0, 1.0), None),
        ((1.0, 1.0, 1.0, 1.0), "all_right"),
        ((0.0, 0.0, 0.0, 0.0), "all_wrong"),
        ((0.5, 0.5, 0.5, 0.5), "equal"),
        ((0.5, 0.5, 0.5, 0.6), None),
        ((-1.0, -1.0), "equal"),
        ((None, None, None, None), "unjudged"),
        ((None, 1.0, None, None), "unjudged"),
        ((None, 1.0, 1.0, None), "all_right"),
        ((None, 1.0, 0.0, None), None),
    ],
)
def test_a_group_teaches_when_two_judged_rewards_differ(values: tuple, reason: str | None) -> None:
    assert why_silent(group(*values), UNEQUAL) == reason


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((1.0, 0.0, 0.0, 0.0), None),
        ((1.0, 0.0, 0.0, 0.0, 0.0), "outside"),  # 0.2 is not within (0.2, 0.8)
        ((1.0, 1.0, 1.0, 1.0, 0.0), "outside"),
        ((1.0, 1.0, 1.0, 0.0), None),
        ((None, 1.0, 0.0), None),  # the mean is over what was judged
        ((0.5, 0.5), "equal"),  # within the bounds, and nothing to learn
        ((1.0, 1.0), "all_right"),
    ],
)
def test_a_pass_rate_lies_strictly_within_its_bounds(values: tuple, reason: str | None) -> None:
    assert why_silent(group(*values), RATE) == reason


def test_right_and_wrong_are_the_first_reward_functions_words() -> None:
    assert why_silent(group(1.1, 1.1, first=[1.0, 1.0]), UNEQUAL) == "all_right"
    assert why_silent(group(0.1, 0.1, first=[0.0, 0.0]), UNEQUAL) == "all_wrong"
    assert why_silent(group(1.0, 1.0, first=[1.0, 0.0]), UNEQUAL) == "equal"


def test_a_method_that_reads_each_reward_learns_where_one_of_them_differs() -> None:
    sums, each = [1.0, 1.0], [[1.0, 0.0], [0.0, 1.0]]
    assert why_silent(JudgedGroup(sums, [sums], each[0]), UNEQUAL) == "equal"
    assert why_silent(JudgedGroup(sums, each, each[0]), UNEQUAL) is None


def test_open_slots_are_taken_first_come_first() -> None:
    reasons = [None, "all_right", "all_wrong", None, "all_wrong", None, None, None]
    choice = choose(reasons, 4, "train")
    assert (choice.batch, choice.open, choice.repeated) == ([0, 5, 6, 3], [], [])  # 7 is one too many


def test_a_short_batch_keeps_its_own_groups_or_repeats_others() -> None:
    reasons = ["all_right", None, "equal", "equal", None, "all_wrong"]
    trained = choose(reasons, 4, "train")
    assert (trained.batch, trained.open, trained.repeated) == ([4, 1, 2, 3], [2, 3], [])
    assert choose(reasons, 4, "stop") == trained
    filled = choose(reasons, 4, "refill")
    assert (filled.batch, filled.open, filled.repeated) == ([4, 1, 4, 1], [], [2, 3])
    one = choose(["equal", "equal", None], 2, "refill")
    assert (one.batch, one.repeated) == ([2, 2], [1])
    none = choose(["equal", "equal"], 2, "refill")  # nothing to repeat
    assert (none.batch, none.open, none.repeated) == ([0, 1], [0, 1], [])


def test_what_is_drawn_can_be_shared_by_the_ranks() -> None:
    reasons = [None, "equal", "equal", "equal"]
    assert [wanted(reasons, 4, unit) for unit in (1, 2, 4)] == [3, 4, 4]
    assert wanted([None] * 4, 4, 2) == 0
    assert wanted([None] * 5, 4, 2) == 0


def test_every_group_is_trained_on_or_counted_by_its_reason() -> None:
    reasons = ["all_right", None, "unjudged", None, None]
    sampled = [SampledGroup(reason, 10 + i, float(i)) for i, reason in enumerate(reasons)]
    account = account_of(sampled, choose(reasons, 2, "train"), rounds=3)
    assert (account.groups, account.tokens, account.taught_groups, account.taught_tokens) == (5, 60, 2, 24)
    found = account.metrics()
    assert account.thrown_tokens == 10 + 12 + 14
    assert found["resample/all_right/groups"] == 1
    assert (found["resample/unjudged/tokens"], found["resample/unjudged/seconds"]) == (12, 2.0)
    assert found["resample/surplus/groups"] == 1
    assert found["resample/all_wrong/groups"] == found["resample/outside/tokens"] == 0
    assert sum(found[f"resample/{reason}/tokens"] for reason in ("all_right", "unjudged", "surplus")) == 36


def test_a_repeated_group_is_no_more_signal() -> None:
    reasons = ["equal", None]
    sampled = [SampledGroup("equal", 7, 0.0), SampledGroup(None, 5, 0.0)]
    account = account_of(sampled, choose(reasons, 2, "refill"), rounds=4)
    assert (account.taught_groups, account.taught_tokens, account.repeated, account.thrown_tokens) == (
        1,
        5,
        1,
        7,
    )


def test_a_stop_says_what_was_sampled_and_what_to_do() -> None:
    said = short_in_words(["all_right", "all_wrong", "all_wrong", None], 2, 4, ResampleRule(max_rounds=4))
    assert "4 rounds gave 1 groups that teach, and a rollout needs 2; 3 of 4 groups teach nothing" in said
    assert "1 because every response was right, 2 because every response was wrong" in said
    assert "on_short" in said
    assert "no fresh prompt was left" in short_in_words(["equal"], 1, 2, ResampleRule(max_rounds=4))


def order(rows: int = 4) -> PromptOrder:
    """Each pass begins one row later."""
    return PromptOrder(lambda number: [(number + i) % rows for i in range(rows)], rows)


def test_prompts_go_on_into_the_next_pass_and_from_a_saved_position() -> None:
    whole = order()
    assert [whole.take(3), whole.take(3), whole.take(2)] == [[0, 1, 2], [3, 1, 2], [3, 0]]
    assert whole.passes == 2.0
    again = order()
    again.position = 3
    assert again.take(3) == [3, 1, 2]


def test_a_prompt_that_ends_one_pass_and_begins_the_next_is_drawn_once() -> None:
    drawn = PromptOrder(lambda number: [3, 2, 1, 0] if number else [0, 1, 2, 3], 4)
    assert drawn.take(3) == [0, 1, 2]
    assert drawn.take(2) == [3, 2]
    assert drawn.position == 6


def test_what_was_sampled_already_is_passed_over_and_data_can_run_out() -> None:
    drawn = order()
    assert drawn.take(2) == [0, 1]
    assert drawn.take(3, avoid=[0, 1]) == [2, 3]
    assert drawn.position == 4  # fruitless looks are no draws
    assert drawn.take(1, avoid=range(4)) == []
    assert drawn.take(1) == [1]
