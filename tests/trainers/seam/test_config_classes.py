"""The flat config classes are found under their own names, as pickle needs: every checkpoint holds its config."""

from __future__ import annotations

import dataclasses
import pickle
from dataclasses import dataclass

import pytest

from posttrain import trainers
from posttrain.trainers.seam.config import PolicyConfig, flat_config

CONFIGS = [
    name for name in dir(trainers) + list(vars(trainers).get("__all__", ())) if name.endswith("Config")
]


@pytest.mark.parametrize("name", sorted(set(CONFIGS)))
def test_a_config_class_survives_pickling(name: str) -> None:
    config = getattr(trainers, name)
    assert pickle.loads(pickle.dumps(config)) is config


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
