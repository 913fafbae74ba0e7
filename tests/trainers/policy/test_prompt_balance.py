"""A KL coefficient per prompt in short runs: the loss by hand, the reference's entropies, refusals, a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from places import SUPPORT
from rollout_fakes import small_model

from posttrain.objectives.grpo import GRPO
from posttrain.objectives.reinforce_pp import REINFORCEPlusPlus
from posttrain.ops.balance import quantiles
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.trainers.engines.rollout_plan import RolloutPlan
from posttrain.trainers.models.load import character_tokenizer
from posttrain.trainers.policy.prompt_balance import reference_entropy
from posttrain.trainers.policy.trainer import PolicyTrainer
from posttrain.trainers.seam.config import PolicyConfig

JUDGED = f"{SUPPORT / 'letter_rewards.py'}:odd_length"


class Noting(PolicyTrainer):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.outputs: list[dict[str, Any]] = []
        self.entropies: list[torch.Tensor] = []
        super().__init__(*arguments, **named)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.outputs.append(output)
        if self.args.beta_by == "reference_entropy":
            self.entropies.append(reference_entropy(self, self.judge.groups(4), output))
        return output

    def column(self, name: str) -> list[float]:
        return [float(one[name]) for one in self.state.log_history if name in one]


def run(folder: Path, resume: str | None = None, **changes: Any) -> Noting:
    objective = changes.pop("objective", GRPO())
    arguments = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "max_completion_length": 8,
        "learning_rate": 0.05,
        "optim": "sgd",
        "beta": 0.1,
        "max_steps": 2,
        "seed": 3,
        **changes,
    }
    rows = Dataset.from_list([{"prompt": f"{i}+{i % 7}="} for i in range(24)])
    trainer = Noting(
        small_model(scale=6.0).train(),
        JUDGED,
        PolicyConfig(**arguments),
        rows,
        processing_class=character_tokenizer(),
        objective=objective,
    )
    trainer.use_engine(TransformersEngine.of(trainer.model, pad_token_id=0), RolloutPlan())
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer: Noting) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in trainer.model.parameters()]


def test_by_pass_rate_each_prompt_has_its_own_coefficient(tmp_path: Path) -> None:
    trainer = run(tmp_path, beta_by="pass_rate", beta_low=0.0, beta_high=2.0)
    groups = trainer.judge.groups(4)
    expected = 2.0 * groups.rewards.mean(1)
    assert torch.equal(trainer.outputs[-1]["beta_factor"], expected.repeat_interleave(4))
    assert len(set(expected.tolist())) > 1
    assert trainer.column("beta/mean")[-1] == pytest.approx(0.1 * float(expected.mean()))
    assert trainer.column("beta/max")[-1] == pytest.approx(0.1 * float(expected.max()))


def test_the_penalty_is_the_factor_times_that_of_one_beta(tmp_path: Path) -> None:
    """low = high: the run is bit for bit the one whose beta is that many times as large."""
    per_prompt = run(tmp_path / "a", beta_by="pass_rate", beta_low=4.0, beta_high=4.0, beta=0.25, max_steps=3)
    plain = run(tmp_path / "b", beta=1.0, max_steps=3)
    for one, other in zip(weights(per_prompt), weights(plain), strict=True):
        assert torch.equal(one, other)
    off = run(tmp_path / "c", beta_by="pass_rate", beta_low=0.0, beta_high=0.0, max_steps=3)
    none = run(tmp_path / "d", beta=0.0, max_steps=3)
    for one, other in zip(weights(off), weights(none), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(weights(off)[0], weights(plain)[0])


def test_by_the_reference_s_entropy(tmp_path: Path) -> None:
    """Entropies against one plain forward of the reference, the factor by their order."""
    trainer = run(tmp_path, beta_by="reference_entropy", beta_low=2.0, beta_high=0.5, max_steps=1)
    output, start = trainer.outputs[0], small_model(scale=6.0)
    found = []
    for group in range(4):
        entropies = []
        for row in range(4 * group, 4 * group + 4):
            prompt = output["prompt_ids"][row][output["prompt_mask"][row].bool()]
            answer = output["completion_ids"][row][output["completion_mask"][row].bool()]
            with torch.no_grad():
                logits = start(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
            entropies.append(torch.distributions.Categorical(logits=logits).entropy())
        found.append(torch.cat(entropies).mean())
    torch.testing.assert_close(trainer.entropies[0], torch.stack(found), rtol=1e-4, atol=1e-5)
    factors = 2.0 - 1.5 * quantiles(torch.stack(found))
    torch.testing.assert_close(output["beta_factor"], factors.repeat_interleave(4))


def test_a_resumed_run_in_mid_window_is_the_uninterrupted_one(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "beta_by": "pass_rate",
        "beta_low": 0.1,
        "beta_high": 3.0,
        "num_iterations": 2,
        "max_steps": 4,
    }
    whole = run(tmp_path, save_strategy="steps", save_steps=3, **settings)
    resumed = run(tmp_path / "again", resume=str(tmp_path / "checkpoint-3"), **settings)
    for one, other in zip(weights(whole), weights(resumed), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"beta_by": "pass_rate", "beta": 0.0, "beta_low": 0.5}, "does nothing without a KL penalty"),
        ({"beta_low": 0.5}, "'beta_low' does nothing without beta_by"),
        ({"beta_by": "pass_rate"}, "while beta_low and beta_high are both 1"),
        ({"beta_by": "length", "beta_low": 0.5}, "beta_by is pass_rate or reference_entropy"),
        ({"beta_by": "pass_rate", "beta_low": -1.0}, "write 0 or more"),
        (
            {"beta_by": "pass_rate", "beta_low": 0.5, "objective": REINFORCEPlusPlus()},
            "REINFORCEPlusPlus has none there",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        run(tmp_path, **changes)
