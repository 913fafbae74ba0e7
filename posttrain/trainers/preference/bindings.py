"""The trainers of the methods that learn from a fixed set of pairs: each binds one loss to `PreferenceTrainer`.

`RPOTrainer(model, args=RPOConfig(output_dir=..., beta=0.01, eta=0.005), train_dataset=...)` works like any
TRL trainer; the config holds TRL's arguments and the settings of the method, which its docstring explains.
"""

from __future__ import annotations

from posttrain.preferences.dpo import DPO
from posttrain.preferences.hinge import Hinge
from posttrain.preferences.ipo import IPO
from posttrain.preferences.rpo import RPO
from posttrain.preferences.simpo import SimPO
from posttrain.trainers.preference.trainer import PreferenceConfig, PreferenceTrainer
from posttrain.trainers.seam.config import flat_config

DPOConfig = flat_config("DPOConfig", PreferenceConfig, DPO, __name__)
IPOConfig = flat_config("IPOConfig", PreferenceConfig, IPO, __name__)
HingeConfig = flat_config("HingeConfig", PreferenceConfig, Hinge, __name__)
SimPOConfig = flat_config("SimPOConfig", PreferenceConfig, SimPO, __name__)
RPOConfig = flat_config("RPOConfig", PreferenceConfig, RPO, __name__)


class DPOTrainer(PreferenceTrainer):
    """DPO, see posttrain/preferences/dpo.py."""

    method_class = DPO
    config_class = DPOConfig


class IPOTrainer(PreferenceTrainer):
    """IPO, see posttrain/preferences/ipo.py."""

    method_class = IPO
    config_class = IPOConfig


class HingeTrainer(PreferenceTrainer):
    """The hinge on log-ratios, see posttrain/preferences/hinge.py."""

    method_class = Hinge
    config_class = HingeConfig


class SimPOTrainer(PreferenceTrainer):
    """SimPO, see posttrain/preferences/simpo.py."""

    method_class = SimPO
    config_class = SimPOConfig


class RPOTrainer(PreferenceTrainer):
    """RPO, see posttrain/preferences/rpo.py."""

    method_class = RPO
    config_class = RPOConfig
