"""The reward that keeps a policy to its goal: what a recipe says of it. It is scored where the trainer is, which has
the policy; no torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from posttrain.rewards.hooks import judges_each
from posttrain.rewards.resolve import RewardSpec
from posttrain.rewards.signature import RewardSpecError

NAME = "drift_penalty"
Measure = Literal["sampled", "vocabulary"]


@dataclass(frozen=True)
class DriftReward:
    """
    reference  folder or hub name of the model that p is of
    measure    sampled or vocabulary, see drift_penalty
    """

    reference: str
    measure: Measure = "sampled"
    weight: float = 1.0
    label: str | None = None

    @property
    def title(self) -> str:
        """The name under which it is logged."""
        return self.label or NAME

    @classmethod
    def of(cls, spec: RewardSpec) -> DriftReward:
        """From the reward as a recipe or Python names it. RewardSpecError without a reference."""
        if not isinstance(spec.args.get("reference"), str):
            raise RewardSpecError(
                f"reward {NAME!r} needs args.reference, the folder or hub name of the model that keeps to the goal: a "
                "larger one of the family, or the model that training starts from"
            )
        return cls(spec.args["reference"], spec.args.get("measure", "sampled"), spec.weight, spec.label)


@judges_each
def drift_penalty(
    completions: Sequence[str],
    *,
    goal: Sequence[Any],
    reference: str,
    measure: Literal["sampled", "vocabulary"] = "sampled",
    **_: Any,
) -> list[float | None]:
    """Minus the divergence of the policy from a reference that is told the goal once more, in nats per token. For the n
    tokens of a completion y after its prompt h; q the policy, p the frozen `reference` with its tokenizer:

        vocabulary   -D,  D = 1/n sum_j KL( q(. | h, y_<j) || p(. | h, goal, y_<j) )
        sampled      -1/n sum_j ( log q(y_j | h, y_<j) - log p(y_j | h, goal, y_<j) )

    D is what `posttrain eval drift --restate-goal` measures of a turn (arXiv 2510.07777v2). On answers sampled at
    temperature 1 both have one mean. A policy gradient takes a reward for a constant: of the mean it follows the whole
    gradient with `sampled`, and with `vocabulary` only the part that chooses where to go, not what to say there.
    `goal` is a column of the data.
    """
    raise RuntimeError(
        f"{NAME} reads the policy, so the trainer scores it; name it in a recipe's rewards, or hand its RewardSpec to "
        "a trainer, not to a RewardRunner"
    )
