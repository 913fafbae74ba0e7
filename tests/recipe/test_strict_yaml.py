"""YAML as recipes mean it."""

from __future__ import annotations

import math

import pytest

from posttrain.strict_yaml import parse


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


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: key 'a' stands twice, first on line 1"),
        ("x: {b: 1, b: 2}", "'b' stands twice"),
        ("1: a", "key 1 is not text"),
        ("a: [1,", "line 1"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
    ],
)
def test_refusals_name_the_place(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match="line") as caught:
        parse(text)
    assert complaint in str(caught.value)
