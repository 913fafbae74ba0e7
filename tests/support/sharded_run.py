"""Trains a few steps on two CPU processes, plain or sharded, and stores the whole weights.

torchrun --nproc_per_node 2 tests/support/sharded_run.py ddp OUT
accelerate launch --config_file launch/accelerate/zero2.yaml ... tests/support/sharded_run.py zero2 OUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState
from datasets import Dataset

sys.path.insert(0, str(Path(__file__).parent))
from split_run import fixed_completion
from tiny_run import arguments, rows

from posttrain import trainers
from posttrain.trainers.models.load import character_tokenizer, scratch_llama
from posttrain.trainers.models.weights import policy_weights
from posttrain.trainers.seam.launch_check import check_engine

KIND = sys.argv[1]
REWARD = f"{Path(__file__).with_name('sharded_reward.py')}:partly_right"
SETTINGS: dict[str, dict[str, Any]] = {
    "GRPO": {"beta": 0.05},
    "BAPO": {"target": 0.55},
    "CAPO": {"objective_threshold": 0.0, "policy_threshold": 80.0, "num_candidates": 8},  # some tokens go
    "PPO": {"critic_learning_rate": 1e-3},
    "PPO, shared": {"critic_learning_rate": 1e-3, "share_trunk": True, "value_coef": 1.0, "ptx_coef": 0.3},
}
WANTED = {
    "ddp": DistributedType.MULTI_CPU,
    "fsdp2": DistributedType.FSDP,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
}


def shard_on_cpus() -> None:
    """accelerate 1.15 finds no backend on a machine without an accelerator and lets every rank run alone; with its CPU
    switch it drops DeepSpeed and FSDP. This gives it gloo, and for FSDP the one kind of rank it shards."""
    prepare = PartialState._prepare_backend

    def prepared(self: Any, cpu: bool = False, sagemaker_dp: bool = False, backend: Any = None) -> Any:
        backend, kind = prepare(self, cpu, sagemaker_dp, backend)
        if not cpu and kind == DistributedType.NO:
            backend = "gloo"
            if KIND == "fsdp2":
                kind = DistributedType.MULTI_GPU
        return backend, kind

    PartialState._prepare_backend = prepared  # type: ignore[method-assign]  # for this process only


def train(method: str, folder: Path) -> dict[str, Any]:
    """The whole weights at the end and each step's loss and gradient norm."""
    tokenizer = character_tokenizer()
    name = method.partition(",")[0]
    trainer_class = getattr(trainers, f"{name}Trainer")

    class Fixed(trainer_class):  # type: ignore[misc, valid-type]  # the class is the argument
        def _generate_single_turn(self, prompt_ids, *_: Any, **__: Any):
            offset = self.accelerator.process_index * len(prompt_ids)
            return [fixed_completion(ids, (offset + i) % 4) for i, ids in enumerate(prompt_ids)], None

    config = getattr(trainers, f"{name}Config")(
        **arguments(
            folder,
            use_cpu=KIND == "ddp",
            per_device_train_batch_size=6,
            gradient_accumulation_steps=2,
            num_iterations=2,
            max_steps=4,
            optim="sgd",  # Adam would turn a rounding difference into a step of full size
            max_grad_norm=0.0,
            learning_rate=0.5,
            **SETTINGS[method],
        )
    )
    model = scratch_llama(tokenizer, hidden_size=32, layers=2, heads=2, max_positions=64, seed=0)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    more: dict[str, Any] = {}
    if "ptx_coef" in SETTINGS[method]:
        more["ptx_dataset"] = Dataset.from_dict(
            {"text": ["a cat sat" + " on a mat" * (i % 3) for i in range(7)]}
        )
    trainer = Fixed(model, REWARD, config, rows(24), processing_class=tokenizer, **more)
    check_engine(trainer.accelerator)
    assert trainer.accelerator.distributed_type == WANTED[KIND], trainer.accelerator.distributed_type
    assert trainer.accelerator.num_processes == 2
    trainer.train()
    weights = {
        name: tensor.detach().clone() for name, tensor in policy_weights(trainer.model, trainer.accelerator)
    }
    return {
        "engine": type(trainer.model_wrapped).__name__,
        "weights": weights,
        "moved": max((weights[name] - tensor).abs().max().item() for name, tensor in before.items()),
        "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
        "kept": [log["kept_share"] for log in trainer.state.log_history if "kept_share" in log],
    }


def main(out: Path) -> None:
    if KIND != "ddp":
        shard_on_cpus()
    found = {}
    # Under ZeRO-3 the KL reference is loaded from the model's folder, and this model has none; a critic of its own has
    # no weights to copy.
    for method in ["BAPO", "CAPO", "PPO, shared"] if KIND == "zero3" else SETTINGS:
        found[method] = train(method, out.parent / f"run-{KIND}")
        AcceleratorState._reset_state()  # the second trainer brings its own plugin
    if PartialState().is_main_process:
        torch.save(found, out)
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[2]))
