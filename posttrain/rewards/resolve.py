"""From a reward's name in a recipe to a function, and what that function asks for.

A name is a built-in one, `package.module:function`, or `path/file.py:function`. `describe` reads the function's
signature from its source, so that a recipe is checked without importing what the user's file imports.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

BUILT_IN = {
    "math_answer": "posttrain.rewards.builtin:math_answer",
    "exact_match": "posttrain.rewards.builtin:exact_match",
    "format_regex": "posttrain.rewards.builtin:format_regex",
    "length_penalty": "posttrain.rewards.builtin:length_penalty",
    "countdown": "posttrain.rewards.puzzles:countdown",
    "sudoku": "posttrain.rewards.puzzles:sudoku",
}

RUNTIME_COLUMNS = ("prompts", "completion_ids", "completion_tokens")
"""Columns every run provides: the prompts, the generated token ids and how many they are."""


class RewardSpecError(ValueError):
    """A reward that cannot be found or cannot be called as the recipe asks."""


@dataclass(frozen=True)
class RewardSpec:
    """One reward of a recipe.

    `label` is what it is counted and logged as (None: the function's name). `timeout_s` and `on_error` override the
    runner's. `function` is a callable given from Python instead of a name to look up.
    """

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    label: str | None = None
    timeout_s: float | None = None
    on_error: Literal["raise", "skip"] | None = None
    function: Callable[..., Any] | None = None

    @classmethod
    def of(cls, given: Any) -> RewardSpec:
        """From a spec, a name, a callable, or a mapping with name, args and weight."""
        if isinstance(given, RewardSpec):
            return given
        if isinstance(given, str):
            return cls(given)
        if isinstance(given, Mapping):
            return cls(**given)
        if callable(given):
            return cls(_callable_name(given), function=given)
        raise RewardSpecError(f"a reward is a name, a mapping or a callable, not {type(given).__name__}")

    @property
    def title(self) -> str:
        """The name under which it is counted and logged."""
        return self.label or self.name.rpartition(":")[2]


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
class _Outline:
    """A function as its source or its object shows it."""

    parameters: tuple[Parameter, ...]
    accepts_any: bool
    is_async: bool
    yields_answers: bool
    judges_each: bool


# ---- the three questions


def describe(spec: Any, base_dir: str | Path = ".") -> RewardSignature:
    """What a reward asks for, found without running it. Raises RewardSpecError with what is wrong and what to do."""
    spec = RewardSpec.of(spec)
    if spec.function is not None:
        outline = _outline_of(spec.function)
    else:
        outline = _outline_of_name(spec.name, Path(base_dir))
    signature = _signature(spec, outline)
    if spec.name in BUILT_IN:
        _check_settings(spec, load_function(spec.name, base_dir))
    elif spec.function is not None:
        _check_settings(spec, spec.function)
    return signature


def faults(spec: Any, columns: Iterable[str], base_dir: str | Path = ".") -> list[str]:
    """Everything wrong with a reward, in sentences: it cannot be found, a setting is unknown, a column is missing."""
    columns = list(columns)
    try:
        signature = describe(spec, base_dir)
    except RewardSpecError as error:
        return [str(error)]
    return [_missing_column(signature, name, columns) for name in signature.missing(columns)]


def load_reward(spec: Any, base_dir: str | Path = ".") -> Callable[..., Any]:
    """The reward's function itself; its module is imported."""
    spec = RewardSpec.of(spec)
    return spec.function if spec.function is not None else load_function(spec.name, base_dir)


def load_function(name: str, base_dir: str | Path = ".") -> Callable[..., Any]:
    """The function a reward's name stands for."""
    module_name, function = _split(name)
    if module_name.endswith(".py"):
        module = _import_file(_file(name, module_name, Path(base_dir)))
    else:
        module = _import_module(name, module_name, Path(base_dir))
    found = vars(module).get(function)
    if found is None:
        raise RewardSpecError(_no_function(name, module_name, function, vars(module)))
    if not callable(found):
        raise RewardSpecError(f"reward {name!r}: {function!r} is not a function")
    return found


# ---- names


def _split(name: str) -> tuple[str, str]:
    name = BUILT_IN.get(name, name)
    module, colon, function = name.rpartition(":")
    if not colon or not module or not function:
        hint = _did_you_mean(name, BUILT_IN)
        raise RewardSpecError(
            f"there is no reward {name!r}{hint}; the built-in ones are {', '.join(BUILT_IN)}, and one of your own is "
            "named package.module:function or path/file.py:function"
        )
    return module, function


def _callable_name(function: Callable[..., Any]) -> str:
    inner = function
    while hasattr(inner, "func"):  # functools.partial
        inner = inner.func
    name = inner.__name__ if hasattr(inner, "__name__") else type(inner).__name__
    return "reward" if name == "<lambda>" else name


def _did_you_mean(word: str, choices: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _file(name: str, path: str, base_dir: Path) -> Path:
    file = (base_dir / Path(path).expanduser()).resolve()
    if not file.is_file():
        raise RewardSpecError(f"reward {name!r}: there is no file {file}")
    return file


def _no_function(name: str, module: str, function: str, names: Iterable[str]) -> str:
    public = [other for other in names if not other.startswith("_")]
    return f"reward {name!r}: {module} has no function {function!r}{_did_you_mean(function, public)}"


def _import_file(file: Path) -> Any:
    module_name = f"posttrain_reward_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    if str(file.parent) not in sys.path:  # so that it can import its neighbours, as a script can
        sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise RewardSpecError(f"cannot import {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _import_module(name: str, module: str, base_dir: Path) -> Any:
    for folder in (str(base_dir.resolve()), str(Path.cwd())):
        if folder not in sys.path:
            sys.path.append(folder)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise
        raise RewardSpecError(
            f"reward {name!r}: there is no module {error.name!r} in {base_dir.resolve()}, the current folder or the "
            "installed packages"
        ) from error


def _source_of(module: str, base_dir: Path) -> Path | None:
    """The file of a dotted module, found without importing its package; None if it has none."""
    first, *rest = module.split(".")
    for folder in (str(base_dir.resolve()), str(Path.cwd()), *sys.path):
        for candidate in (Path(folder, first, *rest).with_suffix(".py"), Path(folder, first, *rest, "__init__.py")):
            if candidate.is_file():
                return candidate
    return None


# ---- signatures


def _outline_of_name(name: str, base_dir: Path) -> _Outline:
    module, function = _split(name)
    is_file = module.endswith(".py")
    file = _file(name, module, base_dir) if is_file else _source_of(module, base_dir)
    if file is not None:
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
        except SyntaxError as error:
            raise RewardSpecError(f"reward {name!r}: {file}, line {error.lineno}: {error.msg}") from error
        outline = _outline_in(tree, function)
        if outline is not None:
            return outline
        names = _top_level_names(tree)
        if is_file and function not in names:
            raise RewardSpecError(_no_function(name, module, function, names))
    return _outline_of(load_function(name, base_dir))


def _outline_in(tree: ast.Module, name: str) -> _Outline | None:
    """The outline of a function defined in the module's source, or None if it is made in another way."""
    found, hooked = None, False
    for node in _statements(tree.body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            found = node
        elif isinstance(node, ast.Assign):
            hooked |= any(ast.unparse(target) == f"{name}.answers" for target in node.targets)
    if found is None:
        return None
    decorators = [ast.unparse(decorator).partition("(")[0].rpartition(".")[2] for decorator in found.decorator_list]
    arguments = found.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [*zip(positional, defaults, strict=True), *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    parameters = tuple(
        Parameter(argument.arg, default is None, ast.unparse(argument.annotation) if argument.annotation else "")
        for argument, default in pairs
    )
    return _Outline(
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


def _top_level_names(tree: ast.Module) -> list[str]:
    names: list[str] = []
    for node in _statements(tree.body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names += [alias.asname or alias.name for alias in node.names]
    return names


def _outline_of(function: Callable[..., Any]) -> _Outline:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise RewardSpecError(f"reward {_callable_name(function)!r} has no readable signature: {error}") from error
    kinds = inspect.Parameter
    named = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    return _Outline(
        tuple(
            Parameter(p.name, p.default is kinds.empty, "" if p.annotation is kinds.empty else _written(p.annotation))
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


# ---- checks


def _signature(spec: RewardSpec, outline: _Outline) -> RewardSignature:
    names = [parameter.name for parameter in outline.parameters]
    if "completions" not in names:
        raise RewardSpecError(
            f"reward {spec.name!r} has no parameter 'completions'; it is called as "
            f"{spec.title}(completions, *, column, ...) -> list of numbers or None"
        )
    settable = [p for p in outline.parameters if p.name not in ("completions", *RUNTIME_COLUMNS)]
    by_name = {parameter.name: parameter for parameter in settable}
    for key, value in spec.args.items():
        if key not in by_name:
            choices = [p.name for p in settable]
            raise RewardSpecError(
                f"reward {spec.name!r} has no setting {key!r}{_did_you_mean(key, choices)}"
                f" (settings are named parameters: {', '.join(choices) or 'it has none'})"
            )
        if not _fits(value, by_name[key].annotation):
            raise RewardSpecError(f"reward {spec.name!r}: {key} is {value!r}, which is not {by_name[key].annotation}")
    free = [p for p in settable if p.name not in spec.args]
    return RewardSignature(
        name=spec.name,
        columns_needed=tuple(p.name for p in free if p.required),
        optional=tuple(p.name for p in free if not p.required and not _is_setting(p.annotation)),
        accepts_any=outline.accepts_any,
        is_async=outline.is_async,
        args=dict(spec.args),
        runtime=tuple(name for name in RUNTIME_COLUMNS if name in names),
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


def _check_settings(spec: RewardSpec, function: Callable[..., Any]) -> None:
    check = vars(function).get("check_settings") if hasattr(function, "__dict__") else None
    if check is None:
        return
    accepted = inspect.signature(check).parameters
    given = {key: value for key, value in spec.args.items() if key in accepted}
    if set(given) == set(accepted):
        try:
            check(**given)
        except ValueError as error:
            raise RewardSpecError(f"reward {spec.name!r}: {error}") from error


def _missing_column(signature: RewardSignature, name: str, columns: list[str]) -> str:
    return (
        f"reward {signature.name!r} needs {name!r}, which is neither a column of the data "
        f"({', '.join(columns) or 'none'}) nor given under its args{_did_you_mean(name, columns)}"
    )
