"""`posttrain methods`: what it prints can be written into a recipe."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest
import yaml

from posttrain.commands import methods
from posttrain.recipe.methods import METHODS
from posttrain.settings.base import REQUIRED, list_settings


@pytest.mark.parametrize("name", METHODS)
def test_shown_defaults_are_the_settings_defaults(name: str) -> None:
    for setting in list_settings(METHODS[name].load_settings()):
        shown = methods.spell_default(setting.default)
        if setting.default is REQUIRED:
            assert shown == "required"
        else:
            assert yaml.safe_load(shown) == json.loads(json.dumps(setting.default))  # tuples as lists


def test_names_stay_whole_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert methods.main(Namespace(name="capo")) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [setting.name for setting in list_settings(METHODS["capo"].load_settings())]
    assert [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "] == [
        "setting",
        *names,
    ]


def test_an_unknown_method_gets_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert methods.main(Namespace(name="bappo")) == 2
    assert "did you mean 'bapo'" in capsys.readouterr().err
