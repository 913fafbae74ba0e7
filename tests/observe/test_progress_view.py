from __future__ import annotations

import io

import pytest
from rich.console import Console

from posttrain.observe import progress
from posttrain.observe.progress import ProgressView, clock, sparkline


def plain(**kwargs: object) -> tuple[ProgressView, io.StringIO]:
    out = io.StringIO()
    return ProgressView("bapo", console=Console(file=out, width=200), **kwargs), out  # type: ignore[arg-type]  # test options


def test_one_plain_line_every_few_steps_outside_a_terminal() -> None:
    view, out = plain(every=5)
    for step in range(1, 13):
        view.update(step, 12, {"reward": step / 10, "loss": -0.1})
    lines = out.getvalue().splitlines()
    assert [line.split()[2] for line in lines] == ["1/12", "5/12", "10/12", "12/12"]
    assert "reward 1.200" in lines[-1]
    assert "loss" not in lines[-1]  # a surrogate's value says nothing
    assert "done in" in lines[-1]


def test_the_numbers_that_matter_and_their_last_known_values() -> None:
    view, _ = plain()
    view.update(1, 10, {"reward": 0.5, "accuracy": 0.25, "entropy": 1.5, "tokens_per_second": 12345.6})
    view.update(
        2, 10, {"bapo/clip_low": 0.6, "bapo/clip_high": 1.85, "bapo/positive_share": 0.41, "reward": None}
    )
    assert view.fields() == [
        ("reward", "0.500"), ("accuracy", "0.250"), ("entropy", "1.500"), ("bounds", "0.60-1.85"), ("share", "0.410"),
    ]  # fmt: skip
    assert "12,346 tok/s" in view.line()


def test_a_held_out_number_says_when_it_was_measured() -> None:
    view, _ = plain()
    view.update(4, 10, {"eval_accuracy": 0.5})
    assert view.fields() == [("held-out", "0.500")]
    view.update(6, 10, {"reward": 0.75})
    assert view.fields() == [("reward", "0.750"), ("held-out", "0.500 (step 4)")]
    view.update(8, 10, {"eval_accuracy": 0.625})
    assert ("held-out", "0.625") in view.fields()


def test_preference_and_sft_runs_show_loss_and_their_accuracy() -> None:
    view, _ = plain()
    view.update(1, 10, {"loss": 0.6934, "rewards/accuracies": 0.625})
    assert view.fields() == [("accuracy", "0.625"), ("loss", "0.6934")]


def test_other_ranks_print_nothing() -> None:
    view, out = plain(enabled=False)
    view.update(1, 1, {"reward": 1.0})
    view.message("hello")
    view.close()
    assert out.getvalue() == ""


def test_time_left_follows_the_recent_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds per step at first, then one second a step for more than the window."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    view, _ = plain()
    view.update(1, 100, {})
    assert view.seconds_left() is None
    for step in range(2, 51):
        now[0] += 2.0 if step < 20 else 1.0
        view.update(step, 120, {})
    assert view.seconds_left() == pytest.approx(70.0)


def test_a_terminal_is_redrawn_in_place_and_closed() -> None:
    out = io.StringIO()
    with ProgressView("bapo", console=Console(file=out, force_terminal=True, width=120)) as view:
        for step in range(1, 7):
            view.update(step, 6, {"reward": step / 6})
        view.message("held-out accuracy 0.95")
    text = out.getvalue()
    assert "6/6" in text
    assert "held-out accuracy 0.95" in text
    assert "\x1b[?25h" in text  # the cursor is shown again


def test_clock_and_sparkline() -> None:
    assert [clock(s) for s in (0, 75, 4000)] == ["0:00", "1:15", "1:06:40"]
    assert sparkline([0, 1, 2, 3.5, 7]) == "▁▂▃▅█"
    assert sparkline([2, 2]) == "▁▁"
    assert sparkline([0, float("nan"), 1]) == "▁ █"
    assert sparkline([]) == ""
