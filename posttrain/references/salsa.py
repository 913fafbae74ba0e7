"""SALSA, soup-based alignment learning. Chegini et al. 2024, https://arxiv.org/abs/2411.01798

Against RLHF with its usual reference: the policy starts at one SFT model, but the KL penalty pulls it
towards the average of the weights of two or more SFT models from the same start, which lies in a better
basin and leaves the policy more room. Only the reference differs; the objective stays what it is.

    theta_soup = alpha * theta_1 + (1 - alpha) * theta_2,   max E[r] - beta * KL(pi_theta || pi_soup)

Departures: the paper optimises with PPO and a critic (`objective: ppo`); here any objective of this project does it
(GRPO by default, whose KL is a token-level estimate inside the loss, not a part of the reward). More than two
models, and other objectives, are ours. The KL does not begin at 0: the policy starts away from its reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any, ClassVar

from pydantic.dataclasses import dataclass

from posttrain.settings import BuiltOn, RunView, Settings, Start


@dataclass(frozen=True)
class SALSA(Settings):
    """What the policy is pulled towards, and which objective pulls it. `beta` is the trainer's and must be above 0."""

    brings_reference: ClassVar[bool] = True
    names_models: ClassVar[tuple[str, ...]] = ("others",)
    fixed_on_resume: ClassVar[tuple[str, ...]] = ("objective", "weights")
    built_on: ClassVar[BuiltOn | None] = BuiltOn("objective", "objective_settings", "is_objective")

    others: list[str] = field(default_factory=list)
    """theta_2, ...: folders or hub names of the further SFT models"""
    weights: list[float] = field(default_factory=lambda: [0.5, 0.5])
    """alpha, 1 - alpha: the model's own first"""
    objective: str = "grpo"
    """what optimises the reward; the paper has PPO"""
    objective_settings: dict[str, Any] = field(default_factory=dict)
    """of that objective"""
    kl_to_start: bool = True
    """also log the KL to the first SFT model, at the price of one more forward"""

    def __post_init__(self) -> None:
        if not self.others:
            raise ValueError("SALSA: name the further SFT models of the soup in 'others'")
        if len(self.weights) != len(self.others) + 1:
            raise ValueError(
                f"SALSA: {len(self.others) + 1} models (the policy's own and {len(self.others)} others) but "
                f"{len(self.weights)} weights"
            )
        if min(self.weights) < 0 or abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(f"SALSA: weights {list(self.weights)} must not be negative and must sum to 1")

    @classmethod
    def start(cls, *, model: str, rewards: tuple[float, float] | None) -> Mapping[str, Start]:
        note = "others: name your second SFT model; as it stands the soup is the model itself"
        return {"others": Start([model], note)}

    def reference_copies(self, *, adapter: bool) -> int:
        # an adapter run has its start in the base under it, the soup it has to hold all the same
        return 1 + (self.kl_to_start and not adapter)

    def faults(self, run: RunView) -> Iterator[str]:
        yield from run.refused_train({"sync_ref_model": "it would overwrite the soup"})
        if run.train.beta == 0:
            yield f"train: beta 0 leaves method '{run.method}' without its reference; set beta above 0"
