"""The preference trainer: every pair weighs the same, every row is accounted for, the reference is what it says."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close
from transformers import TrainerCallback

from posttrain.data import load_rows
from posttrain.preferences.dpo import DPO
from posttrain.preferences.rpo import RPO
from posttrain.preferences.simpo import SimPO
from posttrain.recipe.data_sections import DataSection
from posttrain.trainers.preference.bindings import DPOTrainer, RPOConfig, RPOTrainer
from posttrain.trainers.preference.pair_rows import drop_oldest_turns
from posttrain.trainers.preference.trainer import PreferenceConfig, PreferenceTrainer

CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}#\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
ROWS = [
    {"prompt": "sort 312>", "chosen": "123", "rejected": "3 1 2 hm"},
    {"prompt": "sort 54>", "chosen": "45, done", "rejected": "54"},
    {"prompt": "a>", "chosen": "a", "rejected": "b"},
    {"prompt": "count to 9>", "chosen": "1 2 3 4 5 6 7 8 9", "rejected": "9 8 7"},
    {"prompt": "b>", "chosen": "ba", "rejected": "bb"},
]


def build(
    model, rows, tokenizer, folder, *, method=None, trainer=PreferenceTrainer, config=PreferenceConfig, **more
):
    options = {
        "output_dir": str(folder),
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "max_length": 40,
        "per_device_train_batch_size": 2,
        "max_steps": 1,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "logging_steps": 1,
        "gradient_checkpointing": False,
        **{k: more.pop(k) for k in list(more) if k in {f for f in config.__dataclass_fields__}},
    }
    if method is not None:
        more["method"] = method
    return trainer(
        model,
        args=config(**options),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        **more,
    )


class _StopAfter(TrainerCallback):
    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= self.steps


def weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("layout", [(5, 1), (2, 3), (1, 5)], ids=lambda v: f"{v[0]}x{v[1]}")
def test_every_pair_weighs_the_same_however_the_step_is_split(layout, tiny_model, tokenizer, tmp_path):
    """Five pairs as one micro-batch, as 2+2+1, as five of one: the same gradient (a mean of means would differ)."""

    def step(size, accumulation):
        trainer = build(
            copy.deepcopy(tiny_model),
            ROWS,
            tokenizer,
            tmp_path,
            method=RPO(eta=0.5),
            optim="sgd",
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            learning_rate=0.1,
            max_grad_norm=0,
        )
        trainer.train()
        return weights(trainer.model), trainer.state.log_history[0]["loss"]

    (expected, loss), (found, split_loss) = step(5, 1), step(*layout)
    assert split_loss == pytest.approx(loss, rel=1e-5)
    for name, value in expected.items():
        assert_close(found[name], value, atol=1e-6, rtol=0)


def test_padding_does_not_move_the_loss(tiny_model, tokenizer, tmp_path):
    trainer = build(tiny_model, ROWS, tokenizer, tmp_path, method=DPO())
    row = [trainer.train_dataset[0]]
    alone = trainer.data_collator([*row])
    padded = trainer.data_collator([*row, trainer.train_dataset[3]])
    _, one = trainer._forward(trainer.model, alone)
    _, two = trainer._forward(trainer.model, padded)
    assert_close(two.chosen_logps[:1], one.chosen_logps)
    assert_close(two.rejected_logps[:1], one.rejected_logps)
    assert two.chosen_lengths.tolist() == [len("123") + 1, 17 + 1]


# Rows


def test_long_conversations_lose_their_oldest_turns(tiny_model, tokenizer, tmp_path):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHAT
    system, first = {"role": "system", "content": "s"}, {"role": "user", "content": "o" * 20}
    said, last = {"role": "assistant", "content": "p" * 10}, {"role": "user", "content": "q"}
    answer = {
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    rows = [
        {"prompt": [system, first, said, last], **answer},
        {"prompt": [system, last], **answer},
        {"prompt": [{"role": "user", "content": "z" * 60}], **answer},  # one turn, too long: dropped
    ]
    trainer = build(tiny_model, rows, tokenizer, tmp_path, method=DPO(), max_length=56)
    texts = [tokenizer.decode(ids) for ids in trainer.train_dataset["prompt_ids"]]
    assert texts == ["[system]s#\n[user]q#\n[assistant]"] * 2
    counts = trainer.row_counts
    assert (counts.rows_in, counts.trained, counts.turns_dropped) == (3, 2, 1)
    assert counts.dropped == {"prompt fills max_length": 1}
    assert "3 in = 2 trained + 1 dropped (1 prompt fills max_length)" in counts.in_words()


def test_the_longest_tail_that_fits_is_kept():
    turns = [{"role": role, "content": str(i)} for i, role in enumerate(["user", "assistant"] * 3 + ["user"])]
    system = {"role": "system", "content": "s"}
    assert drop_oldest_turns([system, *turns], lambda t: len(t) <= 6) == [system, *turns[2:]]
    assert drop_oldest_turns(turns, lambda t: len(t) <= 4) == turns[4:]
    assert drop_oldest_turns([system, *turns], lambda t: False) == [system, turns[-1]]
    assert drop_oldest_turns(turns, lambda t: True) == turns


def test_rows_are_counted_by_what_became_of_them(tiny_model, tokenizer, tmp_path):
    rows = [
        {"prompt": "p" * 50, "chosen": "a", "rejected": "b"},
        {"prompt": "cut", "chosen": "c" * 60, "rejected": "d"},
        {"prompt": "same", "chosen": "e", "rejected": "e"},
        *ROWS,
    ]
    counts = build(tiny_model, rows, tokenizer, tmp_path, method=DPO()).row_counts
    assert (counts.rows_in, counts.trained, counts.identical, counts.answers_cut) == (8, 7, 1, 1)
    assert counts.dropped == {"prompt fills max_length": 1}
    with pytest.raises(ValueError, match="no pair is left"):
        build(tiny_model, rows[:1], tokenizer, tmp_path, method=DPO())
    with pytest.raises(TypeError, match="can be counted"):
        PreferenceTrainer(
            tiny_model,
            args=PreferenceConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_steps=1),
            train_dataset=Dataset.from_list(ROWS).to_iterable_dataset(),
            method=DPO(),
            processing_class=tokenizer,
        )


def test_ultrafeedback_rows_are_accounted_for(shared_data, tiny_model, tokenizer, tmp_path):
    import gzip

    with gzip.open(shared_data / "ultrafeedback_sample" / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(300), strict=False)]
    rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
    counts = build(tiny_model, rows, tokenizer, tmp_path, method=DPO(), max_length=512).row_counts
    too_long = sum(len(row["prompt"]) >= 512 for row in rows)
    assert counts.dropped == {"prompt fills max_length": too_long}
    assert counts.trained == 300 - too_long
    assert counts.identical == sum(
        row["chosen"] == row["rejected"] and len(row["prompt"]) < 512 for row in rows
    )


def test_dpo_demo_conversations_keep_their_last_question(shared_data, tiny_model, tokenizer, tmp_path):
    """ShareGPT's shape, many turns, one character a token: most lose turns, none loses what was asked last."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHAT
    file = shared_data / "dpo_kto_demo" / "dpo_en_demo.json.gz"
    section = DataSection(path=str(file), prompt="conversations", chat=True, limit=80)
    rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in load_rows(section).rows]
    trainer = build(tiny_model, rows, tokenizer, tmp_path, method=DPO(), max_length=600)
    counts = trainer.row_counts
    assert counts.rows_in == 80 == counts.trained + sum(counts.dropped.values())
    assert set(counts.dropped) == {"prompt fills max_length"}
    assert counts.turns_dropped > 10
    asked = {tokenizer.apply_chat_template(row["prompt"][-1:], tokenize=False) for row in rows}
    # A character that the alphabet lacks becomes <unk>: compare as tokens.
    asked = {tuple(tokenizer(text + "[assistant]")["input_ids"]) for text in asked}
    for ids in trainer.train_dataset["prompt_ids"]:
        assert any(tuple(ids[-len(tail) :]) == tail for tail in asked)


# The reference


def shift(model, amount=0.05):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += amount


def first_margins(trainer):
    trainer.model.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    _, pairs = trainer._forward(trainer.model, batch)
    return max(pairs.chosen_margin.abs().max().item(), pairs.rejected_margin.abs().max().item())


def test_the_reference_is_the_model_as_it_is_not_as_it_lies_on_disk(tiny_model, tokenizer, tmp_path):
    tiny_model.save_pretrained(tmp_path / "saved")
    model = type(tiny_model).from_pretrained(tmp_path / "saved")
    shift(model)
    trainer = build(model, ROWS, tokenizer, tmp_path, method=DPO())
    assert first_margins(trainer) == 0.0
    before = weights(trainer.accelerator.unwrap_model(trainer.ref_model))
    trainer.train()
    assert first_margins(trainer) > 1e-3
    after = weights(trainer.accelerator.unwrap_model(trainer.ref_model))
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_second_trainer_on_the_same_model_starts_from_its_own_reference(tiny_model, tokenizer, tmp_path):
    build(tiny_model, ROWS, tokenizer, tmp_path, method=DPO()).train()
    again = build(tiny_model, ROWS, tokenizer, tmp_path, method=DPO())
    assert first_margins(again) == 0.0


@pytest.mark.parametrize("moved", [False, True], ids=["new adapter", "adapter that came with the model"])
def test_the_reference_of_an_adapter_is_the_policy_at_start(moved, tiny_model, tokenizer, tmp_path):
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    if moved:
        model = get_peft_model(tiny_model, lora)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter += 0.1
        trainer = build(model, ROWS, tokenizer, tmp_path, method=DPO())
    else:
        trainer = build(tiny_model, ROWS, tokenizer, tmp_path, method=DPO(), peft_config=lora)
    assert first_margins(trainer) == 0.0
    trainer.train()
    assert first_margins(trainer) > 1e-4


def test_a_method_without_reference_holds_none(tiny_model, tokenizer, tmp_path):
    trainer = build(tiny_model, ROWS, tokenizer, tmp_path, method=SimPO())
    assert trainer.ref_model is None
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["rewards/margins"] == pytest.approx(
        logged["rewards/chosen"] - logged["rewards/rejected"], abs=1e-5
    )


# RPO


def test_rpo_config_is_flat_and_its_defaults_are_the_papers(tmp_path):
    config = RPOConfig(output_dir=str(tmp_path), beta=0.01, eta=0.2, form="average", use_cpu=True, bf16=False)
    assert (config.eta, config.form, config.beta, RPOConfig.__dataclass_fields__["eta"].default) == (
        0.2,
        "average",
        0.01,
        0.005,
    )


@pytest.mark.parametrize("source", ["reference", "dataset", "own function"])
def test_rpo_imitates_other_answers(source, tiny_model, tokenizer, tmp_path):
    more = {"imitate": "reference"}
    if source == "dataset":
        path = tmp_path / "answers.jsonl"
        path.write_text('{"prompt": "say>", "completion": "hello"}\n', encoding="utf-8")
        more = {"imitate": "dataset", "imitation_data": str(path)}
    if source == "own function":
        more["answer"] = lambda prompts, sampling: ["hello" for _ in prompts]
    trainer = build(
        tiny_model, ROWS, tokenizer, tmp_path, trainer=RPOTrainer, config=RPOConfig, eta=0.5, **more
    )
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
    _, batch = trainer._forward(trainer.model, inputs)
    assert batch.imitation_logps is not None
    if source != "reference":
        prompt = "say>" if source == "dataset" else ROWS[0]["prompt"]
        ids = tokenizer(prompt + "hello<eos>", return_tensors="pt")["input_ids"]
        logps = tiny_model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None]).squeeze(1)
        assert_close(batch.imitation_logps[0], logps[-6:].sum(), atol=1e-4, rtol=0)
        assert batch.imitation_lengths.tolist() == [6, 6]
    added = trainer.method.pair_loss(batch) - DPO().pair_loss(batch)
    assert_close(added, -0.5 * 0.1 * batch.imitation_logps)
    trainer.train()
    assert "rpo/imitation_nll_per_token" in trainer.state.log_history[0]


def test_reference_samples_do_not_depend_on_the_process_generator(tiny_model, tokenizer, tmp_path):
    def sampled():
        trainer = build(
            tiny_model, ROWS, tokenizer, tmp_path, trainer=RPOTrainer, config=RPOConfig, imitate="reference"
        )
        return trainer.train_dataset["imitation_ids"]

    first = sampled()
    torch.manual_seed(123)
    assert sampled() == first


# Options and resume


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss_type", "ipo"),
        ("label_smoothing", 0.1),
        ("ld_alpha", 0.5),
        ("f_divergence_type", "forward_kl"),
        ("use_weighting", True),
        ("truncation_mode", "keep_end"),
    ],
)
def test_options_of_trls_own_losses_are_refused_by_name(name, value, tmp_path):
    with pytest.raises(ValueError, match=f"{name} has no effect here"):
        PreferenceConfig(str(tmp_path), use_cpu=True, bf16=False, **{name: value})


@pytest.mark.parametrize(
    "peft_config", [None, LoraConfig(r=4, target_modules=["q_proj"])], ids=["full", "lora"]
)
def test_a_resumed_run_ends_with_the_same_weights(peft_config, tiny_model, tokenizer, tmp_path):
    def run(folder, steps, resume=None):
        trainer = build(
            copy.deepcopy(tiny_model),
            ROWS,
            tokenizer,
            tmp_path / folder,
            trainer=DPOTrainer,
            config=DPOTrainer.config_class,
            max_steps=4,
            save_strategy="steps",
            save_steps=2,
            peft_config=copy.deepcopy(peft_config),
        )
        if steps < 4:
            trainer.args.max_steps = 4
            trainer.add_callback(_StopAfter(steps))
        trainer.train(resume_from_checkpoint=resume)
        return weights(trainer.model)

    whole = run("whole", 4)
    run("broken", 2)
    resumed = run("broken", 4, resume=str(tmp_path / "broken" / "checkpoint-2"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
