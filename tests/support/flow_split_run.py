"""Trains each image method for a few steps and stores the weights and logs.

torchrun --nproc_per_node N tests/support/flow_split_run.py BATCH ACCUMULATION OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

sys.path.insert(0, str(Path(__file__).parent))
from flow_helpers import flow_trainer, rows, weights

RUNS: dict[str, dict[str, Any]] = {
    "FlowGRPO": {"beta": 0.01, "cfg_scale": 2.0},
    "GRPOGuard": {"clip": 1e-3},
}


def runs(batch: int, accumulation: int, folder: Path) -> dict[str, Any]:
    found = {}
    for name, settings in RUNS.items():
        trainer = flow_trainer(
            name,
            folder,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            num_iterations=2,
            max_steps=4,
            eval_dataset=rows(6),
            **settings,
        )
        trainer.train()
        measured = trainer.evaluate()
        logs = [h for h in trainer.state.log_history if "loss" in h]
        found[name] = {
            "weights": weights(trainer),
            "logs": json.dumps(logs),
            "measured": json.dumps(measured),
        }
    return found


def main(batch: int, accumulation: int, out: Path) -> None:
    found = runs(batch, accumulation, out.parent / "run")
    if PartialState().is_main_process:
        torch.save(found, out)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
