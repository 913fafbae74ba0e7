"""Settings of a method: a frozen pydantic dataclass, checked as strictly in Python as in a recipe.

    from pydantic.dataclasses import dataclass

    @dataclass(frozen=True)
    class Mine(Settings):
        clip_low: Annotated[float, Ge(0), Lt(1)] = 0.2
        \"\"\"epsilon below 1\"\"\"

The text below a field is its meaning: `posttrain methods NAME` and `posttrain init` show it. Subclasses inherit the
strict configuration. A whole number passes for a float; text and booleans pass for no number, infinity and NaN for
nothing, and an unknown name is an error.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Number, Real
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar, get_type_hints

from pydantic import ConfigDict, Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from posttrain.settings.run import Note, RunCurves, RunView

STRICT = ConfigDict(
    extra="forbid",
    strict=True,
    allow_inf_nan=False,
    use_attribute_docstrings=True,
    protected_namespaces=(),
)

Pair = Annotated[tuple[float, float], Strict(False)]
"""Two numbers. A list passes for a tuple here and in `Triple`: YAML and JSON know lists only."""
Triple = Annotated[tuple[float, float, float], Strict(False)]

REQUIRED: Any = ...
"""Default of a setting that has none; pydantic writes it the same way."""

SettingsT = TypeVar("SettingsT")


class Inner(NamedTuple):
    """A method inside a method: the setting that holds its settings, its name in the list of methods, the settings."""

    field: str
    method: str
    values: Mapping[str, Any]


class BuiltOn(NamedTuple):
    """That a method is built on another one of the list, which a setting of it names.

    chooser   the setting that names the other method
    settings  the setting that holds the other's settings
    asks      a class variable that must be true of the other: "is_objective", "ratio_per_token"
    """

    chooser: str
    settings: str
    asks: str


class Start(NamedTuple):
    """What a first recipe writes instead of a setting's default, and what it says of it."""

    value: Any
    note: str = ""


@dataclass(frozen=True, config=STRICT)
class Settings:
    """Base of every method's settings: what they are, and the questions a method answers about itself.

    Subclasses override what differs from the defaults. What hangs on no value is a class variable, so that it can be
    asked before there are any values.
    """

    needs_columns: ClassVar[tuple[str, ...] | None] = None
    """Columns without which the method cannot train; None: those of its family."""
    reads_columns: ClassVar[tuple[str, ...]] = ()
    """Further columns that it reads where the rows have them."""
    marked_answers: ClassVar[bool] = False
    """Whether a row is one answer, marked good or bad in the column `label`, where its family learns from pairs."""
    writes_plain_lines: ClassVar[bool] = False
    """Whether conversations of a model without a chat template are written as plain lines."""
    masked_diffusion: ClassVar[bool] = False
    """Whether it trains masked-diffusion models, which see both ways."""
    makes_images: ClassVar[bool] = False
    """Whether it trains flow models, which make images of their prompts."""
    trains_noise_models: ClassVar[bool] = False
    """Whether it also trains models of noise: UNets whose scheduler is a DDPM's, without steps of a flow."""
    continues_scorers: ClassVar[bool] = False
    """Whether it may go on from a sequence classifier, which scores texts and writes none."""
    in_stages: ClassVar[bool] = False
    """Whether it trains in stages, each with a trainer and a reference of its own."""
    makes_pairs: ClassVar[bool] = False
    """Whether it makes as many pairs of its rows as it finds: nobody knows beforehand how many steps an epoch has."""
    names_files: ClassVar[tuple[str, ...]] = ()
    """Settings that name a file."""
    names_models: ClassVar[tuple[str, ...]] = ()
    """Settings that name a model folder or hub name, or a list of them."""
    same_tokenizer: ClassVar[tuple[str, ...]] = ()
    """Those of `names_models` whose tokenizer must be the policy's."""
    fixed_on_resume: ClassVar[tuple[str, ...]] = ()
    """Settings that a checkpoint was made with: a resume cannot change them, nor what names a file or a model."""
    needs_answers: ClassVar[bool] = False
    """Whether `advantages` reads `Groups.answers`; a recipe whose rewards yield none is refused."""
    built_on: ClassVar[BuiltOn | None] = None
    """The settings that say which other method this one is built on, if any."""
    brings_reference: ClassVar[bool] = False
    """Whether the policy's reference is a model that the method makes, in place of a copy of the start."""
    is_objective: ClassVar[bool] = False
    """Whether it is a loss on sampled responses, which another method can be built on."""
    ratio_per_token: ClassVar[bool] = False
    """Whether it is one with an importance ratio per token, so that tokens can be left out one by one."""
    logs: ClassVar[Mapping[str, str]] = {}
    """Numbers that the report lists beside the account of tokens: METHOD/name -> meaning. Of a name that ends in _min
    or _max the extreme of the run is shown, of others the mean."""
    panels: ClassVar[Mapping[str, tuple[tuple[str, str], ...]]] = {}
    """Plots of the report: title -> curves, each (METHOD/name, label)."""
    is_trls_loss: ClassVar[bool] = True
    """Whether TRL's `loss_type` of this name, where there is one, is this method."""
    built_in: ClassVar[Mapping[str, str]] = {}
    """TRL's arguments that say no more than this method is, each with the value that does."""
    settings_in_trl: ClassVar[Mapping[str, str]] = {}
    """TRL's arguments that, under this `loss_type`, mean a setting of this method: {theirs: ours}."""

    @property
    def draws_answers(self) -> bool:
        """Whether a method whose family trains on given rows generates all the same, and so has a rollout section."""
        return False

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the whole run, where the settings say it."""
        return None

    @property
    def stages(self) -> str | None:
        """How many stages the run has, in words, where `train` speaks of one of them: "2 iterations"."""
        return None

    @property
    def num_passes(self) -> int:
        """Forward passes of one likelihood estimate."""
        return 1

    @property
    def learns_from_equal(self) -> str | None:
        """Why groups whose rewards are all equal teach too, where they do: such groups cannot be sampled over."""
        return None

    @property
    def refuses_logged(self) -> str | None:
        """Why answers of the data can take no places in its groups, beside what the policy samples; None: they can."""
        return None

    @property
    def needs_rewards(self) -> bool:
        """Whether a method of a family that learns from rewards needs some; without, none may be named."""
        return True

    @property
    def frozen_models(self) -> Mapping[str, str]:
        """Models of their own size that are held beside the policy and not trained: folder or hub name -> dtype."""
        return {}

    @property
    def reads_each_reward(self) -> bool:
        """Whether advantages come from each reward function by itself: then a group teaches where one of them differs,
        even if the sums are equal."""
        return False

    def reference_copies(self, *, adapter: bool) -> int | None:
        """Copies of the weights that the method holds beside the policy, which may train an adapter; None where it
        brings no reference of its own."""
        return None

    @property
    def trained_beside(self) -> int:
        """Models of the policy's size that are trained beside it, each whole on every rank: a critic."""
        return 0

    @property
    def texts_beside(self) -> int | None:
        """Tokens at which the texts are cut that are learned from beside the rollouts; None: there are none."""
        return None

    def inner(self) -> Inner | None:
        """The method that this one is built on, if any; it is asked its own questions."""
        if self.built_on is None:
            return None
        values = self.values()
        place = self.built_on.settings
        return Inner(place, values[self.built_on.chooser], values[place] or {})

    @classmethod
    def start(cls, *, model: str, rewards: tuple[float, float] | None) -> Mapping[str, Start]:
        """What a first recipe must say beyond the defaults, for this model and rewards within this range, where they
        have one that is not [0, 1]."""
        return {}

    @classmethod
    def notes(cls, curves: RunCurves) -> Iterator[Note]:
        """What the run's numbers say against the way it is set up."""
        yield from ()

    def faults(self, run: RunView) -> Iterator[str]:
        """Why the method cannot run with the rest of the recipe, a sentence each: where, what, what to do."""
        yield from ()

    def warnings(self, run: RunView) -> Iterator[str]:
        """What it can run with and is better off without."""
        yield from ()

    def row_facts(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """What the rows are to it, a line each; all rows of the training data, as the trainer gets them."""
        yield from ()

    def row_warnings(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """What these rows, with these settings, are better off without."""
        yield from ()

    def values(self) -> dict[str, Any]:
        """The fields as they stand, those filled in at construction included."""
        return {field.name: vars(self)[field.name] for field in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field of a settings class: its type with its bounds, its default or REQUIRED, what it means."""

    name: str
    annotation: Any
    default: Any
    meaning: str


def list_settings(cls: type) -> list[Setting]:
    """The fields of a settings class, inherited ones first, an overridden one in its first place."""
    hints = get_type_hints(cls, include_extras=True)
    defaults = {field.name: _default(field) for field in dataclasses.fields(cls)}
    found: dict[str, Setting] = {}
    for name, meaning in _meanings(cls):
        found[name] = Setting(name, hints[name], defaults[name], meaning)
    return list(found.values())


def _meanings(cls: type) -> Iterator[tuple[str, str]]:
    # pydantic reads the texts below a class's own fields only, so inherited ones are asked of the class they stand in
    for base in reversed(cls.__mro__):
        fields: Mapping[str, Any] = vars(base).get("__pydantic_fields__", {})
        for name in vars(base).get("__annotations__", {}):
            if name in fields:
                yield name, fields[name].description or ""


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED if field.default is dataclasses.MISSING else field.default


def checked(cls: type[SettingsT], values: Mapping[str, Any], where: str = "") -> SettingsT:
    """`cls` with these values. ValueError "{where}name: why, not value" at the first that is of a wrong type or out of
    range, else the class's own refusal of how they go together."""
    for name, value in values.items():
        if (plain := _as_plain(value)) is _NOT_PLAIN:
            raise ValueError(f"{where}{name}: a {type(value).__name__} is no setting's type; got {value!r}")
        values = {**values, name: plain}
    try:
        return TypeAdapter(cls).validate_json(
            json.dumps(dict(values)), strict=True
        )  # JSON: a list passes for a tuple
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "value_error":
            raise ValueError(first["msg"].removeprefix("Value error, ")) from None
        name = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}{name}: {first['msg']}, not {first['input']!r}") from None


_NOT_PLAIN: Any = object()


def _as_plain(value: Any) -> Any:
    """The value as JSON can hold it: a number of NumPy's as Python's, a path as text; else _NOT_PLAIN."""
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Number) and not isinstance(value, int | float):
        value = float(value) if isinstance(value, Real) and not isinstance(value, Integral) else value
        value = int(value) if isinstance(value, Integral) else value
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return _NOT_PLAIN
    return value
