"""A resumed run is the uninterrupted run, bit for bit; a killed save leaves the last checkpoint whole."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
from helpers import arguments, judged, rows
from transformers.trainer_utils import get_last_checkpoint

from posttrain.train import replaced
from posttrain.trainers import resume as resume_module
from posttrain.trainers.bindings import BAPOConfig, BAPOTrainer

STEPS = 6


def trainer(model, tokenizer, folder: Path, **extra) -> BAPOTrainer:
    """Four micro-steps a rollout, used twice: a window of eight optimizer steps of one micro-batch."""
    config = BAPOConfig(
        **arguments(
            folder,
            per_device_train_batch_size=4,
            steps_per_generation=2,
            num_iterations=2,
            max_steps=STEPS,
            save_strategy="steps",
            save_steps=1,
            target=0.6,
            **extra,
        )
    )
    return BAPOTrainer(copy.deepcopy(model), judged, config, rows(), processing_class=tokenizer)


def weights(trained: BAPOTrainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trained.model.parameters()]


@pytest.fixture(scope="module")
def whole_run(tokenizer, tmp_path_factory):
    from posttrain.trainers.models import scratch_llama

    model = scratch_llama(tokenizer, hidden_size=32, layers=2, heads=2, max_positions=64, seed=0)
    folder = tmp_path_factory.mktemp("whole")
    run = trainer(model, tokenizer, folder)
    run.train()
    return model, folder, weights(run), run.state.log_history


@pytest.mark.parametrize("step", [1, 2, 4], ids=["inside_first_use", "between_uses", "at_the_boundary"])
def test_resume_is_bit_equal(step, whole_run, tokenizer, tmp_path):
    model, folder, expected, history = whole_run
    run = trainer(model, tokenizer, tmp_path)
    run.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert run.state.global_step == STEPS
    for a, b in zip(weights(run), expected, strict=True):
        assert torch.equal(a, b)
    later = [h for h in run.state.log_history if "loss" in h and h["step"] > step]
    before = [h for h in history if "loss" in h and h["step"] > step]
    for mine, its in zip(later, before, strict=True):
        assert mine["loss"] == its["loss"]
        assert mine["entropy"] == its["entropy"]


def test_without_the_buffer_the_run_would_differ(whole_run, tokenizer, tmp_path):
    """The test above can fail: dropping the saved buffer changes the weights."""
    model, folder, expected, _ = whole_run
    run = trainer(model, tokenizer, tmp_path)
    run.load_rollout_state = lambda state: None
    run.train(resume_from_checkpoint=str(folder / "checkpoint-1"))
    assert any(not torch.equal(a, b) for a, b in zip(weights(run), expected, strict=True))


def test_a_killed_save_leaves_the_last_checkpoint(tiny_model, tokenizer, tmp_path, monkeypatch):
    class Killed(BaseException):
        """Stands for the process going away: nothing catches it."""

    publish = resume_module._publish

    def killed_at_the_second(written: str, final: str) -> None:
        if final.endswith("-2"):
            raise Killed
        publish(written, final)

    monkeypatch.setattr(resume_module, "_publish", killed_at_the_second)
    with pytest.raises(Killed):
        trainer(tiny_model, tokenizer, tmp_path).train()
    monkeypatch.undo()

    assert Path(get_last_checkpoint(str(tmp_path))).name == "checkpoint-1"
    run = trainer(tiny_model, tokenizer, tmp_path)
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == STEPS
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_another_window_is_refused(whole_run, tokenizer, tmp_path):
    model, folder, _, _ = whole_run
    config = BAPOConfig(**arguments(tmp_path, per_device_train_batch_size=8, max_steps=STEPS))
    run = BAPOTrainer(copy.deepcopy(model), judged, config, rows(), processing_class=tokenizer)
    with pytest.raises(ValueError, match="steps_per_generation"):
        run.train(resume_from_checkpoint=str(folder / "checkpoint-1"))


def test_save_total_limit_keeps_the_newest(tiny_model, tokenizer, tmp_path):
    trainer(tiny_model, tokenizer, tmp_path, save_total_limit=2).train()
    kept = sorted(p.name for p in tmp_path.glob("checkpoint-*"))
    assert kept == [f"checkpoint-{STEPS - 1}", f"checkpoint-{STEPS}"]


@pytest.mark.parametrize("step", [3, 4, 5], ids=["in_the_first_epoch", "at_its_end", "in_the_second"])
def test_resume_across_epochs_is_bit_equal(step, tiny_model, tokenizer, tmp_path):
    """Four steps an epoch: the second epoch's order of prompts does not depend on where the run was resumed."""

    def run(folder: Path, checkpoint: str | None = None) -> BAPOTrainer:
        config = BAPOConfig(
            **arguments(
                folder,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=3,
                max_steps=6,
                save_strategy="steps",
                save_steps=1,
            )
        )
        trained = BAPOTrainer(copy.deepcopy(tiny_model), judged, config, rows(), processing_class=tokenizer)
        trained.train(resume_from_checkpoint=checkpoint)
        return trained

    whole = run(tmp_path / "whole")
    resumed = run(tmp_path / "resumed", str(tmp_path / "whole" / f"checkpoint-{step}"))
    for a, b in zip(weights(resumed), weights(whole), strict=True):
        assert torch.equal(a, b)


def test_an_old_run_goes_only_when_the_new_one_stands(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("old")

    def start_without_a_server():
        with replaced(run):
            run.mkdir()
            (run / "half").write_text("new")
            raise ConnectionError

    with pytest.raises(ConnectionError):
        start_without_a_server()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (run / "metrics.jsonl").read_text() == "old"
    with replaced(run):
        assert not run.exists()
        run.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["run"]


def test_another_rank_leaves_the_old_run_to_the_first(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with replaced(tmp_path):
        assert tmp_path.exists()
