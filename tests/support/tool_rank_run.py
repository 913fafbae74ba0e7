"""Responses with tools on one or two ranks, which take unequal numbers of turns; stores what came of them.

torchrun --nproc_per_node N tests/support/tool_rank_run.py BATCH OUT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState

sys.path.insert(0, str(Path(__file__).parent))
from tool_runs import lots, tool_trainer

from posttrain.trainers.engines.attach import own_model_engine
from posttrain.trainers.policy.bindings import GRPOConfig, GRPOTrainer


def main(batch: int, out: Path) -> None:
    rank = int(os.environ["RANK"])
    folder = out.parent / f"{out.name}-{rank}"
    folder.mkdir(parents=True)
    trainer = tool_trainer(
        GRPOTrainer, GRPOConfig, folder, lots(folder), max_steps=2, seed=5,
        per_device_train_batch_size=batch,
    )  # fmt: skip
    trainer.use_engine(own_model_engine(trainer))
    turns: list[int] = []
    sampled = trainer._generate_single_turn

    def counted(prompt_ids: list[list[int]], *more: object, **named: object) -> object:
        turns.append(len(prompt_ids))
        return sampled(prompt_ids, *more, **named)

    trainer._generate_single_turn = counted
    trainer.train()
    trainer.turns.toolbox.close()
    found = {
        "turns": turns,
        "ids": trainer.rollout.completion_ids,
        "written": trainer.rollout.written,
        "logged": [entry["tools/turns"] for entry in trainer.state.log_history if "tools/turns" in entry],
        "weights": [parameter.detach().clone() for parameter in trainer.model.parameters()],
    }
    torch.save(found, f"{out}.{rank}")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
    PartialState().destroy_process_group()
