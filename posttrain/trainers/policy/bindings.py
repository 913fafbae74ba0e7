"""The trainers of the methods that learn from rewards: each binds one objective to `PolicyTrainer`.

`BAPOTrainer(model, reward_funcs, args=BAPOConfig(output_dir=..., target=0.4), train_dataset=...)` works like any
TRL trainer; the config holds TRL's arguments and the settings of the objective, which its docstring explains.
"""

from __future__ import annotations

from posttrain.objectives.bapo import BAPO
from posttrain.objectives.bnpo import BNPO
from posttrain.objectives.capo import CAPO
from posttrain.objectives.cispo import CISPO
from posttrain.objectives.copo import COPO
from posttrain.objectives.dapo import DAPO
from posttrain.objectives.dr_grpo import DrGRPO
from posttrain.objectives.grpo import GRPO
from posttrain.objectives.gspo import GSPO
from posttrain.objectives.reinforce import REINFORCE
from posttrain.trainers.policy.trainer import PolicyTrainer
from posttrain.trainers.seam.config import PolicyConfig, flat_config

GRPOConfig = flat_config("GRPOConfig", PolicyConfig, GRPO, __name__)
DrGRPOConfig = flat_config("DrGRPOConfig", PolicyConfig, DrGRPO, __name__)
DAPOConfig = flat_config("DAPOConfig", PolicyConfig, DAPO, __name__)
GSPOConfig = flat_config("GSPOConfig", PolicyConfig, GSPO, __name__)
CISPOConfig = flat_config("CISPOConfig", PolicyConfig, CISPO, __name__)
REINFORCEConfig = flat_config("REINFORCEConfig", PolicyConfig, REINFORCE, __name__)
BAPOConfig = flat_config("BAPOConfig", PolicyConfig, BAPO, __name__)
BNPOConfig = flat_config("BNPOConfig", PolicyConfig, BNPO, __name__)
COPOConfig = flat_config("COPOConfig", PolicyConfig, COPO, __name__)
CAPOConfig = flat_config("CAPOConfig", PolicyConfig, CAPO, __name__)


class GRPOTrainer(PolicyTrainer):
    """GRPO, see posttrain/objectives/grpo.py."""

    objective_class = GRPO
    config_class = GRPOConfig


class DrGRPOTrainer(PolicyTrainer):
    """Dr.GRPO, see posttrain/objectives/dr_grpo.py."""

    objective_class = DrGRPO
    config_class = DrGRPOConfig


class DAPOTrainer(PolicyTrainer):
    """DAPO, see posttrain/objectives/dapo.py."""

    objective_class = DAPO
    config_class = DAPOConfig


class GSPOTrainer(PolicyTrainer):
    """GSPO, see posttrain/objectives/gspo.py."""

    objective_class = GSPO
    config_class = GSPOConfig


class CISPOTrainer(PolicyTrainer):
    """CISPO, see posttrain/objectives/cispo.py."""

    objective_class = CISPO
    config_class = CISPOConfig


class REINFORCETrainer(PolicyTrainer):
    """REINFORCE with a group baseline, see posttrain/objectives/reinforce.py."""

    objective_class = REINFORCE
    config_class = REINFORCEConfig


class BAPOTrainer(PolicyTrainer):
    """BAPO, see posttrain/objectives/bapo.py."""

    objective_class = BAPO
    config_class = BAPOConfig


class BNPOTrainer(PolicyTrainer):
    """BNPO, see posttrain/objectives/bnpo.py."""

    objective_class = BNPO
    config_class = BNPOConfig


class COPOTrainer(PolicyTrainer):
    """COPO, see posttrain/objectives/copo.py; its rewards must yield final answers."""

    objective_class = COPO
    config_class = COPOConfig


class CAPOTrainer(PolicyTrainer):
    """CAPO, see posttrain/objectives/capo/capo.py."""

    objective_class = CAPO
    config_class = CAPOConfig
