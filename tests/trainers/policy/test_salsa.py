"""SALSA: a soup as the KL reference, and the same run as without one where the soup is the start."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from datasets import Dataset
from letter_rewards import judged
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.cli import main
from posttrain.objectives.bapo import BAPO
from posttrain.references.salsa import SALSA
from posttrain.trainers.models.soups import SoupError, check_perplexity, perplexity, soup_with
from posttrain.trainers.policy.bindings import GRPOConfig, GRPOTrainer
from posttrain.trainers.policy.salsa_trainer import SALSAConfig, SALSATrainer

ROWS = Dataset.from_list([{"prompt": f"{i}>"} for i in range(8)])


def options(config, folder, **changes):
    return config(
        output_dir=str(folder),
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=6,
        max_steps=2,
        learning_rate=1e-2,
        beta=0.3,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        **changes,
    )


def moved(model, seed, by=0.05):
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator)
    return other


@pytest.fixture
def sft2(tiny_model, tokenizer, tmp_path):
    folder = tmp_path / "sft2"
    moved(tiny_model, 1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(trainer):
    trainer.train()
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def test_a_soup_of_weight_one_trains_as_without_it_bit_for_bit(tiny_model, sft2, tokenizer, tmp_path):
    plain = GRPOTrainer(
        copy.deepcopy(tiny_model), judged, options(GRPOConfig, tmp_path), ROWS, processing_class=tokenizer
    )
    expected = run(plain)  # before the next trainer is built: building sets the process's seed
    args = options(SALSAConfig, tmp_path, others=[str(sft2)], weights=[1.0, 0.0])
    souped = SALSATrainer(copy.deepcopy(tiny_model), judged, args, ROWS, processing_class=tokenizer)
    found = run(souped)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (plain, souped)]
    assert losses[0] == losses[1]
    assert losses[0] != [0.0, 0.0]
    half = options(SALSAConfig, tmp_path, others=[str(sft2)])
    other = run(SALSATrainer(copy.deepcopy(tiny_model), judged, half, ROWS, processing_class=tokenizer))
    assert not all(torch.equal(other[name], value) for name, value in expected.items())


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_reference_and_the_two_distances(adapter, tiny_model, sft2, tokenizer, tmp_path):
    """The policy starts at the first model, away from the soup: KL to the start 0, to the soup above it."""
    args = options(SALSAConfig, tmp_path, others=[str(sft2)], weights=[0.75, 0.25])
    peft = LoraConfig(r=2, target_modules=["q_proj", "v_proj"]) if adapter else None
    trainer = SALSATrainer(
        copy.deepcopy(tiny_model), judged, args, ROWS, processing_class=tokenizer, peft_config=peft
    )
    second = AutoModelForCausalLM.from_pretrained(sft2).state_dict()
    soup = trainer.accelerator.unwrap_model(trainer.ref_model).state_dict()
    for name, value in tiny_model.state_dict().items():
        assert_close(
            soup[name], (0.75 * value.double() + 0.25 * second[name].double()).float(), atol=0, rtol=0
        )
    trainer.train()
    first, last = (trainer.state.log_history[i] for i in (0, 1))
    assert first["salsa/kl_to_start"] == 0.0
    assert first["salsa/kl_to_soup"] == pytest.approx(first["kl"], rel=1e-5)
    assert first["salsa/kl_to_soup"] > 1e-4
    assert last["salsa/kl_to_start"] > 0.0


def test_any_policy_objective_and_an_adapter_that_came_with_the_model(tiny_model, sft2, tokenizer, tmp_path):
    model = get_peft_model(tiny_model, LoraConfig(r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.1
    merged = copy.deepcopy(model).merge_and_unload().state_dict()
    args = options(
        SALSAConfig, tmp_path, others=[str(sft2)], objective="bapo", objective_settings={"target": 0.45}
    )
    trainer = SALSATrainer(model, judged, args, ROWS, processing_class=tokenizer)
    assert trainer.objective == BAPO(target=0.45)
    second = AutoModelForCausalLM.from_pretrained(sft2).state_dict()
    soup = trainer.accelerator.unwrap_model(trainer.ref_model).state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert_close(soup[name], (merged[name] + second[name]) / 2)
    trainer.train()
    assert trainer.state.log_history[0]["salsa/kl_to_start"] == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "name the further SFT models"),
        ({"others": ["x"], "weights": [1.0]}, "2 models .* but 1 weights"),
        ({"others": ["x"], "weights": [0.7, 0.7]}, "sum to 1"),
        ({"others": ["x"], "objective_settings": {"clip_hi": 0.3}}, "GRPO has no setting 'clip_hi'"),
        ({"others": ["x"], "beta": 0.0}, "no effect at beta 0"),
        ({"others": ["x"], "sync_ref_model": True}, "overwrite the soup"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message, tiny_model, tokenizer, tmp_path):
    arguments = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "beta": 0.1, **changes}
    with pytest.raises(ValueError, match=message):
        SALSATrainer(tiny_model, judged, SALSAConfig(**arguments), ROWS, processing_class=tokenizer)


def test_a_soup_of_another_vocabulary_is_refused(tiny_model, tokenizer, tmp_path):
    """The same shapes, but the numbers mean other tokens."""
    from posttrain.trainers.models.load import character_tokenizer

    alphabet = sorted(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens))
    other = saved(tiny_model, character_tokenizer("".join(reversed(alphabet))), tmp_path / "other")
    args = options(SALSAConfig, tmp_path, others=[other])
    with pytest.raises(SoupError, match="another vocabulary than the policy"):
        SALSATrainer(tiny_model, judged, args, ROWS, processing_class=tokenizer)


def test_models_without_a_common_start_are_pointed_out(tiny_model, tokenizer, tmp_path, caplog):
    from posttrain.trainers.models.load import scratch_llama

    stranger = scratch_llama(tokenizer, hidden_size=32, layers=2, heads=2, max_positions=64, seed=9)
    paths = [saved(tiny_model, tokenizer, tmp_path / "one"), saved(stranger, tokenizer, tmp_path / "two")]
    assert main(["soup", *paths, "--out", str(tmp_path / "soup")]) == 0
    assert "as models of different starts do" in caplog.text
    caplog.clear()
    kin = saved(moved(tiny_model, 1, by=0.01), tokenizer, tmp_path / "kin")
    assert main(["soup", paths[0], kin, "--out", str(tmp_path / "soup2")]) == 0
    assert caplog.text == ""


def test_the_soup_is_rounded_once_whatever_the_files_hold(tiny_model, sft2):
    """A bfloat16 policy and a float32 file: the file's last bits count until the sum is rounded."""
    policy = copy.deepcopy(tiny_model).to(torch.bfloat16)
    soup = soup_with(policy, [str(sft2)], [0.5, 0.5])
    second = AutoModelForCausalLM.from_pretrained(sft2, dtype=torch.float32).state_dict()
    for name, value in policy.state_dict().items():
        expected = (0.5 * value.double() + 0.5 * second[name].double()).bfloat16()
        assert torch.equal(soup.state_dict()[name], expected), name


def test_settings_have_a_default_soup_of_equal_halves():
    assert SALSA(others=["x"]).weights == [0.5, 0.5]


def test_a_soup_worse_than_its_models_is_refused():
    check_perplexity(4.3, [4.0, 4.0], tolerance=0.1)
    with pytest.raises(SoupError, match="perplexity 4.5 is above 4.4, 10% over the worst"):
        check_perplexity(4.5, [3.0, 4.0], tolerance=0.1)
    with pytest.raises(SoupError):
        check_perplexity(float("nan"), [3.0, 4.0], tolerance=0.1)


def test_perplexity_is_of_the_answers_given_their_prompts(tiny_model, tokenizer):
    logps = tiny_model(tokenizer("sort 31213", return_tensors="pt")["input_ids"]).logits[0].log_softmax(-1)
    ids = tokenizer("sort 31213")["input_ids"]
    taken = [-logps[i - 1, ids[i]].item() for i in range(len(ids))]
    answer = perplexity(tiny_model, tokenizer, [("sort 312", "13")])
    assert answer == pytest.approx(math.exp(sum(taken[8:]) / 2), rel=1e-5)
    # Token by token over texts of different length, not text by text; without a prompt all but the first token.
    both = perplexity(tiny_model, tokenizer, [("sort 312", "13"), ("", "sort 31213")])
    assert both == pytest.approx(math.exp((sum(taken[8:]) + sum(taken[1:])) / (2 + 9)), rel=1e-5)
    assert perplexity(tiny_model, tokenizer, [("sort 312", "13"), ("", ""), ("", "a")]) == answer
    for text in ("", "a"):
        with pytest.raises(SoupError, match="no token to score"):
            perplexity(tiny_model, tokenizer, [("", text)])


# The command


def saved(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_command_writes_a_model_that_loads(tiny_model, tokenizer, tmp_path, capsys):
    other = moved(tiny_model, 2, by=0.01)
    paths = [saved(tiny_model, tokenizer, tmp_path / "a"), saved(other, tokenizer, tmp_path / "b")]
    check = tmp_path / "check.jsonl"
    check.write_text('{"text": "sort 312"}\n{"prompt": "a>", "completion": "bc"}\n', encoding="utf-8")
    out = tmp_path / "soup"
    assert (
        main(["soup", *paths, "--weights", "0.25", "0.75", "--out", str(out), "--check-data", str(check)])
        == 0
    )
    soup = AutoModelForCausalLM.from_pretrained(out)
    for (name, value), one, two in zip(
        soup.state_dict().items(), tiny_model.parameters(), other.parameters(), strict=True
    ):
        assert_close(value, (0.25 * one.double() + 0.75 * two.double()).float(), atol=0, rtol=0, msg=name)
    assert AutoTokenizer.from_pretrained(out).get_vocab() == tokenizer.get_vocab()
    assert "soup" in capsys.readouterr().out
    assert main(["soup", *paths, "--out", str(out)]) == 2  # never written over


def test_the_command_merges_adapters_first(tiny_model, tokenizer, tmp_path):
    base = saved(tiny_model, tokenizer, tmp_path / "base")
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"])
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.3
    adapter = saved(model, tokenizer, tmp_path / "adapter")
    assert main(["soup", base, adapter, "--out", str(tmp_path / "soup")]) == 0
    merged = model.merge_and_unload().state_dict()
    soup = AutoModelForCausalLM.from_pretrained(tmp_path / "soup").state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert_close(soup[name], (tiny_model.state_dict()[name] + merged[name]) / 2)


def test_models_of_another_kind_are_refused(tiny_model, tokenizer, tmp_path, capsys):
    from posttrain.trainers.models.load import character_tokenizer, scratch_llama

    one = saved(tiny_model, tokenizer, tmp_path / "one")
    two = saved(
        scratch_llama(tokenizer, hidden_size=64, layers=2, heads=2, max_positions=64),
        tokenizer,
        tmp_path / "two",
    )
    digits = character_tokenizer("0123456789")
    three = saved(scratch_llama(digits, hidden_size=32, layers=2, heads=2), digits, tmp_path / "three")
    far = saved(moved(tiny_model, 3, by=3.0), tokenizer, tmp_path / "far")
    check = tmp_path / "check.jsonl"
    check.write_text('{"text": "sort 312"}\n', encoding="utf-8")
    cases = [
        ([one, two], "is (101, 32) in model 0 but (101, 64)"),
        ([one, three], "another vocabulary"),
        ([one, far, "--check-data", str(check), "--tolerance=-1"], "perplexity"),
        ([one, one, "--weights", "1.0"], "2 models but 1 weights"),
        ([one, str(tmp_path / "nowhere")], "nowhere"),
    ]
    for words, message in cases:
        assert main(["soup", *words, "--out", str(tmp_path / "soup")]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "row",
    [
        {"text": ""},
        {"text": None},
        {"text": ["a", "b"]},
        {"prompt": "a>", "completion": ""},
        {"prompt": None, "completion": "b"},
        {"prompt": "a>", "chosen": [{"role": "user", "content": "b"}]},
        {"prompt": "a>"},
    ],
)
def test_the_command_names_the_row_it_cannot_check(row, tiny_model, tokenizer, tmp_path, capsys):
    model = saved(tiny_model, tokenizer, tmp_path / "a")
    check = tmp_path / "check.jsonl"
    rows = [{"text": "sort 312"}, {"prompt": "", "completion": "bc"}, row]
    check.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    out = tmp_path / "soup"
    assert main(["soup", model, model, "--out", str(out), "--check-data", str(check)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"posttrain soup: {check}: row 3: check data needs rows with 'text'")
    assert not out.exists()
