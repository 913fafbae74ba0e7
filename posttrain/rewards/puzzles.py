"""Rewards for Countdown and Sudoku: the rules decide, not a stored solution."""

from __future__ import annotations

import ast
import math
import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from posttrain.answers.grading import after_reasoning, extract_answer
from posttrain.rewards.hooks import judges_each, yields_answers

_TAGS = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_MAX_EXPRESSION = 200  # characters; a longer one is no answer, and Python's parser has limits


def _final_answer(text: str) -> str | None:
    """The last closed box, else the last <answer>...</answer>, else the whole text if it has neither opening."""
    boxed = extract_answer(text)
    if boxed.reason not in ("no box", "empty box"):
        return boxed.answer
    visible = after_reasoning(text) or ""
    tagged = _TAGS.findall(visible)
    if tagged:
        return tagged[-1]
    return None if "<answer>" in visible else visible


# ---- Countdown


def _expressions(completions: Sequence[str]) -> list[str | None]:
    """The expression each completion ends with, without spaces, None where there is none."""
    return [_expression(text) for text in completions]


@judges_each
@yields_answers(_expressions)
def countdown(
    completions: Sequence[str],
    *,
    numbers: Sequence[Any],
    target: Sequence[Any],
    use_all: bool = True,
    **_: Any,
) -> list[float | None]:
    """1.0 if the expression makes `target` from `numbers` with + - * / and brackets, each number used once.

    `numbers` is a list of integers or text such as "30,100,93". With `use_all` false, numbers may be left over.
    None where `numbers` or `target` cannot be read.
    """
    scores: list[float | None] = []
    for text, given, goal in zip(completions, numbers, target, strict=True):
        parts, wanted = _integers(given), _integers(goal)
        if parts is None or wanted is None or len(wanted) != 1:
            scores.append(None)
        else:
            scores.append(float(_reaches(_expression(text), parts, wanted[0], use_all)))
    return scores


def _integers(column: Any) -> list[int] | None:
    if isinstance(column, str):
        column = re.split(r"[,\s]+", column.strip(" []()"))
    elif isinstance(column, int):
        column = [column]
    try:
        values = [int(value) for value in column]
    except (TypeError, ValueError):
        return None
    return values or None


def _expression(text: str) -> str | None:
    """The final expression in Python's notation, or None."""
    answer = _final_answer(text)
    if answer is None:
        return None
    answer = re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))", answer)
    answer = re.sub(r"\\times|\\cdot|×|·", "*", re.sub(r"\\div|÷", "/", answer)).replace("−", "-")
    answer = (
        re.sub(r"\\left|\\right|\\[()\[\]]|[$\s]|\\[,;!]", "", answer).replace("[", "(").replace("]", ")")
    )
    return answer if 0 < len(answer) <= _MAX_EXPRESSION and re.fullmatch(r"[\d+\-*/()=]+", answer) else None


def _reaches(expression: str | None, numbers: list[int], target: int, use_all: bool) -> bool:
    if expression is None:
        return False
    left, equals, right = expression.partition("=")
    if equals and right != str(target):
        return False
    used: list[int] = []
    try:
        value = _evaluate(ast.parse(left, mode="eval").body, used)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return False
    spent, given = Counter(used), Counter(numbers)
    return value == target and (spent == given if use_all else spent <= given)


def _evaluate(node: ast.expr, used: list[int]) -> Fraction:
    """Exact value of a tree of whole numbers and + - * /; ValueError for anything else."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.BinOp):
        left, right = _evaluate(node.left, used), _evaluate(node.right, used)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            return left * right
        if isinstance(node.op, ast.Div):
            return left / right
    raise ValueError("only whole numbers, + - * / and brackets")


# ---- Sudoku


def _grids(completions: Sequence[str]) -> list[str | None]:
    """The digits each completion ends with; None where there are none."""
    return [re.sub(r"\D", "", _final_answer(text) or "") or None for text in completions]


@judges_each
@yields_answers(_grids)
def sudoku(completions: Sequence[str], *, puzzle: Sequence[Any], **_: Any) -> list[float | None]:
    """1.0 if the grid obeys the rules (rows, columns, boxes) and keeps the givens of `puzzle`.

    `puzzle` holds 16 or 81 digits in reading order, 0 for an empty cell; an integer has lost leading zeros, which
    are put back. The grid is the last box or <answer>, else the last run of that many digits. None where the puzzle
    cannot be read.
    """
    scores: list[float | None] = []
    for text, given in zip(completions, puzzle, strict=True):
        cells = _puzzle(given)
        scores.append(None if cells is None else float(_solves(_grid(text, len(cells)), cells)))
    return scores


def _puzzle(column: Any) -> str | None:
    if isinstance(column, int):
        column = str(column).zfill(16 if column < 10**16 else 81)
    cells = re.sub(r"[\s,|]", "", column).replace(".", "0") if isinstance(column, str) else ""
    side = math.isqrt(len(cells))
    if len(cells) not in (16, 81) or not cells.isdigit() or max(map(int, cells)) > side:
        return None
    return cells


def _grid(text: str, size: int) -> str:
    """The digits of a boxed or tagged answer, else the last run of `size` digits."""
    answer = _final_answer(text)
    if answer is None:
        return ""
    if "\\boxed" in text or "<answer>" in text:
        return re.sub(r"\D", "", answer)
    runs = re.findall(rf"(?<!\d)(?:\d[\s,|+-]*){{{size}}}(?!\d)", answer)
    return re.sub(r"\D", "", runs[-1]) if runs else ""


def _solves(grid: str, puzzle: str) -> bool:
    if len(grid) != len(puzzle):
        return False
    side = math.isqrt(len(puzzle))
    box = math.isqrt(side)
    wanted = {str(digit) for digit in range(1, side + 1)}
    rows = [grid[side * r : side * (r + 1)] for r in range(side)]
    columns = ["".join(row[c] for row in rows) for c in range(side)]
    boxes = [
        "".join(rows[r + i][c + j] for i in range(box) for j in range(box))
        for r in range(0, side, box)
        for c in range(0, side, box)
    ]
    return all(set(unit) == wanted for unit in rows + columns + boxes) and all(
        given in ("0", cell) for given, cell in zip(puzzle, grid, strict=True)
    )
