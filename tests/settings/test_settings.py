"""Settings of a method: checked in Python as strictly as in a recipe, each with its meaning."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import ValidationError
from pydantic.dataclasses import dataclass

from posttrain.recipe.methods import METHODS
from posttrain.settings import Settings, Triple
from posttrain.settings.base import REQUIRED, checked, list_settings


@dataclass(frozen=True)
class Base(Settings):
    answers: ClassVar[bool] = False

    clip_low: Annotated[float, Gt(0)] = 0.2
    """epsilon_low"""
    clip_high: Annotated[float, Gt(0), Lt(10)] = 0.28

    def __post_init__(self) -> None:
        if self.clip_low > self.clip_high:
            raise ValueError(f"clip must rise, not from {self.clip_low} to {self.clip_high}")


@dataclass(frozen=True, kw_only=True)
class Child(Base):
    answers: ClassVar[bool] = True

    clip_high: Annotated[float, Gt(0)] = 3.0
    """without an end"""
    low: Triple = (0.8, 0.9, -0.02)
    scope: Literal["step", "microbatch"] = "step"
    rounds: Annotated[int, Ge(1)] | None = None
    names: list[str] = dataclasses.field(default_factory=lambda: ["a"])
    table: dict[str, int] = dataclasses.field(default_factory=dict)
    must: bool
    """wanted"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds is None:
            object.__setattr__(self, "rounds", 7)


def test_fields_defaults_and_inheritance() -> None:
    assert Child(must=True).values() == {
        "clip_low": 0.2,
        "clip_high": 3.0,
        "low": (0.8, 0.9, -0.02),
        "scope": "step",
        "rounds": 7,
        "names": ["a"],
        "table": {},
        "must": True,
    }


def test_lists_pass_for_tuples_and_integers_for_floats() -> None:
    for settings in (
        Child(must=False, low=[1, 2, 3], clip_high=3),  # type: ignore[arg-type]  # as YAML reads it
        checked(Child, {"must": False, "low": [1, 2, 3], "clip_high": 3}),
    ):
        assert settings.low == (1.0, 2.0, 3.0)
        assert settings.clip_high == 3.0


@pytest.mark.parametrize(
    "bad",
    [
        {"clip_low": "fast"},
        {"clip_low": "1"},
        {"clip_low": True},
        {"clip_low": 0},
        {"clip_low": None},
        {"clip_high": math.inf},
        {"clip_high": math.nan},
        {"low": [1, 2]},
        {"low": [1, 2, 3, 4]},
        {"low": [1, True, 3]},
        {"low": "123"},
        {"scope": "epoch"},
        {"rounds": 0},
        {"rounds": 1.5},
        {"rounds": 2.0},
        {"names": "a"},
        {"must": 1},
        {"clip_hi": 0.3},
    ],
)
def test_wrong_values_are_refused_in_python_and_from_a_file(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Child(**({"must": True} | bad))
    with pytest.raises(ValueError, match=f"^here: {next(iter(bad))}"):
        checked(Child, {"must": True} | bad, "here: ")


def test_a_field_without_default_is_required() -> None:
    with pytest.raises(ValidationError, match="must"):
        Child()  # type: ignore[call-arg]  # that is the test
    assert {setting.name for setting in list_settings(Child) if setting.default is REQUIRED} == {"must"}


def test_the_text_below_a_field_is_its_meaning_in_subclasses_too() -> None:
    found = {setting.name: setting.meaning for setting in list_settings(Child)}
    assert list(found) == ["clip_low", "clip_high", "low", "scope", "rounds", "names", "table", "must"]
    assert (found["clip_low"], found["clip_high"], found["low"]) == ("epsilon_low", "without an end", "")


def test_own_and_inherited_refusals_of_how_values_go_together() -> None:
    with pytest.raises(ValueError, match="clip must rise, not from 4.0 to 3.0"):
        Child(must=True, clip_low=4.0)
    with pytest.raises(ValueError, match=r"^clip must rise, not from 4.0 to 3.0$"):
        checked(Child, {"must": True, "clip_low": 4.0}, "here: ")


def test_settings_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Child(must=True).must = False  # type: ignore[misc]  # that is the test


# Every method's


NEEDED: dict[str, dict[str, Any]] = {"salsa": {"others": ["second"]}}
"""What a method cannot be made without."""


def beyond(annotation: Any) -> list[Any]:
    """Values just outside the bounds of an annotation."""
    if get_origin(annotation) is not Annotated:
        return [value for member in get_args(annotation) for value in beyond(member)]
    kind, *marks = get_args(annotation)
    found: list[Any] = []
    for mark in marks:
        match mark:
            case Gt(gt=limit) | Lt(lt=limit):
                found.append(kind(limit))
            case Ge(ge=limit):
                found.append(kind(limit) - 1)
            case Le(le=limit):
                found.append(kind(limit) + 1)
    return found


def is_number(annotation: Any) -> bool:
    members = [annotation, *get_args(annotation), *(m for a in get_args(annotation) for m in get_args(a))]
    return (float in members or int in members) and get_origin(annotation) not in (list, dict)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_refuses_what_a_recipe_could_not_hold(name: str) -> None:
    cls, needed = METHODS[name].load_settings(), NEEDED.get(name, {})
    assert issubclass(cls, Settings)
    cls(**needed)
    wrong: list[tuple[str, Any]] = [("nonsense", 1)]
    for setting in list_settings(cls):
        wrong += [(setting.name, value) for value in (set(), object(), *beyond(setting.annotation))]
        if is_number(setting.annotation):
            wrong += [(setting.name, value) for value in ("1", True, math.inf, math.nan, -math.inf)]
    for key, value in wrong:
        with pytest.raises(ValidationError):
            cls(**{**needed, key: value})


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_of_a_method_has_a_meaning(name: str) -> None:
    cls = METHODS[name].load_settings()
    settings = list_settings(cls)
    assert [setting.name for setting in settings if not setting.meaning] == []
    assert {setting.name for setting in settings} == {field.name for field in dataclasses.fields(cls)}


@pytest.mark.parametrize("name", METHODS)
def test_what_was_filled_in_at_construction_makes_the_same_settings_again(name: str) -> None:
    """A recipe is written with every value, and read again."""
    settings = METHODS[name].load_settings()(**NEEDED.get(name, {}))
    assert type(settings)(**settings.values()) == settings
    assert checked(type(settings), settings.values()) == settings


def test_a_wrong_target_is_refused_where_it_is_given() -> None:
    from posttrain.objectives.bapo import BAPO

    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        BAPO(target=-1)
