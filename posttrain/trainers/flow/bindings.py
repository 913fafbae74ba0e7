"""The trainers of the image methods that learn from rewards: each line of METHODS binds one objective to `FlowTrainer`.

`GRPOGuardTrainer(model, reward_funcs, args=GRPOGuardConfig(output_dir=..., clip=2e-6), train_dataset=..., frame=...)`;
the config holds transformers' arguments, the sampler's (posttrain/rollout/flow/flow_sampler.py), and the settings of
the objective, which its docstring explains.
"""

from __future__ import annotations

from typing import Any

from posttrain.trainers.flow.flow_config import FlowConfig
from posttrain.trainers.flow.trainer import FlowTrainer
from posttrain.trainers.seam.binding import Binding

_bound = Binding(__name__, FlowTrainer, FlowConfig, "objective_class")


def __getattr__(name: str) -> Any:
    return _bound(name)


def __dir__() -> list[str]:
    return _bound.names()
