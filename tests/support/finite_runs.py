"""One small trainer of each family, and a two-rank run in which one rank's numbers go wrong.

torchrun --nproc_per_node 2 tests/support/finite_runs.py OUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

sys.path.insert(0, str(Path(__file__).parent))
from tiny_run import arguments, judged, rows

from posttrain.rollout.masked.predictor import scratch_mask_model
from posttrain.trainers.masked.bindings import BGPOConfig, BGPOTrainer
from posttrain.trainers.masked.sft import MaskedSFTConfig, MaskedSFTTrainer
from posttrain.trainers.models.load import character_tokenizer, scratch_llama
from posttrain.trainers.policy.bindings import GRPOConfig, GRPOTrainer
from posttrain.trainers.preference.bindings import DPOConfig, DPOTrainer
from posttrain.trainers.preference.sft import SFTTrainer
from posttrain.trainers.seam.faults import NotFinite

PAIRS = [{"prompt": f"{i}>", "chosen": "ab", "rejected": "ba"} for i in range(8)]
TEXTS = [{"prompt": f"{i}>", "completion": "ab"} for i in range(8)]


def made(family: str, folder: Path, **extra: Any) -> Any:
    """A trainer that saves after each of its steps."""
    import trl

    tokenizer = character_tokenizer()
    size: dict[str, Any] = {"hidden_size": 16, "layers": 1, "heads": 2, "max_positions": 64, "seed": 0}
    common = arguments(
        folder, save_strategy="steps", save_steps=1, max_steps=4, lr_scheduler_type="constant", **extra
    )
    texts = {
        k: v for k, v in common.items() if k not in ("num_generations", "max_completion_length", "beta")
    } | {"per_device_train_batch_size": 2}
    if family == "policy":
        model: Any = scratch_llama(tokenizer, **size)
        return GRPOTrainer(model, judged, GRPOConfig(**common), rows(), processing_class=tokenizer)
    if family == "diffusion":
        model = scratch_mask_model(tokenizer, **size)
        return BGPOTrainer(model, judged, BGPOConfig(**common), rows(), processing_class=tokenizer)
    if family == "preference":
        data = Dataset.from_list(PAIRS)
        return DPOTrainer(
            scratch_llama(tokenizer, **size), None, DPOConfig(**texts), data, processing_class=tokenizer
        )
    data = Dataset.from_list(TEXTS)
    if family == "sft":
        return SFTTrainer(
            scratch_llama(tokenizer, **size),
            args=trl.SFTConfig(**texts),
            train_dataset=data,
            processing_class=tokenizer,
        )
    return MaskedSFTTrainer(
        scratch_mask_model(tokenizer, **size), MaskedSFTConfig(**texts), data, processing_class=tokenizer
    )


FAMILIES = ("policy", "preference", "sft", "masked_sft", "diffusion")


def main(out: Path) -> None:
    """At step 2 the loss of rank 1 is NaN; every rank must say so, and none may wait."""
    for family in FAMILIES:
        trainer = made(family, out / family, **({"beta": 0.1} if family == "policy" else {}))
        rank, inner = trainer.accelerator.process_index, trainer.compute_loss

        def broken(
            *given: Any, trainer: Any = trainer, rank: int = rank, inner: Any = inner, **named: Any
        ) -> Any:
            loss = inner(*given, **named)
            return loss * torch.nan if rank == 1 and trainer.state.global_step == 1 else loss

        trainer.compute_loss = broken
        try:
            trainer.train()
        except NotFinite as error:
            (out / f"{family}-{rank}.txt").write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
