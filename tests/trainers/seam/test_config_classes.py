"""The flat config classes are found under their own names, as pickle needs: every checkpoint holds its config."""

from __future__ import annotations

import dataclasses
import pickle
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

from posttrain import trainers
from posttrain.objectives.grpo import GRPO
from posttrain.recipe.methods import METHODS, Method
from posttrain.trainers.policy import bindings
from posttrain.trainers.policy.trainer import PolicyTrainer
from posttrain.trainers.seam.config import PolicyConfig, flat_config

CONFIGS = [
    name for name in dir(trainers) + list(vars(trainers).get("__all__", ())) if name.endswith("Config")
]


@pytest.mark.parametrize("name", sorted(set(CONFIGS)))
def test_a_config_class_survives_pickling(name: str) -> None:
    config = getattr(trainers, name)
    assert pickle.loads(pickle.dumps(config)) is config


def test_a_config_in_a_checkpoint_is_found_again(tmp_path: Path) -> None:
    config = trainers.BAPOConfig(output_dir=str(tmp_path), use_cpu=True, target=0.3)
    torch.save(config, tmp_path / "training_args.bin")
    again = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert (type(again), again.target) == (trainers.BAPOConfig, 0.3)


def test_a_line_in_the_list_is_a_trainer_and_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Method(
        "a_new_one", "policy", "posttrain.objectives.grpo:GRPO", f"{bindings.__name__}:NewTrainer", "new"
    )
    monkeypatch.setitem(METHODS, line.name, line)
    monkeypatch.setattr(bindings, "NewConfig", None, raising=False)  # so that both are taken away afterwards
    monkeypatch.setattr(bindings, "NewTrainer", None, raising=False)
    del bindings.NewConfig, bindings.NewTrainer
    trainer, config = bindings.NewTrainer, bindings.NewConfig
    assert issubclass(trainer, PolicyTrainer)
    assert (trainer.objective_class, trainer.config_class) == (GRPO, config)
    assert {"clip_low", "clip_high"} <= {f.name for f in dataclasses.fields(config)}
    assert pickle.loads(pickle.dumps(trainer)) is trainer


@pytest.mark.parametrize("module", [trainers, bindings])
def test_a_misspelt_name_is_told_the_nearest(module: ModuleType) -> None:
    with pytest.raises(AttributeError, match="no attribute 'BAPOConfg'; did you mean 'BAPOConfig'"):
        module.BAPOConfg  # noqa: B018


@dataclass(frozen=True)
class Settings:
    width: float = 0.5


def test_the_class_stands_in_the_module_that_binds_it_whatever_make_dataclass_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From Python 3.12 on, make_dataclass names the module that calls it."""
    made = dataclasses.make_dataclass

    def as_since_3_12(*given, **named):
        cls = made(*given, **named)
        cls.__module__ = "posttrain.trainers.seam.config"
        return cls

    monkeypatch.setattr(dataclasses, "make_dataclass", as_since_3_12)
    assert flat_config("SomeConfig", PolicyConfig, Settings, "a.module").__module__ == "a.module"
