"""Trains a few rollouts of a family over KL coefficients, then with drift_penalty, and stores what came of each.

torchrun --nproc_per_node N tests/support/balance_run.py BATCH OUT REFERENCE
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

sys.path.insert(0, str(Path(__file__).parent))
from datasets import Dataset
from rollout_fakes import small_model

from posttrain.objectives.grpo import GRPO
from posttrain.rewards.resolve import RewardSpec
from posttrain.trainers.engines.attach import own_model_engine
from posttrain.trainers.engines.rollout_plan import RolloutPlan
from posttrain.trainers.models.load import character_tokenizer
from posttrain.trainers.policy.trainer import PolicyTrainer
from posttrain.trainers.seam.config import PolicyConfig

REWARD = f"{Path(__file__).with_name('letter_rewards.py')}:judged"


def trained(reward: Any, folder: Path, batch: int, **changes: Any) -> dict[str, Any]:
    args = PolicyConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        per_device_train_batch_size=batch,
        num_generations=4,
        max_completion_length=8,
        learning_rate=0.05,
        max_steps=3,
        seed=3,
        optim="sgd",
        **changes,
    )
    rows = Dataset.from_list([{"prompt": f"{i}+{i % 7}=", "goal": str(i)} for i in range(12)])
    trainer = PolicyTrainer(
        small_model(scale=6.0).train(),
        reward,
        args,
        rows,
        processing_class=character_tokenizer(),
        objective=GRPO(),
    )
    trainer.use_engine(own_model_engine(trainer), RolloutPlan())
    trainer.train()
    logs = [one for one in trainer.state.log_history if "reward" in one]
    names = {
        name for one in logs for name in one if name.startswith(("reward", "beta", "drift/", "kl", "loss"))
    }
    return {
        "tokens": trainer.judge.last().completion_ids,
        "metrics": {name: [float(one.get(name, -1.0)) for one in logs] for name in sorted(names)},
        "weights": [p.detach() for p in trainer.accelerator.unwrap_model(trainer.model).parameters()],
    }


def main(batch: int, out: Path, reference: str) -> None:
    drift = RewardSpec("drift_penalty", args={"reference": reference, "measure": "vocabulary"})
    found = {
        "family": trained(REWARD, out.parent / f"family-{batch}", batch, beta_family=[0.0, 0.1, 0.5]),
        "drift": trained([REWARD, drift], out.parent / f"drift-{batch}", batch),
    }
    if PartialState().is_main_process:
        torch.save(found, out)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    PartialState().destroy_process_group()
