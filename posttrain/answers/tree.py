"""From an expression in LaTeX to a tree: a small recursive-descent reader.

Trees are nested tuples ("op", branch, ...), leaves ("num", Fraction), ("var", name) and the constants ("pi",), ("e",),
("i",), ("inf",). What the reader does not know (sums, integrals, limits, words) raises `Unreadable`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

MAX_LENGTH = 600  # characters of one expression
MAX_DEPTH = 40

_GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi Omega ell hbar"
)
_FUNCTIONS = "sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh ln exp"
GREEK = frozenset(_GREEK.split())
FUNCTION_NAMES = frozenset(_FUNCTIONS.split())
INVERSES = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot"}

TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+(?![\d.]*[A-Za-z\\]))?)"
    r"|(?P<command>\\[A-Za-z]+)|(?P<escaped>\\[{}|])|(?P<symbol>[^\s\\]))"
)


_DERIVATIVE = re.compile(r"\\frac\s*\{\s*d(?:\s*\^\s*\{?\d\}?)?[^{}]*\}\s*\{\s*d\s*[a-z]")


class Unreadable(ValueError):
    """The expression is outside the language read here, or too large to evaluate."""


@dataclass(frozen=True)
class Parsed:
    """A tree and what was seen while reading it.

    names       the variables
    inexact     whether a decimal point occurs: equality is then up to rounding
    integers    whether it makes sense at whole numbers only (factorials, floors, (-1)^n)
    """

    tree: tuple
    names: frozenset[str]
    inexact: bool
    integers: bool


def parse(text: str) -> Parsed:
    """Reads one expression (no relation, no list). Raises Unreadable."""
    if len(text) > MAX_LENGTH:
        raise Unreadable(f"longer than {MAX_LENGTH} characters")
    if _DERIVATIVE.search(text):
        raise Unreadable("a derivative, which would be read as a fraction")
    reader = _Reader(_tokens(text))
    tree = reader.sum()
    if reader.peek():
        raise Unreadable(f"cannot read {reader.peek()!r}")
    return Parsed(tree, frozenset(reader.names), reader.inexact, reader.integers)


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
        self.applied = "f(" in "".join(
            tokens
        )  # then g and h before a bracket are functions too, and no factors

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
                beside = token[0] in "0123456789." and self.tokens[self.position - 1][-1].isdigit()
                if beside and not self.behind_power():
                    raise Unreadable("two numbers side by side")
                tree = ("mul", tree, self.power())
            else:
                return tree

    def behind_power(self) -> bool:
        """2^6 3^5 is a product, where 2 3 is none: what stands before is an exponent."""
        return self.position >= 2 and self.tokens[self.position - 2] == "^"

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
                if _is_negative(tree) and has_names(exponent):
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
            if (
                self.applied
                and token in _FUNCTION_LETTERS
                and self.tokens[self.position + 1 : self.position + 2] == ["("]
            ):
                self.names.add(f"{self.next()}()")
                return ("apply", token, self.group("(", ")"))
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
            return self.next().removeprefix("\\")
        depth, text = 0, ""
        while True:
            token = self.next()
            depth += (token == "{") - (token == "}")
            if depth == 0:
                return text
            if token not in ("{", "}", r"\text"):
                text += token.removeprefix("\\")

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
        if word in FUNCTION_NAMES:
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
            if (
                not self.starts_atom(token)
                or token[1:] in FUNCTION_NAMES
                or token in ("(", "[", "|", r"\log")
            ):
                return tree
            if token[0].isdigit():
                return tree
            tree = ("mul", tree, self.power())


_FUNCTION_LETTERS = frozenset("fgh")
_ATOM_COMMANDS = FUNCTION_NAMES | GREEK | {
    "pi", "frac", "sqrt", "binom", "lfloor", "lceil", "infty", "log", "dot", "ddot",
}  # fmt: skip


def _is_negative(tree: tuple) -> bool:
    return tree[0] == "neg"


def has_names(tree: Any) -> bool:
    return isinstance(tree, tuple) and (tree[0] == "var" or any(has_names(branch) for branch in tree[1:]))
