"""A tiny RL run the trainer tests share: random Llama, made-up prompts, a reward that depends on the text."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from letter_rewards import judged

__all__ = ["arguments", "judged", "rows"]


def rows(count: int = 12) -> Dataset:
    return Dataset.from_list([{"prompt": f"{i}+{i}="} for i in range(count)])


def arguments(output_dir: Any, **extra: Any) -> dict[str, Any]:
    """Three prompts of four responses of at most ten tokens per step, on the CPU, without any logging backend."""
    return {
        "output_dir": str(output_dir),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "per_device_train_batch_size": 12,
        "num_generations": 4,
        "max_completion_length": 10,
        "learning_rate": 1e-3,
        "max_steps": 3,
        "seed": 3,
        **extra,
    }
