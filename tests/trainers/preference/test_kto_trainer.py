"""KTO's trainer: TRL's loss on TRL's batches, one reference point per step, rows read and counted, exact resume."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from torch.testing import assert_close
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback

from posttrain.data import DataError
from posttrain.trainers import KTOConfig, KTOTrainer
from posttrain.trainers.preference.marked_rows import mismatched

CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}#\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def rows(count: int = 8) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"{i}+{i}=",
            "completion": str(2 * i) if i % 3 else "LOUD" * (1 + i % 2),
            "label": i % 3 > 0,
        }
        for i in range(count)
    ]


def options(folder: Any, **changes: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "max_length": 40,
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        **changes,
    }


def build(model: Any, folder: Any, tokenizer: Any, data: Any = None, **changes: Any) -> Any:
    named = {
        k: changes.pop(k) for k in ("ref_model", "peft_config", "eval_dataset", "callbacks") if k in changes
    }
    return KTOTrainer(
        copy.deepcopy(model),
        args=KTOConfig(**options(folder, **changes)),
        train_dataset=Dataset.from_list(rows() if data is None else data),
        processing_class=tokenizer,
        **named,
    )


def weights(model: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.fixture
def models(tiny_model):
    """A policy, and a reference some steps away from it, so that z_0 is not 0."""
    reference = copy.deepcopy(tiny_model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return tiny_model, reference


def losses(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("kind", ["full", "lora", "precomputed", "zero"])
def test_losses_and_weights_are_trls(kind, models, tokenizer, tmp_path, monkeypatch):
    """On TRL's own rows, in its order: a step is one micro-batch, so its reference point is the step's."""
    policy, reference = models
    # SGD: Adam would make a share of a step of the float noise in a gradient near 0
    plain = {
        "beta": 0.3,
        "precompute_ref_log_probs": kind == "precomputed",
        "optim": "sgd",
        "learning_rate": 0.5,
    }
    shared = options(tmp_path, **plain)
    peft = LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if kind == "lora" else None
    refs = [
        {"peft_config": peft} if kind == "lora" else {"ref_model": copy.deepcopy(reference)} for _ in range(2)
    ]
    theirs = trl.KTOTrainer(
        copy.deepcopy(policy),
        args=trl.KTOConfig(
            **shared, desirable_weight=1.4, undesirable_weight=0.7,
            loss_type="apo_zero_unpaired" if kind == "zero" else "kto",
            train_sampling_strategy="sequential",
        ),
        train_dataset=Dataset.from_list(rows()), processing_class=tokenizer, **refs[0],
    )  # fmt: skip
    monkeypatch.setattr(
        KTOTrainer, "_get_train_sampler", lambda self, _=None: SequentialSampler(self.train_dataset)
    )
    ours = build(
        policy, tmp_path, tokenizer, **plain, good_weight=1.4, bad_weight=0.7,
        reference_point="zero" if kind == "zero" else "mismatched", **refs[1],
    )  # fmt: skip
    for name in ("prompt_ids", "completion_ids", "label"):
        assert list(ours.train_dataset[name]) == list(theirs.train_dataset[name])
    ours.train_dataset = theirs.train_dataset  # whose answers are set against their neighbours' prompts
    theirs.train()
    ours.train()
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-6)
    assert_close(weights(ours.model), weights(theirs.model), rtol=1e-5, atol=1e-6)
    first = ours.state.log_history[0]
    for name in (
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "logps/chosen",
        "entropy",
        "num_tokens",
    ):
        assert first[name] == pytest.approx(theirs.state.log_history[0][name], abs=1e-4), name
    assert first["kto/reference_point"] == pytest.approx(theirs.state.log_history[0]["kl"], abs=1e-4)
    assert kind in ("lora", "zero") or first["kto/reference_point"] > 0


@pytest.mark.parametrize("split", [(3, 3), (2, 4)], ids=lambda v: f"{v[0]}x{v[1]}")
def test_the_split_of_a_step_moves_nothing(split, models, tokenizer, tmp_path):
    """Eight rows at once, as 3+3+2, as 2+2+2+2: one reference point, one divisor, one gradient."""
    policy, reference = models

    def step(size: int, accumulation: int) -> Any:
        made = build(
            policy, tmp_path, tokenizer, ref_model=copy.deepcopy(reference), optim="sgd", max_steps=1, max_grad_norm=0,
            learning_rate=1.0, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        made.train()
        return made

    whole, parts = step(8, 1), step(*split)
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-6)
    assert_close(weights(parts.model), weights(whole.model), rtol=0, atol=2e-6)
    logged = whole.state.log_history[0]
    assert logged["kto/reference_point"] > 0
    for name, value in parts.state.log_history[0].items():
        if name.startswith(("kto/", "rewards/", "logps/", "entropy")):
            assert value == pytest.approx(logged[name], abs=1e-4), name


def test_precomputed_references_are_the_live_ones(models, tokenizer, tmp_path):
    policy, reference = models
    made = []
    for precomputed in (False, True):
        made.append(
            build(
                policy, tmp_path, tokenizer, ref_model=copy.deepcopy(reference), optim="sgd",
                precompute_ref_log_probs=precomputed,
            )
        )  # fmt: skip
        made[-1].train()
    assert {"ref_logps", "ref_KL_logps"} <= set(made[1].train_dataset.column_names)
    assert losses(made[1]) == pytest.approx(losses(made[0]), abs=1e-6)
    assert_close(weights(made[1].model), weights(made[0].model), rtol=1e-5, atol=1e-6)


def test_the_first_loss_by_hand(models, tokenizer, tmp_path):
    """From full forwards of both models, prompts and answers put together here."""
    policy, reference = models
    made = build(
        policy, tmp_path, tokenizer, ref_model=copy.deepcopy(reference), max_steps=1, per_device_train_batch_size=8,
        good_weight=1.5, beta=0.2,
    )  # fmt: skip
    data = made.train_dataset

    def ratio(prompt: list[int], answer: list[int]) -> float:
        ids = torch.tensor([prompt + answer])
        found = []
        for model in (policy, reference):
            with torch.no_grad():
                logits = model.double()(ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
            found.append(logits.gather(1, torch.tensor(answer)[:, None]).sum().item())
        return found[0] - found[1]

    away = [ratio(row["prompt_ids"], row["KL_completion_ids"]) for row in data]
    point = max(0.0, sum(away) / 8)
    expected = 0.0
    for row in data:
        above = 0.2 * (ratio(row["prompt_ids"], row["completion_ids"]) - point) * (1 if row["label"] else -1)
        expected += (1.5 if row["label"] else 1.0) * (1 - torch.tensor(above).sigmoid().item()) / 8
    made.train()
    assert losses(made)[0] == pytest.approx(expected, abs=1e-5)
    logged = made.state.log_history[0]
    assert logged["kto/mismatched_margin"] == pytest.approx(sum(away) / 8, abs=1e-3)
    assert logged["kto/good_share"] == sum(data["label"]) / 8


def test_good_answers_rise_and_bad_ones_fall(tiny_model, tokenizer, tmp_path):
    made = build(
        tiny_model, tmp_path, tokenizer, max_steps=30, eval_dataset=Dataset.from_list(rows(6)),
        eval_strategy="steps", eval_steps=30,
    )  # fmt: skip
    assert made.evaluate()["eval_loss"] == pytest.approx(0.5, abs=1e-6)  # the policy is its reference
    made.train()
    after = made.evaluate()
    assert after["eval_rewards/chosen"] > 0 > after["eval_rewards/rejected"]
    assert after["eval_rewards/margins"] == after["eval_rewards/chosen"] - after["eval_rewards/rejected"]
    assert after["eval_kto/right_side"] == 1.0
    assert after["eval_loss"] < 0.45


def test_mismatched_answers_are_of_other_prompts_and_each_is_used_once():
    prompts = [0, 0, 1, 2, 2, 2, 3, 4, 5, 5]
    found = mismatched(prompts, seed=1)
    assert sorted(found) == list(range(10))
    assert all(prompts[i] != prompts[j] for i, j in enumerate(found))
    assert found == mismatched(prompts, seed=1) != mismatched(prompts, seed=2)
    # more than half of one prompt: as few as can be
    most = mismatched([0, 0, 0, 0, 1], seed=0)
    assert sum((0, 0, 0, 0, 1)[i] == (0, 0, 0, 0, 1)[j] for i, j in enumerate(most)) == 3
    assert mismatched([7], seed=0) == [0]


# Rows


def test_rows_are_counted_by_what_became_of_them(tiny_model, tokenizer, tmp_path):
    data = [
        {"prompt": "p" * 50, "completion": "a", "label": 1},
        {"prompt": "cut", "completion": "c" * 60, "label": 0},
        {"prompt": "none", "completion": "d", "label": None},
        {"prompt": "void", "completion": " ", "label": 1},
        {"prompt": "a", "completion": "b", "label": 1},
        {"prompt": "a", "completion": "c", "label": 0},
        {"prompt": "a", "completion": "d", "label": 0},
    ]
    made = build(tiny_model, tmp_path, tokenizer, data)
    assert made.row_counts.in_words() == (
        "rows: 7 in = 4 trained + 3 dropped (1 empty answer; 1 no label; 1 prompt fills max_length); of the trained, "
        "1 marked good, 3 marked bad, 1 with an answer cut at max_length, 2 with a mismatched answer to their own "
        "prompt"
    )
    with pytest.raises(ValueError, match="no row is left"):
        build(tiny_model, tmp_path, tokenizer, data[:1])
    with pytest.raises(DataError, match="'label' holds 'thumbs up', and a label is true or false, or 1 or 0"):
        build(tiny_model, tmp_path, tokenizer, [{"prompt": "a", "completion": "b", "label": "thumbs up"}])
    with pytest.raises(ValueError, match="no 'completion' and 'label' or 'chosen' and 'rejected'"):
        build(tiny_model, tmp_path, tokenizer, [{"prompt": "a", "completion": "b"}])


def test_pairs_are_two_rows_each(tiny_model, tokenizer, tmp_path):
    data = [
        {"prompt": "1", "chosen": "one", "rejected": "two"},
        {"prompt": "2", "chosen": "same", "rejected": "same"},
        {"prompt": "3", "chosen": "three", "rejected": "four"},
    ]
    made = build(tiny_model, tmp_path, tokenizer, data)
    assert (made.row_counts.rows_in, made.row_counts.good, made.row_counts.bad) == (6, 2, 2)
    assert made.row_counts.dropped == {"chosen equals rejected": 2}
    assert [tokenizer.decode(ids[:-1]) for ids in made.train_dataset["completion_ids"]] == [
        "one",
        "two",
        "three",
        "four",
    ]


def test_conversations_hold_their_prompt_or_stand_beside_it(tiny_model, tokenizer, tmp_path):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHAT
    asked, said = [{"role": "user", "content": "q"}], [{"role": "assistant", "content": "yes"}]
    beside = [{"prompt": asked, "completion": said, "label": mark} for mark in (True, False)]
    within = [{"completion": asked + said, "label": mark} for mark in (True, False)]
    texts = []
    for data in (beside, within):
        kept = build(tiny_model, tmp_path, tokenizer, data).train_dataset
        texts.append([tokenizer.decode(kept[0][name]) for name in ("prompt_ids", "completion_ids")])
    assert texts[0] == texts[1] == ["[user]q#\n[assistant]", "yes#\n"]


# Arguments and resume


def test_trls_arguments_are_taken_over_or_refused(tiny_model, tokenizer, tmp_path):
    given = trl.KTOConfig(**options(tmp_path), desirable_weight=1.3)
    made = KTOTrainer(
        tiny_model, args=given, train_dataset=Dataset.from_list(rows()), processing_class=tokenizer
    )
    assert (made.method.good_weight, made.method.bad_weight) == (1.3, 1.0)
    for name, value in (("loss_type", "apo_zero_unpaired"), ("undesirable_weight", 2.0)):
        with pytest.raises(ValueError, match=f"{name} has no effect here"):
            KTOConfig(**options(tmp_path, **{name: value}))
    with pytest.raises(ValueError, match="batch size must be > 1"):
        build(tiny_model, tmp_path, tokenizer, per_device_train_batch_size=1)
    made = build(tiny_model, tmp_path, tokenizer, per_device_train_batch_size=1, reference_point="zero")
    assert "KL_completion_ids" not in made.train_dataset.column_names
    made.train()
    assert all(line.get("kto/reference_point", 0) == 0 for line in made.state.log_history)


class StopAfter(TrainerCallback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= self.steps


def test_a_resumed_run_ends_where_an_unbroken_one_does(tiny_model, tokenizer, tmp_path):
    plan = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2,
            "per_device_train_batch_size": 2}  # fmt: skip
    whole = build(tiny_model, tmp_path / "whole", tokenizer, **plan)
    whole.train()
    build(tiny_model, tmp_path / "parts", tokenizer, callbacks=[StopAfter(3)], **plan).train()
    again = build(tiny_model, tmp_path / "parts", tokenizer, **plan)
    again.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    for mine, its in zip(weights(again.model), weights(whole.model), strict=True):
        assert torch.equal(mine, its)
    assert again._total_train_tokens == whole._total_train_tokens
