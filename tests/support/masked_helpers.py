"""A tiny masked-diffusion RL run the trainer tests share."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import torch
from crc_reward import judged
from datasets import Dataset

from posttrain.rollout.masked.predictor import scratch_mask_model
from posttrain.trainers.masked import bindings as diffusion_bindings
from posttrain.trainers.models.load import character_tokenizer

LENGTH = 6
END = 1  # the character tokenizer's <eos>


def rows(count: int = 24) -> Dataset:
    return Dataset.from_list([{"prompt": f"{i}+{i}="} for i in range(count)])


def model(seed: int = 0) -> Any:
    return scratch_mask_model(
        character_tokenizer(), hidden_size=32, layers=2, heads=2, max_positions=64, seed=seed
    )


def fixed_completion(prompt: list[int], place: int) -> list[int]:
    """Token ids that depend on the prompt and the response's place in its group alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(bytes(prompt)) + place)
    length = int(torch.randint(2, LENGTH + 1, (), generator=generator))
    ids = torch.randint(5, 60, (length,), generator=generator).tolist()
    return ids if length == LENGTH else [*ids, END]


def config(method: str, folder: Path, **extra: Any) -> Any:
    arguments = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": LENGTH,
        "diffusion_steps": 3,
        "optim": "sgd",  # Adam would turn a rounding difference into a step of full size
        "max_grad_norm": 0.0,
        "learning_rate": 0.1,
        "max_steps": 2,
        "seed": 3,
    }
    return getattr(diffusion_bindings, f"{method}Config")(**arguments | extra)


def trainer_class(method: str) -> Any:
    return getattr(diffusion_bindings, f"{method}Trainer")


def fixed(method: str) -> Any:
    """The method's trainer with sampling taken out of the hands of chance."""

    class Fixed(trainer_class(method)):
        def _generate_single_turn(self, prompt_ids, *_: Any, **__: Any):
            # a group's responses are neighbours in the global order, which ranks share out in contiguous parts
            offset = self.accelerator.process_index * len(prompt_ids)
            return [fixed_completion(ids, (offset + i) % 4) for i, ids in enumerate(prompt_ids)], None

    return Fixed


def train(method: str, folder: Path, *, sampled: bool = False, **extra: Any) -> Any:
    cls = trainer_class(method) if sampled else fixed(method)
    trainer = cls(
        model(), judged, config(method, folder, **extra), rows(), processing_class=character_tokenizer()
    )
    trainer.train()
    return trainer


def weights(trainer: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.accelerator.unwrap_model(trainer.model).parameters()]
