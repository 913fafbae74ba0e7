"""What a checked recipe is: its sections, by the family of its method, and the questions it answers."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any

from pydantic import BaseModel

from posttrain.recipe.methods import METHODS, Family, Method, with_inner
from posttrain.recipe.sections import (
    INHERITED,
    DataSection,
    DiffusionRolloutSection,
    EvaluationSection,
    ModelSection,
    OutputSection,
    RewardSection,
    RolloutSection,
)
from posttrain.recipe.train_options import (
    OURS,
    OWNED,
    DiffusionTrain,
    PolicyTrain,
    PreferenceTrain,
    SFTTrain,
    TrainSection,
)
from posttrain.settings import Settings


@dataclass(frozen=True)
class FamilySections:
    """What a family's recipes hold beyond model, data, objective and output.

    train    its class of `train` options
    rewards  whether a `rewards` section is part of it
    rollout  its class of `rollout` options, or None: then only settings that say `draws_answers` have the section
    benchmarks  whether an `evaluation` section can be: benchmarks are generated left to right
    """

    train: type[TrainSection]
    rewards: bool = False
    rollout: type[RolloutSection] | None = None
    benchmarks: bool = True


FAMILIES: dict[Family, FamilySections] = {
    "sft": FamilySections(SFTTrain),
    "policy": FamilySections(PolicyTrain, rewards=True, rollout=RolloutSection),
    "preference": FamilySections(PreferenceTrain),
    "diffusion": FamilySections(
        DiffusionTrain, rewards=True, rollout=DiffusionRolloutSection, benchmarks=False
    ),
}


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. `objective` is the method's settings themselves."""

    path: str
    method: str
    model: ModelSection
    data: DataSection
    rewards: tuple[RewardSection, ...]
    objective: Settings
    rollout: RolloutSection | None
    train: TrainSection
    output: OutputSection
    evaluation: EvaluationSection | None = None
    overrides: tuple[str, ...] = ()  # as given with --set; the sections hold them already

    @property
    def train_command(self) -> str:
        """What a person types to run it again as it is here."""
        return self.command_with()

    def command_with(self, *changes: str) -> str:
        """The same with further overrides ("train.max_steps=N"), in place of those that it was given of these keys."""
        keys = {change.partition("=")[0] for change in changes}
        kept = [override for override in self.overrides if override.partition("=")[0].strip() not in keys]
        given = [word for override in (*kept, *changes) for word in ("--set", override)]
        return shlex.join(["posttrain", "train", self.path, *given])

    @property
    def spec(self) -> Method:
        return METHODS[self.method]

    def needs_answers(self) -> bool:
        """Whether the method, or one it is built on, reads the final answers of completions."""
        return any(settings.needs_answers for _, settings in with_inner(self.objective))

    def trl_arguments(self, known: Collection[str]) -> dict[str, Any]:
        """Keyword arguments for the TRL config whose field names are `known`: `train` as it stands, and what
        other sections hold under a name of ours (train_options.OWNED)."""
        arguments = {k: v for k, v in self.train.trl_arguments().items() if k in known or k not in OURS}
        for trl_name, place in OWNED.items():
            section, key = place.split(".")
            holder = {"model": self.model, "rollout": self.rollout, "output": self.output}[section]
            if trl_name in known and holder is not None:
                arguments[trl_name] = self.output.run_dir if key == "run_dir" else holder.model_dump()[key]
        return arguments

    def resolved(self) -> dict[str, Any]:
        """Plain data with every default filled in; written as YAML it loads as the same recipe."""
        values = {f.name: vars(self)[f.name] for f in fields(self) if f.name not in ("path", "overrides")}
        values["objective"] = self.objective.values()
        return {name: plain(value) for name, value in values.items() if value not in (None, (), {})}


def plain(value: Any) -> Any:
    """Models to mappings, tuples to lists. A null that is the default is left out."""
    if isinstance(value, BaseModel):
        defaults = {name: field.default for name, field in type(value).model_fields.items()}
        items = {name: plain(item) for name, item in value}
        if isinstance(value, DataSection) and value.eval is not None:
            # An evaluation's null must not be filled from the training data when the file is read again.
            own, given = vars(value.eval), vars(value)
            items["eval"] |= {
                name: None for name in sorted(INHERITED) if own[name] is None is not given[name]
            }
        return {name: item for name, item in items.items() if item is not None or defaults[name] is not None}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return value
