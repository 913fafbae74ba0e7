"""Trains the methods on pairs of images for a few steps and stores the weights.

torchrun --nproc_per_node N tests/support/image_pair_run.py BATCH ACCUMULATION OUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset

sys.path.insert(0, str(Path(__file__).parent))
from flow_helpers import CLASSES, small_flow, weights

from posttrain import trainers
from posttrain.rollout.flow.small_flow import ClassFrame

METHODS = ["DiffusionDPO", "SePPODiffusion"]
ROUNDS: dict[str, Any] = {"rounds": 2, "steps_per_round": 2}


def image_pairs(count: int = 8) -> Dataset:
    """Of each class a light image chosen, a dark one rejected; `image` is the light one again."""
    found = []
    for i in range(count):
        light, dark = [[200 + 10 * (i % 4)] * 4] * 4, [[20 * (i % 4)] * 4] * 4
        found.append(
            {"prompt": CLASSES[i % 4], "image": light, "chosen_image": light, "rejected_image": dark}
        )
    return Dataset.from_list(found)


def pair_trainer(method: str, folder: Path, **changes: Any) -> Any:
    model: Any = changes.pop("model", None) or small_flow()
    named = {name: changes.pop(name) for name in ("peft_config",) if name in changes}
    rows = changes.pop("rows", None) or image_pairs()
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_steps": 4,
        "optim": "sgd",
        "sample_steps": 3,
        "beta": 20.0,
        **(ROUNDS if method == "SePPODiffusion" else {}),
        **changes,
    }
    if method == "DiffusionDPO":
        steps = settings.pop("steps_per_round", None)
        settings.pop("rounds", None)
        settings["max_steps"] = settings["max_steps"] or steps
    elif settings["max_steps"] is None:
        del settings["max_steps"]
    config = vars(trainers)["__getattr__"](f"{method}Config")(**settings)
    make = vars(trainers)["__getattr__"](f"{method}Trainer")
    return make(model, config, rows, image_pairs(6), frame=ClassFrame(model.config), **named)


def runs(batch: int, accumulation: int, folder: Path) -> dict[str, Any]:
    found = {}
    for method in METHODS:
        trainer = pair_trainer(
            method,
            folder / method,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        )
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        kept = {name: value for name, value in logs[-1].items() if name.startswith(trainer.method)}
        found[method] = {"weights": weights(trainer), "logs": kept}
    return found


def main(batch: int, accumulation: int, out: Path) -> None:
    found = runs(batch, accumulation, out.parent / "run")
    if PartialState().is_main_process:
        torch.save(found, out)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
