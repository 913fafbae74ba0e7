"""Mixture-of-experts models: their balancing loss is in the loss and in the log, and generation is not upset by it."""

from __future__ import annotations

import pytest
import torch
import trl
from datasets import Dataset
from finite_runs import PAIRS, TEXTS
from tiny_run import arguments, judged, rows
from transformers import MixtralConfig, MixtralForCausalLM

import posttrain.trainers as trainers
from posttrain.rollout.model_folder import load_whole
from posttrain.trainers.engines.attach import own_model_engine


def mixtral(tokenizer, *, router_logits):
    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_local_experts=4,
            max_position_embeddings=64,
            output_router_logits=router_logits,
            router_aux_loss_coef=0.5,
            sliding_window=None,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
        )
    )


def trained(kind, tokenizer, folder, **changes):
    model = mixtral(tokenizer, router_logits=True)
    given = arguments(folder, max_steps=1, **changes)
    if kind in ("policy", "engine"):
        args = trainers.GRPOConfig(**given)
        trainer = trainers.GRPOTrainer(model, judged, args, rows(), processing_class=tokenizer)
        if kind == "engine":
            trainer.use_engine(own_model_engine(trainer))
    else:
        del given["num_generations"], given["max_completion_length"]
        given["per_device_train_batch_size"] = 4
        if kind == "preference":
            args, data = trainers.DPOConfig(**given), Dataset.from_list(PAIRS)
            trainer = trainers.DPOTrainer(model, None, args, data, processing_class=tokenizer)
        else:
            args, data = trl.SFTConfig(**given), Dataset.from_list(TEXTS)
            trainer = trainers.SFTTrainer(model, args, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    return next(entry for entry in trainer.state.log_history if "loss" in entry)


@pytest.mark.parametrize("kind", ["policy", "engine", "preference", "sft"])
def test_the_balancing_loss_is_logged_and_trained(kind, tokenizer, tmp_path):
    log = trained(kind, tokenizer, tmp_path / "on")
    assert log["aux_loss"] == pytest.approx(2.0, abs=0.1)  # top 2 of experts that are used evenly
    off = trained(kind, tokenizer, tmp_path / "off", router_aux_loss_coef=0.0)
    assert "aux_loss" not in off
    if kind != "engine":  # whose samples are drawn after other numbers
        assert log["loss"] - off["loss"] == pytest.approx(0.5 * log["aux_loss"], rel=1e-3)


def test_micro_batches_share_the_balancing_loss(tokenizer, tmp_path):
    halves = trained("preference", tokenizer, tmp_path, gradient_accumulation_steps=2, learning_rate=0.0)
    plain = trained(
        "preference", tokenizer, tmp_path, gradient_accumulation_steps=2, router_aux_loss_coef=0.0
    )
    assert halves["loss"] - plain["loss"] == pytest.approx(0.5 * halves["aux_loss"], rel=1e-3)


def test_a_folder_that_asks_for_router_logits_generates(tokenizer, tmp_path):
    mixtral(tokenizer, router_logits=True).save_pretrained(tmp_path)
    model = load_whole(tmp_path)
    assert model.config.output_router_logits is False
    ids = torch.arange(5, 9).unsqueeze(0)
    assert (
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False).shape[1]
        > 4
    )
