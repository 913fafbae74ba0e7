"""What a reward function asks for, read from its signature: in its source, or of the object itself."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

RUNTIME_COLUMNS = ("prompts", "completion_ids", "completion_tokens")
"""Columns every run provides: the prompts, the generated token ids and how many they are."""


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


@dataclass(frozen=True)
class Parameter:
    name: str
    required: bool
    annotation: str  # as written, "" if none


@dataclass(frozen=True)
class Outline:
    """A function as its source or its object shows it."""

    parameters: tuple[Parameter, ...]
    accepts_any: bool
    is_async: bool
    yields_answers: bool
    judges_each: bool


def outline_in(tree: ast.Module, name: str) -> Outline | None:
    """The outline of a function defined in the module's source, or None if it is made in another way."""
    found, hooked = None, False
    for node in _statements(tree.body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            found = node
        elif isinstance(node, ast.Assign):
            hooked |= any(ast.unparse(target) == f"{name}.answers" for target in node.targets)
    if found is None:
        return None
    decorators = [
        ast.unparse(decorator).partition("(")[0].rpartition(".")[2] for decorator in found.decorator_list
    ]
    arguments = found.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [
        *zip(positional, defaults, strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    parameters = tuple(
        Parameter(
            argument.arg, default is None, ast.unparse(argument.annotation) if argument.annotation else ""
        )
        for argument, default in pairs
    )
    return Outline(
        parameters,
        accepts_any=arguments.kwarg is not None and not arguments.kwarg.arg.startswith("_"),
        is_async=isinstance(found, ast.AsyncFunctionDef),
        yields_answers=hooked or "yields_answers" in decorators,
        judges_each="judges_each" in decorators,
    )


def _statements(body: list[ast.stmt]) -> Iterable[ast.stmt]:
    """Statements of a module, those under `if`, `try` and `with` included."""
    for node in body:
        yield node
        for block in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With):
                yield from _statements(vars(node).get(block, []))


def top_level_names(tree: ast.Module) -> list[str]:
    names: list[str] = []
    for node in _statements(tree.body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names += [alias.asname or alias.name for alias in node.names]
    return names


def outline_of(function: Callable[..., Any]) -> Outline:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise RewardSpecError(
            f"reward {callable_name(function)!r} has no readable signature: {error}"
        ) from error
    kinds = inspect.Parameter
    named = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    return Outline(
        tuple(
            Parameter(
                p.name,
                p.default is kinds.empty,
                "" if p.annotation is kinds.empty else _written(p.annotation),
            )
            for p in signature.parameters.values()
            if p.kind in named
        ),
        accepts_any=any(
            p.kind is kinds.VAR_KEYWORD and not p.name.startswith("_") for p in signature.parameters.values()
        ),
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


def signature_of(name: str, args: Mapping[str, Any], outline: Outline) -> RewardSignature:
    names = [parameter.name for parameter in outline.parameters]
    if "completions" not in names:
        raise RewardSpecError(
            f"reward {name!r} has no parameter 'completions'; it is called as "
            f"reward(completions, *, column, ...) -> list of numbers or None"
        )
    settable = [p for p in outline.parameters if p.name not in ("completions", *RUNTIME_COLUMNS)]
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
    return RewardSignature(
        name=name,
        columns_needed=tuple(p.name for p in free if p.required),
        optional=tuple(p.name for p in free if not p.required and not _is_setting(p.annotation)),
        accepts_any=outline.accepts_any,
        is_async=outline.is_async,
        args=dict(args),
        runtime=tuple(column for column in RUNTIME_COLUMNS if column in names),
        yields_answers=outline.yields_answers,
        judges_each=outline.judges_each,
    )


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
        return [ast.literal_eval(item) for item in (inner.elts if isinstance(inner, ast.Tuple) else [inner])]
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
