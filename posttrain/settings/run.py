"""What a method may look at of the recipe around it, before a GPU is held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RunView:
    """A recipe as its method sees it.

    method     its name in the recipe, which messages say
    place      the section that holds the settings that are asked: "objective", or "objective.base_settings"
    train      sections of the recipe, as posttrain/recipe/sections.py and train_options.py declare them; `rollout` is
    data       None where nothing is generated
    model
    rollout
    processes  how many train
    prompts    of one rollout, over all processes; None where nothing is generated
    """

    method: str
    place: str
    train: Any
    data: Any
    model: Any
    rollout: Any
    processes: int
    prompts: int | None

    def refused_train(self, reasons: Mapping[str, str]) -> Iterator[str]:
        """A fault for each option of `train` in `reasons` (option -> why it must stay as it is) that was changed."""
        for key, reason in reasons.items():
            if key in self.train.changed():
                yield f"train: '{key}' has no place with method '{self.method}': {reason}; leave it out"
