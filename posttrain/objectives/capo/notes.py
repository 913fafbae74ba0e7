"""What CAPO's numbers say while a run goes on and in its report: thresholds found, outgrown, or never met."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.settings import WINDOW, Note, RunCurves

TOO_MANY = 0.1
"""Share of rejected tokens above which thresholds do not fit the run."""


def run_notes(curves: RunCurves) -> Iterator[Note]:
    yield from _found(curves)
    yield from _outgrown(curves)
    if curves.ended:
        yield from _never_met(curves)


def _found(curves: RunCurves) -> Iterator[Note]:
    """What a calibration proposed, to be used from then on or written into the next recipe."""
    steps, policy = curves.of("proposed_policy_threshold")
    objective = curves.of("proposed_objective_threshold")[1]
    if policy and objective:
        yield Note(
            f"calibrated {steps[-1]}",
            f"{curves.method} calibrated at step {steps[-1]}: objective_threshold {objective[-1]:.3g}, "
            f"policy_threshold {policy[-1]:.3g}.",
        )


def _outgrown(curves: RunCurves) -> Iterator[Note]:
    """Where more than `TOO_MANY` tokens are left out for `WINDOW` logged steps: the first such steps."""
    steps, shares = curves.of("rejected_share")
    for end in range(WINDOW, len(steps) + 1):
        mean = sum(shares[end - WINDOW : end]) / WINDOW
        if mean > TOO_MANY:
            yield Note(
                "outgrown",
                f"{curves.method} rejected {mean:.0%} of the tokens in steps {steps[end - WINDOW]} to "
                f"{steps[end - 1]}: its thresholds do not fit this model, learning rate or length of run. Find them "
                "with objective.calibrate, and let them follow with objective.calibration_follows.",
            )
            return


def _never_met(curves: RunCurves) -> Iterator[Note]:
    """Thresholds that no token ever met: the method was the objective it is built on."""
    shares = curves.of("rejected_share")[1] or curves.of("scaled_share")[1]
    if len(shares) >= WINDOW and not any(shares):
        yield Note(
            "never met",
            f"{curves.method} rejected no token in {len(shares)} logged steps: it was its base, unchanged.",
        )
