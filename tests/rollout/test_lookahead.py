"""Which round is generated when, and by whom."""

from __future__ import annotations

import threading

import pytest

from posttrain.rollout.lookahead import Ahead, Peekable, Schedule


@pytest.mark.parametrize(
    ("staleness", "starts", "weights_of"),
    [
        (0, [[], [], [], []], [0, 1, 2, 3]),
        (1, [[1], [2], [3], [4]], [0, 0, 1, 2]),
        (2, [[1, 2], [], [3, 4], []], [0, 0, 0, 2]),
        (3, [[1, 2, 3], [], [], [4, 5, 6]], [0, 0, 0, 0]),
    ],
)
def test_the_schedule(staleness: int, starts: list[list[int]], weights_of: list[int]) -> None:
    schedule = Schedule(staleness)
    assert [list(schedule.starts_at(n)) for n in range(4)] == starts
    assert [schedule.oldest(n) for n in range(4)] == weights_of


@pytest.mark.parametrize("staleness", [0, 1, 2, 3, 5])
def test_staleness_is_bounded_and_every_round_is_made_once(staleness: int) -> None:
    schedule = Schedule(staleness)
    sent, made = None, {}
    for number in range(23):
        if number not in made:  # nothing ahead: as at the start, or without staleness
            sent = number
            made[number] = sent
        if schedule.starts_at(number):
            sent = number
            for later in schedule.starts_at(number):
                assert later not in made
                made[later] = sent
        assert number - made[number] <= staleness
        assert made[number] == schedule.oldest(number)


def test_rounds_run_in_order_beside_the_caller() -> None:
    go = threading.Event()
    ran: list[int] = []
    ahead: Ahead[int] = Ahead()

    def job(number: int) -> int:
        assert go.wait(10)
        ran.append(number)
        return number * 10

    for number in (4, 5):
        ahead.start(number, lambda n=number: job(n))
    assert 4 in ahead
    assert ran == []
    go.set()
    assert ahead.take(5) == 50
    assert ran == [4, 5]
    assert ahead.take(4) == 40
    assert 4 not in ahead
    ahead.put(6, 1)
    with pytest.raises(ValueError, match="round 6 is being generated"):
        ahead.start(6, lambda: 1)


def test_an_error_waits_for_its_round_and_ends_those_behind_it() -> None:
    ahead: Ahead[int] = Ahead()
    go = threading.Event()
    ran: list[int] = []
    ahead.put(0, 5)
    ahead.start(1, lambda: go.wait(10) and 1 // 0)
    ahead.start(2, lambda: ran.append(2) or 7)
    go.set()
    ahead.wait()
    assert ahead.finished() == {0: 5}
    for number in (1, 2):
        with pytest.raises(ZeroDivisionError):
            ahead.take(number)
    assert ran == []  # with a server that hangs, each would have taken as long again
    ahead.start(3, lambda: 9)
    assert ahead.take(3) == 9
    ahead.put(4, 1)
    ahead.discard()
    assert 4 not in ahead


def test_peeking_takes_nothing() -> None:
    rows = Peekable(iter("abcde"))
    assert next(rows) == "a"
    assert rows.peek(2) == "d"
    assert rows.peek(0) == "b"
    assert [next(rows), next(rows)] == ["b", "c"]
    assert rows.peek(1) == "e"
    assert rows.peek(2) is None
    assert list(rows) == ["d", "e"]


def test_the_schedule_s_corners() -> None:
    now, two = Schedule(0), Schedule(2)
    assert [now.syncs_at(n) for n in range(3)] == [True] * 3
    assert [two.syncs_at(n) for n in range(4)] == [True, False, True, False]
    assert [list(two.starts_at(n)) for n in range(4)] == [[1, 2], [], [3, 4], []]
    assert [two.oldest(n) for n in range(6)] == [0, 0, 0, 2, 2, 4]
    assert [now.oldest(n) for n in range(3)] == [0, 1, 2]
    assert list(now.starts_at(0)) == []


def test_what_is_put_taken_finished_and_discarded() -> None:
    ahead: Ahead[str] = Ahead()
    ahead.put(3, "three")
    assert 3 in ahead
    with pytest.raises(ValueError, match="round 3 is being generated already"):
        ahead.start(3, lambda: "again")
    assert ahead.take(3) == "three"
    assert 3 not in ahead
    ahead.start(4, lambda: "four")
    ahead.start(5, lambda: 1 / 0)  # type: ignore[arg-type,return-value]  # fails
    assert ahead.finished() == {4: "four"}
    assert 4 in ahead  # finished() takes nothing
    assert 5 in ahead
    with pytest.raises(ZeroDivisionError):
        ahead.take(5)
    assert 5 not in ahead  # a round that failed is forgotten too
    ahead.discard()
    assert 4 not in ahead


def test_peeking_past_the_end_and_going_on() -> None:
    peekable = Peekable(iter("ab"))
    assert peekable.peek(1) == "b"
    assert peekable.peek(2) is None
    assert peekable.peek(5) is None
    assert list(peekable) == ["a", "b"]
