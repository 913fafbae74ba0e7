"""The trainers of the masked-diffusion methods: each binds one objective to `DiffusionTrainer`.

`BGPOTrainer(model, reward_funcs, args=BGPOConfig(output_dir=..., samples=16), train_dataset=...)` works like any TRL
trainer; the config holds TRL's arguments, the sampler's (posttrain/rollout/masked/options.py), and the settings of
the objective, which its docstring explains.
"""

from __future__ import annotations

from posttrain.objectives.bgpo import BGPO
from posttrain.objectives.coupled_grpo import CoupledGRPO
from posttrain.objectives.diffu_grpo import DiffuGRPO
from posttrain.objectives.vrpo_ol import VRPOOL
from posttrain.trainers.masked.trainer import DiffusionConfig, DiffusionTrainer
from posttrain.trainers.seam.config import flat_config

BGPOConfig = flat_config("BGPOConfig", DiffusionConfig, BGPO, __name__)
VRPOOLConfig = flat_config("VRPOOLConfig", DiffusionConfig, VRPOOL, __name__)
DiffuGRPOConfig = flat_config("DiffuGRPOConfig", DiffusionConfig, DiffuGRPO, __name__)
CoupledGRPOConfig = flat_config("CoupledGRPOConfig", DiffusionConfig, CoupledGRPO, __name__)


class BGPOTrainer(DiffusionTrainer):
    """BGPO, see posttrain/objectives/bgpo.py."""

    objective_class = BGPO
    config_class = BGPOConfig


class VRPOOLTrainer(DiffusionTrainer):
    """VRPO-OL, see posttrain/objectives/vrpo_ol.py."""

    objective_class = VRPOOL
    config_class = VRPOOLConfig


class DiffuGRPOTrainer(DiffusionTrainer):
    """diffu-GRPO, see posttrain/objectives/diffu_grpo.py."""

    objective_class = DiffuGRPO
    config_class = DiffuGRPOConfig


class CoupledGRPOTrainer(DiffusionTrainer):
    """coupled-GRPO, see posttrain/objectives/coupled_grpo.py."""

    objective_class = CoupledGRPO
    config_class = CoupledGRPOConfig
