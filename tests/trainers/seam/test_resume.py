"""A resumed run is the uninterrupted run, bit for bit; a killed save leaves the last checkpoint whole."""

from __future__ import annotations

import copy
import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_run import arguments, judged, rows
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig

from posttrain.preferences.dpo import DPO
from posttrain.process.storage import StorageError
from posttrain.run.run_folder import replaced
from posttrain.trainers.policy.bindings import BAPOConfig, BAPOTrainer, GRPOConfig, GRPOTrainer
from posttrain.trainers.preference.sft import SFTTrainer
from posttrain.trainers.preference.trainer import PreferenceConfig, PreferenceTrainer
from posttrain.trainers.seam import resume as resume_module
from posttrain.trainers.seam.resume import rows_fingerprint

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


def weights(trained: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trained.model.parameters()]


@pytest.fixture(scope="module")
def whole_run(tokenizer, tmp_path_factory):
    from posttrain.trainers.models.load import scratch_llama

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

    publish = resume_module.publish

    def killed_at_the_second(written: str, final: str) -> None:
        if final.endswith("-2"):
            raise Killed
        publish(written, final)

    monkeypatch.setattr(resume_module, "publish", killed_at_the_second)
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


# What a resume changes takes effect, and what is counted goes on


def texts(count: int = 24) -> Dataset:
    return Dataset.from_list([{"prompt": f"{i}+1=", "completion": str(i + 1)} for i in range(count)])


def sft(model, tokenizer, folder: Path, **extra) -> SFTTrainer:
    """Linear from 1e-3 over six steps, saved after each, unless `extra` says otherwise."""
    common = arguments(folder, save_strategy="steps", save_steps=1, max_steps=STEPS)
    for name in ("num_generations", "max_completion_length"):
        del common[name]
    config = SFTConfig(**(common | {"per_device_train_batch_size": 2, "weight_decay": 0.1} | extra))
    return SFTTrainer(copy.deepcopy(model), args=config, train_dataset=texts(), processing_class=tokenizer)


@pytest.fixture(scope="module")
def sft_run(tokenizer, tmp_path_factory):
    from posttrain.trainers.models.load import scratch_llama

    model = scratch_llama(tokenizer, hidden_size=32, layers=2, heads=2, max_positions=64, seed=0)
    folder = tmp_path_factory.mktemp("sft")
    run = sft(model, tokenizer, folder)
    run.train()
    return model, folder, weights(run), run.state.log_history


@pytest.mark.parametrize(
    ("changed", "rates"),
    [
        ({}, [3 / 6, 2 / 6, 1 / 6]),
        ({"learning_rate": 5e-3}, [5 * 3 / 6, 5 * 2 / 6, 5 * 1 / 6]),
        ({"lr_scheduler_type": "constant"}, [1.0, 1.0, 1.0]),
        ({"max_steps": 5}, [2 / 5, 1 / 5]),
        ({"warmup_steps": 4}, [3 / 4, 2 / 2, 1 / 2]),
    ],
    ids=["nothing", "learning_rate", "schedule", "max_steps", "warmup"],
)
def test_the_rate_of_the_next_step_is_the_one_that_was_asked_for(
    changed, rates, sft_run, tokenizer, tmp_path
):
    """By hand: after step 3 of 6, the rates of the steps 4, 5, 6 in units of 1e-3."""
    model, folder, expected, _ = sft_run
    run = sft(model, tokenizer, tmp_path, **changed)
    run.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    found = [log["learning_rate"] for log in run.state.log_history if "loss" in log and log["step"] > 3]
    assert found == pytest.approx([rate * 1e-3 for rate in rates])
    same = all(torch.equal(a, b) for a, b in zip(weights(run), expected, strict=True))
    assert same == (not changed)


def test_the_optimizer_keeps_its_moments_and_takes_the_new_settings(sft_run, tokenizer, tmp_path):
    model, folder, _, _ = sft_run
    run = sft(model, tokenizer, tmp_path, max_steps=4, weight_decay=0.5, adam_beta2=0.9, adam_epsilon=1e-5)
    run.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    optimizer: Any = run.optimizer
    groups = optimizer.param_groups
    assert {group["weight_decay"] for group in groups} == {0.5, 0.0}
    assert {(group["betas"], group["eps"]) for group in groups} == {((0.9, 0.9), 1e-5)}
    assert {int(state["step"]) for state in optimizer.state.values()} == {4}


def test_logging_and_saving_follow_the_new_recipe(sft_run, tokenizer, tmp_path):
    model, folder, _, _ = sft_run
    run = sft(model, tokenizer, tmp_path, save_steps=2, logging_steps=3)
    run.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    assert [log["step"] for log in run.state.log_history if "loss" in log and log["step"] > 3] == [6]


def test_sft_goes_on_counting_tokens(sft_run, tokenizer, tmp_path):
    model, folder, _, history = sft_run
    run = sft(model, tokenizer, tmp_path)
    run.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    counts = [
        [log["num_tokens"] for log in logs if "num_tokens" in log][-2:]
        for logs in (run.state.log_history, history)
    ]
    assert counts[0] == counts[1]
    assert counts[0][0] > 20


def test_pairs_go_on_counting_tokens(tiny_model, tokenizer, tmp_path):
    pairs = Dataset.from_list(
        [{"prompt": f"{i}>", "chosen": f"{i}", "rejected": f"{i + 1}"} for i in range(8)]
    )

    def run(checkpoint: str | None) -> PreferenceTrainer:
        common = arguments(
            tmp_path, save_strategy="steps", save_steps=1, per_device_train_batch_size=2, max_steps=4
        )
        for name in ("num_generations", "max_completion_length"):
            del common[name]
        trained = PreferenceTrainer(
            copy.deepcopy(tiny_model),
            None,
            PreferenceConfig(**common),
            pairs,
            method=DPO(),
            processing_class=tokenizer,
        )
        trained.train(resume_from_checkpoint=checkpoint)
        return trained

    counts = [
        [log["num_tokens"] for log in run(checkpoint).state.log_history if "num_tokens" in log][-1]
        for checkpoint in (None, str(tmp_path / "checkpoint-2"))
    ]
    assert counts[0] == counts[1] > 0


def test_a_reference_that_follows_the_policy_is_part_of_the_run(tiny_model, tokenizer, tmp_path):
    def run(folder: Path, checkpoint: str | None = None) -> GRPOTrainer:
        config = GRPOConfig(
            **arguments(
                folder,
                beta=0.5,
                sync_ref_model=True,
                ref_model_sync_steps=2,
                ref_model_mixup_alpha=0.7,
                learning_rate=1e-2,
                save_strategy="steps",
                save_steps=1,
                max_steps=5,
            )
        )
        trained = GRPOTrainer(copy.deepcopy(tiny_model), judged, config, rows(), processing_class=tokenizer)
        trained.train(resume_from_checkpoint=checkpoint)
        return trained

    whole = run(tmp_path / "whole")
    resumed = run(tmp_path / "resumed", str(tmp_path / "whole" / "checkpoint-3"))
    for a, b in zip(weights(resumed), weights(whole), strict=True):
        assert torch.equal(a, b)
    (tmp_path / "whole" / "checkpoint-3" / "reference.pt").unlink()
    with pytest.raises(FileNotFoundError, match="the reference that followed the policy was not saved"):
        run(tmp_path / "resumed", str(tmp_path / "whole" / "checkpoint-3"))


# A disk that takes no more


@pytest.mark.parametrize("where", ["weights", "optimizer", "own state", "publish"])
def test_a_full_disk_leaves_the_last_checkpoint_and_one_line(
    where, sft_run, tokenizer, tmp_path, monkeypatch
):
    model, folder, expected, _ = sft_run
    full = OSError(errno.ENOSPC, "No space left on device")
    run = sft(model, tokenizer, tmp_path)

    def at_step_4(act):
        def fails(*arguments, **named):
            if run.state.global_step == 4:
                # as torch says it: text only
                raise (
                    RuntimeError("PytorchStreamWriter failed writing file data/0")
                    if where == "own state"
                    else full
                )
            return act(*arguments, **named)

        return fails

    if where == "weights":
        monkeypatch.setattr(run, "_save", at_step_4(run._save))
    elif where == "optimizer":
        monkeypatch.setattr(
            run, "_save_optimizer_and_scheduler", at_step_4(run._save_optimizer_and_scheduler)
        )
    elif where == "own state":
        monkeypatch.setattr(run, "rollout_state", at_step_4(run.rollout_state))
    else:
        monkeypatch.setattr(resume_module, "publish", at_step_4(resume_module.publish))
    with pytest.raises(StorageError) as raised:
        run.train()
    assert "checkpoint-4 cannot be written: " in str(raised.value)
    assert "checkpoint-3 is whole; make room, then --resume continues it" in str(raised.value)
    assert "\n" not in str(raised.value)
    monkeypatch.undo()
    assert not (tmp_path / ".saving").exists()  # what was begun makes room
    if where != "weights":
        return  # one is enough to see that what stands can be continued
    again = sft(model, tokenizer, tmp_path)
    again.train(resume_from_checkpoint=True)
    for a, b in zip(weights(again), expected, strict=True):
        assert torch.equal(a, b)


def test_other_rows_have_another_name():
    assert rows_fingerprint(texts()) == rows_fingerprint(texts())
    assert rows_fingerprint(texts()) != rows_fingerprint(texts(23))
    assert rows_fingerprint(texts()) != rows_fingerprint(texts().shuffle(seed=1))
    with_reference = texts().add_column("ref_chosen_logps", [0.5] * 24)
    assert rows_fingerprint(texts()) == rows_fingerprint(with_reference)
