"""The rate beside a bar, and what a pipe gets instead of one."""

from __future__ import annotations

import io

import pytest

from posttrain.evaluation import bar as bars
from posttrain.evaluation.bar import Rate, bar, duration


def test_rate_is_of_the_last_minute_and_leaves_out_what_was_done_before():
    now = [0.0]
    rate = Rate(lambda: now[0])
    rate.see(500)  # a stage that goes on
    assert rate.per_second is None
    for second in range(10, 200, 10):
        now[0] = second
        rate.see(500 + second * (1 if second <= 100 else 2) - (100 if second > 100 else 0))
    assert rate.per_second == pytest.approx(2.0)  # the slower beginning is more than a minute ago
    assert rate.in_words(780, 1000) == "2.0/s, 2 min left"


def test_sightings_far_apart_still_have_a_rate():
    now = [0.0]
    rate = Rate(lambda: now[0])
    for second, done in ((0, 0), (300, 5), (600, 10)):
        now[0] = second
        rate.see(done)
    assert rate.in_words(10, 15) == "1.0/min, 5 min left"
    assert rate.in_words(15, 15) == "1.0/min"


def test_durations():
    assert [duration(s) for s in (4, 59.4, 90, 3600, 7500)] == [
        "4 s",
        "59 s",
        "2 min",
        "1 h 0 min",
        "2 h 5 min",
    ]


def test_a_pipe_gets_a_line_now_and_then(monkeypatch):
    monkeypatch.setattr(bars, "LINE_EVERY_S", 0.0)
    out = io.StringIO()
    with bar("sums: generating", 20, out) as move:
        move(5, 20)
    assert "sums: generating: 5 of 20, " in out.getvalue()
    monkeypatch.setattr(bars, "LINE_EVERY_S", 60.0)
    out = io.StringIO()
    with bar("sums: generating", 20, out) as move:
        move(5, 20)
    assert out.getvalue() == ""


def test_a_terminal_shows_total_and_rate():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    with bar("sums: grading", 20, out) as move:
        move(5, 20)
        move(20, 20)
    assert "20/20" in out.getvalue()
    assert "/s" in out.getvalue()
