"""The trainers of the methods that learn from a fixed set of pairs: each line of METHODS binds one loss to
`PreferenceTrainer`.

`RPOTrainer(model, args=RPOConfig(output_dir=..., beta=0.01, eta=0.005), train_dataset=...)` works like any
TRL trainer; the config holds TRL's arguments and the settings of the method, which its docstring explains.
"""

from __future__ import annotations

from typing import Any

from posttrain.trainers.preference.trainer import PreferenceConfig, PreferenceTrainer
from posttrain.trainers.seam.binding import Binding

_bound = Binding(__name__, PreferenceTrainer, PreferenceConfig, "method_class")


def __getattr__(name: str) -> Any:
    return _bound(name)


def __dir__() -> list[str]:
    return _bound.names()
