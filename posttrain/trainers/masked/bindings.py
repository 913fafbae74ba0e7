"""The trainers of the masked-diffusion methods: each line of METHODS binds one objective to `DiffusionTrainer`.

`BGPOTrainer(model, reward_funcs, args=BGPOConfig(output_dir=..., samples=16), train_dataset=...)` works like any TRL
trainer; the config holds TRL's arguments, the sampler's (posttrain/rollout/masked/sampler_options.py), and the
settings of the objective, which its docstring explains.
"""

from __future__ import annotations

from typing import Any

from posttrain.trainers.masked.trainer import DiffusionConfig, DiffusionTrainer
from posttrain.trainers.seam.binding import Binding

_bound = Binding(__name__, DiffusionTrainer, DiffusionConfig, "objective_class")


def __getattr__(name: str) -> Any:
    return _bound(name)


def __dir__() -> list[str]:
    return _bound.names()
