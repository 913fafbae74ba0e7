"""Trains RPO, SALSA, two iterations of DRIFT and two rounds of SePPO on two CPU processes, plain or sharded, and
stores the whole weights; samples answers to imitate for fewer rows than processes, and stops DRIFT by a signal to one
process alone.

torchrun --nproc_per_node 2 tests/support/pair_sharded_run.py ddp OUT
accelerate launch --config_file launch/accelerate/fsdp2.yaml ... tests/support/pair_sharded_run.py fsdp2 OUT
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from datasets import Dataset
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parent))
from pair_split_run import WORDS, arguments
from sharded_run import KIND, WANTED, shard_on_cpus
from split_run import fixed_completion
from tiny_run import arguments as policy_arguments
from tiny_run import rows as policy_rows

from posttrain.data.feedback_logs import Complaint
from posttrain.preferences.rpo import RPO
from posttrain.rollout.base import Sampling
from posttrain.trainers.models.load import character_tokenizer, scratch_llama
from posttrain.trainers.models.policy_folder import load_policy
from posttrain.trainers.models.weights import policy_weights
from posttrain.trainers.policy.salsa_trainer import SALSAConfig, SALSATrainer
from posttrain.trainers.preference.imitation import answers_of, sample_imitation
from posttrain.trainers.preference.trainer import PreferenceConfig, PreferenceTrainer
from posttrain.trainers.seam.stopping import StopOnSignal
from posttrain.trainers.staged.drift import DRIFTConfig, DRIFTTrainer
from posttrain.trainers.staged.seppo import SePPOConfig, SePPOTrainer


def options(folder: Path, **more: Any) -> dict[str, Any]:
    changes = {
        "use_cpu": KIND == "ddp",
        "optim": "sgd",  # Adam would turn a rounding difference into a step of full size
        "max_grad_norm": 0.0,
        "learning_rate": 0.5,
        "num_train_epochs": 1,
    }
    return arguments(2, 1, folder, **{**changes, **more})


def tiny() -> Any:
    return scratch_llama(character_tokenizer(), hidden_size=32, layers=1, heads=2, max_positions=256, seed=0)


def rpo(folder: Path) -> dict[str, Any]:
    rows = [{"prompt": f"name {w}:", "chosen": w, "rejected": w.upper()} for w in WORDS]
    trainer = PreferenceTrainer(
        tiny(),
        args=PreferenceConfig(**options(folder)),
        train_dataset=Dataset.from_list(rows),
        processing_class=character_tokenizer(),
        method=RPO(eta=0.5),
    )
    assert trainer.accelerator.distributed_type == WANTED[KIND], trainer.accelerator.distributed_type
    trainer.train()
    named = policy_weights(trainer.model, trainer.accelerator)
    return {
        "weights": {name: tensor.detach().clone() for name, tensor in named},
        "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
    }


def imitated(words: list[str]) -> list[str]:
    """Answers of a model whose weights, where sharding is on, only the main rank has; of one word the other rank is
    asked nothing."""
    model = tiny()
    if KIND != "ddp" and not PartialState().is_main_process:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
    rows = Dataset.from_list([{"prompt": f"name {w}:"} for w in words])
    tokenizer = character_tokenizer()
    answer = answers_of(model, tokenizer, on_cpu=True)
    return list(sample_imitation(rows, tokenizer, answer, Sampling(max_new_tokens=5), seed=0)["imitation"])


class SignalOnOne(TrainerCallback):
    """SIGINT to the second process, once it has agreed on the last step of the first stage and saves."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if PartialState().process_index == 1:
            signal.raise_signal(signal.SIGINT)


def stopped(folder: Path) -> dict[str, Any]:
    trainer = DRIFTTrainer(
        tiny(),
        [Complaint([{"role": "user", "content": f"name {w}"}], f"{w.upper()}!", "no") for w in WORDS],
        DRIFTConfig(**options(folder / "stopped", iterations=2, save_strategy="steps", save_steps=2)),
        character_tokenizer(),
        sampling=Sampling(max_new_tokens=5),
        callbacks=[SignalOnOne(), StopOnSignal()],
    )
    trainer.train()
    return {"policies": len(trainer.pool), "steps": trainer.state.global_step}


class Watched(TrainerCallback):
    """Notes each step's reward margin, and the engine it was trained with."""

    def __init__(self) -> None:
        self.run: Any = None
        self.engines: list[str] = []
        self.margins: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.engines.append(type(self.run._training.model_wrapped).__name__)
            self.margins.append(logs["rewards/margins"])


def drift(folder: Path) -> dict[str, Any]:
    complaints = [Complaint([{"role": "user", "content": f"name {w}"}], f"{w.upper()}!", "no") for w in WORDS]
    watched = Watched()
    trainer = DRIFTTrainer(
        tiny(),
        complaints,
        DRIFTConfig(**options(folder / "drift", iterations=2)),
        character_tokenizer(),
        sampling=Sampling(max_new_tokens=5),
        generation_batch_size=2,
        callbacks=[watched],
    )
    watched.run = trainer
    trainer.train()
    policies = [load_policy(trainer.pool.path(i)).state_dict() for i in range(len(trainer.pool))]
    pairs = [(folder / "drift" / "stages" / f"00{i}" / "pairs.jsonl").read_text() for i in range(2)]
    return {"engines": watched.engines, "margins": watched.margins, "policies": policies, "pairs": pairs}


def seppo(folder: Path) -> dict[str, Any]:
    """With AdamW, whose moments go from round to round; its epsilon is above every gradient."""
    winners = Dataset.from_list([{"prompt": f"name {w}:", "chosen": w} for w in WORDS])
    chosen = options(folder / "seppo", rounds=2, steps_per_round=2, max_steps=4)
    trainer = SePPOTrainer(
        tiny(),
        winners,
        SePPOConfig(**{**chosen, "optim": "adamw_torch", "adam_epsilon": 0.1, "num_train_epochs": 3}),
        character_tokenizer(),
        sampling=Sampling(max_new_tokens=5),
    )
    trainer.train()
    return {"policies": [load_policy(trainer.pool.path(i)).state_dict() for i in range(len(trainer.pool))]}


class FixedSALSA(SALSATrainer):
    """Answers that do not hang on the weights, so that only the step is compared."""

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
        offset = self.accelerator.process_index * len(prompt_ids)
        return [fixed_completion(ids, (offset + i) % 4) for i, ids in enumerate(prompt_ids)], None


def salsa(folder: Path) -> dict[str, Any]:
    tokenizer, second = character_tokenizer(), tiny()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    sft2 = folder / "sft2"
    if PartialState().is_main_process:
        second.save_pretrained(sft2)
        tokenizer.save_pretrained(sft2)
    PartialState().wait_for_everyone()
    args = SALSAConfig(
        **policy_arguments(
            folder,
            use_cpu=KIND == "ddp",
            per_device_train_batch_size=6,
            max_steps=3,
            beta=0.5,
            optim="sgd",
            max_grad_norm=0.0,
            learning_rate=0.5,
            others=[str(sft2)],
        )
    )
    reward = f"{Path(__file__).with_name('sharded_reward.py')}:partly_right"
    trainer = FixedSALSA(tiny(), reward, args, policy_rows(24), processing_class=tokenizer)
    trainer.train()
    named = policy_weights(trainer.model, trainer.accelerator)
    names = ("loss", "salsa/kl_to_soup", "salsa/kl_to_start")
    return {
        "weights": {name: tensor.detach().clone() for name, tensor in named},
        "logs": [[log[name] for name in names] for log in trainer.state.log_history if "loss" in log],
    }


def main(out: Path) -> None:
    if KIND != "ddp":
        shard_on_cpus()
    folder = out.parent / f"run-{KIND}"
    found = {"RPO": rpo(folder)}
    AcceleratorState._reset_state()  # the second trainer brings its own plugin
    found["SALSA"] = salsa(folder)
    AcceleratorState._reset_state()
    found["imitated"] = [imitated(WORDS[:1]), imitated(WORDS[:3])]
    AcceleratorState._reset_state()
    found["stopped"] = stopped(folder)
    AcceleratorState._reset_state()
    found["DRIFT"] = drift(folder)
    AcceleratorState._reset_state()
    found["SePPO"] = seppo(folder)
    if PartialState().is_main_process:
        torch.save(found, out)
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[2]))
