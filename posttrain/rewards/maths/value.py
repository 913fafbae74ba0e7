"""Values of LaTeX expressions, without a computer algebra system.

A small recursive-descent reader turns an expression into a tree; the tree is evaluated exactly (fractions) where
that is possible and to 50 digits elsewhere. An expression with variables is evaluated at fixed sample points, so
that two expressions are equal when they agree at all of them. What the reader does not know (sums, integrals,
limits, words) raises `Unreadable`, and the caller asks math-verify instead.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from mpmath import MPContext

Number = Any  # Fraction, or a real or complex number of the private mpmath context

_mp: Any = MPContext()  # private: nobody else's precision is touched
_mp.dps = 50

MAX_BITS = 200_000  # an exact integer larger than this is not written out
MAX_LENGTH = 600  # characters of one expression
MAX_DEPTH = 40

GREEK = frozenset(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi Omega ell hbar".split()
)
FUNCTIONS: dict[str, Callable[[Number], Number]] = {
    "sin": _mp.sin, "cos": _mp.cos, "tan": _mp.tan, "cot": _mp.cot, "sec": _mp.sec, "csc": _mp.csc,
    "arcsin": _mp.asin, "arccos": _mp.acos, "arctan": _mp.atan, "arccot": _mp.acot, "sinh": _mp.sinh,
    "cosh": _mp.cosh, "tanh": _mp.tanh, "ln": _mp.ln, "exp": _mp.exp,
}  # fmt: skip
INVERSES = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot"}

TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+(?![\d.]*[A-Za-z\\]))?)"
    r"|(?P<command>\\[A-Za-z]+)|(?P<escaped>\\[{}|])|(?P<symbol>[^\s\\]))"
)


class Unreadable(ValueError):
    """The expression is outside the language read here, or too large to evaluate."""


@dataclass(frozen=True)
class Value:
    """An expression that has been read.

    names       the variables in it
    inexact     whether a decimal point occurs: equality is then up to rounding
    integers    whether it makes sense at whole numbers only (factorials, floors, (-1)^n)
    tree        nested tuples ("op", arguments...)
    """

    names: frozenset[str]
    inexact: bool
    integers: bool
    tree: tuple

    def at(self, point: int, integers: bool = False) -> Number:
        """The value at sample point number `point`. Raises Unreadable, ZeroDivisionError or ValueError."""
        return _evaluate(self.tree, lambda name: _sample(name, point, integers))


@lru_cache(maxsize=4096)
def _sample(name: str, point: int, integers: bool) -> Number:
    rng = random.Random(f"{name}/{point}")
    if integers:  # several sizes: a factorial or binomial may exist for some of them only
        return Fraction(rng.randint(1, 9))
    sign = -1 if point % 3 == 2 else 1
    return _mp.mpf(sign * rng.randint(2_000_000, 29_000_000)) / 10_000_019


# ---- reading ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16384)
def read_value(text: str) -> Value:
    """Reads one expression (no relation, no list). Raises Unreadable."""
    if len(text) > MAX_LENGTH:
        raise Unreadable(f"longer than {MAX_LENGTH} characters")
    reader = _Reader(_tokens(text))
    tree = reader.sum()
    if reader.peek():
        raise Unreadable(f"cannot read {reader.peek()!r}")
    return Value(frozenset(reader.names), reader.inexact, reader.integers, tree)


def _tokens(text: str) -> list[str]:
    tokens, position = [], 0
    text = text.rstrip()
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None:
            raise Unreadable(f"cannot read {text[position:]!r}")
        tokens.append(match.group().strip())
        position = match.end()
    return tokens


class _Reader:
    def __init__(self, tokens: list[str]):
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.names: set[str] = set()
        self.inexact = False
        self.integers = False
        self.closers: list[str] = []
        self.in_function = 0

    def peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def next(self) -> str:
        token = self.peek()
        if not token:
            raise Unreadable("the expression ends early")
        self.position += 1
        return token

    def expect(self, token: str) -> None:
        if self.next() != token:
            raise Unreadable(f"expected {token!r}")

    def sum(self) -> tuple:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.next() == "-"
        tree = self.product()
        if negative:
            tree = ("neg", tree)
        while self.peek() in ("+", "-"):
            op = "add" if self.next() == "+" else "sub"
            tree = (op, tree, self.product())
        self.depth -= 1
        return tree

    def product(self) -> tuple:
        tree = self.signed_power()
        while True:
            token = self.peek()
            if token in ("*", r"\times", r"\cdot", r"\ast"):
                self.next()
                tree = ("mul", tree, self.signed_power())
            elif token in ("/", r"\div"):
                self.next()
                tree = ("div", tree, self.signed_power())
            elif self.starts_atom(token):
                if token[0] in "0123456789." and self.tokens[self.position - 1][-1].isdigit():
                    raise Unreadable("two numbers side by side")
                tree = ("mul", tree, self.power())
            else:
                return tree

    def signed_power(self) -> tuple:
        if self.peek() in ("+", "-"):
            sign = self.next()
            tree = self.signed_power()
            return ("neg", tree) if sign == "-" else tree
        return self.power()

    def starts_atom(self, token: str) -> bool:
        if not token or token in self.closers[-1:]:
            return False
        return (
            token[0].isalnum()
            or token[0] == "."
            or token in ("(", "[", "{", "|")
            or (token[0] == "\\" and token[1:] in _ATOM_COMMANDS)
        )

    def power(self) -> tuple:
        tree = self.atom()
        while True:
            token = self.peek()
            if token == "!":
                self.next()
                self.integers = True
                tree = ("factorial", tree)
            elif token == "^":
                self.next()
                if self.degrees():
                    if self.in_function:
                        tree = ("mul", tree, ("div", ("pi",), ("num", Fraction(180))))
                    continue
                exponent = self.argument(digits_together=True)
                if _is_negative(tree) and _has_names(exponent):
                    self.integers = True
                tree = ("pow", tree, exponent)
            else:
                return tree

    def degrees(self) -> bool:
        """Skips a degree sign after ^: outside functions, angles are compared by their number of degrees."""
        for sign in ([r"\circ"], ["{", r"\circ", "}"]):
            if self.tokens[self.position : self.position + len(sign)] == sign:
                self.position += len(sign)
                return True
        return False

    def argument(self, digits_together: bool = False) -> tuple:
        r"""What follows ^, \frac or \sqrt: a group in braces, or one token (one digit, as LaTeX has it)."""
        token = self.peek()
        if token == "{":
            return self.group("{", "}")
        if token[:1].isdigit() or token[:1] == ".":
            if digits_together or len(token) == 1:
                return self.number()
            self.tokens[self.position : self.position + 1] = list(token)
            return self.argument()
        if digits_together and token in ("+", "-"):
            sign = self.next()
            inner = self.argument(digits_together=True)
            return ("neg", inner) if sign == "-" else inner
        return self.atom()

    def group(self, opening: str, closing: str) -> tuple:
        self.expect(opening)
        self.closers.append(closing)
        tree = self.sum()
        self.closers.pop()
        self.expect(closing)
        return tree

    def number(self) -> tuple:
        token = self.next()
        if "." in token or "e" in token.lower():
            self.inexact = True
        mantissa, _, exponent = token.lower().partition("e")
        if abs(int(exponent or 0)) > 5000:
            raise Unreadable("exponent too large")
        return ("num", Fraction(mantissa.rstrip(".") or "0") * Fraction(10) ** int(exponent or 0))

    def atom(self) -> tuple:
        token = self.peek()
        if token[:1].isdigit() or (token[:1] == "." and len(token) > 1):
            return self.mixed_number()
        if token in ("(", "[", "{"):
            return self.group(token, {"(": ")", "[": "]", "{": "}"}[token])
        if token == "|":
            return ("abs", self.group("|", "|"))
        if token[:1] == "\\":
            return self.command()
        if token.isalpha():
            return self.name(self.next())
        raise Unreadable(f"cannot read {token!r}")

    def mixed_number(self) -> tuple:
        tree = self.number()
        whole = tree[1]
        if self.peek() == r"\frac" and whole.denominator == 1 and not self.inexact:
            start = self.position
            fraction = self.atom()
            if fraction[1][0] == fraction[2][0] == "num":
                return ("add", tree, fraction)
            self.position = start
        return tree

    def name(self, letter: str) -> tuple:
        subscript = ""
        if self.peek() == "_":
            self.next()
            subscript = "_" + self.subscript()
        while self.peek() == "'":
            subscript += self.next()
        if not subscript and letter in ("e", "i"):
            return (letter,)
        if not subscript and letter == r"\pi":
            return ("pi",)
        self.names.add(letter + subscript)
        return ("var", letter + subscript)

    def subscript(self) -> str:
        if self.peek() != "{":
            return self.next()
        depth, text = 0, ""
        while True:
            token = self.next()
            depth += (token == "{") - (token == "}")
            if depth == 0:
                return text
            if token not in "{}":
                text += token

    def command(self) -> tuple:
        token = self.next()
        word = token[1:]
        if word == "frac":
            return ("div", self.argument(), self.argument())
        if word == "sqrt":
            index = self.group("[", "]") if self.peek() == "[" else ("num", Fraction(2))
            return ("root", self.argument(), index)
        if word == "binom":
            self.integers = True
            return ("binom", self.argument(), self.argument())
        if word in ("lfloor", "lceil"):
            self.integers = True
            self.position -= 1
            return (word[1:], self.group(token, r"\r" + word[1:]))
        if word == "infty":
            return ("inf",)
        if word == "log":
            return self.logarithm()
        if word in FUNCTIONS:
            return self.function(word)
        if word in GREEK or word == "pi":
            return self.name(token)
        if word == "dot" or word == "ddot":  # a time derivative: a name of its own
            letter = self.argument()
            if letter[0] != "var":
                raise Unreadable("cannot read a derivative")
            return self.name(f"{token} {letter[1]}")
        raise Unreadable(f"cannot read {token!r}")

    def logarithm(self) -> tuple:
        base = None
        if self.peek() == "_":
            self.next()
            base = self.argument(digits_together=True)
        inner = self.function_argument()
        return ("log", inner, base) if base else ("log10", inner)

    def function(self, word: str) -> tuple:
        exponent = None
        if self.peek() == "^":
            self.next()
            exponent = self.argument(digits_together=True)
        inner = self.function_argument()
        if exponent is None:
            return ("fn", word, inner)
        if exponent in (("neg", ("num", Fraction(1))),) and word in INVERSES:
            return ("fn", INVERSES[word], inner)
        return ("pow", ("fn", word, inner), exponent)

    def function_argument(self) -> tuple:
        self.in_function += 1
        tree = self.bare_argument()
        self.in_function -= 1
        return tree

    def bare_argument(self) -> tuple:
        """A bracketed group, or the factors up to the next sign, division or function: sin 2t, cos \\pi t."""
        if self.peek() in ("(", "[", "{", "|"):
            return self.power()
        tree = self.power()
        while True:
            token = self.peek()
            if not self.starts_atom(token) or token[1:] in FUNCTIONS or token in ("(", "[", "|", r"\log"):
                return tree
            if token[0].isdigit():
                return tree
            tree = ("mul", tree, self.power())


_ATOM_COMMANDS = frozenset(FUNCTIONS) | GREEK | {
    "pi", "frac", "sqrt", "binom", "lfloor", "lceil", "infty", "log", "dot", "ddot",
}  # fmt: skip


def _is_negative(tree: tuple) -> bool:
    return tree[0] == "neg"


def _has_names(tree: Any) -> bool:
    return isinstance(tree, tuple) and (tree[0] == "var" or any(_has_names(branch) for branch in tree[1:]))


# ---- evaluation -------------------------------------------------------------------------------------------------


def _lift(x: Number) -> Number:
    return _mp.mpf(x.numerator) / x.denominator if isinstance(x, Fraction) else x


def _evaluate(tree: tuple, variable: Callable[[str], Number]) -> Number:
    op = tree[0]
    if op == "num":
        return tree[1]
    if op == "var":
        return variable(tree[1])
    if op in _CONSTANTS:
        return _CONSTANTS[op]
    if op == "fn":
        return FUNCTIONS[tree[1]](_lift(_small(_evaluate(tree[2], variable))))
    arguments = [_evaluate(branch, variable) for branch in tree[1:]]
    if len(arguments) == 2 and op in _EXACT and all(isinstance(x, Fraction) for x in arguments):
        return _bounded(_EXACT[op](*arguments))
    return _OPERATIONS[op](*arguments)


def _bounded(x: Fraction) -> Fraction:
    if max(x.numerator.bit_length(), x.denominator.bit_length()) > MAX_BITS:
        raise Unreadable("number too large")
    return x


def _small(x: Number) -> Number:
    """Transcendental functions of astronomically large arguments would run for ever."""
    if abs(x) > 10**6:
        raise Unreadable("argument too large")
    return x


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(exponent, Fraction) and exponent.denominator == 1 and isinstance(base, Fraction):
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if size * abs(exponent.numerator) <= MAX_BITS:
            return base**exponent.numerator
    base, exponent = _lift(base), _lift(exponent)
    if base == 0:
        if _mp.re(exponent) <= 0:
            raise ZeroDivisionError("zero to a power that is not positive")
        return Fraction(0)
    if abs(exponent) * (abs(_mp.log(abs(base))) + 1) > 10**6:
        raise Unreadable("power too large")
    return _mp.power(base, exponent)


def _root(x: Number, index: Number) -> Number:
    if isinstance(index, Fraction) and index.denominator == 1 and index > 0:
        if isinstance(x, Fraction):
            exact = _exact_root(abs(x), index.numerator)
            if exact is not None and (x >= 0 or index.numerator % 2):
                return exact if x >= 0 else -exact
        real = isinstance(x, Fraction) or not isinstance(x, _mp.mpc)
        if real and x < 0 and index.numerator % 2:  # the real cube root of a negative number
            return -_mp.root(-_lift(x), index.numerator)
        if index == 2:
            return _mp.sqrt(_lift(x))
    return _power(x, 1 / _lift(index))


def _exact_root(x: Fraction, n: int) -> Fraction | None:
    parts = []
    for part in (x.numerator, x.denominator):
        if part.bit_length() > 2000:
            return None
        root = math.isqrt(part) if n == 2 else round(part ** (1 / n)) if part.bit_length() < 200 else -1
        if root < 0 or n > 64 or root**n != part:
            return None
        parts.append(root)
    return Fraction(parts[0], parts[1])


def _whole(x: Number) -> int:
    if not isinstance(x, Fraction) or x.denominator != 1 or not 0 <= x <= 3000:
        raise Unreadable("a factorial or binomial of something that is not a small whole number")
    return x.numerator


def _floor(x: Number) -> Fraction:
    if isinstance(x, Fraction):
        return Fraction(math.floor(x))
    nearest = _mp.nint(x)  # 1e-40 below a whole number is rounding, not the number below
    return Fraction(int(nearest if abs(x - nearest) < _mp.mpf(10) ** -40 else _mp.floor(x)))


_CONSTANTS = {"pi": +_mp.pi, "e": _mp.e + 0, "i": _mp.mpc(0, 1), "inf": _mp.inf}
_EXACT: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
}
_OPERATIONS: dict[str, Callable[..., Number]] = {
    "add": lambda a, b: _lift(a) + _lift(b),
    "sub": lambda a, b: _lift(a) - _lift(b),
    "mul": lambda a, b: _lift(a) * _lift(b),
    "div": lambda a, b: _lift(a) / _lift(b),
    "neg": lambda a: -a,
    "abs": abs,
    "pow": _power,
    "root": _root,
    "factorial": lambda a: _bounded(Fraction(math.factorial(_whole(a)))),
    "binom": lambda n, k: Fraction(math.comb(_whole(n), _whole(k))),
    "floor": _floor,
    "ceil": lambda a: -_floor(-a),
    "log": lambda a, b: _mp.log(_lift(_small(a) if not isinstance(a, Fraction) else a)) / _mp.log(_lift(b)),
    "log10": lambda a: _mp.log10(_lift(a)),
}


# ---- comparison -------------------------------------------------------------------------------------------------

_FAILURES = (Unreadable, ArithmeticError, ValueError, TypeError)
POINTS = 4
INTEGER_POINTS = 12
ROUNDING = Fraction(1, 10**6)


def agree(a: Number, b: Number, inexact: bool, rel_tol: float = 0.0, abs_tol: float = 0.0) -> bool:
    """Whether two numbers are the same: exactly, to 30 digits, or (a decimal among them) to six decimals.

    Below 0.1 the allowance shrinks with the number: 1e-8 is not 2e-8.
    """
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        if a == b:
            return True
        inexact = inexact and not (_is_decimal(a) and _is_decimal(b))  # 0.9999999 is not 1
        if not inexact and not rel_tol and not abs_tol:
            return False
    a, b = _lift(a), _lift(b)
    if _mp.isinf(a) or _mp.isinf(b):
        return bool(a == b)
    if _mp.isnan(a) or _mp.isnan(b):
        return False
    difference, size = abs(a - b), abs(a)
    if difference <= max(size, abs(b)) * _mp.mpf(10) ** -30 or max(size, abs(b)) < _mp.mpf(10) ** -40:
        return True
    slack = max(rel_tol * size, _mp.mpf(abs_tol))
    if inexact:
        slack = max(slack, _lift(ROUNDING) * min(_mp.mpf(1), 10 * size))
    return bool(difference <= slack)


def _is_decimal(x: Fraction) -> bool:
    """Whether a few decimals write the number out, so that nobody has to round it."""
    return 10**9 % x.denominator == 0


def same_value(a: Value, b: Value, rel_tol: float = 0.0, abs_tol: float = 0.0) -> bool | None:
    """Whether two expressions are equal: as numbers, or at every sample point. None if that cannot be told."""
    inexact = a.inexact or b.inexact
    if not a.names and not b.names:
        try:
            return agree(a.at(0), b.at(0), inexact, rel_tol, abs_tol)
        except _FAILURES:
            return None
    integers = a.integers or b.integers
    compared = 0
    for point in range(INTEGER_POINTS if integers else POINTS):
        try:
            x, y = a.at(point, integers), b.at(point, integers)
        except _FAILURES:
            continue
        if not integers and point % 3 == 2 and (_is_complex(x) or _is_complex(y)):
            continue  # at negative numbers only real values speak: log(x^2) is 2 log x where both exist
        if not agree(x, y, inexact):
            return False
        compared += 1
    return True if compared >= 2 else None


def same_curve(a: Value, b: Value) -> bool:
    """Whether a = 0 and b = 0 have the same solutions: one is a constant times the other, or, where both are linear
    in some variable, each vanishes at the other's solutions."""
    ratios = []
    for point in range(POINTS):
        try:
            ratios.append(a.at(point) / b.at(point))
        except _FAILURES:
            continue
    if len(ratios) >= 2 and all(agree(ratio, ratios[0], a.inexact or b.inexact) for ratio in ratios[1:]):
        return ratios[0] != 0
    return a.names == b.names and _vanishes(a, b) and _vanishes(b, a)


def _vanishes(a: Value, b: Value) -> bool:
    """Whether `a` is zero at solutions of b = 0, found through a variable in which `b` is linear."""
    for name in sorted(b.names):
        compared = 0
        for point in range(POINTS):
            try:
                at = [_evaluate(b.tree, _with(name, Fraction(x), point)) for x in range(3)]
                slope = at[1] - at[0]
                if not agree(at[2] - at[1], slope, False) or slope == 0:
                    break
                root = -_lift(at[0]) / _lift(slope)
                value = _evaluate(a.tree, _with(name, root, point))
                scale = _evaluate(a.tree, _with(name, root + 1, point))
            except _FAILURES:
                continue
            if abs(_lift(value)) > abs(_lift(scale)) * _mp.mpf(10) ** (-5 if a.inexact or b.inexact else -25):
                return False
            compared += 1
        if compared >= 2:
            return True
    return False


def _with(name: str, x: Number, point: int) -> Callable[[str], Number]:
    return lambda other: x if other == name else _sample(other, point, False)


def _is_complex(x: Number) -> bool:
    return isinstance(x, _mp.mpc) and abs(x.imag) > abs(x.real) * _mp.mpf(10) ** -30


def number_of(value: Value) -> Number | None:
    """The number an expression without variables stands for, or None."""
    if value.names:
        return None
    try:
        return value.at(0)
    except _FAILURES:
        return None


def real_of(value: Value) -> Number | None:
    """The real number (of mpmath, infinities included) an expression stands for, or None."""
    number = number_of(value)
    if number is None or _is_complex(number):
        return None
    number = _mp.re(_lift(number))
    return None if _mp.isnan(number) else number


def canonical_value(value: Value) -> str | None:
    """A string that equal expressions share: a fraction where the value is rational, 20 digits elsewhere."""
    try:
        samples = [value.at(point, value.integers) for point in range(4 if value.integers and value.names else 1)]
    except _FAILURES:
        return None
    label = f"[{','.join(sorted(value.names))}]" if value.names else ""
    return label + ",".join(map(_digits, samples))


def _digits(x: Number) -> str:
    if isinstance(x, Fraction):
        if max(x.numerator.bit_length(), x.denominator.bit_length()) > 1000:
            return f"~{_mp.nstr(_lift(x), 40)}"
        return str(x)
    if not _mp.isinf(x) and not _is_complex(x):
        nearest = _mp.nint(x.real)
        if abs(x - nearest) < _mp.mpf(10) ** -30 and abs(nearest) < 10**25:
            return str(int(nearest))
    return f"~{_mp.nstr(_mp.mpmathify(x), 20)}"
