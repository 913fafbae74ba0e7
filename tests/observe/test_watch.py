from __future__ import annotations

from posttrain.observe.watch import Watch, run_notes
from posttrain.settings import WINDOW


def rows(*shares: float) -> list[dict[str, float]]:
    return [{"step": step, "capo/rejected_share": share} for step, share in enumerate(shares, start=1)]


def test_a_window_above_a_tenth_is_named_with_its_steps() -> None:
    run = rows(*[0.05] * 30, *[0.4] * WINDOW)
    (note,) = run_notes(run)
    # 4 steps at .4 and 16 at .05 make .12, 2 and 18 make .085, 3 and 17 make .1025
    assert note.startswith("capo rejected 10% of the tokens in steps 14 to 33:")
    assert "objective.calibration_follows" in note


def test_a_tenth_itself_and_a_short_peak_are_no_fault() -> None:
    assert run_notes(rows(*[0.0625] * 60)) == []
    assert run_notes(rows(*[0.0] * 30, 1.0, *[0.0] * 30)) == []
    assert run_notes(rows(*[0.9] * (WINDOW - 1))) == []


def test_nothing_rejected_in_a_whole_run_is_said() -> None:
    (note,) = run_notes(rows(*[0.0] * 25))
    assert note == "capo rejected no token in 25 logged steps: it was its base, unchanged."
    assert run_notes(rows(*[0.0] * 24, 0.001)) == []
    assert run_notes(rows(*[0.0] * (WINDOW - 1))) == []


def test_while_a_run_goes_it_is_said_once_and_evaluations_between_do_not_hide_it() -> None:
    watch, said = Watch(), []
    for row in rows(*[0.5] * 100):
        said.append(watch.see(row))
        said.append(watch.see({"step": row["step"], "eval_accuracy": 0.4}))
    notes = [(place, note) for place, found in enumerate(said) for note in found]
    ((place, note),) = notes
    assert place == 2 * (WINDOW - 1)
    assert "capo rejected 50% of the tokens in steps 1 to 20" in note


def test_what_a_calibration_found_is_said_at_its_step_and_once() -> None:
    found = {"capo/proposed_objective_threshold": 0.02345, "capo/proposed_policy_threshold": 1.5e-4}
    run = [
        {"step": 1, "capo/rejected_share": 0.0},
        {"step": 2, **found},
        {"step": 3, "capo/rejected_share": 0.04},
    ]
    expected = "capo calibrated at step 2: objective_threshold 0.0234, policy_threshold 0.00015."
    assert run_notes(run) == [expected]
    watch = Watch()
    assert [watch.see(row) for row in run] == [[], [expected], []]
    assert run_notes(run[:1]) == []


def test_bounds_that_stood_still_are_said_of_a_whole_run_and_once_while_it_goes() -> None:
    def bounds(low: float) -> dict[str, float]:
        return {"bapo/clip_low": low, "bapo/clip_high": 1.2, "bapo/positive_share_before": 0.5}

    still = [{"step": step, **bounds(0.8)} for step in range(1, 60)]
    (note,) = run_notes(still)
    assert note.startswith("Adaptive bounds inactive: bapo was a fixed clip (0.80, 1.20) throughout.")
    assert run_notes(still[:4]) == []
    watch = Watch()
    assert [bool(watch.see(row)) for row in still].index(True) == WINDOW - 1
    assert watch.see(still[-1]) == []
    moved = [{"step": 1, **bounds(0.7)}, *still[1:]]
    watch = Watch()
    assert not any(watch.see(row) for row in moved)  # 20 still lines later on are no run without a move
    assert run_notes(moved) == []


def test_a_base_s_numbers_under_the_name_of_the_method_built_on_it_are_its_own_to_explain() -> None:
    logged = {"capo/clip_low": 0.8, "capo/clip_high": 1.2, "capo/positive_share_before": 0.5}
    (note,) = run_notes([{"step": step, **logged} for step in range(1, 9)])
    assert "capo was a fixed clip" in note


def test_names_that_are_no_methods_are_passed_over() -> None:
    assert run_notes([{"step": step, "other/rejected_share": 0.9} for step in range(40)]) == []
