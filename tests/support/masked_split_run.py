"""Trains each diffusion method for a few steps and stores the weights and logs.

torchrun --nproc_per_node N tests/support/masked_split_run.py BATCH ACCUMULATION OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

sys.path.insert(0, str(Path(__file__).parent))
from masked_helpers import train, weights

RUNS = {
    "BGPO": {"samples": 3, "noise": "count", "tail": "fill", "num_iterations": 2},
    "VRPOOL": {"samples": 3, "noise": "count", "beta": 0.01, "num_iterations": 2},
    "DiffuGRPO": {"beta": 0.04, "num_iterations": 2},
    "CoupledGRPO": {"num_iterations": 2},
    # nothing fixed: the sampler itself must not depend on ranks
    "BGPO sampled": {"samples": 2, "noise": "count", "sampled": True},
}


def runs(batch: int, accumulation: int, folder: Path) -> dict[str, Any]:
    found = {}
    for name, settings in RUNS.items():
        trainer = train(
            name.split()[0],
            folder,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=2 if "num_iterations" in settings else 1,
            **settings,
        )
        logs = [h for h in trainer.state.log_history if "loss" in h]
        found[name] = {"weights": weights(trainer), "logs": json.dumps(logs)}
    return found


def main(batch: int, accumulation: int, out: Path) -> None:
    found = runs(batch, accumulation, out.parent / "run")
    if PartialState().is_main_process:
        torch.save(found, out)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
