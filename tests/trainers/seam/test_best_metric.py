"""A metric for the best model that no evaluation logs is refused when the trainer is built, and the list is true."""

from __future__ import annotations

import inspect
import re

import pytest
import trl
from datasets import Dataset
from finite_runs import PAIRS, TEXTS
from letter_rewards import logging_its_own, odd_length
from tiny_run import arguments, judged, rows

import posttrain.trainers as trainers
from posttrain.rollout.masked.predictor import scratch_mask_model
from posttrain.trainers.seam.best_metric import PAIR_EVALUATION, POLICY_EVALUATION, SFT_EVALUATION


def build(family, model, tokenizer, folder, metric, reward=judged):
    given = arguments(
        folder,
        max_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        per_device_eval_batch_size=12,
        metric_for_best_model=metric,
    )
    if family == "policy":
        args = trainers.GRPOConfig(**given)
        return trainers.GRPOTrainer(model, reward, args, rows(), rows(12), processing_class=tokenizer)
    del given["num_generations"], given["max_completion_length"]
    given["per_device_train_batch_size"] = 4
    if family == "preference":
        data = Dataset.from_list(PAIRS)
        args = trainers.RPOConfig(**given)
        return trainers.RPOTrainer(model, None, args, data, data, processing_class=tokenizer)
    data = Dataset.from_list(TEXTS)
    if family == "sft":
        args = trl.SFTConfig(**given)
        return trainers.SFTTrainer(
            model, args, train_dataset=data, eval_dataset=data, processing_class=tokenizer
        )
    model = scratch_mask_model(tokenizer, hidden_size=16, layers=1, heads=2, max_positions=64, seed=0)
    return trainers.MaskedSFTTrainer(
        model, trainers.MaskedSFTConfig(**given), data, data, processing_class=tokenizer
    )


@pytest.mark.parametrize(
    ("family", "metric", "suggested"),
    [
        ("policy", "loss", "there are accuracy, "),
        ("policy", "eval_rewards/judge/mean", "rewards/judged/mean"),
        ("preference", "eval_reward", "rewards/accuracies"),
        ("sft", "accuracy", "mean_token_accuracy"),
        ("masked_sft", "entropy", "there are loss, "),
    ],
)
def test_a_name_that_nothing_logs_is_refused_at_the_start(
    family, metric, suggested, tiny_model, tokenizer, tmp_path
):
    with pytest.raises(
        ValueError, match=f"metric_for_best_model is '{metric}', which no evaluation.*{suggested}"
    ):
        build(family, tiny_model, tokenizer, tmp_path, metric)


@pytest.mark.parametrize(
    ("family", "metric", "names"),
    [
        ("policy", "reward", POLICY_EVALUATION | {"rewards/odd_length/mean", "rewards/odd_length/std"}),
        ("preference", "rpo/imitation_nll_per_token", PAIR_EVALUATION | {"rpo/imitation_nll_per_token"}),
        ("sft", "eval_loss", SFT_EVALUATION),
        ("masked_sft", "loss", {"loss"}),
    ],
)
def test_the_names_that_are_offered_are_logged(family, metric, names, tiny_model, tokenizer, tmp_path):
    trainer = build(family, tiny_model, tokenizer, tmp_path, metric, odd_length)
    trainer.train()
    assert trainer.state.best_metric is not None
    logged = {key for entry in trainer.state.log_history for key in entry if key.startswith("eval_")}
    assert {f"eval_{name}" for name in names} <= logged | {"eval_num_tokens"}


def test_names_that_rewards_log_cannot_be_known(tiny_model, tokenizer, tmp_path):
    build("policy", tiny_model, tokenizer, tmp_path, "mine", logging_its_own)


def test_every_name_that_trl_logs_is_explained(root):
    """Logged here under TRL's name, or listed in docs/metrics.md among those that are not."""
    page = (root / "docs" / "metrics.md").read_text(encoding="utf-8")
    for trainer in (trl.GRPOTrainer, trl.DPOTrainer, trl.SFTTrainer):
        source = inspect.getsource(trainer)
        found = set(re.findall(r'_metrics\[(?:mode|"train")\]\[f?"([^"]+)"\]', source))
        assert found
        for name in found:
            known = name.replace("{reward_func_name}", "NAME")
            ends = [known, known.rpartition("/")[2], known.partition("/")[0] + "/*_terminated_length"]
            assert any(f"`{end}" in page or f"{end}`" in page for end in ends), name
