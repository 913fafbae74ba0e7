"""What every engine must do alike, for the tests with real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rollout_fakes import EOS, PROMPTS, CopyEngine, logprobs_of, small_model
from torch import nn

from posttrain.objectives.bapo import BAPO
from posttrain.rollout.base import Completion, Sampling
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.trainers.engines.rollout_plan import RolloutPlan
from posttrain.trainers.models.load import character_tokenizer, load_pretrained
from posttrain.trainers.policy.trainer import PolicyTrainer
from posttrain.trainers.seam.config import PolicyConfig

JUDGED = f"{Path(__file__).with_name('rollout_reward.py')}:judged"


def write_model(folder: Path, tied: bool = False) -> nn.Module:
    """A model on disk with its tokenizer; returned as it was written."""
    model: Any = small_model(scale=6.0, tied=tied)
    model.generation_config.eos_token_id = EOS
    model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return model


def agreement(engine: Any, model: nn.Module) -> dict[str, Any]:
    """Greedy tokens equal to transformers'? Largest distance of sampling log-probs to a plain forward's."""
    greedy = Sampling(temperature=0.0, max_new_tokens=12, stop_token_ids=(EOS,))
    own = TransformersEngine.of(model, pad_token_id=0).generate(PROMPTS, greedy)
    theirs = engine.generate(PROMPTS, greedy)
    sampled = engine.generate(PROMPTS, Sampling(max_new_tokens=12, n=2, seed=5, stop_token_ids=(EOS,)))
    gaps = [
        (logprobs_of(model, PROMPTS[i // 2], one.token_ids) - torch.tensor(one.logprobs)).abs().max().item()
        for i, one in enumerate(sampled)
    ]
    return {"greedy": [one.token_ids for one in theirs] == [one.token_ids for one in own], "gap": max(gaps)}


class Recording(PolicyTrainer):
    """Keeps what was sampled for training."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.sampled: list[list[Completion]] = []
        super().__init__(*arguments, **named)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        self.sampled.append(self.rollouts._sampled)
        return output


class Replaying(CopyEngine):
    """The transformers engine, given the sampled tokens: a round's log-probs are its own model's."""

    script: list[list[Completion]]

    def generate(self, prompts: list[list[int]], sampling: Any) -> list[Completion]:
        if len(prompts) <= 2:
            return super().generate(prompts, sampling)
        script = self.script.pop(0)
        return [
            Completion(
                one.token_ids,
                logprobs_of(self.model, prompt, one.token_ids).tolist(),
                one.finish,
                one.segments,
            )
            for prompt, one in zip(prompts, script, strict=True)
        ]


def trainer_on(model_folder: Path, output_dir: Path, **changes: Any) -> Recording:
    model, tokenizer = load_pretrained(str(model_folder), dtype="float32")
    arguments = {
        "output_dir": str(output_dir),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 10,
        "learning_rate": 3e-3,
        "max_steps": 4,
        "seed": 3,
        **changes,
    }
    rows = Dataset.from_list([{"prompt": f"{i}+{i % 7}="} for i in range(60)])
    return Recording(
        model, JUDGED, PolicyConfig(**arguments), rows, processing_class=tokenizer, objective=BAPO()
    )


def losses_of(trainer: PolicyTrainer) -> list[float]:
    return [float(one["loss"]) for one in trainer.state.log_history if "loss" in one]


def losses_with(engine: Any, folder: Path, model_folder: Path | None = None) -> dict[str, list[float]]:
    """A run with the engine, and one with the transformers engine given the same sampled tokens."""
    trainer = trainer_on(model_folder or folder.parent / "model", folder)
    engine.version = None
    trainer.use_engine(engine, RolloutPlan())
    trainer.train()
    again = trainer_on(model_folder or folder.parent / "model", folder)
    replaying = Replaying(again.model)
    replaying.script = list(trainer.sampled)
    again.use_engine(replaying, RolloutPlan())
    again.train()
    return {"engine": losses_of(trainer), "transformers": losses_of(again)}
