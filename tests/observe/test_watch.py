from __future__ import annotations

from posttrain.observe.watch import WINDOW, Watch, found_thresholds, idle_thresholds, stale_thresholds


def rows(*shares: float) -> list[dict[str, float]]:
    return [{"step": step, "capo/rejected_share": share} for step, share in enumerate(shares, start=1)]


def test_a_window_above_a_tenth_is_named_with_its_steps() -> None:
    run = rows(*[0.05] * 30, *[0.4] * WINDOW)
    (note,) = stale_thresholds(run)
    # 4 steps at .4 and 16 at .05 make .12, 2 and 18 make .085, 3 and 17 make .1025
    assert note.startswith("capo rejected 10% of the tokens in steps 14 to 33:")
    assert "objective.calibration_follows" in note


def test_a_tenth_itself_and_a_short_peak_are_no_fault() -> None:
    assert stale_thresholds(rows(*[0.0625] * 60)) == []
    assert stale_thresholds(rows(*[0.0] * 30, 1.0, *[0.0] * 30)) == []
    assert stale_thresholds(rows(*[0.9] * (WINDOW - 1))) == []


def test_nothing_rejected_in_a_whole_run_is_said() -> None:
    (note,) = idle_thresholds(rows(*[0.0] * 25))
    assert note == "capo rejected no token in 25 logged steps: it was its base, unchanged."
    assert idle_thresholds(rows(*[0.0] * 24, 0.001)) == []
    assert idle_thresholds(rows(*[0.0] * (WINDOW - 1))) == []


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
    assert found_thresholds(run) == [expected]
    watch = Watch()
    assert [watch.see(row) for row in run] == [[], [expected], []]
    assert found_thresholds(run[:1]) == []
