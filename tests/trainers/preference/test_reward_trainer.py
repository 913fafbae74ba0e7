"""Reward models trained, saved, and in use as rewards: TRL's loss, rows counted, the same tokens on both sides."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from tiny_run import arguments, rows
from torch.testing import assert_close
from transformers import LlamaForSequenceClassification
from trl import RewardConfig

from posttrain.planning.rewards import reward_lines, reward_model_faults
from posttrain.rewards.model_reward import ModelReward
from posttrain.rewards.runner import RewardError
from posttrain.rollout.adapter_base import ModelFault
from posttrain.rollout.model_folder import load_dense
from posttrain.trainers import GRPOConfig, GRPOTrainer, RewardModelConfig, RewardModelTrainer
from posttrain.trainers.models.reward_heads import as_reward_model, load_reward_model
from posttrain.trainers.models.reward_scorer import RewardScorer

PLAIN = {
    "use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
    "logging_steps": 1, "learning_rate": 3e-3, "max_steps": 3, "seed": 3, "gradient_checkpointing": False,
}  # fmt: skip


def pairs(count: int = 16, **more: Any) -> Dataset:
    made = [
        {"prompt": f"{i}+{i}=", "chosen": "low " * (1 + i % 3), "rejected": "LOUD" * (1 + i % 2)}
        for i in range(count)
    ]
    return Dataset.from_list(
        [{**row, **{name: values[i] for name, values in more.items()}} for i, row in enumerate(made)]
    )


def config(folder: Any, **settings: Any) -> Any:
    return RewardModelConfig(
        **{**PLAIN, "output_dir": str(folder), "per_device_train_batch_size": 8, **settings}
    )


def trained(model: Any, tokenizer: Any, folder: Any, data: Any = None, **settings: Any) -> Any:
    made = RewardModelTrainer(
        copy.deepcopy(model),
        config(folder, **settings),
        pairs() if data is None else data,
        processing_class=tokenizer,
    )
    made.train()
    return made


def weights(model: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("margin", [False, True])
def test_losses_and_weights_are_trls(tiny_model, tokenizer, tmp_path, margin):
    """On its own tokens: TRL's trainer and ours, from one model, are one."""
    data = pairs(margin=[i % 4 / 2 for i in range(16)]) if margin else pairs()
    scorer = as_reward_model(copy.deepcopy(tiny_model), tokenizer.pad_token_id)
    torch.nn.init.normal_(scorer.score.weight, generator=torch.Generator().manual_seed(0))
    ours = RewardModelTrainer(
        copy.deepcopy(scorer), config(tmp_path, center_coef=0.01), data, processing_class=tokenizer
    )
    args = RewardConfig(
        **PLAIN, output_dir=str(tmp_path), per_device_train_batch_size=8, center_rewards_coefficient=0.01
    )
    theirs = trl.RewardTrainer(copy.deepcopy(scorer), args, train_dataset=data, processing_class=tokenizer)
    assert ours.train_dataset["chosen_ids"] == theirs.train_dataset["chosen_ids"]
    ours.train()
    theirs.train()
    losses = [[one["loss"] for one in made.state.log_history if "loss" in one] for made in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert_close(weights(ours.model), weights(theirs.model), rtol=1e-5, atol=1e-6)


def test_it_begins_at_log_two_and_learns_the_order(tiny_model, tokenizer, tmp_path):
    made = RewardModelTrainer(
        tiny_model, config(tmp_path, max_steps=30, eval_strategy="steps", eval_steps=30), pairs(), pairs(8),
        processing_class=tokenizer,
    )  # fmt: skip
    before = made.evaluate()
    assert before["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert before["eval_accuracy"] == 0.5
    made.train()
    after = made.evaluate()
    assert after["eval_accuracy"] == 1.0
    table = json.loads((tmp_path / "reliability.json").read_text())
    assert sum(table["counts"]) == 8
    assert after["eval_reward_model/calibration_error"] == pytest.approx(1 - sum(
        said * count for said, count in zip(table["confidence"], table["counts"], strict=True)) / 8)  # fmt: skip


def test_accumulation_moves_nothing(tiny_model, tokenizer, tmp_path):
    """Pairs of unequal micro-batches count alike: the divisor is the step's."""
    plain = {"optim": "sgd", "learning_rate": 0.1, "lm_coef": 0.3, "center_coef": 0.1}
    whole = trained(tiny_model, tokenizer, tmp_path, **plain)
    split = trained(
        tiny_model, tokenizer, tmp_path, **plain, per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    assert_close(weights(split.model), weights(whole.model), rtol=1e-5, atol=1e-6)


def test_the_language_models_loss_is_that_of_the_chosen_answer(tiny_model, tokenizer, tmp_path):
    data = Dataset.from_list([{"prompt": "1+1=", "chosen": "two", "rejected": "three"}])
    made = trained(tiny_model, tokenizer, tmp_path, data, lm_coef=1.0, max_steps=1)
    logged = next(one for one in made.state.log_history if "reward_model/lm_loss" in one)
    ids = torch.tensor([tokenizer("1+1=two")["input_ids"] + [tokenizer.eos_token_id]])
    with torch.no_grad():
        logprobs = tiny_model(ids).logits.log_softmax(-1)[0, 3:-1].gather(1, ids[0, 4:, None])
    assert logged["reward_model/lm_loss"] == pytest.approx(-logprobs.mean().item(), rel=1e-4)
    assert logged["loss"] == pytest.approx(math.log(2) - logprobs.mean().item(), rel=1e-4)


def test_rows_are_counted(tiny_model, tokenizer, tmp_path):
    data = Dataset.from_list(
        [
            {"prompt": "1", "chosen": "a", "rejected": "b"},
            {"prompt": "1", "chosen": " ", "rejected": "b"},
            {"prompt": "1", "chosen": "a" * 60, "rejected": "b"},
            {"prompt": "1", "chosen": "a", "rejected": "a"},
        ]
    )
    made = RewardModelTrainer(tiny_model, config(tmp_path, max_length=20), data, processing_class=tokenizer)
    assert made.row_counts.in_words() == (
        "pairs: 4 in = 2 trained + 2 dropped (1 empty answer; 1 longer than max_length); of the trained, "
        "1 with identical answers"
    )
    with pytest.raises(ValueError, match="margin of row 1 is nan"):
        RewardModelTrainer(
            tiny_model, config(tmp_path), pairs(2, margin=[1.0, math.nan]), processing_class=tokenizer
        )


@pytest.mark.parametrize("lora", [False, True])
def test_saved_loaded_and_used_it_gives_the_scores_it_was_trained_on(tiny_model, tokenizer, tmp_path, lora):
    tiny_model.save_pretrained(tmp_path / "base")
    base = type(tiny_model).from_pretrained(tmp_path / "base")
    peft = LoraConfig(r=4, target_modules="all-linear") if lora else None
    made = RewardModelTrainer(
        base, config(tmp_path, max_steps=10), pairs(), processing_class=tokenizer, peft_config=peft
    )
    made.train()
    made.save_model(str(tmp_path / "rm"))
    tokenizer.save_pretrained(tmp_path / "rm")
    data = made.train_dataset
    made.model.eval()
    expected = [made.model(torch.tensor([ids])).logits.item() for ids in data["chosen_ids"]]
    scorer = RewardScorer(ModelReward(str(tmp_path / "rm"), batch_size=3), "cpu")
    found = scorer.score(pairs()["prompt"], pairs()["chosen"])
    assert found == pytest.approx(expected, abs=1e-5)
    worse = scorer.score(pairs()["prompt"], pairs()["rejected"])
    assert min(found) - max(worse) > 0.01
    assert scorer.cut == 0
    assert not any(p.requires_grad for p in scorer.model.parameters())


def test_a_text_that_is_too_long_loses_its_start_and_is_counted(tiny_model, tokenizer, tmp_path):
    as_reward_model(tiny_model, tokenizer.pad_token_id).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scorer = RewardScorer(ModelReward(str(tmp_path), max_length=6), "cpu")
    scorer.score(["12", "123"], ["345", "456"])
    assert scorer.cut == 1
    with pytest.raises(RewardError, match="no chat template"):
        scorer.score([[{"role": "user", "content": "x"}]], [[{"role": "assistant", "content": "y"}]])


def test_models_that_give_no_reward_are_refused(tiny_model, tokenizer, tmp_path):
    tiny_model.save_pretrained(tmp_path / "lm")
    with pytest.raises(ModelFault, match="LlamaForCausalLM, which gives no reward"):
        load_reward_model(str(tmp_path / "lm"))
    two = copy.deepcopy(tiny_model.config)
    two.num_labels = 2
    LlamaForSequenceClassification(two).save_pretrained(tmp_path / "two")
    with pytest.raises(ModelFault, match="2 scores"):
        load_reward_model(str(tmp_path / "two"))


def test_a_policy_learns_from_one_beside_a_function(tiny_model, tokenizer, tmp_path):
    """Both weighted; the model is in no checkpoint, and its cut texts are logged."""
    scorer = as_reward_model(copy.deepcopy(tiny_model), tokenizer.pad_token_id)
    torch.nn.init.normal_(scorer.score.weight, generator=torch.Generator().manual_seed(0))
    scorer.save_pretrained(tmp_path / "rm" / "model")
    tokenizer.save_pretrained(tmp_path / "rm" / "model")
    made = GRPOTrainer(
        tiny_model, [ModelReward(str(tmp_path / "rm" / "model"), weight=2.0, max_length=8), "exact_match"],
        GRPOConfig(**arguments(tmp_path / "run", save_strategy="steps", save_steps=3)),
        rows().add_column("answer", ["0"] * 12), processing_class=tokenizer,
    )  # fmt: skip
    made.train()
    rollout = made.rollout
    assert rollout is not None
    alone = RewardScorer(ModelReward(str(tmp_path / "rm" / "model"), max_length=8), "cpu")
    scores = alone.score(rollout.prompts, rollout.completions)
    assert_close(rollout.rewards_per_function[:, 0], torch.tensor(scores), rtol=1e-4, atol=1e-5)
    logged = made.state.log_history[0]
    assert logged["reward"] == pytest.approx(
        2 * logged["rewards/rm/mean"] + logged["rewards/exact_match/mean"], abs=1e-5
    )
    assert logged["reward_models/rm/cut_share"] > 0
    saved = list((tmp_path / "run" / "checkpoint-3").rglob("*"))
    assert sum(path.stat().st_size for path in saved if path.suffix == ".safetensors") < 1.1 * sum(
        p.numel() * 4 for p in tiny_model.parameters()
    )


def test_plan_says_what_is_wrong_with_one(tiny_model, tmp_path, load):
    tiny_model.save_pretrained(tmp_path / "lm")
    as_reward_model(tiny_model, 0).save_pretrained(tmp_path / "rm" / "model")
    (tmp_path / "empty").mkdir()

    def faults(model: Any) -> list[str]:
        return reward_model_faults(load(rewards=[{"model": str(model)}]))

    assert faults(tmp_path / "rm" / "model") == []
    assert "is no sequence classifier" in faults(tmp_path / "lm")[0]
    assert "no config.json" in faults(tmp_path / "empty")[0]
    assert "no folder" in faults(tmp_path / "no" / "such")[0]
    policy = load(model={"scratch": None, "path": str(tmp_path / "rm" / "model")})
    assert "scores texts and writes none" in reward_model_faults(policy)[0]
    with pytest.raises(ModelFault, match="scores texts and writes none"):
        load_dense(str(tmp_path / "rm" / "model"))
    lines = reward_lines(load(rewards=[{"model": str(tmp_path / "rm" / "model"), "weight": 0.5}]))
    assert lines[0].startswith("rm x 0.5, the model ")


@pytest.mark.parametrize("lora", [False, True])
def test_a_reward_model_goes_on_from_one_with_its_head(tiny_model, tokenizer, tmp_path, caplog, load, lora):
    tiny_model.save_pretrained(tmp_path / "base")
    base = type(tiny_model).from_pretrained(tmp_path / "base")
    peft = LoraConfig(r=4, target_modules="all-linear") if lora else None
    first: Any = RewardModelTrainer(
        base, config(tmp_path / "a"), pairs(), pairs(8), processing_class=tokenizer, peft_config=peft
    )
    first.train()
    folder = tmp_path / "a" / "model"
    first.save_model(str(folder))
    tokenizer.save_pretrained(folder)
    again: Any = RewardModelTrainer(str(folder), config(tmp_path / "b"), pairs(), pairs(8))
    assert "is one already: the run goes on with its head" in caplog.text
    assert again.model.score.weight.abs().max() > 0
    left_off, taken_up = first.evaluate(), again.evaluate()
    assert taken_up["eval_loss"] == pytest.approx(left_off["eval_loss"], abs=1e-5)
    assert taken_up["eval_loss"] < math.log(2) - 1e-3
    again.train()
    assert again.evaluate()["eval_loss"] < taken_up["eval_loss"]
    with pytest.raises(ValueError, match="lm_coef needs the language model's head"):
        RewardModelTrainer(str(folder), config(tmp_path / "b", lm_coef=0.1), pairs())
    if not lora:
        bare = {"model": {"path": str(folder), "scratch": None}}
        going_on = load(**bare, method="reward_model", rewards=None, rollout=None, objective=None)
        assert reward_model_faults(going_on) == []
        assert "name a language model" in reward_model_faults(load(**bare))[0]
