"""Supervised training of a flow model: the loss by hand, what it learns, micro-batches, resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from flow_helpers import CLASSES, small_flow, weights
from torch.testing import assert_close

from posttrain.rollout.flow.row_noise import row_noise, row_uniform
from posttrain.rollout.flow.small_flow import ClassFrame
from posttrain.trainers.flow.flow_sft_trainer import FlowSFTConfig, FlowSFTTrainer


def images(count: int = 8) -> Dataset:
    """Of class i one shade."""
    return Dataset.from_list(
        [{"prompt": CLASSES[i % 4], "image": [[60 * (i % 4)] * 4] * 4} for i in range(count)]
    )


def trainer(folder: Path, **changes: Any) -> FlowSFTTrainer:
    model = small_flow()
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_steps": 4,
        "sample_steps": 4,
    }
    rows = changes.pop("rows", images())
    return FlowSFTTrainer(
        model, FlowSFTConfig(**{**settings, **changes}), rows, images(6), frame=ClassFrame(model.config)
    )


def test_loss_by_hand(tmp_path):
    """Row by row: the point on the line, the model there, the squared distance to noise - image."""
    made = trainer(tmp_path, condition_dropout=0.0)
    rows = [made.train_dataset[i] for i in (2, 5)]
    inputs = made._collate(rows)
    expected = []
    for row, clean in zip(rows, inputs["latents"], strict=True):
        assert clean.unique().tolist() == pytest.approx([60 * (row["row"] % 4) / 127.5 - 1])
        t = row_uniform(2, [row["row"]], made.args.seed, "flow_sft", 0, "time")[0, 0]
        noise = row_noise((1, 4, 4), [row["row"]], made.args.seed, "flow_sft", 0, "noise")
        point = (1 - t) * clean + t * noise
        velocity = made.model(point, t.reshape(1), made.frame.read_prompts([row["prompt"]])["classes"])
        expected.append((velocity - (noise - clean)).square().mean())
    made.model.train()
    assert_close(made.compute_loss(made.model, inputs), torch.stack(expected).mean())


def test_prompts_are_left_out_at_their_share(tmp_path):
    """With all prompts left out but for a sliver, the loss is that of the class for none."""
    made = trainer(tmp_path, condition_dropout=0.999)
    inputs = made._collate([made.train_dataset[i] for i in range(8)])
    told = {**inputs, "classes": torch.full((8,), 4)}
    made.model.train()
    left_out = made.compute_loss(made.model, inputs)
    made.settings = type(made.settings)(condition_dropout=0.0)
    assert_close(left_out, made.compute_loss(made.model, told))
    assert (left_out - made.compute_loss(made.model, inputs)).abs() > 1e-6


def test_it_learns_the_shades(tmp_path):
    made = trainer(tmp_path, max_steps=300, optim="adamw_torch", learning_rate=5e-3, condition_dropout=0.0)
    before = made.evaluate()["eval_loss"]
    made.train()
    assert made.evaluate()["eval_loss"] < 0.5 * before
    (held,) = made.held_out
    shades = {
        prompt: sum(image.convert("L").tobytes()) / 16
        for prompt, image in zip(held.prompts, held.images, strict=True)
    }
    assert shades["a"] < shades["d"]


def test_micro_batches_move_nothing(tmp_path):
    whole = trainer(tmp_path / "a", optim="sgd")
    parts = trainer(tmp_path / "b", optim="sgd", per_device_train_batch_size=2, gradient_accumulation_steps=4)
    whole.train()
    parts.train()
    for one, other in zip(weights(whole), weights(parts), strict=True):
        assert_close(one, other, rtol=1e-5, atol=2e-6)


def test_resume_goes_on_bit_for_bit(tmp_path):
    whole = trainer(tmp_path, save_strategy="steps", save_steps=2)
    whole.train()
    resumed = trainer(tmp_path, save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for one, other in zip(weights(whole), weights(resumed), strict=True):
        assert torch.equal(one, other)


def test_logit_normal_times_are_the_logistic_of_a_normal(tmp_path):
    made = trainer(tmp_path, times="logit_normal")
    found = made._times(torch.tensor([0.5, 0.8413447]))
    assert_close(found, torch.tensor([0.5, torch.tensor(1.0).sigmoid().item()]), atol=1e-5, rtol=0)


def test_a_prompt_of_no_class_is_named(tmp_path):
    rows = Dataset.from_list([{"prompt": "z", "image": [[0] * 4] * 4}] * 8)
    with pytest.raises(ValueError, match="'z' is none of the model's classes"):
        trainer(tmp_path, rows=rows).train()
