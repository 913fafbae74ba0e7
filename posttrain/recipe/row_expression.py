"""An expression over the columns of a row: `pass_rate > 0.1 and len(prompt) < 400`. Read, never run.

Python's own grammar, of which only what is listed here passes: column names (dotted for a key inside a column,
`row["any name"]` for one that is no name of Python's), numbers, text, true and false as `True` and `False`, `None`,
lists of these, comparisons, `in`, `and`, `or`, `not`, `+ - * / // %` on numbers, `len(...)` and `float(...)`. There is
no attribute, no call and no index beyond these, so nothing of the process can be reached.

A missing value is None and makes what reads it unknown: see `value_of`.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LONGEST = 2_000
"""Characters of an expression."""
DEEPEST = 50
"""Operations within operations."""
_MOST_BITS = 4_000
_NUMBERS: dict[type, tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
    ast.FloorDiv: ("//", operator.floordiv),
    ast.Mod: ("%", operator.mod),
}
_COMPARED: dict[type, tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
    ast.Is: ("is", operator.is_),
    ast.IsNot: ("is not", operator.is_not),
    ast.In: ("in", lambda a, b: a in b),
    ast.NotIn: ("not in", lambda a, b: a not in b),
}
_CALLS = ("len", "float")
_ALLOWED = "columns, numbers, text, lists, comparisons, 'in', 'and', 'or', 'not', + - * / // % and len(...), float(...)"


class ExpressionFault(ValueError):
    """An expression that cannot be read, or a row it cannot be asked of: what, and what to write instead."""


@dataclass(frozen=True)
class RowExpression:
    """
    text     as it was written
    columns  that it reads, in the order of their first use
    """

    text: str
    tree: ast.expr
    columns: tuple[str, ...]

    def value_of(self, column: Callable[[str], Any]) -> Any:
        """Its value for a row, whose columns `column` gives; None where it is not known.

        What reads a None is None: a comparison, arithmetic, len. `and` with one false side is False, `or` with one
        true side True, whatever the other is; `x is None` and `x == None` are always known. Raises ExpressionFault
        where two values do not go together, such as a number and a text.
        """
        return _RowReader(column).value(self.tree)


def row_expression(text: str) -> RowExpression:
    """Reads an expression. Raises ExpressionFault for anything that is not listed above."""
    if len(text) > LONGEST:
        raise ExpressionFault(f"{len(text)} characters are more than {LONGEST}; rewrite the file instead")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        columns = list(dict.fromkeys(_columns(tree)))
    except ExpressionFault:
        raise
    except SyntaxError as error:
        raise ExpressionFault(f"{text!r} cannot be read: {error.msg}{_hint(text)}") from None
    except (ValueError, RecursionError, MemoryError):  # a NUL, brackets in brackets
        raise ExpressionFault(f"{text[:60]!r} cannot be read; write a shorter expression") from None
    if not columns:
        raise ExpressionFault(f"{text!r} reads no column, so it says the same of every row; name one")
    return RowExpression(text, tree, tuple(columns))


def _hint(text: str) -> str:
    for wrong, right in (("&&", "and"), ("||", "or"), ("!", "not"), ("=", "==")):
        if wrong in text.replace("!=", "").replace("==", "").replace(">=", "").replace("<=", ""):
            return f"; write '{right}' for '{wrong}'"
    return '; a column whose name is none of Python\'s is written row["its name"]'


def _columns(node: ast.expr, depth: int = 0) -> list[str]:
    """The columns of a tree in which nothing stands that is not allowed."""
    if depth > DEEPEST:
        raise ExpressionFault(f"more than {DEEPEST} operations stand within each other; write it flatter")
    if (name := _column(node)) is not None:
        return [name]
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None):
            parts: list[ast.expr] = []
        case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts):
            if any(_column(part) is None and not _is_literal(part) for part in parts):
                raise _refused(node)
        case ast.BoolOp(values=parts):
            pass
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd(), operand=part):
            parts = [part]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _NUMBERS:
            parts = [left, right]
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARED for op in ops):
            parts = [left, *others]
            for op, other in zip(ops, others, strict=True):
                if isinstance(op, ast.Is | ast.IsNot) and not _is_none(other):
                    raise ExpressionFault(f"{ast.unparse(node)!r}: 'is' is for None alone; write == or !=")
        case ast.Call(func=ast.Name(id=called), args=[part], keywords=[]) if called in _CALLS:
            parts = [part]
        case _:
            raise _refused(node)
    return [name for part in parts for name in _columns(part, depth + 1)]


def _refused(node: ast.AST) -> ExpressionFault:
    return ExpressionFault(f"{ast.unparse(node)[:80]!r} is not read here; an expression has {_ALLOWED}")


def _column(node: ast.expr) -> str | None:
    """The column that a node names: `name`, `name.key`, row["name"]."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = _column(node.value)
        if node.attr.startswith("__"):
            raise _refused(node)
        return None if before is None else f"{before}.{node.attr}"
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "row":
        key = node.slice
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            return key.value
    return None


def _is_literal(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


class _RowReader:
    """Values of nodes for one row."""

    def __init__(self, column: Callable[[str], Any]) -> None:
        self.column = column

    def value(self, node: ast.expr) -> Any:
        if (name := _column(node)) is not None:
            return self.column(name)
        match node:
            case ast.Constant(value=value):
                return value
            case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts):
                return [self.value(part) for part in parts]
            case ast.BoolOp(op=op, values=parts):
                return self._joined(isinstance(op, ast.And), parts)
            case ast.UnaryOp(op=ast.Not(), operand=part):
                found = self._truth(part)
                return None if found is None else not found
            case ast.UnaryOp(op=op, operand=part):
                found = self._number(part, node)
                return None if found is None else -found if isinstance(op, ast.USub) else found
            case ast.BinOp():
                return self._arithmetic(node)
            case ast.Compare():
                return self._compared(node)
            case ast.Call(func=ast.Name(id=called), args=[part]):
                return self._called(called, part, node)
        raise _refused(node)

    def _truth(self, node: ast.expr) -> bool | None:
        found = self.value(node)
        if found is None or isinstance(found, bool):
            return found
        raise ExpressionFault(
            f"{ast.unparse(node)!r} is {_told(found)}, where true or false is meant; write a comparison"
        )

    def _joined(self, both: bool, parts: list[ast.expr]) -> bool | None:
        """`and` is decided by a False, `or` by a True; parts behind that are not looked at."""
        unknown = False
        for part in parts:
            found = self._truth(part)
            if found is (not both):
                return found
            unknown = unknown or found is None
        return None if unknown else both

    def _number(self, part: ast.expr, whole: ast.expr) -> float | int | None:
        found = self.value(part)
        if found is None or (isinstance(found, int | float) and not isinstance(found, bool)):
            return found
        raise ExpressionFault(
            f"{ast.unparse(whole)!r}: {ast.unparse(part)!r} is {_told(found)}, not a number{_as_number(part, found)}"
        )

    def _arithmetic(self, node: ast.BinOp) -> float | int | None:
        left, right = self._number(node.left, node), self._number(node.right, node)
        if left is None or right is None:
            return None
        try:
            found = _NUMBERS[type(node.op)][1](left, right)
        except (ZeroDivisionError, OverflowError) as error:
            raise ExpressionFault(f"{ast.unparse(node)!r}: {error}") from None
        if isinstance(found, int) and found.bit_length() > _MOST_BITS:
            raise ExpressionFault(f"{ast.unparse(node)!r} is a number of more than {_MOST_BITS} bits")
        return found

    def _compared(self, node: ast.Compare) -> bool | None:
        """Of a chain, as of its links joined by `and`."""
        left, unknown = node.left, False
        for op, right in zip(node.ops, node.comparators, strict=True):
            found = self._link(left, op, right)
            if found is False:
                return False
            unknown, left = unknown or found is None, right
        return None if unknown else True

    def _link(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> bool | None:
        word, compare = _COMPARED[type(op)]
        first, second = self.value(left), self.value(right)
        if word in ("==", "!=", "is", "is not") and (_is_none(left) or _is_none(right)):
            return (first is second) is (word in ("==", "is"))
        if first is None or second is None:
            return None
        said = f"{ast.unparse(left)} {word} {ast.unparse(right)}"
        if word in ("in", "not in"):
            _check_within(said, left, first, second)
        elif _kind(first) != _kind(second):
            text, number = (left, first) if isinstance(first, str) else (right, second)
            raise ExpressionFault(
                f"{said!r} compares {_told(first)} with {_told(second)}{_as_number(text, number)}"
            )
        elif word not in ("==", "!=") and _kind(first) not in ("a number", "text"):
            raise ExpressionFault(f"{said!r}: {_told(first)} is neither larger nor smaller than another")
        return compare(first, second)

    def _called(self, called: str, part: ast.expr, node: ast.Call) -> float | int | None:
        found = self.value(part)
        if found is None:
            return None
        try:
            if called == "len":
                return len(found)
            return float(found) if isinstance(found, str | int | float) else float(str(found))
        except (TypeError, ValueError, OverflowError):
            wanted = "a length" if called == "len" else "a number"
            raise ExpressionFault(f"{ast.unparse(node)!r}: {_told(found)} has not {wanted}") from None


def _check_within(said: str, left: ast.expr, item: Any, container: Any) -> None:
    if isinstance(container, str):
        if not isinstance(item, str):
            raise ExpressionFault(f"{said!r} looks for {_told(item)} in a text")
    elif not isinstance(container, list | dict):
        raise ExpressionFault(f"{said!r}: {_told(container)} holds nothing to look for")
    elif isinstance(container, list) and container and all(_kind(one) != _kind(item) for one in container):
        raise ExpressionFault(
            f"{said!r} looks for {_told(item)} among values of another kind{_as_number(left, item)}"
        )


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    for kind, name in ((int | float, "a number"), (str, "text"), (list, "a list"), (dict, "a mapping")):
        if isinstance(value, kind):
            return name
    return f"a {type(value).__name__}"


def _told(value: Any) -> str:
    shown = repr(value)
    return f"{_kind(value)} ({shown if len(shown) <= 40 else shown[:37] + '...'})"


def _as_number(node: ast.expr, value: Any) -> str:
    """What to write where a column holds numbers as text, as CSV does."""
    if _column(node) is None or not isinstance(value, str):
        return ""
    return f"; where a column holds numbers as text, write float({ast.unparse(node)})"
