"""A tiny flow model of images, rewards on its images, and short runs of the image methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from image_judges import left_minus_right

from posttrain import trainers
from posttrain.rollout.flow.small_flow import ClassFrame, FlowMLP, scratch_flow

CLASSES = ["a", "b", "c", "d"]


def small_flow(seed: int = 0, **changes: Any) -> FlowMLP:
    """Not silent at the start: its last layer is random too."""
    sizes: dict[str, Any] = {"image_size": 4, "classes": CLASSES, "hidden_size": 16, "layers": 2}
    model = scratch_flow(seed, **{**sizes, **changes})
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        model.leave.weight.copy_(0.05 * torch.randn(model.leave.weight.shape, generator=generator))
    return model


def rows(count: int = 8) -> Dataset:
    return Dataset.from_list(
        [{"prompt": CLASSES[i % len(CLASSES)], "side": 1.0 if i % 2 else -1.0} for i in range(count)]
    )


def flow_trainer(method: str, folder: Path, model: FlowMLP | None = None, **changes: Any) -> Any:
    """`FlowGRPO` or `GRPOGuard` on four prompts of four images."""
    model = model or small_flow()
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "denoising_steps": 4,
        "eval_denoising_steps": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_steps": 2,
        "optim": "sgd",
        "seed": 3,
        "clip": 1e-2,
    }
    named = {name: changes.pop(name) for name in ("peft_config", "eval_dataset") if name in changes}
    rewards = changes.pop("rewards", [left_minus_right])
    config = vars(trainers)["__getattr__"](f"{method}Config")(**{**settings, **changes})
    make = vars(trainers)["__getattr__"](f"{method}Trainer")
    return make(model, rewards, config, rows(), frame=ClassFrame(model.config), **named)


def weights(trainer: Any) -> list[torch.Tensor]:
    policy = trainer.accelerator.unwrap_model(trainer.model)
    return [parameter.detach().clone() for parameter in policy.parameters()]
