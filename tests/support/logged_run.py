"""Trains a few rollouts with logged answers in their groups and stores what came of it.

torchrun --nproc_per_node N tests/support/logged_run.py BATCH OUT
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

from posttrain.objectives.bapo import BAPO
from posttrain.rollout.logged import LoggedRule
from posttrain.trainers.engines.attach import own_model_engine
from posttrain.trainers.engines.rollout_plan import RolloutPlan
from posttrain.trainers.models.load import character_tokenizer
from posttrain.trainers.policy.trainer import PolicyTrainer
from posttrain.trainers.seam.config import PolicyConfig

REWARD = f"{Path(__file__).with_name('letter_rewards.py')}:judged"


def main(batch: int, out: Path) -> None:
    args = PolicyConfig(
        output_dir=str(out.parent / f"run-{batch}"),
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
        beta=0.05,
        max_steps=3,
        seed=3,
        optim="sgd",
    )
    rows = Dataset.from_list([{"prompt": f"{i}+{i % 7}=", "teacher": ["abc", "d1"]} for i in range(12)])
    trainer = PolicyTrainer(
        small_model(scale=6.0).train(),
        REWARD,
        args,
        rows,
        processing_class=character_tokenizer(),
        objective=BAPO(),
    )
    rule = LoggedRule("teacher", share=0.5, treatment="shaped")
    trainer.use_engine(own_model_engine(trainer), RolloutPlan(logged=rule))
    trainer.train()
    logs = [one for one in trainer.state.log_history if "reward" in one]
    names = [
        name
        for name in logs[0]
        if name.startswith(("logged/", "signal/", "completions/", "reward", "clip_ratio/"))
    ]
    found: dict[str, Any] = {
        "tokens": trainer.judge.last().completion_ids,
        "given": trainer.judge.last().given,
        "metrics": {
            name: [float(one[name]) for one in logs] for name in [*names, "num_tokens", "kl", "loss"]
        },
        "weights": [p.detach() for p in trainer.accelerator.unwrap_model(trainer.model).parameters()],
    }
    if PartialState().is_main_process:
        torch.save(found, out)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
    PartialState().destroy_process_group()
