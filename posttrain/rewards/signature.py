"""What a reward function asks for, read from its signature: in its source, or of the object itself."""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

RUNTIME_COLUMNS = ("prompts", "completion_ids", "completion_tokens")
"""Columns every run provides: the prompts, the generated token ids and how many they are."""

RUNTIME_OBJECTS = ("trainer_state", "log_extra", "log_metric", "environments")
"""What TRL hands to a reward beside columns: the trainer's state, two ways to log, the environments of a run."""

PROVIDED = frozenset({"completions", *RUNTIME_COLUMNS, *RUNTIME_OBJECTS})
"""Names that the run fills; a column of the data that has one of them is not passed."""

CompletionsAs = Literal["text", "messages", "images"]


class RewardSpecError(ValueError):
    """A reward that cannot be found or cannot be called as the recipe asks."""


@dataclass(frozen=True)
class RewardSignature:
    """What a reward asks for.

    columns_needed   columns it cannot do without: parameters without default, less `args` and `runtime`
    optional         parameters with a default, not set by `args`: settings, or columns it takes if there are any
    accepts_any      whether it takes every column (**columns; under the name **_ it wants none of them)
    is_async         whether it is a coroutine function
    args             the settings the recipe gives it
    runtime          those of RUNTIME_COLUMNS it reads
    objects          those of RUNTIME_OBJECTS it names
    objects_needed   those of them without a default
    completions_as   "text", or "messages" where it asks for conversations, "images" where it asks for PIL images
    says_which       whether its annotation, or who named it, says so; a function that does not takes what there is
    known            False: found to be a function of the user's, but what it asks for shows only when it is loaded
    yields_answers   whether it says what each completion's final answer is
    judges_each      whether completions are judged one by one, not within their group
    """

    name: str
    columns_needed: tuple[str, ...]
    optional: tuple[str, ...]
    accepts_any: bool
    is_async: bool
    args: dict[str, Any]
    runtime: tuple[str, ...] = ()
    yields_answers: bool = False
    judges_each: bool = False
    objects: tuple[str, ...] = ()
    objects_needed: tuple[str, ...] = ()
    completions_as: CompletionsAs = "text"
    known: bool = True
    says_which: bool = False

    def missing(self, columns: Iterable[str]) -> list[str]:
        """The columns it needs that are not among `columns`."""
        present = set(columns)
        return [name for name in self.columns_needed if name not in present]

    def wanted(self, columns: Iterable[str]) -> list[str]:
        """Those of `columns` it is to be called with."""
        if self.accepts_any:
            return [name for name in columns if name not in self.args]
        taken = {*self.columns_needed, *self.optional, *self.runtime}
        return [name for name in columns if name in taken]

    def takes(self, name: str) -> bool:
        """Whether it is to be given one of RUNTIME_OBJECTS: it names it, or takes all there is (TRL's **kwargs)."""
        return name in self.objects or self.accepts_any


@dataclass(frozen=True)
class Parameter:
    name: str
    required: bool
    annotation: str  # as written, "" if none
    setting: bool = False  # filled already, by functools.partial


@dataclass(frozen=True)
class Outline:
    """A function as its source or its object shows it."""

    parameters: tuple[Parameter, ...]
    accepts_any: bool  # takes every column: **columns, not **_
    swallows: bool  # has ** under whatever name
    is_async: bool
    yields_answers: bool
    judges_each: bool


def outline_of(function: Callable[..., Any]) -> Outline:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise RewardSpecError(
            f"reward {callable_name(function)!r} has no readable signature: {error}"
        ) from error
    kinds = inspect.Parameter
    bound = function.keywords if isinstance(function, functools.partial) else {}
    named = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    return Outline(
        tuple(
            Parameter(
                p.name,
                p.default is kinds.empty,
                "" if p.annotation is kinds.empty else _written(p.annotation),
                setting=p.name in bound,
            )
            for p in signature.parameters.values()
            if p.kind in named
        ),
        accepts_any=any(
            p.kind is kinds.VAR_KEYWORD and not p.name.startswith("_") for p in signature.parameters.values()
        ),
        swallows=any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()),
        is_async=is_async(function),
        yields_answers=hasattr(function, "answers"),
        judges_each=hasattr(function, "judges_each"),
    )


def _written(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


# ---- checks ------------------------------------------------------------------------------------------


def unknown_signature(
    name: str, args: Mapping[str, Any], completions_as: CompletionsAs | None
) -> RewardSignature:
    """Of a reward that has to be loaded before it says what it asks for."""
    return RewardSignature(
        *(name, (), (), False, False, dict(args)),
        completions_as=completions_as or "text",
        known=False,
        says_which=completions_as is not None,
    )


def signature_of(
    name: str, args: Mapping[str, Any], outline: Outline, completions_as: CompletionsAs | None = None
) -> RewardSignature:
    """Raises RewardSpecError for a function that cannot be called as asked. `completions_as` None: by annotation."""
    names = [parameter.name for parameter in outline.parameters]
    if "completions" not in names and not outline.swallows:
        raise RewardSpecError(
            f"reward {name!r} has no parameter 'completions'; it is called as "
            f"reward(completions, *, column, ...) -> list of numbers or None"
        )
    settable = [p for p in outline.parameters if p.name not in PROVIDED]
    by_name = {parameter.name: parameter for parameter in settable}
    for key, value in args.items():
        if key not in by_name:
            choices = [p.name for p in settable]
            raise RewardSpecError(
                f"reward {name!r} has no setting {key!r}{did_you_mean(key, choices)}"
                f" (settings are named parameters: {', '.join(choices) or 'it has none'})"
            )
        if not _fits(value, by_name[key].annotation):
            raise RewardSpecError(
                f"reward {name!r}: {key} is {value!r}, which is not {by_name[key].annotation}"
            )
    free = [p for p in settable if p.name not in args]
    objects = [p for p in outline.parameters if p.name in RUNTIME_OBJECTS]
    which = _completions_as(name, outline, completions_as)
    return RewardSignature(
        name=name,
        columns_needed=tuple(p.name for p in free if p.required),
        optional=tuple(
            p.name for p in free if not p.required and not p.setting and not _is_setting(p.annotation)
        ),
        accepts_any=outline.accepts_any,
        is_async=outline.is_async,
        args=dict(args),
        runtime=tuple(column for column in RUNTIME_COLUMNS if column in names),
        yields_answers=outline.yields_answers,
        judges_each=outline.judges_each,
        objects=tuple(p.name for p in objects),
        objects_needed=tuple(p.name for p in objects if p.required),
        completions_as=which or "text",
        says_which=which is not None,
    )


# ---- text, messages or images


def _completions_as(name: str, outline: Outline, asked: CompletionsAs | None) -> CompletionsAs | None:
    annotation = next((p.annotation for p in outline.parameters if p.name == "completions"), "")
    written = completions_by_annotation(annotation)
    if asked is not None and written is not None and asked != written:
        raise RewardSpecError(
            f"reward {name!r}: completions_as is {asked!r}, and its parameter is annotated as {annotation}"
        )
    return asked or written


def completions_by_annotation(annotation: str) -> CompletionsAs | None:
    """What a parameter annotated as a list of something holds: list[str] text, list[list[dict]] messages,
    list[Image.Image] images; None where the annotation does not say."""
    inner = _items(annotation)
    if inner == "str":
        return "text"
    if inner in ("Image", "Image.Image", "PIL.Image.Image", "PILImage"):
        return "images"
    message = _items(inner) if inner else ""
    base = message.partition("[")[0].rpartition(".")[2]
    return "messages" if base in ("dict", "Dict", "Mapping", "MutableMapping") or "Message" in base else None


def _items(annotation: str) -> str:
    """X of list[X], Sequence[X] and their like; "" of anything else."""
    try:
        node = ast.parse(annotation.strip("'\""), mode="eval").body
    except SyntaxError:
        return ""
    if not isinstance(node, ast.Subscript):
        return ""
    base = ast.unparse(node.value).rpartition(".")[2]
    return ast.unparse(node.slice) if base in ("list", "List", "Sequence", "Iterable", "Collection") else ""


# ---- settings


_TYPES: dict[str, type | tuple[type, ...]] = {
    "int": int, "float": (int, float), "str": str, "bool": bool, "None": type(None),
}  # fmt: skip


def _alternatives(annotation: str) -> list[ast.expr]:
    """The alternatives of an annotation `A | B`; empty if it cannot be read."""
    try:
        node = ast.parse(annotation, mode="eval").body
    except SyntaxError:
        return []
    parts = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        parts.append(node.right)
        node = node.left
    return [node, *parts]


def _is_setting(annotation: str) -> bool:
    """A parameter annotated with a plain type is a setting: a column of the same name is not put into it."""
    parts = _alternatives(annotation)
    return bool(parts) and all(ast.unparse(part) in _TYPES or _literals(part) is not None for part in parts)


def _literals(node: ast.expr) -> list[Any] | None:
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).rpartition(".")[2] == "Literal":
        inner = node.slice
        try:
            return [
                ast.literal_eval(item) for item in (inner.elts if isinstance(inner, ast.Tuple) else [inner])
            ]
        except ValueError:  # Literal[NAME]: what it holds is not written here
            return None
    return None


def _fits(value: Any, annotation: str) -> bool:
    """Whether a value fits a plain annotation; annotations of other kinds are not judged."""
    parts = _alternatives(annotation)
    for part in parts:
        literals, plain = _literals(part), _TYPES.get(ast.unparse(part))
        if literals is None and plain is None:
            return True
        if literals is not None and value in literals:
            return True
        if plain is not None and isinstance(value, plain) and (plain is bool or not isinstance(value, bool)):
            return True
    return not parts


def provided_instead(names: Iterable[str]) -> str:
    """What is said of data columns that have names of the run's own."""
    return (
        f"the data's {', '.join(map(repr, names))} does not reach the rewards: the run gives them values of its own "
        "under that name; map the column to another name to read it"
    )


def needs_environments(name: str) -> str:
    return (
        f"reward {name!r} asks for environments, and this run has none: they come with the recipe's environment "
        "section, or with environment_factory in Python"
    )


# ---- words -----------------------------------------------------------------------------------------


def callable_name(function: Callable[..., Any]) -> str:
    inner = function
    while hasattr(inner, "func"):  # functools.partial
        inner = inner.func
    name = inner.__name__ if hasattr(inner, "__name__") else type(inner).__name__
    return "reward" if name == "<lambda>" else name


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
