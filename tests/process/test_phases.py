from __future__ import annotations

import io
import threading
import time

from rich.console import Console

from posttrain.observe.job import JobView
from posttrain.observe.live import LiveLines
from posttrain.observe.progress import ProgressView
from posttrain.process.phases import PHASES, Phase, Phases


def listening() -> Phases:
    phases = Phases()
    phases.listen()
    return phases


def test_a_phase_in_words() -> None:
    assert str(Phase("backward")) == "backward"
    assert str(Phase("forward", 3, 8)) == "forward 3 of 8"
    assert str(Phase("generating", total=1640)) == "generating 1,640"
    assert (
        str(Phase("generating", 3, 16, "token 87 of at most 256"))
        == "generating 3 of 16, token 87 of at most 256"
    )


def test_what_is_said_last_counts_and_blocks_give_it_back() -> None:
    phases = listening()
    phases.say("reading rows")
    phases.say("forward", 1, 2)
    assert phases.in_words() == "forward 1 of 2"
    with phases.within("measuring"):
        assert phases.in_words() == "measuring"
        with phases.within("generating", 640) as generating:
            generating.at(312)
            assert phases.in_words() == "measuring: generating 312 of 640"
        phases.say("measuring: batch", 1, 4)  # in place of the block's own word
        assert phases.in_words() == "measuring: batch 1 of 4"
    assert phases.in_words() == "forward 1 of 2"


def test_a_block_left_by_an_error_is_closed() -> None:
    phases = listening()
    try:
        with phases.within("saving"):
            raise OSError
    except OSError:
        pass
    assert phases.in_words() == ""


def test_what_another_thread_does_stands_beside_and_leaves_nothing() -> None:
    phases = listening()
    phases.say("backward", 1, 2)
    inside, leave = threading.Event(), threading.Event()

    def ahead() -> None:
        with phases.within("generating", 8) as generating:
            generating.at(2)
            inside.set()
            leave.wait(5)

    thread = threading.Thread(target=ahead)
    thread.start()
    assert inside.wait(5)
    assert phases.in_words() == "backward 1 of 2; beside it: generating 2 of 8"
    leave.set()
    thread.join()
    assert phases.in_words() == "backward 1 of 2"
    assert len(phases._stacks) == 1


def test_a_count_may_come_from_a_thread_pool() -> None:
    phases = listening()
    with phases.within("generating", 8) as generating:
        thread = threading.Thread(target=lambda: generating.at(5))
        thread.start()
        thread.join()
        assert phases.in_words() == "generating 5 of 8"


def test_nothing_is_kept_where_nobody_reads() -> None:
    phases = Phases()
    phases.say("forward", 1, 2)
    with phases.within("generating", 8) as generating:
        generating.at(3)
        phases.listen()  # a view that opens in the middle of a block
        generating.at(4)
        assert phases.in_words() == ""
    assert phases._stacks == {}


def test_the_last_sign_of_life_is_the_last_word() -> None:
    phases = listening()
    with phases.within("generating", 8) as generating:
        phases.touched = 0.0
        generating.at(1)
        assert phases.touched > 0.0


def test_a_silence_is_broken_by_a_line_and_a_word_ends_it() -> None:
    out = io.StringIO()
    lines = LiveLines(Console(file=out, width=200), lambda: "frame", lambda: "still here", silence_s=0.3)
    lines.start()
    for _ in range(6):  # half a second in which something else is printed
        time.sleep(0.1)
        lines.spoke()
    assert out.getvalue() == ""
    deadline = time.monotonic() + 10
    while not out.getvalue() and time.monotonic() < deadline:
        time.sleep(0.02)
    lines.stop()
    assert set(out.getvalue().splitlines()) == {"still here"}
    count = out.getvalue().count("\n")
    time.sleep(0.4)
    assert out.getvalue().count("\n") == count  # stopped


def test_a_view_says_what_is_done_before_the_first_step_and_within_a_long_one() -> None:
    view = ProgressView("bapo", console=Console(file=io.StringIO(), width=200))
    with view:
        PHASES.say("loading weights")
        assert view._signs_of_life() == "bapo  loading weights   0:00 since the start"
        view.update(3, 120, {"reward": 0.5})
        with PHASES.within("generating", 640) as phase:
            phase.at(312)
            view._since -= 41
            PHASES.touched -= 7
            line = view._signs_of_life()
        assert line == (
            "bapo  step 3/120  generating 312 of 640   0:41 since step 3   last sign of life 0:07 ago"
        )
    assert not PHASES.listening


def test_the_line_after_a_silence_has_the_numbers_that_were_not_printed() -> None:
    view = ProgressView(console=Console(file=io.StringIO(), width=200), every=100)
    with view:
        view.update(1, 1000, {"reward": 0.25})
        view.update(2, 1000, {"reward": 0.5})
        assert view._signs_of_life().startswith("step    2/1000  reward 0.500")
        assert "reward" not in view._signs_of_life()  # once


def test_how_long_it_took_leaves_the_loading_out() -> None:
    with ProgressView(console=Console(file=io.StringIO(), width=200)) as view:
        view._began -= 100
        view.start_clock()
        view.update(1, 1, {})
        assert view.line().endswith("done in 0:00")


def test_other_ranks_do_not_listen() -> None:
    with ProgressView("bapo", enabled=False):
        assert not PHASES.listening


def test_a_terminal_shows_the_phase_and_leaves_it_out_of_the_last_frame() -> None:
    out = io.StringIO()
    with ProgressView("bapo", console=Console(file=out, force_terminal=True, width=120)) as view:
        PHASES.say("loading weights")
        view._lines.redraw()
        view.update(1, 6, {"reward": 0.5})
        PHASES.say("forward", 3, 8)
        view._lines.redraw()
    text = out.getvalue()
    assert "loading weights" in text
    assert "forward 3 of 8" in text
    assert "forward 3 of 8" not in text[text.rindex("1/6") :]


def test_a_job_says_how_far_it_is_and_what_it_does() -> None:
    console = Console(file=io.StringIO(), width=200)
    with JobView("loading tiny", console) as job:
        assert job.line() == "loading tiny   0:00 so far"
    rate = {(56, 256): "4.0/s, 50 s left"}
    job = JobView("gsm8k: generating", console, 256, rate=lambda *at: rate.get(at, ""))
    with job, PHASES.within("generating", 16) as phase:
        phase.at(3)
        assert job.line() == "gsm8k: generating: 0 of 256   generating 3 of 16   0:00 so far"
        job.update(56, 256)
        assert job.line() == "gsm8k: generating: 56 of 256, 4.0/s, 50 s left   generating 3 of 16"
