"""The Python way: a method's trainer from a model's name."""

from __future__ import annotations

import torch
from datasets import Dataset
from letter_rewards import short_and_odd

from posttrain.trainers import BAPOConfig, BAPOTrainer


def test_a_model_may_be_given_by_its_folder(tiny_model, tokenizer, tmp_path):
    for one in (tiny_model, tokenizer):
        one.save_pretrained(tmp_path / "model")
    args = BAPOConfig(
        output_dir=str(tmp_path / "out"), target=0.4, beta=0.1, num_generations=4, per_device_train_batch_size=8,
        max_completion_length=6, max_steps=1, learning_rate=1e-2, use_cpu=True, bf16=False, report_to=[],
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": f"{i}>", "answer": str(i)} for i in range(8)])
    trainer = BAPOTrainer(str(tmp_path / "model"), short_and_odd, args=args, train_dataset=rows)
    start = tiny_model.state_dict()
    assert all(torch.equal(value, start[name]) for name, value in trainer.ref_model.state_dict().items())
    trainer.train()
    assert trainer.objective.target == 0.4
    assert any(not torch.equal(value, start[name]) for name, value in trainer.model.state_dict().items())
    assert all(torch.equal(value, start[name]) for name, value in trainer.ref_model.state_dict().items())
