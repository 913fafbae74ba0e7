"""A method's settings, read from the source of its dataclass: names, types, ranges, defaults, without torch.

The settings of a method stand once, in the frozen dataclass beside its mathematics, and that file imports
torch. A recipe is checked on machines without a GPU and before anything heavy is loaded, so the
dataclass is read here as text (`ast`) and turned into a pydantic model of the same fields. What the reader
understands is deliberately little: literal defaults (and constants of the same file), annotations built from
float, int, str, bool, None, tuple, list, dict, Literal and Annotated with bounds, and base classes inside the
same package. Anything else is an error that names file and line, never a guess.
"""

from __future__ import annotations

import ast
import builtins
import json
import math
import tokenize
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

ROOT = Path(__file__).resolve().parents[2]
REQUIRED: Any = ...
"""Default of a field that has none; pydantic writes it the same way."""

_TYPES: dict[str, Any] = {
    "float": float,
    "int": int,
    "str": str,
    "bool": bool,
    "tuple": tuple,
    "list": list,
    "dict": dict,
    "Literal": Literal,
    "Annotated": Annotated,
    "Any": Any,
    "Gt": Gt,
    "Ge": Ge,
    "Lt": Lt,
    "Le": Le,
    "Len": Len,
}
_FIELDLESS_BASES = {"object", "ABC", "Protocol", "Generic"}


class SettingsError(TypeError):
    """A settings class that cannot be read as text. The fault is in our source, not in a recipe."""


@dataclass(frozen=True)
class Setting:
    """One field: `note` is the comment on its line (the paper's symbol, by the house's style)."""

    name: str
    annotation: Any
    source: str
    default: Any
    note: str


@lru_cache(maxsize=256)
def read_settings(path: str, *, root: Path = ROOT) -> type[BaseModel]:
    """The pydantic model of the dataclass at "module:Class": unknown keys forbidden, frozen.

    Validate with `model_validate_json(text, strict=True)`: integers pass for floats, text and booleans not.
    """
    fields: dict[str, Any] = {s.name: (s.annotation, s.default) for s in list_settings(path, root=root)}
    config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
    return create_model(path.split(":")[1], __config__=config, **fields)


def list_settings(path: str, *, root: Path = ROOT) -> list[Setting]:
    """The fields, inherited ones first, an overridden one in its first place."""
    fields: dict[str, Setting] = {}
    for source, node in _lineage(path, root):
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                if _is_classvar(statement.annotation):
                    fields.pop(statement.target.id, None)
                    continue
                setting = source.setting(statement)
                fields[setting.name] = setting
    return list(fields.values())


def read_flags(path: str, *, root: Path = ROOT) -> dict[str, Any]:
    """Literal class variables ("needs_answers": True); those computed by an expression are left out."""
    flags: dict[str, Any] = {}
    for source, node in _lineage(path, root):
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                if not _is_classvar(statement.annotation) or statement.value is None:
                    continue
                try:
                    flags[statement.target.id] = source.value(statement.value)
                except SettingsError:
                    flags.pop(statement.target.id, None)
    return flags


def check_values(path: str, values: dict[str, Any], *, root: Path = ROOT) -> None:
    """ValueError, "name: why", at the first of `values` that is of a wrong type or out of range, as in a recipe."""
    model = read_settings(path, root=root)
    try:
        model.model_validate_json(json.dumps(values), strict=True)  # JSON, or a list would be no tuple
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None


def check_settings(path: str, values: dict[str, Any], *, root: Path = ROOT) -> dict[str, Any]:
    """Run the class's `__post_init__` on `values` without importing its module; the values as it leaves them.

    ValueError is the class's own refusal. A check that needs more than `self`, builtins, `math`, and the
    constants and plain functions of its file is a SettingsError: it could not be made before torch is loaded.
    """
    lineage = list(_lineage(path, root))
    instance = type(lineage[-1][1].name, (), {})()
    for name, value in (read_flags(path, root=root) | values).items():
        object.__setattr__(instance, name, value)
    for source, node in lineage:
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef) and statement.name == "__post_init__":
                try:
                    source.function(statement)(instance)
                except (NameError, AttributeError) as error:
                    raise source.error(statement, f"__post_init__ reaches beyond its file: {error}") from None
    return {name: vars(instance)[name] for name in values}


def _lineage(path: str, root: Path) -> Iterator[tuple[_Source, ast.ClassDef]]:
    """The class and its bases inside the package, the most distant first."""
    module, _, name = path.partition(":")
    if not name:
        raise SettingsError(f"settings path {path!r}: write it as 'module:Class'")
    source = _source(module, root)
    node = source.classes.get(name)
    if node is None:
        origin = source.imports.get(name)
        if origin is None:
            raise SettingsError(f"{source.file}: no class {name!r}")
        yield from _lineage(f"{origin[0]}:{origin[1]}", root)
        return
    for base in node.bases:
        base_name = _dotted(base).rsplit(".", 1)[-1]
        if base_name in source.classes:
            yield from _lineage(f"{module}:{base_name}", root)
        elif base_name in _FIELDLESS_BASES:
            continue
        elif base_name in source.imports:
            yield from _lineage("{}:{}".format(*source.imports[base_name]), root)
        else:
            raise source.error(base, f"base class {base_name!r} is not of this package")
    yield source, node


class _Source:
    """One parsed module: its classes, its constants, where its names come from, and its comments."""

    def __init__(self, module: str, file: Path, root: Path) -> None:
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text, str(file))
        self.module, self.file, self.root = module, file, root
        self.classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
        self.constants = _assignments(tree)
        self.imports = _imports(tree, module)
        self.functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
        tokens = tokenize.generate_tokens(StringIO(text).readline)
        self.comments = {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}

    def error(self, node: ast.AST, message: str) -> SettingsError:
        line = node.lineno if isinstance(node, ast.expr | ast.stmt) else 0
        return SettingsError(f"{self.file}:{line}: {message}")

    def setting(self, node: ast.AnnAssign) -> Setting:
        assert isinstance(node.target, ast.Name)
        default = REQUIRED if node.value is None else self.default(node.value)
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        note = " ".join(
            self.comments[line].removeprefix("#").strip() for line in lines if line in self.comments
        )
        return Setting(
            node.target.id, self.type(node.annotation), ast.unparse(node.annotation), default, note
        )

    def default(self, node: ast.expr) -> Any:
        """The default, through `dataclasses.field(default=...)` or `field(default_factory=...)` too."""
        if not (isinstance(node, ast.Call) and _dotted(node.func).endswith("field")):
            return self.value(node)
        for keyword in node.keywords:
            if keyword.arg == "default":
                return self.value(keyword.value)
            if keyword.arg == "default_factory":
                factory = keyword.value
                if isinstance(factory, ast.Lambda):
                    return self.value(factory.body)
                if isinstance(factory, ast.Name) and factory.id in ("list", "dict", "tuple"):
                    return _TYPES[factory.id]()
                raise self.error(factory, "default_factory must be list, dict, tuple or a lambda")
        return REQUIRED

    def value(self, node: ast.expr) -> Any:
        """A literal, infinity, or a constant of this module or of one it imports from the package."""
        if ast.unparse(node) in ("math.inf", "float('inf')"):
            return math.inf
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self.value(node.operand)
        if isinstance(node, ast.Tuple | ast.List):
            items = [self.value(item) for item in node.elts]
            return tuple(items) if isinstance(node, ast.Tuple) else items
        if isinstance(node, ast.Name):
            source, definition = self.follow(node)
            return source.value(definition)
        try:
            return ast.literal_eval(node)
        except ValueError:
            raise self.error(node, f"default {ast.unparse(node)!r} is not a literal") from None

    def type(self, node: ast.expr) -> Any:
        """The type an annotation stands for."""
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str):
                return self.type(ast.parse(node.value, mode="eval").body)
            return node.value
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return self.type(node.left) | self.type(node.right)
        if isinstance(node, ast.Subscript):
            return self.subscript(node)
        if isinstance(node, ast.Call):
            arguments = [self.value(a) for a in node.args]
            return self.type(node.func)(
                *arguments, **{k.arg: self.value(k.value) for k in node.keywords if k.arg}
            )
        name = _dotted(node).rsplit(".", 1)[-1]
        if name in _TYPES and name not in self.constants:
            return _TYPES[name]
        if isinstance(node, ast.Name):
            source, definition = self.follow(node)
            return source.type(definition)
        raise self.error(node, f"annotation {ast.unparse(node)!r} is not one a recipe can hold")

    def subscript(self, node: ast.Subscript) -> Any:
        outer = self.type(node.value)
        items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if outer is Literal:
            return outer[tuple(self.value(item) for item in items)]
        inner = [self.type(item) for item in items]
        return outer[inner[0]] if len(inner) == 1 else outer[tuple(inner)]

    def function(self, node: ast.FunctionDef) -> Callable[..., Any]:
        """`node` compiled with the names it may use, without `super().__post_init__()`: bases run in turn."""
        scope: dict[str, Any] = {"__builtins__": builtins, "math": math}
        for name, definition in self.constants.items():
            with suppress(SettingsError):
                scope[name] = self.value(definition)
        body = [n for n in node.body if "super().__post_init__" not in ast.unparse(n)] or [ast.Pass()]
        method = ast.FunctionDef(node.name, node.args, body, decorator_list=[])
        for definition in [*self.functions.values(), method]:
            module = ast.fix_missing_locations(ast.Module([definition], type_ignores=[]))
            with suppress(NameError):  # a helper whose decorator or default needs torch is not for checks
                exec(compile(module, str(self.file), "exec", flags=annotations.compiler_flag), scope)
        return scope[node.name]

    def follow(self, node: ast.Name) -> tuple[_Source, ast.expr]:
        """Where a name of this module gets its value: here, or in the module of this package it is from."""
        if node.id in self.constants:
            return self, self.constants[node.id]
        if node.id in self.imports:
            module, name = self.imports[node.id]
            return _source(module, self.root).follow(ast.Name(name, lineno=node.lineno))
        raise self.error(node, f"{node.id!r} is neither a literal nor a type a recipe can hold")


@lru_cache(maxsize=256)
def _source(module: str, root: Path) -> _Source:
    stem = root.joinpath(*module.split("."))
    for file in (stem.with_suffix(".py"), stem / "__init__.py"):
        if file.is_file():
            return _Source(module, file, root)
    raise SettingsError(f"no module {module!r} under {root}")


def _assignments(tree: ast.Module) -> dict[str, ast.expr]:
    found: dict[str, ast.expr] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            found[node.target.id] = node.value
    return found


def _imports(tree: ast.Module, module: str) -> dict[str, tuple[str, str]]:
    """name here -> (module, name there), for `from ... import`."""
    found: dict[str, tuple[str, str]] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                found[alias.asname or alias.name] = (origin, alias.name)
    return found


def _dotted(node: ast.expr) -> str:
    while isinstance(node, ast.Subscript):
        node = node.value
    return ast.unparse(node)


def _is_classvar(annotation: ast.expr) -> bool:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    return _dotted(annotation).rsplit(".", 1)[-1] == "ClassVar"
