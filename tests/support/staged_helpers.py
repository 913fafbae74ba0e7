"""What the tests of runs in stages share: a toy model, its arguments, a kill, and a look at what a run left on disk."""

from __future__ import annotations

import json

import torch
from peft import LoraConfig
from transformers import TrainerCallback

from posttrain.trainers.models.load import scratch_llama
from posttrain.trainers.models.policy_folder import load_policy

WORDS = ["red", "green", "blue", "pink", "grey", "teal", "gold"]
LORA = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"])


class Killed(Exception):
    pass


class KillAt(TrainerCallback):
    """Raises at the run's global step, as a kill would come; steps count over stages."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise Killed


def options(config, folder, **changes):
    return config(
        **{
            "output_dir": str(folder),
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "max_length": 240,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "save_strategy": "steps",
            "save_steps": 2,
            "logging_steps": 1,
            "disable_tqdm": True,
            **changes,
        }
    )


def make_model(tokenizer):
    return scratch_llama(tokenizer, hidden_size=32, layers=1, heads=2, max_positions=512, seed=0)


def policies(trainer):
    return [
        {name: value for name, value in load_policy(path, base=trainer.base).state_dict().items()}
        for path in (trainer.pool.path(i) for i in range(len(trainer.pool)))
    ]


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(second[name], value) for name, value in first.items()
    )


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
