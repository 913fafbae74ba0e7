"""From YAML text to a checked `Recipe`: overrides, inheritance of data.eval, validation, paths."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from posttrain.recipe.data_sections import INHERITED, DataSection
from posttrain.recipe.errors import Place, RecipeError, explain, show, spell, suggest
from posttrain.recipe.methods import METHODS, Family, Method, bases_of, not_here
from posttrain.recipe.overrides import apply_override
from posttrain.recipe.recipe import FAMILIES, FamilySections, Recipe
from posttrain.recipe.sections import (
    EnvironmentSection,
    EvaluationSection,
    OutputSection,
    RewardSection,
    RolloutSection,
    ToolSection,
    run_name_fault,
)
from posttrain.recipe.strict_yaml import parse, read_text
from posttrain.recipe.train_options import ELSEWHERE, OWNED
from posttrain.settings import Settings

SECTIONS = (
    *(
        "method",
        "model",
        "data",
        "rewards",
        "tools",
        "environment",
        "objective",
        "rollout",
        "train",
        "output",
    ),
    "evaluation",
)
ModelT = TypeVar("ModelT")
SectionT = TypeVar("SectionT", bound=BaseModel)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override ("train.learning_rate=1e-5"), check. RecipeError holds every fault found, a line each.

    Paths in a recipe are looked for from the current folder first, then from the recipe's.
    """
    return Loader(str(path), FAMILIES).load(overrides)


class _Nothing(BaseModel):
    """A section the method's family does not have."""

    model_config = ConfigDict(extra="forbid")


class Loader:
    """One reading of one file; collects every fault before it raises."""

    def __init__(self, file: str, families: Mapping[Family, FamilySections]) -> None:
        self.file, self.families = file, families
        self.problems: list[str] = []
        self.models: dict[str, type] = {}

    def load(self, overrides: Sequence[str]) -> Recipe:
        try:
            recipe = self.load_raw(overrides)
        except RecipeError as error:
            if not overrides:
                raise
            raise RecipeError(*self.by_override(error.problems, overrides)) from None
        return replace(recipe, overrides=tuple(overrides))

    def by_override(self, problems: Sequence[str], overrides: Sequence[str]) -> list[str]:
        """The faults, each that comes with an override under that override's name instead of the file's."""
        before: Sequence[str] = ()
        blamed: dict[str, str | None] = {}
        for count in range(len(overrides) + 1):
            try:
                Loader(self.file, self.families).load_raw(overrides[:count])
                found: Sequence[str] = ()
            except RecipeError as error:
                found = error.problems
            # Without a method no section is looked at, so what comes to light behind it may have been there.
            hidden = not count or any(problem.startswith(f"{self.file}: method: ") for problem in before)
            for problem in found:
                if problem not in before:
                    blamed[problem] = None if hidden else overrides[count - 1]
            before = found
        here = f"{self.file}: "
        return [
            problem if (override := blamed.get(problem)) is None
            else f"--set {override}: {problem.removeprefix(here)}"
            for problem in problems
        ]  # fmt: skip

    def load_raw(self, overrides: Sequence[str]) -> Recipe:
        raw = self.read()
        for override in overrides:
            apply_override(raw, override)
        return self.checked(raw)

    def fault(self, *problems: str) -> RecipeError:
        return RecipeError(*(f"{self.file}: {problem}" for problem in problems))

    def checked(self, raw: dict[str, Any]) -> Recipe:
        name = self.method(raw)
        family = self.families[METHODS[name].family]
        self.models = {
            "model": family.model,
            "data": DataSection,
            "objective": METHODS[name].load_settings(),
            "train": family.train,
            "output": OutputSection,
        }
        if family.benchmarks:
            self.models["evaluation"] = EvaluationSection
        if family.rollout is not None or raw.get("rollout") is not None:
            self.models["rollout"] = family.rollout or RolloutSection
        objective = self.settings("objective", _given(raw, "objective"), METHODS[name])
        if (
            family.rollout is None and objective is not None
        ):  # where it is faulty, the section is read as it stands
            self.models.pop("rollout", None)
            if objective.draws_answers:
                self.models["rollout"] = RolloutSection
        of_objective, self.problems = self.problems, []
        self.top_level(raw, name, family, needs_rewards=objective is None or objective.needs_rewards)
        self.problems += of_objective
        recipe = self.sections(raw, name, family, objective)
        if self.problems:
            raise self.fault(*dict.fromkeys(self.problems))
        return recipe

    def read(self) -> dict[str, Any]:
        try:
            raw = parse(read_text(Path(self.file).read_bytes()))
        except OSError as error:
            raise self.fault(f"cannot be read: {error.strerror}") from None
        except ValueError as error:  # a name with a null byte too
            raise self.fault(str(error)) from None
        if not isinstance(raw, dict):
            raise self.fault(f"is not a recipe: expected sections {', '.join(SECTIONS)}")
        return raw

    def method(self, raw: dict[str, Any]) -> str:
        """The method's name; without it no other section can be judged."""
        name = raw.get("method")
        if isinstance(name, str) and name in METHODS:
            return name
        known = ", ".join(METHODS)
        if name is None:
            raise self.fault(f"method: is missing; write one of {known}")
        foreign = not_here(str(name))
        if foreign:
            raise self.fault(f"method: {foreign}")
        hint = suggest(str(name), METHODS) or f"; methods are {known}"
        raise self.fault(f"method: unknown method {show(name)}{hint}")

    def top_level(
        self, raw: dict[str, Any], name: str, family: FamilySections, *, needs_rewards: bool
    ) -> None:
        for key in raw:
            if key not in SECTIONS:
                homes = [section for section, model in self.models.items() if key in _fields(model)]
                hint = f"; it belongs in section {' or '.join(homes)}" if homes else suggest(key, SECTIONS)
                self.problems.append(f"{key}: unknown section{hint}")
        absent = {"rewards": not family.rewards, "rollout": "rollout" not in self.models}
        absent |= {"evaluation": not family.benchmarks}
        absent |= dict.fromkeys(("tools", "environment"), not family.tools)
        for key in [key for key, gone in absent.items() if gone and raw.get(key) is not None]:
            self.problems.append(f"{key}: has no effect with method {name!r}; remove the section")
        # an environment may judge by itself
        judged = family.rewards and needs_rewards and not (family.tools and raw.get("environment"))
        required = ["model", "data", "train", *(["rewards"] if judged else [])]
        for key in required:
            if not raw.get(key):
                self.problems.append(f"{key}: the section is missing")

    def sections(
        self, raw: dict[str, Any], name: str, family: FamilySections, objective: Settings | None
    ) -> Recipe:
        """The recipe; a section with faults is None in it, and `problems` says why."""
        inherit_eval(raw)
        found: dict[str, Any] = {"objective": objective, "rollout": None, "rewards": (), "evaluation": None}
        for section in ("model", "data", "train"):
            found[section] = self.validate(section, raw.get(section), self.models[section])
        for section in ("rollout", "output"):
            if section in self.models:
                found[section] = self.validate(section, _given(raw, section), self.models[section])
        if family.benchmarks and raw.get("evaluation") is not None:
            found["evaluation"] = self.validate("evaluation", raw["evaluation"], EvaluationSection)
        if family.rewards:
            found["rewards"] = self.rewards(raw.get("rewards"))
        if family.tools:
            found["tools"] = self.tools(raw.get("tools"))
            found["environment"] = self.validate("environment", raw.get("environment"), EnvironmentSection)
            if found["environment"] is not None:
                found["environment"] = self.located_taskset(self.located_function(found["environment"]))
        if objective is not None:
            found["objective"] = self.located_settings(objective)
        for section, keys in _PLACES.items():
            if found[section] is not None:
                found[section] = self.located(found[section], *keys)
        if found["data"] is not None:
            found["data"] = self.located_data(found["data"])
            found["environment"] = _with_tasks(found.get("environment"), found["data"])
        if found["output"] is not None and not found["output"].name:
            stem = Path(self.file).stem
            if (fault := run_name_fault(stem)) is not None:
                self.problems.append(f"output: {fault} (it was taken from the recipe's file name)")
            found["output"] = found["output"].model_copy(update={"name": stem})
        return Recipe(path=self.file, method=name, **found)

    def settings(self, section: str, raw: Any, method: Method) -> Settings | None:
        """A method's settings: fields, the class's own checks, and those of a method they are the settings of."""
        found: Settings | None = self.validate(section, raw, method.load_settings())
        if found is None:
            return None
        self.problems += [
            f"{section}: '{spell(place)}' must be at most {_LARGEST[type(value)]:g} in size, not {show(value)}"
            for place, value in _numbers(found.values())
            if abs(value) > _LARGEST[type(value)]
        ]
        inner = found.inner()
        if inner is not None and found.built_on is not None:
            if inner.method not in (bases := bases_of(type(found))):
                near = suggest(inner.method, bases) or f"; it is one of {', '.join(bases)}"
                self.problems.append(
                    f"{section}: {found.built_on.chooser} {show(inner.method)} cannot be{near}"
                )
                return None
            self.settings(f"{section}.{inner.field}", dict(inner.values), METHODS[inner.method])
        return found

    def rewards(self, raw: Any) -> tuple[RewardSection, ...]:
        if raw is not None and not isinstance(raw, list):
            self.problems.append("rewards: must be a list: - {name: math_answer, weight: 1.0}")
            return ()
        found = [self.validate(f"rewards[{i}]", item, RewardSection) for i, item in enumerate(raw or [])]
        rewards = [self.located_reward(reward) for reward in found if reward is not None]
        labels = [reward.label or reward.name or str(reward.model) for reward in rewards]
        for label in sorted({label for label in labels if labels.count(label) > 1}):
            self.problems.append(f"rewards: {label!r} stands twice; give each a 'label' of its own")
        return tuple(rewards)

    def tools(self, raw: Any) -> tuple[ToolSection, ...]:
        if raw is not None and not isinstance(raw, list):
            self.problems.append("tools: must be a list: [python, file.py:function]")
            return ()
        found = [self.validate(f"tools[{i}]", item, ToolSection) for i, item in enumerate(raw or [])]
        given = [self.located_function(one) for one in found if one is not None]
        return tuple(self.located_args(one, "search", "corpus") for one in given)

    def located_args(self, section: SectionT, name: str, *keys: str) -> SectionT:
        """A built-in tool or reward of that name with the places of the files found that its args name."""
        given = vars(section)
        found = {key: self.locate(at) for key in keys if isinstance(at := given["args"].get(key), str)}
        if given["name"] != name or not found:
            return section
        return section.model_copy(update={"args": {**given["args"], **found}})

    def validate(self, section: str, raw: Any, model: type[ModelT]) -> ModelT | None:
        """The section as `model`, or None with the faults noted. Absent sections were noted before."""
        if raw is None:
            return None
        try:
            # JSON mode is strict about types and still reads a list as a tuple, a whole number as a float.
            return TypeAdapter(model).validate_json(json.dumps(raw), strict=True)
        except ValidationError as error:
            found = explain(error, section, raw, lambda place: self.unknown(section, place, model))
            # What data.eval inherits, it inherits with its faults: said once, for data.
            inherited = {
                f"data.eval{fault.removeprefix('data')}" for fault in found if fault.startswith("data")
            }
            self.problems += [fault for fault in found if fault not in inherited]
            return None

    def unknown(self, section: str, place: Place, model: type) -> str:
        """What to say about an unknown key: TRL's, another family's, another section's, or a misspelling."""
        key = str(place[-1])
        if len(place) > 1:
            return f"unknown key '{key}'{suggest(key, _keys_at(model, place[:-1]))}"
        if section == "train" and (moved := self.moved(key)):
            return moved
        near = suggest(key, _fields(model))
        homes = [name for name, other in self.models.items() if key in _fields(other) and name != section]
        if homes:
            return f"'{key}' belongs in section {' or '.join(homes)}"
        if section.startswith("objective"):
            return f"{model.__name__} has no setting '{key}'{near or _settings_of(model)}"
        return f"unknown key '{key}'{near}"

    def moved(self, key: str) -> str | None:
        """For a name of TRL's that does not go into this family's `train`: where it goes."""
        owner, _, _ = OWNED.get(key, "").partition(".")
        if owner in self.models and key not in ELSEWHERE:
            return f"'{key}' is not set here; write {OWNED[key]}"
        if key in ELSEWHERE:
            return f"'{key}' is not set here; {ELSEWHERE[key]}"
        others = [name for name, other in self.families.items() if key in other.train.model_fields]
        if others:
            return f"'{key}' has no effect here, it belongs to {' and '.join(others)} methods; remove it"
        return None

    def located(self, section: SectionT, *keys: str) -> SectionT:
        found = {key: self.locate(section.__dict__[key]) for key in keys if section.__dict__.get(key)}
        return section.model_copy(update=found)

    def located_settings(self, objective: Settings) -> Settings:
        """Settings that name files or models, with the places found."""
        found = {}
        for key in (*objective.names_files, *objective.names_models):
            value = vars(objective)[key]
            found[key] = (
                [self.locate(v) for v in value] if isinstance(value, list) else value and self.locate(value)
            )
        return replace(objective, **found)

    def located_data(self, data: DataSection) -> DataSection:
        if data.eval is not None:
            held_out = self.located_taskset(self.located(data.eval, "path"))
            data = data.model_copy(update={"eval": held_out})
        return self.located(self.located_taskset(data), "path")

    def located_taskset(self, section: SectionT) -> SectionT:
        """Tasks of verifiers out of path/file.py:NAME, with the place found."""
        given = vars(section)
        file, colon, target = str(given["args"].get("taskset", "")).rpartition(":")
        if given["name"] != "verifiers" or not file.endswith(".py"):
            return section
        return section.model_copy(
            update={"args": {**given["args"], "taskset": f"{self.locate(file)}{colon}{target}"}}
        )

    def located_reward(self, reward: RewardSection) -> RewardSection:
        if reward.name is None:
            return self.located(reward, "model")
        named = RewardSection.files_of.get(reward.name, ())
        return self.located_function(self.located_args(reward, reward.name, *named))

    def located_function(self, section: SectionT) -> SectionT:
        """A section whose name is path/file.py:NAME, with the place found."""
        file, colon, function = section.__dict__["name"].rpartition(":")
        if not file.endswith(".py"):
            return section
        return section.model_copy(update={"name": f"{self.locate(file)}{colon}{function}"})

    def locate(self, path: str) -> str:
        """`path` from the current folder, else from the recipe's; unchanged where it exists in neither."""
        try:
            here = Path(path).expanduser()
            beside = Path(self.file).parent / here
            if _is_there(here):
                return str(here)
            return str(beside) if _is_there(beside) else path
        except (OSError, RuntimeError, ValueError):  # too long a name, no such user, a null byte
            return path


def _with_tasks(environment: EnvironmentSection | None, data: DataSection) -> EnvironmentSection | None:
    """An environment of verifiers without args is that of the data's tasks."""
    if environment is None or environment.name != "verifiers" or environment.args or data.name != "verifiers":
        return environment
    args = {key: data.args[key] for key in ("taskset", "config") if key in data.args}
    return environment.model_copy(update={"args": args})


def _is_there(path: Path) -> bool:
    """Whether the path, or a file that it matches as a pattern (train-*.parquet), exists."""
    return path.exists() or ("*" in path.name and any(path.parent.glob(path.name)))


def inherit_eval(raw: dict[str, Any]) -> None:
    """data.eval reads its rows as data does, unless it says otherwise; without a source of its own it is
    the "test" split of the same name."""
    data = raw.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("eval"), dict):
        return
    own = data["eval"]
    shared = {key: value for key, value in data.items() if key in INHERITED}
    if "name" in data and not {"name", "path"} & own.keys():
        shared |= {key: data[key] for key in ("name", "config", "args") if key in data} | {"split": "test"}
    data["eval"] = shared | own


_PLACES = {"model": ("path", "tokenizer", "chat_template", "response_template"), "train": ("beta_model",)}
_LARGEST: dict[type, float] = {int: 10**6, float: 1e9}
"""Of a method's numbers that bound themselves nowhere: counts of passes and steps, coefficients and thresholds."""


def _numbers(value: Any, place: Place = ()) -> Iterator[tuple[Place, int | float]]:
    """Every number in plain data, with its place."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield place, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, (*place, str(key)))
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from _numbers(item, (*place, position))


def _fields(model: type) -> Collection[str]:
    """The keys of a section: of a pydantic model, or of a method's settings."""
    return (
        model.model_fields
        if issubclass(model, BaseModel)
        else [field.name for field in dataclasses.fields(model)]
    )


def _keys_at(model: type, place: Sequence[str | int]) -> Iterator[str]:
    """Field names of the model found under `place`, for did-you-mean in nested sections."""
    for part in place:
        if isinstance(part, str) and issubclass(model, BaseModel) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            members = [annotation, *get_args(annotation)]
            nested = [m for m in members if isinstance(m, type) and issubclass(m, BaseModel)]
            if not nested:
                return
            model = nested[0]
    yield from _fields(model)


def _given(raw: dict[str, Any], section: str) -> Any:
    """The section as written; one left out or left empty is all defaults."""
    return {} if raw.get(section) is None else raw[section]


def _settings_of(model: type) -> str:
    names = ", ".join(_fields(model))
    return f"; its settings are {names}" if names else "; it has none"
