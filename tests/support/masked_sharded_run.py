"""Trains BGPO and VRPO-OL under DeepSpeed or FSDP2 on CPU ranks and stores weights, logs and the engine's name.

torchrun --nproc_per_node 2 tests/support/masked_sharded_run.py zero2|zero3|fsdp BATCH ACCUMULATION OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import sharded_cpu

ENGINES = {"zero2": sharded_cpu.zero(2), "zero3": sharded_cpu.zero(3), "fsdp": sharded_cpu.FSDP2}
RUNS = {
    "BGPO": {"samples": 3, "noise": "count", "tail": "fill", "num_iterations": 2},
    "VRPOOL": {"samples": 3, "noise": "count", "num_iterations": 2},
    "VRPOOL with reference": {"samples": 2, "noise": "count", "beta": 0.05, "num_iterations": 2},
    "BGPO sampled": {"samples": 2, "noise": "count", "sampled": True},
}


def runs(batch: int, accumulation: int, folder: Path, engine: str | None) -> dict[str, Any]:
    from masked_helpers import train

    found = {}
    for name, settings in RUNS.items():
        if engine == "zero3" and "beta" in settings:
            continue  # refused, see test_diffusion_sharded.py
        extra = {"use_cpu": False, **ENGINES[engine]} if engine is not None else {}
        trainer = train(
            name.split()[0],
            folder,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=2 if "num_iterations" in settings else 1,
            max_grad_norm=1.0,  # below the norm: clipping must see the whole gradient
            **extra,
            **settings,
        )
        found[name] = {
            "engine": sharded_cpu.engine_of(trainer),
            "weights": sharded_cpu.whole_weights(trainer),
            "logs": json.dumps([h for h in trainer.state.log_history if "loss" in h]),
        }
    return found


def main(engine: str, batch: int, accumulation: int, out: Path) -> None:
    sharded_cpu.enable("fsdp" if engine == "fsdp" else "deepspeed")
    found = runs(batch, accumulation, out.parent / "run", engine)
    import torch
    from accelerate import PartialState

    if PartialState().is_main_process:
        torch.save(found, out)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
