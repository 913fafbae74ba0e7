"""Trains two rollouts with sampling taken out of the hands of chance, and stores what came of it.

torchrun --nproc_per_node N tests/support/split_run.py BATCH ACCUMULATION OUT
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset

sys.path.insert(0, str(Path(__file__).parent))
from letter_rewards import partly_right
from tiny_run import arguments, rows

from posttrain import trainers
from posttrain.data.row_order import Curriculum
from posttrain.trainers.models.load import character_tokenizer, scratch_llama

SLOW = {"learning_rate": 0.02, "lr_scheduler_type": "constant"}
SETTINGS: dict[str, dict[str, Any]] = {
    "GRPO": {"beta": 0.05},
    "GRPO, ordered": {},
    "BAPO": {"target": 0.55},
    "BNPO": {},
    "COPO": {"rho": 0.9},
    # a rate at which shifts are within what is counted, and does not fall, or nothing would be rejected
    "CAPO": {"objective_threshold": 0.6, "policy_threshold": 0.2, "num_candidates": 8, **SLOW},
    "PPO": {"beta": 0.05, "critic_learning_rate": 1e-3},
    "PPOMax, shared": {"beta": 0.05, "critic_learning_rate": 1e-3, "share_trunk": True, "value_coef": 1.0},
    "PPOMax, texts": {"critic_learning_rate": 1e-3, "ptx_coef": 0.3, "ptx_batch_size": 10},
    "OPD": {"reward_coef": 0.5},
    "OnlineDPO": {"beta": 0.5, "parl_coef": 0.5},
    "CAPO, calibrated": {
        "calibrate": True,
        "calibration_steps": 2,
        "calibration_follows": True,
        "target_rejection": 0.3,
        "num_candidates": 8,
        **SLOW,
    },
}


def fixed_completion(prompt: list[int], place: int) -> list[int]:
    """Token ids that depend on the prompt and the response's place in its group alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(bytes(prompt)) + place)
    length = int(torch.randint(3, 11, (), generator=generator))
    ids = torch.randint(5, 60, (length,), generator=generator).tolist()
    return ids if length == 10 else [*ids, 1]


def train(method: str, batch: int, accumulation: int, folder: Path) -> dict[str, Any]:
    tokenizer = character_tokenizer()
    name = method.partition(",")[0]
    trainer_class = getattr(trainers, f"{name}Trainer")
    seen: list[torch.Tensor] = []

    class Fixed(trainer_class):  # type: ignore[misc, valid-type]  # the class is the argument
        def _generate_single_turn(self, prompt_ids, *_: Any, **__: Any):
            # a group's responses are neighbours in the global order, which ranks share out in contiguous parts
            offset = self.accelerator.process_index * len(prompt_ids)
            return [fixed_completion(ids, (offset + i) % 4) for i, ids in enumerate(prompt_ids)], None

    config = getattr(trainers, f"{name}Config")(
        **arguments(
            folder,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            num_iterations=2,
            max_steps=4,
            optim="sgd",  # Adam would turn a rounding difference into a step of full size
            max_grad_norm=0.0,
            **{"learning_rate": 0.5, **SETTINGS[method]},
        )
    )
    model = scratch_llama(tokenizer, hidden_size=32, layers=2, heads=2, max_positions=64, seed=0)
    more: dict[str, Any] = {}
    if name == "OPD":  # a teacher of another size
        more["teacher"] = scratch_llama(
            tokenizer, hidden_size=48, layers=1, heads=2, max_positions=64, seed=5
        )
    if method == "PPOMax, texts":
        more["ptx_dataset"] = Dataset.from_dict(
            {"text": ["a cat sat" + " on a mat" * (i % 3) for i in range(7)]}
        )
    trainer = Fixed(model, partly_right, config, rows(24), processing_class=tokenizer, **more)
    if method == "GRPO, ordered":
        trainer.curriculum = Curriculum(tuple(float(i % 5) for i in range(24)), "highest", 4)
    record = trainer.judge.record_advantages

    def recorded(advantages: torch.Tensor) -> None:
        record(advantages)
        seen.append(advantages.clone())

    trainer.judge.record_advantages = recorded
    trainer.train()
    return {
        "weights": [p.detach() for p in trainer.accelerator.unwrap_model(trainer.model).parameters()],
        "advantages": seen,
        "logs": json.dumps([h for h in trainer.state.log_history if "loss" in h]),
    }


def main(batch: int, accumulation: int, out: Path) -> None:
    found = {method: train(method, batch, accumulation, out.parent / "run") for method in SETTINGS}
    if PartialState().is_main_process:
        torch.save(found, out)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
