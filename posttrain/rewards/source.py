"""A reward function's outline, read in source files without importing any of them.

Followed are definitions, lambdas, `functools.partial`, other names for a function, imports from other modules, and
instances of a class with `__call__`. What is made in another way cannot be known without running the user's code.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import tokenize
from collections.abc import Iterable
from dataclasses import replace
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from posttrain.rewards.signature import Outline, Parameter, RewardSpecError, did_you_mean

_DEPTH = 16  # names followed, so that two that stand for each other come to an end
_VALUES = (
    ast.Constant, ast.JoinedStr, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.ListComp, ast.SetComp, ast.DictComp,
    ast.GeneratorExp, ast.Compare, ast.UnaryOp,
)  # fmt: skip
_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
_REWRITES_ITSELF = ("__getattr__", "globals", "exec")


class NotKnown(Exception):
    """What the name stands for is only known once the module has run."""


class SourceReader:
    """Reads the outline of `module:function` or `file.py:function`, for the reward called `name`.

    folders  searched for modules after sys.path, as they are when the reward is loaded
    """

    def __init__(self, name: str, folders: Iterable[str]) -> None:
        self.name = name
        self.path = [*sys.path, *folders]

    def in_module(self, module: str, function: str, depth: int = 0) -> Outline:
        """Raises NotKnown, and RewardSpecError where there is no such module or function."""
        file = self._module_file(module)
        return self.in_file(file, function, module=module, shown=module, depth=depth)

    def in_file(
        self, file: Path, function: str, *, shown: str, module: str | None = None, depth: int = 0
    ) -> Outline:
        if module is None and str(file.parent) not in self.path:
            self.path.insert(0, str(file.parent))  # where it finds its neighbours when it is loaded
        return _Module(self, file, module, shown, self._parsed(file)).outline(function, depth)

    def _parsed(self, file: Path) -> ast.Module:
        try:
            with tokenize.open(file) as stream:  # by the encoding the file declares
                return ast.parse(stream.read(), filename=str(file))
        except SyntaxError as error:
            line = f", line {error.lineno}" if error.lineno else ""
            raise RewardSpecError(f"reward {self.name!r}: {file}{line}: {error.msg}") from error
        except (ValueError, RecursionError, OSError) as error:  # null bytes, another encoding, not readable
            raise RewardSpecError(f"reward {self.name!r}: {file} cannot be read: {error}") from error

    def _module_file(self, module: str) -> Path:
        """The source of a dotted module; no package on the way to it is imported."""
        first, *rest = module.split(".")
        spec = PathFinder.find_spec(first, self.path) or _elsewhere(first)
        done = first
        for part in rest:
            if spec is None:
                break
            parent, done = spec, f"{done}.{part}"
            if parent.submodule_search_locations is None:
                spec = None
                break
            spec = PathFinder.find_spec(done, list(parent.submodule_search_locations))
            if spec is None and self._extends_its_path(parent):
                raise NotKnown
        if spec is None:
            raise RewardSpecError(
                f"reward {self.name!r}: there is no module {done!r} in the recipe's folder, the current folder or the "
                "installed packages"
            )
        if spec.origin is None or not spec.origin.endswith(".py"):
            raise NotKnown  # compiled, or a folder without __init__.py
        return Path(spec.origin)

    def _extends_its_path(self, package: ModuleSpec) -> bool:
        """Whether a package looks for its modules in more places than its own folder."""
        if package.origin is None or not package.origin.endswith(".py"):
            return False
        return "__path__" in Path(package.origin).read_text(encoding="utf-8", errors="replace")


def _elsewhere(first: str) -> ModuleSpec | None:
    """What other finders know: built-in modules, packages installed to be edited."""
    try:
        return importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return None


class _Module:
    """One module's source: what its top-level names stand for."""

    def __init__(
        self, reader: SourceReader, file: Path, module: str | None, shown: str, tree: ast.Module
    ) -> None:
        self.reader, self.file, self.module, self.shown, self.tree = reader, file, module, shown, tree

    def outline(self, name: str, depth: int) -> Outline:
        if depth > _DEPTH:
            raise NotKnown
        bound = [node for node in _statements(self.tree.body) if name in _names_bound(node)]
        definitions = [node for node in bound if isinstance(node, _FUNCTION)]
        if definitions:
            return outline_of_definition(definitions[-1], self.tree)
        if not bound:
            if self._may_hide_names():
                raise NotKnown
            public = [other for other in top_level_names(self.tree) if not other.startswith("_")]
            raise RewardSpecError(
                f"reward {self.reader.name!r}: {self.shown} has no function {name!r}{did_you_mean(name, public)}"
            )
        return self._of_binding(bound[-1], name, depth)

    def _of_binding(self, node: ast.stmt, name: str, depth: int) -> Outline:
        if isinstance(node, ast.ClassDef):
            raise RewardSpecError(
                f"reward {self.reader.name!r}: {name!r} is a class; make an instance with __call__, and name that"
            )
        if isinstance(node, ast.ImportFrom):
            original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
            return self.reader.in_module(self._absolute(node), original, depth + 1)
        if isinstance(node, ast.Import):
            raise RewardSpecError(f"reward {self.reader.name!r}: {name!r} is a module, not a function")
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return self._of_value(node.value, name, depth)
        raise NotKnown

    def _of_value(self, value: ast.expr, name: str, depth: int) -> Outline:
        if isinstance(value, ast.Lambda):
            return _outline(value.args, is_async=False, yields_answers=self._has_answers(name))
        if isinstance(value, ast.Name):
            return self.outline(value.id, depth + 1)
        if isinstance(value, ast.Attribute):
            return self._of_attribute(value, depth)
        if isinstance(value, _VALUES):
            raise RewardSpecError(f"reward {self.reader.name!r}: {name!r} is not a function")
        if isinstance(value, ast.Call):
            called = ast.unparse(value.func)
            if called in ("partial", "functools.partial") and value.args:
                outline = self._of_value(value.args[0], name, depth + 1)
                keywords = [keyword.arg for keyword in value.keywords]
                if None in keywords or any(isinstance(one, ast.Starred) for one in value.args):
                    raise NotKnown
                bound = bind(outline, len(value.args) - 1, [key for key in keywords if key is not None])
                return replace(bound, yields_answers=self._has_answers(name), judges_each=False)
            if isinstance(value.func, ast.Name):
                return self._of_instance(value.func.id, depth + 1)
        raise NotKnown

    def _of_attribute(self, value: ast.Attribute, depth: int) -> Outline:
        """`module.function` of an imported module."""
        written = ast.unparse(value.value)
        for node in _statements(self.tree.body):
            for alias in node.names if isinstance(node, ast.Import) else ():
                if (alias.asname or alias.name) == written:
                    return self.reader.in_module(alias.name, value.attr, depth + 1)
        raise NotKnown

    def _of_instance(self, class_name: str, depth: int) -> Outline:
        """An instance of a class that this module defines."""
        classes = [
            node for node in _statements(self.tree.body)
            if isinstance(node, ast.ClassDef) and node.name == class_name
        ]  # fmt: skip
        if depth > _DEPTH or not classes:
            raise NotKnown
        for node in classes[-1].body:
            if isinstance(node, _FUNCTION) and node.name == "__call__" and not node.decorator_list:
                outline = outline_of_definition(node, self.tree)
                return replace(outline, parameters=outline.parameters[1:])  # less self
        raise NotKnown

    def _absolute(self, node: ast.ImportFrom) -> str:
        """The module an import statement names."""
        if not node.level:
            return node.module or ""
        if self.module is None:
            raise NotKnown  # a file by itself has no package
        package = self.module.split(".")
        if self.file.name != "__init__.py":
            package = package[:-1]
        base = package[: len(package) - node.level + 1]
        return ".".join([*base, *([node.module] if node.module else [])])

    def _has_answers(self, name: str) -> bool:
        return _answers_attached(self.tree, name)

    def _may_hide_names(self) -> bool:
        """Whether names come into the module in ways that its statements do not show."""
        return any(
            (isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names))
            or (isinstance(node, ast.Name | ast.FunctionDef) and _called(node) in _REWRITES_ITSELF)
            for node in ast.walk(self.tree)
        )


def _called(node: ast.Name | ast.FunctionDef) -> str:
    return node.id if isinstance(node, ast.Name) else node.name


# ---- outlines


def outline_of_definition(node: ast.FunctionDef | ast.AsyncFunctionDef, tree: ast.Module) -> Outline:
    decorators = [
        ast.unparse(decorator).partition("(")[0].rpartition(".")[2] for decorator in node.decorator_list
    ]
    return _outline(
        node.args,
        is_async=isinstance(node, ast.AsyncFunctionDef),
        yields_answers="yields_answers" in decorators or _answers_attached(tree, node.name),
        judges_each="judges_each" in decorators,
    )


def _outline(
    arguments: ast.arguments, *, is_async: bool, yields_answers: bool = False, judges_each: bool = False
) -> Outline:
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [
        *zip(positional, defaults, strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    return Outline(
        tuple(
            Parameter(one.arg, default is None, ast.unparse(one.annotation) if one.annotation else "")
            for one, default in pairs
        ),
        accepts_any=arguments.kwarg is not None and not arguments.kwarg.arg.startswith("_"),
        swallows=arguments.kwarg is not None,
        is_async=is_async,
        yields_answers=yields_answers,
        judges_each=judges_each,
    )


def bind(outline: Outline, positional: int, keywords: Iterable[str]) -> Outline:
    """The outline of functools.partial: what it fills is a setting, and no column of that name is put into it."""
    filled = set(keywords)
    return replace(
        outline,
        parameters=tuple(
            replace(one, required=False, setting=True) if one.name in filled else one
            for one in outline.parameters[positional:]
        ),
    )


def _answers_attached(tree: ast.Module, name: str) -> bool:
    return any(
        isinstance(node, ast.Assign) and any(ast.unparse(target) == f"{name}.answers" for target in node.targets)
        for node in _statements(tree.body)
    )  # fmt: skip


# ---- statements


def _statements(body: list[ast.stmt]) -> Iterable[ast.stmt]:
    """Statements of a module, those under `if`, `try` and `with` included."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            for handler in vars(node).get("handlers", []):
                yield from _statements(handler.body)
            for block in ("body", "orelse", "finalbody"):
                yield from _statements(vars(node).get(block, []))


def _names_bound(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        parts = [one for target in node.targets for one in ast.walk(target)]  # a, b = ... binds both
        return [one.id for one in parts if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        return [node.target.id]
    if isinstance(node, ast.Import):
        return [alias.asname or alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    return []


def top_level_names(tree: ast.Module) -> list[str]:
    return [name for node in _statements(tree.body) for name in _names_bound(node)]
