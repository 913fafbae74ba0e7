"""Loss and gradient equal TRL's where TRL has the loss: the alarm for an upgrade, and the proof of the seam."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.testing import assert_close
from trl import DPOConfig, DPOTrainer

from posttrain.preferences.base import PairLoss
from posttrain.preferences.dpo import DPO
from posttrain.preferences.drift import DRIFT
from posttrain.preferences.hinge import Hinge
from posttrain.preferences.ipo import IPO
from posttrain.preferences.rpo import RPO
from posttrain.preferences.seppo import SePPO
from posttrain.trainers.preference.trainer import PreferenceConfig, PreferenceTrainer

ROWS = [
    {"prompt": "sort 312>", "chosen": "123", "rejected": "3 1 2 hm"},
    {"prompt": "sort 54>", "chosen": "45, done", "rejected": "54"},
    {"prompt": "a>", "chosen": "a", "rejected": "b"},
    {"prompt": "count to 9>", "chosen": "1 2 3 4 5 6 7 8 9", "rejected": "9 8 7"},
]


def arguments(folder, **changes):
    return {
        "output_dir": str(folder),
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 4,
        "max_length": 32,
        **changes,
    }


@pytest.fixture
def models(tiny_model):
    """A policy, and a reference some steps away from it."""
    reference = copy.deepcopy(tiny_model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return tiny_model, reference


def loss_and_gradient(trainer):
    trainer.model.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    gradient = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    return loss.detach(), gradient


@pytest.mark.parametrize(
    ("method", "trl_loss"),
    [
        (DPO(), {"loss_type": ["sigmoid"]}),
        (IPO(), {"loss_type": ["ipo"]}),
        (Hinge(), {"loss_type": ["hinge"]}),
        (RPO(eta=0.7, form="token_mean"), {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}),
        (DRIFT(nll_weight=0.3), {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]}),
        (SePPO(flip="none"), {"loss_type": ["sigmoid"]}),
        (RPO(eta=0.0), {"loss_type": ["sigmoid"]}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, PairLoss) else "",
)
@pytest.mark.parametrize("precompute", [False, True])
def test_loss_and_gradient_equal_trls(method, trl_loss, precompute, models, tokenizer, tmp_path):
    if precompute and not isinstance(method, DPO):
        return
    policy, reference = models
    rows = Dataset.from_list(ROWS)
    options = arguments(tmp_path, beta=0.2, precompute_ref_log_probs=precompute)
    theirs = DPOTrainer(
        copy.deepcopy(policy),
        copy.deepcopy(reference),
        DPOConfig(**options, **trl_loss),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    ours = PreferenceTrainer(
        policy, reference, PreferenceConfig(**options), rows, method=method, processing_class=tokenizer
    )
    expected_loss, expected_gradient = loss_and_gradient(theirs)
    loss, gradient = loss_and_gradient(ours)
    assert_close(loss, expected_loss, atol=1e-6, rtol=0)
    assert expected_gradient.keys() == gradient.keys()
    for name, value in expected_gradient.items():
        assert_close(gradient[name], value, atol=1e-6, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
    shared = set(theirs._metrics["train"]) & set(ours._metrics["train"])
    assert {"rewards/margins", "logps/chosen", "entropy", "mean_token_accuracy", "num_tokens"} <= shared
    for name in shared:
        assert_close(
            ours._metrics["train"][name][0], theirs._metrics["train"][name][0], atol=1e-5, rtol=1e-5, msg=name
        )


@pytest.mark.parametrize("with_adapter", [False, True], ids=["full", "lora"])
def test_a_training_run_equals_trls(with_adapter, models, tokenizer, tmp_path):
    """Four optimizer steps of two micro-batches: the same weights in the end."""
    policy, reference = models
    rows = Dataset.from_list(ROWS * 4)
    options = arguments(
        tmp_path,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        save_strategy="no",
    )
    peft = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]) if with_adapter else None
    ref = {} if with_adapter else {"ref_model": copy.deepcopy(reference)}
    theirs = DPOTrainer(
        copy.deepcopy(policy),
        args=DPOConfig(**options, num_train_epochs=1),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=peft,
        **ref,
    )
    theirs.train()
    ref = {} if with_adapter else {"ref_model": reference}
    ours = PreferenceTrainer(
        policy,
        args=PreferenceConfig(**options, num_train_epochs=1),
        train_dataset=rows,
        method=DPO(),
        processing_class=tokenizer,
        peft_config=peft,
        **ref,
    )
    ours.train()
    for (name, expected), (_, value) in zip(
        theirs.model.named_parameters(), ours.model.named_parameters(), strict=True
    ):
        assert_close(value, expected, atol=1e-5, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
    assert [e["loss"] for e in ours.state.log_history if "loss" in e] == pytest.approx(
        [e["loss"] for e in theirs.state.log_history if "loss" in e], abs=1e-6
    )
