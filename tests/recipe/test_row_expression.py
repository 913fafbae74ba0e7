"""Expressions over the columns of a row: what they say, what is unknown, and what is never run."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.recipe.row_expression import LONGEST, ExpressionFault, row_expression

ROW: dict[str, Any] = {
    "pass_rate": 0.25,
    "samples": 8,
    "prompt": "2+2=",
    "level": "3",
    "solved": True,
    "tags": ["easy", "sum"],
    "gone": None,
    "a.b": 7,
    "the level": 5,
}


def value(text: str) -> Any:
    return row_expression(text).value_of(ROW.__getitem__)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pass_rate > 0.1 and pass_rate < 0.9", True),
        ("0.1 < pass_rate < 0.9", True),
        ("0.1 < pass_rate <= 0.2", False),
        ("0.3 <= pass_rate or samples >= 8", True),
        ("not solved", False),
        ("not (pass_rate == 0.25)", False),
        ("samples != 8", False),
        ("len(prompt) == 4", True),
        ("len(tags) - 2 == 0", True),
        ("'sum' in tags and '+' in prompt", True),
        ("'product' not in tags", True),
        ("samples in [4, 8]", True),
        ("prompt in ('2+2=', '3+3=')", True),
        ("float(level) > 2.5", True),
        ("level > '2'", True),
        ("(samples - 2) * 2 / 3 == 4", True),
        ("samples // 3 + samples % 3 == 4", True),
        ("-samples < +pass_rate", True),
        ("a.b == 7", True),
        ('row["the level"] == 5', True),
        ("samples * pass_rate", 2.0),
        ("solved == True", True),
    ],
)
def test_what_it_says(text: str, expected: Any) -> None:
    assert value(text) == expected
    assert type(value(text)) is type(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gone > 1", None),
        ("not (gone > 1)", None),
        ("gone == 'x'", None),
        ("gone + 1 < 3", None),
        ("len(gone) > 0", None),
        ("float(gone) > 0", None),
        ("'x' in gone", None),
        ("gone in ['x']", None),
        ("0 < gone < 3", None),
        ("gone > 1 and solved", None),
        ("gone > 1 and not solved", False),
        ("not solved and gone > 1", False),
        ("gone > 1 or solved", True),
        ("gone > 1 or not solved", None),
        ("5 < samples < gone", None),
        ("9 < samples < gone", False),
        ("gone is None", True),
        ("gone == None", True),
        ("gone is not None", False),
        ("samples != None", True),
        ("samples is None", False),
        ("gone", None),
    ],
)
def test_what_is_missing_makes_unknown_what_it_decides(text: str, expected: bool | None) -> None:
    assert value(text) is expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("__import__('os').system('true')", "is not read here"),
        ("open('x')", "is not read here"),
        ("prompt.upper() == 'A'", "is not read here"),
        ("prompt.__class__ == 1", "is not read here"),
        ("().__class__ == prompt", "is not read here"),
        ("prompt[0] == '2'", "is not read here"),
        ("rows['x'] == 1", "is not read here"),
        ("[x for x in tags] == prompt", "is not read here"),
        ("(lambda: prompt)()", "is not read here"),
        ("f'{prompt}' == '2'", "is not read here"),
        ("samples ** 9 > 1", "is not read here"),
        ("samples << 9 > 1", "is not read here"),
        ("samples if solved else 2", "is not read here"),
        ("(x := samples) > 1", "is not read here"),
        ("len(prompt, tags)", "is not read here"),
        ("len(obj=prompt)", "is not read here"),
        ("max(samples, 2)", "is not read here"),
        ("b'x' in prompt", "is not read here"),
        ("samples > 1j", "is not read here"),
        ("samples in [[1], [2]]", "is not read here"),
        ("samples is 8", "'is' is for None alone"),
        ("pass_rate > 0.1 && solved", "write 'and' for '&&'"),
        ("pass_rate > 0.1 || solved", "write 'or' for '||'"),
        ("pass_rate = 0.1", "write '==' for '='"),
        ("the level > 2", 'written row["its name"]'),
        ("pass_rate >", "cannot be read"),
        ("import os", "cannot be read"),
        ("1 < 2", "reads no column"),
        ("solved and " * (LONGEST // 10) + "solved", f"more than {LONGEST}"),
        ("not " * 60 + "solved", "write it flatter"),
        ("(" * 900 + "solved" + ")" * 900, "cannot be read"),
        ("solved\0", "cannot be read"),
    ],
)
def test_nothing_else_is_read(text: str, said: str) -> None:
    with pytest.raises(ExpressionFault) as caught:
        row_expression(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "level > 2",
            "compares text ('3') with a number (2); where a column holds numbers as text, write float(level)",
        ),
        ("2 == level", "write float(level)"),
        (
            "level in [1, 3]",
            "among values of another kind; where a column holds numbers as text, write float(level)",
        ),
        ("level + 1 > 2", "'level' is text ('3'), not a number; where"),
        ("samples in prompt", "looks for a number (8) in a text"),
        ("'a' in samples", "holds nothing to look for"),
        ("samples and solved", "where true or false is meant; write a comparison"),
        ("not prompt", "where true or false is meant"),
        ("len(samples) > 1", "a number (8) has not a length"),
        ("float(prompt) > 1", "text ('2+2=') has not a number"),
        ("samples / (samples - 8) > 1", "division by zero"),
        ("tags < tags", "neither larger nor smaller"),
        ("solved > 0", "compares true or false (True) with a number (0)"),
        ("prompt * 9 == prompt", "not a number"),
        (" * ".join(["samples"] * 40) + " * " + "9" * 1300 + " > 1", "more than 4000 bits"),
    ],
)
def test_values_that_do_not_go_together_are_said(text: str, said: str) -> None:
    with pytest.raises(ExpressionFault) as caught:
        value(text)
    assert said in str(caught.value)


def test_columns_are_found_once() -> None:
    found = row_expression('a.b > 1 and row["the level"] < 3 and (a.b in tags or len(tags) > 1)')
    assert found.columns == ("a.b", "the level", "tags")
