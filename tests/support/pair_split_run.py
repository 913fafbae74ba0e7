"""Trains pair methods and one loop, and stores what came of it.

torchrun --nproc_per_node N tests/support/pair_split_run.py BATCH ACCUMULATION FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset

from posttrain.data.feedback_logs import Complaint
from posttrain.preferences.base import PairLoss
from posttrain.preferences.ipo import IPO
from posttrain.preferences.rpo import RPO
from posttrain.preferences.seppo import SePPO
from posttrain.rollout.base import Sampling
from posttrain.trainers import KTOConfig, KTOTrainer
from posttrain.trainers.models.load import character_tokenizer, scratch_llama
from posttrain.trainers.preference.trainer import PreferenceConfig, PreferenceTrainer
from posttrain.trainers.staged.drift import DRIFTConfig, DRIFTTrainer

METHODS: dict[str, PairLoss] = {"RPO": RPO(eta=0.5), "IPO": IPO(), "SePPO": SePPO()}
WORDS = ["red", "green", "blue", "pink", "grey", "teal", "gold", "black"]


def arguments(batch: int, accumulation: int, folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "max_length": 200,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        **more,
    }


def train(method: PairLoss, batch: int, accumulation: int, folder: Path) -> dict[str, Any]:
    tokenizer = character_tokenizer()
    rows = [
        {"prompt": f"name {w}:", "chosen": w, "rejected": w.upper() * (1 + i % 3)}
        for i, w in enumerate(WORDS * 2)
    ]
    trainer = PreferenceTrainer(
        scratch_llama(tokenizer, hidden_size=32, layers=1, heads=2, max_positions=256, seed=0),
        args=PreferenceConfig(**arguments(batch, accumulation, folder, num_train_epochs=1)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        method=method,
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return {
        "weights": [p.detach().clone() for p in trainer.accelerator.unwrap_model(trainer.model).parameters()],
        "loss": [log["loss"] for log in logs],
        "logps": [log["logps/chosen"] for log in logs],
    }


def marked(batch: int, accumulation: int, folder: Path) -> dict[str, Any]:
    """KTO, its reference some way from the policy, so that the reference point is above 0."""
    tokenizer = character_tokenizer()
    rows = [
        {"prompt": f"name {w}:", "completion": w.upper() * (1 + i % 3) if i % 3 else w, "label": i % 3 == 0}
        for i, w in enumerate(WORDS * 2)
    ]
    policy, reference = (
        scratch_llama(tokenizer, hidden_size=32, layers=1, heads=2, max_positions=256, seed=seed)
        for seed in (1, 0)
    )
    trainer = KTOTrainer(
        policy,
        reference,
        KTOConfig(**arguments(batch, accumulation, folder, num_train_epochs=1, beta=0.5)),
        Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return {
        "weights": [p.detach().clone() for p in trainer.accelerator.unwrap_model(trainer.model).parameters()],
        "loss": [log["loss"] for log in logs],
        "points": [log["kto/reference_point"] for log in logs],
    }


def loop(batch: int, accumulation: int, folder: Path) -> dict[str, Any]:
    tokenizer = character_tokenizer()
    complaints = [Complaint([{"role": "user", "content": f"name {w}"}], f"{w.upper()}!", "no") for w in WORDS]
    trainer = DRIFTTrainer(
        scratch_llama(tokenizer, hidden_size=32, layers=1, heads=2, max_positions=256, seed=0),
        complaints,
        DRIFTConfig(**arguments(batch, accumulation, folder / "drift", num_train_epochs=1, iterations=2)),
        tokenizer,
        sampling=Sampling(max_new_tokens=5),
        generation_batch_size=2,
    )
    trainer.train()
    samples = []
    for stage in ("000", "001"):
        files = (trainer.output_dir / "stages" / stage).glob("samples-*")
        samples.append(
            sorted(line for file in files for line in file.read_text(encoding="utf-8").splitlines())
        )
    return {"samples": samples, "policies": len(trainer.pool), "steps": trainer.state.global_step}


def main() -> None:
    batch, accumulation, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    found: dict[str, Any] = {name: train(m, batch, accumulation, folder) for name, m in METHODS.items()}
    found["KTO"] = marked(batch, accumulation, folder)
    found["DRIFT"] = loop(batch, accumulation, folder)
    if PartialState().is_main_process:
        torch.save(found, folder / "found.pt")


if __name__ == "__main__":
    main()
