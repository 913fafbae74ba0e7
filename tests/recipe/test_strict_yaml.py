"""YAML as recipes mean it."""

from __future__ import annotations

import math

import pytest

from posttrain.recipe.strict_yaml import YAMLFault, parse, read_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("-2.5e-3", -2.5e-3),
        (".5", 0.5),
        ("1.", 1.0),
        ("010", 10),
        ("1_000", 1000),
        ("-.inf", -math.inf),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("", None),
        ("1e5x", "1e5x"),
        ("'1'", "1"),
        ("{a: [1, 2.0]}", {"a": [1, 2.0]}),
    ],
)
def test_scalars(text: str, value: object) -> None:
    read = parse(text)
    assert read == value
    assert type(read) is type(value)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{of}'] * 10)}]\n" for of, name in zip("abcde", "bcdef", strict=True)
)
FAULTS: list[tuple[str, int, str, str]] = [
    # text, line, what is said, the text that is shown
    ("a: 1\nb: 2\na: 3", 3, "key 'a' stands twice, first on line 1", "a: 3"),
    ("x: {b: 1, b: 2}", 1, "'b' stands twice", "x: {b: 1, b: 2}"),
    ("1: a", 1, "key 1 is not text", "1: a"),
    ("x:\n  - [1]: 2", 2, "key [1] is not text", "- [1]: 2"),
    # brackets, quotes, indentation
    ("a: [1,", 1, "a bracket that was opened is never closed", "a: [1,"),
    ("a: [1", 1, "the closing ']' is missing", "a: [1"),
    ("a: {x: 1\nb: 2", 2, "the closing '}' is missing", "b: 2"),
    ('a: "abc\nb: 1\n', 1, "is never closed", 'a: "abc'),
    ("a: 'it's'", 1, "goes on after a value has ended", "a: 'it's'"),
    ("a:\n\tb: 1", 2, "indent with spaces", "b: 1"),
    ("a:\n  - 1\n - 2", 3, "indented otherwise", "- 2"),
    ("a: 1\n b: 2", 2, "a ':' too many", "b: 2"),
    ("a: b: c", 1, "a ':' too many", "a: b: c"),
    ("a: 1\nfoo\nb: 2", 2, "a key without ':'", "foo"),
    ("a: - 1", 1, "a list begins on a line of its own", "a: - 1"),
    ("a: [1,, 2]", 1, "a value is missing before ','", "a: [1,, 2]"),
    # letters that mean something
    ('a: "\\d"', 1, "in double quotes '\\d' is no escape", 'a: "\\d"'),
    ("a: *x", 1, "'*x' names nothing", "a: *x"),
    ("a: **bold**", 1, "begins with * or &", "a: **bold**"),
    ("a: @x", 1, "text cannot begin with @", "a: @x"),
    ("%x: 1", 1, "text cannot begin with %", "%x: 1"),
    ("a: >x", 1, "text after | or >", "a: >x"),
    ("a: 1\n---\nb: 2", 2, "a second document begins", "---"),
    # what a person does not write
    ("a: !!python/object:os.system x", 1, "no YAML tags; remove '!!python/object:os.system'", "a: !!py"),
    ("a: !!set {x}", 1, "no YAML tags", "a: !!set {x}"),
    ("a: !!timestamp 2020-01-01", 1, "no YAML tags", "a: !!timestamp 2020-01-01"),
    ("a: !mine x", 1, "remove '!mine'", "a: !mine x"),
    ("a: 1\nb: &b [1, *b]", 2, "'*b' stands inside what it names", "b: &b [1, *b]"),
    ("a: &a {b: {c: *a}}", 1, "'*a' stands inside what it names", "a: &a {b: {c: *a}}"),
    ("a: " + "[" * 1000, 1, "nested more than 40 levels deep", "a: [[["),
    ("{a: " * 1000, 1, "nested more than 40 levels deep", "{a: {a: "),
    ("\n".join(" " * i + "a:" for i in range(100)), 40, "nested more than 40 levels deep", "a:"),
    (LAUGHS, 5, "more than 100000 values", "e: &e [*d, *d,"),
    ("a: " + "9" * 400, 1, "a number beyond 64 bits", "a: 999"),
    ("a: -" + "9" * 5000, 1, "a number beyond 64 bits", "a: -999"),
    ("a: 1e400", 1, "a number beyond what a float holds", "a: 1e400"),
    ("a: .nan", 1, "is no number", "a: .nan"),
    ("a: 1\nb: x\0y", 2, "holds U+0000", "b: x"),
    ('a: "x\\0y"', 1, "holds U+0000", 'a: "x'),
    ('a: "\\ud83d"', 1, "holds U+D83D", 'a: "'),
]


@pytest.mark.parametrize(("text", "line", "complaint", "shown"), FAULTS, ids=lambda value: str(value)[:20])
def test_refusals_say_what_and_where_in_one_line(text: str, line: int, complaint: str, shown: str) -> None:
    with pytest.raises(YAMLFault) as caught:
        parse(text)
    assert complaint in caught.value.problem
    assert caught.value.line == line
    assert caught.value.text.startswith(shown)
    assert str(caught.value).startswith(f"line {line}: {caught.value.problem}: ")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 250


def test_what_is_named_twice_is_read_twice() -> None:
    assert parse("a: &x [1]\nb: *x\nc: {d: *x}") == {"a": [1], "b": [1], "c": {"d": [1]}}
    assert parse("a: " + "[" * 30 + "]" * 30)["a"]
    assert parse("a: " + "9" * 18) == {"a": 10**18 - 1}
    assert parse("a: -000000000000000000000001") == {"a": -1}


def test_encodings() -> None:
    assert read_text(b"\xef\xbb\xbfa: 1") == "a: 1"
    assert read_text("a: é".encode()) == "a: é"
    with pytest.raises(YAMLFault, match="is UTF-16; save the file as UTF-8"):
        read_text("a: 1".encode("utf-16"))
    with pytest.raises(YAMLFault, match="line 2: byte 0xe9 is not UTF-8"):
        read_text("a: 1\nb: é".encode("latin-1"))
