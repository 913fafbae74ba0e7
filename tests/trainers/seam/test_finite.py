"""A run stops at the first number that is not finite, says which and when, and saves nothing over what was good."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from finite_runs import FAMILIES, made
from places import SUPPORT
from safetensors.torch import load_file
from tiny_run import arguments
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from posttrain.cli import main
from posttrain.objectives.base import Groups
from posttrain.process import exit_codes
from posttrain.trainers.models.load import scratch_llama
from posttrain.trainers.seam.faults import NotFinite
from posttrain.trainers.seam.finite import StepNotes, first_not_finite, reward_fault


class BreakAfter(TrainerCallback):
    """Writes a value into one weight after a step's checkpoint was saved, as a bad update would."""

    def __init__(self, step: int, value: float) -> None:
        self.step, self.value = step, value

    def on_save(self, args, state, control, model: Any = None, **_):
        if state.global_step == self.step:
            weight = dict(model.named_parameters())["model.layers.0.mlp.down_proj.weight"]
            weight.data[0, 0] = self.value


def finite_checkpoint(folder: Path) -> str:
    last = get_last_checkpoint(str(folder))
    assert last is not None
    assert first_not_finite(load_file(Path(last) / "model.safetensors").items()) is None
    return Path(last).name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_nan_weight_stops_the_run_and_is_named(family, tmp_path):
    trainer = made(family, tmp_path)
    trainer.add_callback(BreakAfter(2, float("nan")))
    with pytest.raises(NotFinite, match=r"step 3.*model\.layers\.0\.mlp\.down_proj\.weight.*checkpoint-2"):
        trainer.train()
    assert finite_checkpoint(tmp_path) == "checkpoint-2"
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [1, 2]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_learning_rate_without_measure_stops_the_run(family, tmp_path):
    trainer = made(family, tmp_path, learning_rate=1e30)
    with pytest.raises(NotFinite, match="step [12]"):
        trainer.train()
    trainer.model.lm_head.weight.data.fill_(torch.inf)
    with pytest.raises(NotFinite):
        trainer.save_model(str(tmp_path / "model"))
    assert not (tmp_path / "model").exists()


def test_the_first_tensor_of_the_flow_is_named(tmp_path):
    trainer = made("policy", tmp_path, beta=0.1)
    next(trainer.ref_model.parameters()).data.fill_(torch.nan)
    with pytest.raises(
        NotFinite, match="step 1: the reference's log-probs are not finite; all weights are finite"
    ):
        trainer.train()
    assert get_last_checkpoint(str(tmp_path)) is None


def test_a_gradient_is_named_where_all_else_is_finite(tmp_path):
    trainer = made("preference", tmp_path)
    weight = dict(trainer.model.named_parameters())["model.layers.0.self_attn.v_proj.weight"]
    weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(NotFinite, match=r"gradient norm is not finite.*first gradient.*v_proj\.weight"):
        trainer.train()


class Scaler:
    """What of torch.amp.GradScaler the check asks for."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def is_enabled(self) -> bool:
        return True

    def get_scale(self) -> float:
        return self.scale


@pytest.mark.parametrize(("scale", "stops"), [(65536.0, False), (1.0, False), (0.5, True)])
def test_float16_loss_scaling_may_overflow_while_it_falls(scale, stops, tmp_path):
    trainer = made("sft", tmp_path)
    trainer.accelerator.scaler = Scaler(scale)
    flags = {"the loss": torch.tensor(False)}
    trainer._notes = StepNotes()
    trainer._notes._bad = flags
    if stops:
        with pytest.raises(NotFinite, match="gradient norm"):
            trainer._get_grad_norm(trainer.model, grad_norm=torch.tensor(torch.inf))
        return
    trainer._get_grad_norm(trainer.model, grad_norm=torch.tensor(torch.inf))
    trainer.step_notes.note("the loss", torch.tensor(torch.nan))
    with pytest.raises(NotFinite, match="the loss"):  # which no loss scale explains
        trainer._get_grad_norm(trainer.model, grad_norm=torch.tensor(torch.inf))


def huge(completions, **_):
    return [3e38 if i % 2 else -3e38 for i, _ in enumerate(completions)]


def test_a_huge_reward_is_named_with_its_step(tmp_path):
    trainer = made("policy", tmp_path)
    runner = trainer.judge.runner
    trainer.judge.runner = type(
        "Huge",
        (),
        {
            "score": staticmethod(
                lambda c, **_: type(runner.score(c, **_))(
                    values=[[v] for v in huge(c)], answers=None, counts={}
                )
            )
        },
    )()
    with pytest.raises(NotFinite, match="the rollout of step 1: .*rewards"):
        trainer.train()


def groups(values, weights=(1.0,)):
    per_function = torch.tensor(values)
    weight = torch.tensor(weights)
    total = (per_function * weight).nansum(dim=2)
    total[per_function.isnan().all(dim=2)] = torch.nan
    return Groups(rewards=total, rewards_per_function=per_function, weights=weight)


def test_rewards_that_no_advantage_can_be_made_of():
    fine = {"advantages": torch.zeros(1, 2)}
    nan, inf = float("nan"), float("inf")
    assert reward_fault(groups([[[1.0], [nan]]]), fine, ["a"]) is None
    assert reward_fault(groups([[[1.0], [inf]]]), fine, ["a"]) == "reward a"
    assert "weighted sum" in (reward_fault(groups([[[1e38], [1.0]]], (1e38,)), fine, ["a"]) or "")
    both = groups([[[1e38, 1e38], [1.0, 1.0]]], (1e38, -1e38))  # inf - inf: not "unjudged"
    assert "weighted sum" in (reward_fault(both, fine, ["a", "b"]) or "")
    assert "square" in (reward_fault(groups([[[1e38], [1.0]]]), fine, ["a"]) or "")
    assert (
        reward_fault(groups([[[1.0], [0.0]]]), {"advantages": torch.tensor([[nan, 0.0]])}, ["a"])
        == "advantages"
    )


def test_notes_read_only_what_takes_part():
    notes = StepNotes()
    notes.note("x", torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 0.0]))
    notes.note("y", torch.tensor([1.0]))
    notes.note("y", torch.tensor([-torch.inf]))
    notes.note("z", None)
    assert {name: bool(flag) for name, flag in notes.take().items()} == {"x": False, "y": True}
    assert notes.take() == {}


def test_the_first_tensor_that_is_not_finite():
    good, half = torch.ones(2), torch.ones(2, dtype=torch.float16)
    bad = torch.tensor([1.0, -torch.inf])
    assert (
        first_not_finite([("a", good), ("n", torch.ones(1, dtype=torch.long)), ("e", torch.empty(0))]) is None
    )
    assert first_not_finite([("a", good), ("b", bad), ("c", bad)]) == "b"
    assert first_not_finite([("a", half), ("b", half * torch.nan)]) == "b"


RECIPE = """
method: sft
model: {path: ./broken}
data: {name: sort, args: {size: 64, demonstrations: 4}}
train:
  max_steps: 6
  max_length: 32
  per_device_train_batch_size: 8
  learning_rate: 1.0e-3
  lr_scheduler_type: constant
  gradient_checkpointing: false
  use_cpu: true
output: {name: dies, save_steps: 1, report_to: []}
"""


def test_the_command_ends_with_a_code_of_its_own(tokenizer, tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_model.model.norm.weight.data[0] = torch.nan
    tiny_model.save_pretrained("broken")
    tokenizer.save_pretrained("broken")
    Path("dies.yaml").write_text(RECIPE)
    assert main(["train", "dies.yaml"]) == exit_codes.NOT_FINITE
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(
        "dies.yaml: step 1: the loss is not finite; the first weight that is not finite is "
    )
    assert "model.norm.weight. Nothing was saved" in last
    assert not Path("runs/dies/model").exists()


def test_a_run_in_stages_stops_too(tokenizer, tmp_path):
    from posttrain.rollout.base import Sampling
    from posttrain.trainers.staged.seppo import SePPOConfig, SePPOTrainer

    args = arguments(tmp_path, learning_rate=1e30, per_device_train_batch_size=2)
    del args["num_generations"], args["max_completion_length"], args["max_steps"]
    trainer = SePPOTrainer(
        scratch_llama(tokenizer, hidden_size=16, layers=1, heads=2, max_positions=64, seed=0),
        Dataset.from_list([{"prompt": f"{i}>", "chosen": "ab"} for i in range(8)]),
        SePPOConfig(**args | {"rounds": 2, "steps_per_round": 3}),
        tokenizer,
        sampling=Sampling(max_new_tokens=4),
    )
    with pytest.raises(NotFinite, match="step"):
        trainer.train()
    assert len(trainer.pool) == 1  # the start; nothing was published over or after it


@pytest.mark.distributed
def test_one_rank_stops_all(tmp_path):
    script = SUPPORT / "finite_runs.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, str(script), str(tmp_path)], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for family in FAMILIES:
        said = [(tmp_path / f"{family}-{rank}.txt").read_text() for rank in range(2)]
        assert said[0] == said[1]
        assert "step 2: the loss is not finite" in said[0]
        assert finite_checkpoint(tmp_path / family) == "checkpoint-1"
