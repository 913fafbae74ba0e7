"""`metric_for_best_model` is asked for at the start: upstream looks for it at the first save after an evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from posttrain.recipe.errors import suggest

TIMES = frozenset({"runtime", "samples_per_second", "steps_per_second"})
"""What transformers adds to every evaluation."""
POLICY_EVALUATION = TIMES | {
    "reward",
    "reward_std",
    "accuracy",
    "frac_reward_zero_std",
    "num_tokens",
    *(
        f"completions/{of}_{what}"
        for of in ("mean", "min", "max")
        for what in ("length", "terminated_length")
    ),
    "completions/clipped_ratio",
}
"""An evaluation of a policy generates and scores: it has no loss."""
PAIR_EVALUATION = TIMES | {
    "loss",
    "pair_loss",
    "entropy",
    "mean_token_accuracy",
    "num_tokens",
    *(f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")),
    *(f"logps/{name}" for name in ("chosen", "rejected", "chosen_per_token")),
}
MARKED_EVALUATION = TIMES | {
    "loss",
    "entropy",
    "num_tokens",
    *(f"rewards/{name}" for name in ("chosen", "rejected", "margins")),
    *(f"logps/{name}" for name in ("chosen", "rejected", "chosen_per_token")),
}
SFT_EVALUATION = TIMES | {"loss", "entropy", "mean_token_accuracy", "num_tokens"}


def policy_names(runner: Any, rewards: Iterable[str], more: Iterable[str]) -> set[str] | None:
    """What an evaluation of a policy logs, `more` included; None where rewards may log names of their own."""
    signatures = [] if runner is None else runner.signatures
    if any("log_metric" in one.objects or not one.known for one in signatures):
        return None
    each = [f"rewards/{name}/{what}" for name in rewards for what in ("mean", "std")]
    return {*POLICY_EVALUATION, *each, *more}


def check_best_metric(args: Any, names: set[str] | frozenset[str] | None) -> None:
    """Raises ValueError where no evaluation will log `args.metric_for_best_model`. names None: they are not known."""
    wanted = args.metric_for_best_model
    if wanted is None or names is None or args.eval_strategy == "no":
        return
    name = wanted.removeprefix("eval_")
    if name in names or any(name.endswith(f"_{one}") for one in names):  # of one of several held-out sets
        return
    raise ValueError(
        f"metric_for_best_model is {wanted!r}, which no evaluation of this trainer logs{suggest(name, names)}; there "
        f"are {', '.join(sorted(names))}"
    )
