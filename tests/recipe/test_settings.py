"""A method's settings read from source: every rule of the reader, and agreement with the real dataclasses."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from posttrain.recipe.methods import METHODS
from posttrain.recipe.settings import SettingsError, check_settings, list_settings, read_flags, read_settings

BASE = '''
from __future__ import annotations
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch  # never imported by the reader
from annotated_types import Ge, Gt, Lt

LOW = 0.8
Positive = Annotated[float, Gt(0)]


def rises(name, pair):
    if pair[0] > pair[1]:
        raise ValueError(f"{name} must rise, not {pair}")


@dataclass(frozen=True)
class Base:
    """A method."""

    needs: ClassVar[frozenset[str]] = frozenset()
    needs_answers: ClassVar[bool] = False
    clip_low: Positive = 0.2  # epsilon_low
    clip_high: Annotated[float, Gt(0), Lt(10)] = 0.28

    def __post_init__(self):
        rises("clip", (self.clip_low, self.clip_high))
'''
CHILD = """
from __future__ import annotations
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal
from annotated_types import Ge
from sample.base import LOW, Base, Positive
import math


@dataclass(frozen=True)
class Child(Base):
    needs_answers: ClassVar[bool] = True
    clip_high: float = math.inf
    low: tuple[float, float, float] = (LOW, 0.9, -0.02)
    scope: Literal["step", "microbatch"] = "step"
    rounds: Annotated[int, Ge(1)] | None = None
    names: list[str] = field(default_factory=lambda: ["a"])
    weight: Positive = field(default=2.5)
    table: "dict[str, int]" = field(default_factory=dict)
    must: bool

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "weight", 7.0)
        if self.rounds is not None and self.must and not self.needs_answers:
            raise ValueError("unreachable: the class variable is visible")
        if self.must and self.rounds == 7:
            raise ValueError("must and 7 exclude each other")
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample" / "__init__.py").write_text("")
    (tmp_path / "sample" / "base.py").write_text(BASE)
    (tmp_path / "sample" / "child.py").write_text(CHILD)
    return tmp_path


def validate(model: type[BaseModel], **values: Any) -> BaseModel:
    return model.model_validate_json(json.dumps(values), strict=True)


def test_fields_defaults_and_inheritance(root: Path) -> None:
    settings = validate(read_settings("sample.child:Child", root=root), must=True)
    assert settings.model_dump() == {
        "clip_low": 0.2,
        "clip_high": math.inf,
        "low": (0.8, 0.9, -0.02),
        "scope": "step",
        "rounds": None,
        "names": ["a"],
        "weight": 2.5,
        "table": {},
        "must": True,
    }


def test_lists_pass_for_tuples_and_integers_for_floats(root: Path) -> None:
    model = read_settings("sample.child:Child", root=root)
    settings = validate(model, must=False, low=[1, 2, 3], clip_high=3)
    assert settings.model_dump()["low"] == (1.0, 2.0, 3.0)
    assert settings.model_dump()["clip_high"] == 3.0


@pytest.mark.parametrize(
    "bad",
    [
        {"clip_low": "fast"},
        {"clip_low": True},
        {"clip_low": 0},
        {"clip_low": None},
        {"low": [1, 2]},
        {"scope": "epoch"},
        {"rounds": 0},
        {"rounds": 1.5},
        {"names": "a"},
        {"must": 1},
        {"clip_hi": 0.3},
    ],
)
def test_wrong_values_are_refused(root: Path, bad: dict[str, Any]) -> None:
    model = read_settings("sample.child:Child", root=root)
    with pytest.raises(ValidationError):
        validate(model, **({"must": True} | bad))


def test_a_field_without_default_is_required(root: Path) -> None:
    with pytest.raises(ValidationError, match="must"):
        validate(read_settings("sample.child:Child", root=root))


def test_class_variables_are_flags_not_fields(root: Path) -> None:
    assert read_flags("sample.base:Base", root=root) == {"needs_answers": False}
    assert read_flags("sample.child:Child", root=root) == {"needs_answers": True}


def test_the_comment_on_the_line_is_the_note(root: Path) -> None:
    assert [s.note for s in list_settings("sample.base:Base", root=root)] == ["epsilon_low", ""]


def test_post_init_runs_own_and_inherited_checks_without_the_module(root: Path) -> None:
    good = {"clip_low": 0.2, "clip_high": 0.3, "rounds": 3, "must": True, "weight": 1.0}
    assert check_settings("sample.child:Child", good, root=root) == good | {"weight": 7.0}
    with pytest.raises(ValueError, match=r"clip must rise, not \(0.4, 0.3\)"):
        check_settings("sample.child:Child", good | {"clip_low": 0.4}, root=root)
    with pytest.raises(ValueError, match="exclude each other"):
        check_settings("sample.child:Child", good | {"rounds": 7}, root=root)


def write(root: Path, body: str, *, top: str = "") -> None:
    source = f"from dataclasses import dataclass, field\nimport torch\n{top}\n@dataclass\nclass Bad{body}"
    (root / "sample" / "bad.py").write_text(source)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (":\n    a: float = torch.pi", "not a literal"),
        (":\n    a: torch.Tensor = None", "not one a recipe can hold"),
        (":\n    a: Tensor = None", "Tensor"),
        (":\n    a: list = field(default_factory=make)", "default_factory"),
        ("(Unknown):\n    a: float = 1.0", "not of this package"),
    ],
)
def test_what_cannot_be_read_is_an_error_with_its_line(root: Path, body: str, complaint: str) -> None:
    write(root, body)
    with pytest.raises(SettingsError, match=complaint) as caught:
        list_settings("sample.bad:Bad", root=root)
    assert "bad.py:" in str(caught.value)


def test_a_check_that_needs_torch_is_our_fault(root: Path) -> None:
    write(root, ":\n    a: float = 1.0\n    def __post_init__(self):\n        torch.tensor(self.a)")
    with pytest.raises(SettingsError, match="beyond its file"):
        check_settings("sample.bad:Bad", {"a": 1.0}, root=root)


def test_missing_class_and_module(root: Path) -> None:
    with pytest.raises(SettingsError, match="no class 'Nobody'"):
        read_settings("sample.base:Nobody", root=root)
    with pytest.raises(SettingsError, match="no module"):
        read_settings("sample.nowhere:Base", root=root)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_text_and_dataclass_agree(name: str) -> None:
    """The reader sees what Python sees, for every method of the table."""
    method = METHODS[name]
    cls = method.load_settings()
    fields = {f.name: f for f in dataclasses.fields(cls)}
    read = {s.name: s for s in list_settings(method.settings)}
    assert set(read) == set(fields)
    plain = read_settings(method.settings)
    for field_name, field in fields.items():
        default = plain.model_fields[field_name].get_default(call_default_factory=True)
        if field.default is not dataclasses.MISSING:
            assert default == field.default, field_name
        elif field.default_factory is not dataclasses.MISSING:
            assert default == field.default_factory(), field_name
        else:
            assert plain.model_fields[field_name].is_required(), field_name
    if any(f.is_required() for f in plain.model_fields.values()):
        return
    defaults = validate(plain).model_dump()
    assert made(lambda: check_settings(method.settings, defaults)) == made(
        lambda: {name: vars(cls(**defaults))[name] for name in fields}
    )


def made(make: Callable[[], dict[str, Any]]) -> dict[str, Any] | str:
    """What comes out, or the refusal: some methods cannot do with defaults alone."""
    try:
        return make()
    except ValueError as error:
        return str(error)
