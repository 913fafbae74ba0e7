"""Trains a few rollouts with dynamic sampling and stores what came of it.

torchrun --nproc_per_node N tests/support/resample_run.py BATCH ON_SHORT OUT
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
from posttrain.rewards.runner import RewardError
from posttrain.rollout.resample import ResampleRule
from posttrain.trainers.engines.attach import own_model_engine
from posttrain.trainers.engines.rollout_plan import RolloutPlan
from posttrain.trainers.models.load import character_tokenizer
from posttrain.trainers.policy.trainer import PolicyTrainer
from posttrain.trainers.seam.config import PolicyConfig

REWARD = f"{Path(__file__).with_name('kind_reward.py')}:rare_of_text"
NAMES = ("groups", "taught_groups", "tokens", "taught_tokens", "open_slots", "repeated", "all_wrong/tokens")


class Noting(PolicyTrainer):
    numbers: list[list[int]]
    tokens: list[list[list[int]]]

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        assert self.rollout is not None
        self.numbers.append(self.rollout.columns["number"][:: self.num_generations])
        self.tokens.append(self.rollout.completion_ids)
        # what this rank trains on is what the rollout says of its rows
        mine = self.tokens[-1][self.accelerator.process_index * len(inputs) :][: len(inputs)]
        for ids, mask, said in zip(output["completion_ids"], output["completion_mask"], mine, strict=True):
            assert ids[mask.bool()].tolist() == said
        return output


def main(batch: int, on_short: Any, out: Path) -> None:
    args = PolicyConfig(
        output_dir=str(out.parent / f"run-{on_short}-{batch}"),
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
        max_steps=4,
        seed=3,
        optim="sgd",
    )
    rows = Dataset.from_list([{"prompt": f"{i}+{i % 7}=", "number": i} for i in range(40)])
    trainer = Noting(
        small_model(scale=6.0).train(),
        REWARD,
        args,
        rows,
        processing_class=character_tokenizer(),
        objective=GRPO(),
    )
    trainer.numbers, trainer.tokens = [], []
    trainer.use_engine(
        own_model_engine(trainer), RolloutPlan(resample=ResampleRule(max_rounds=3, on_short=on_short))
    )
    found: dict[str, Any] = {"error": ""}
    try:
        trainer.train()
    except RewardError as error:
        found["error"] = str(error)
    logs = trainer.state.log_history
    names = [f"resample/{name}" for name in NAMES] + ["signal/tokens", "num_tokens", "signal/thrown_away"]
    found |= {
        "numbers": trainer.numbers,
        "tokens": trainer.tokens,
        "metrics": {name: [float(one[name]) for one in logs if name in one] for name in names},
        "weights": [p.detach() for p in trainer.accelerator.unwrap_model(trainer.model).parameters()],
    }
    if PartialState().is_main_process:
        torch.save(found, out)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
    PartialState().destroy_process_group()
