"""Why a generated token carried no gradient: the names, in the order of precedence, and what they mean.

Kept apart from signal.py so that the report can read a run without torch.
"""

from __future__ import annotations

CARRIED = "carried"
THROWN_AWAY = "thrown_away"
LEFT_OUT = "left_out"

REASONS: dict[str, str] = {
    "tool": "written by a tool or the environment, not by the model",
    "unjudged": "no reward function could judge the response",
    "equal_rewards": "every response of the group earned the same, so the advantage is zero",
    THROWN_AWAY: "sampled over by rollout.resample: its group was not trained on",
    "truncated": "the response hit the length limit and is masked",
    "importance": "masked by a weight of zero: importance of the sampler, off-policy mask, low entropy",
    LEFT_OUT: "the method learned from other responses of the group",
    "clipped_low": "ratio below the lower bound, advantage negative",
    "clipped_high": "ratio above the upper bound, advantage positive",
    "dual_clipped": "ratio so high, advantage negative, that the loss is capped",
    "nonfinite": "NaN or infinity in the gradient, the ratio or the importance weight",
    "curvature": "rejected by the objective's keep mask",
    "other": "masked for another reason, or a gradient of exactly zero",
}
"""A token is counted under the first reason that holds."""

CLASSES: tuple[str, ...] = (CARRIED, *REASONS)
WHERE_ANY = (THROWN_AWAY, LEFT_OUT)
"""Classes that are logged where they are not empty: most runs keep, and learn from, all they sample."""
PREFIX = "signal/"
