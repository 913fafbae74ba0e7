"""The trainers of the methods that learn from rewards: each line of METHODS binds one objective to `PolicyTrainer`.

`BAPOTrainer(model, reward_funcs, args=BAPOConfig(output_dir=..., target=0.4), train_dataset=...)` works like any
TRL trainer; the config holds TRL's arguments and the settings of the objective, which its docstring explains.
"""

from __future__ import annotations

from typing import Any

from posttrain.trainers.policy.trainer import PolicyTrainer
from posttrain.trainers.seam.binding import Binding
from posttrain.trainers.seam.config import PolicyConfig

_bound = Binding(__name__, PolicyTrainer, PolicyConfig, "objective_class")


def __getattr__(name: str) -> Any:
    return _bound(name)


def __dir__() -> list[str]:
    return _bound.names()
