"""The Python API as people meet it: the stub editors read, `help`, and arguments that are wrong."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from posttrain import trainers
from posttrain.recipe.methods import METHODS
from posttrain.settings.base import list_settings
from posttrain.trainers.seam.stub import STUB, stub


def test_the_stub_is_what_the_list_of_methods_gives() -> None:
    assert STUB.read_text(encoding="utf-8") == stub(), "run `make stubs`"


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_help_tells_every_setting_of_a_method(method: Any) -> None:
    stem = method.load_trainer().__name__.removesuffix("Trainer")
    config = getattr(trainers, f"{stem}Config")
    for setting in list_settings(method.load_settings()):
        assert f"\n{setting.name}: " in f"\n{config.__doc__}"
        assert setting.name in inspect.signature(config).parameters
    trainer = getattr(trainers, f"{stem}Trainer")
    assert len(trainer.__doc__) > 150


def test_help_of_a_trainer_names_paper_and_parameters() -> None:
    page = trainers.BAPOTrainer.__doc__
    assert "https://arxiv.org/abs/2510.18927" in page
    assert "help(BAPOConfig)" in page
    assert "reward_funcs" in page


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tarqet": 0.5}, TypeError, "BAPOConfig: no argument 'tarqet'; did you mean 'target'?"),
        ({"learning_rat": 1e-5}, TypeError, "did you mean 'learning_rate'?"),
        ({"zzz": 1}, TypeError, "no argument 'zzz'; its own settings: preset, target"),
        ({"target": 7.0}, ValueError, "BAPO: target = 7.0 is no share"),
        ({"scale": "grup"}, ValueError, "BAPO: scale: Input should be 'group', 'batch' or 'none'"),
        ({"dual_clip": 0.5}, ValueError, "BAPO: dual_clip: Input should be greater than 1, not 0.5"),
        ({"target": object()}, ValueError, "BAPO: target: a object is no setting's type"),
        ({"reward_timeout_s": -1.0}, ValueError, "reward_timeout_s is a number of seconds above 0, not -1.0"),
        ({"reward_workers": 0}, ValueError, "reward_workers is 1 or more, or None, not 0"),
        ({"eval_temperature": -1.0}, ValueError, "eval_temperature lies between 0"),
        ({"layout": "packed"}, ValueError, "layout is one of auto, padded, trimmed, shared"),
        ({"max_tokens_per_micro_batch": 0}, ValueError, "max_tokens_per_micro_batch is 1 or more"),
    ],
)
def test_wrong_arguments_are_refused_where_they_are_written(
    arguments: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        trainers.BAPOConfig(output_dir=str(tmp_path), use_cpu=True, **arguments)
