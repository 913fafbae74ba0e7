"""What a checked recipe is: its sections, by the family of its method, and the questions it answers."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any

from pydantic import BaseModel

from posttrain.recipe.data_sections import INHERITED, DataSection
from posttrain.recipe.image_sections import FlowModelSection, FlowRolloutSection
from posttrain.recipe.methods import METHODS, Family, Method, with_inner
from posttrain.recipe.sections import (
    DiffusionRolloutSection,
    EnvironmentSection,
    EvaluationSection,
    ModelSection,
    OutputSection,
    RewardSection,
    RolloutSection,
    ToolSection,
)
from posttrain.recipe.train_options import (
    OURS,
    OWNED,
    DiffusionTrain,
    FlowSFTTrain,
    FlowTrain,
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
    tools    whether the model may have tools and an environment
    rollout  its class of `rollout` options, or None: then only settings that say `draws_answers` have the section
    benchmarks  whether an `evaluation` section can be: benchmarks are generated left to right
    model    its class of `model` options
    """

    train: type[TrainSection]
    rewards: bool = False
    tools: bool = False
    rollout: type[RolloutSection] | type[FlowRolloutSection] | None = None
    benchmarks: bool = True
    model: type[ModelSection] = ModelSection


FAMILIES: dict[Family, FamilySections] = {
    "sft": FamilySections(SFTTrain),
    "policy": FamilySections(PolicyTrain, rewards=True, tools=True, rollout=RolloutSection),
    "preference": FamilySections(PreferenceTrain),
    "diffusion": FamilySections(
        DiffusionTrain, rewards=True, rollout=DiffusionRolloutSection, benchmarks=False
    ),
    "image_sft": FamilySections(FlowSFTTrain, benchmarks=False, model=FlowModelSection),
    "images": FamilySections(
        FlowTrain, rewards=True, rollout=FlowRolloutSection, benchmarks=False, model=FlowModelSection
    ),
}


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. `objective` is the method's settings themselves. The `rollout` of a method that makes images
    is a FlowRolloutSection, which `flow_rollout` gives by its own type; rooms for texts are not asked about it."""

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
    tools: tuple[ToolSection, ...] = ()
    environment: EnvironmentSection | None = None
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
    def flow_rollout(self) -> FlowRolloutSection:
        """The `rollout` section of a method that makes images. ValueError for another."""
        rollout: Any = self.rollout
        if not isinstance(rollout, FlowRolloutSection):
            raise ValueError(
                f"{self.path}: {self.method} makes no images to learn from, so it has no such section"
            )
        return rollout

    @property
    def spec(self) -> Method:
        return METHODS[self.method]

    @property
    def has_tools(self) -> bool:
        """Whether responses take turns: the model may call something."""
        return bool(self.tools) or self.environment is not None

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
