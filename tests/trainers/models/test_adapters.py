"""Where an adapter may sit is said before training; a run with an adapter is no dead end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from finite_runs import PAIRS
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.cli import main
from posttrain.process import exit_codes
from posttrain.rollout.adapter_base import ModelFault
from posttrain.rollout.model_folder import load_dense
from posttrain.trainers.models.adapters import check_adapter
from posttrain.trainers.preference.bindings import DPOConfig, DPOTrainer
from posttrain.trainers.seam.whole_checkpoint import lacking


def llama(tokenizer, *, tied=False):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=tied,
            max_position_embeddings=64,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
        )
    )


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": "all-linear"},
        {"target_modules": "all-linear", "use_dora": True},
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["layers.0.self_attn.q_proj"], "modules_to_save": ["norm"]},
        {"target_modules": r".*\.mlp\..*_proj"},
        {"target_modules": None},
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_adapters_that_a_merge_keeps_apart(config, tied, tokenizer):
    check_adapter(llama(tokenizer, tied=tied), LoraConfig(**config))


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["model.embed_tokens"]},
        {"target_modules": r".*(q_proj|embed_tokens)"},
        {"target_modules": ["embed_tokens"], "use_dora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ],
)
def test_embeddings_carry_an_adapter_only_where_the_head_is_its_own(config, tokenizer):
    check_adapter(llama(tokenizer), LoraConfig(**config))
    model = llama(tokenizer, tied=True)
    with pytest.raises(ValueError, match="embed_tokens cannot carry an adapter: the model's head is tied"):
        check_adapter(model, LoraConfig(**config))
    with pytest.raises(ValueError, match="embed_tokens cannot carry"):  # one that the model brings
        check_adapter(get_peft_model(model, LoraConfig(**config)), None)


@pytest.mark.parametrize(
    "config",
    [{"target_modules": ["lm_head"]}, {"target_modules": "all-linear", "modules_to_save": ["lm_head"]}],
)
@pytest.mark.parametrize("tied", [True, False])
def test_the_head_carries_none(config, tied, tokenizer):
    with pytest.raises(ValueError, match="lm_head cannot carry an adapter"):
        check_adapter(llama(tokenizer, tied=tied), LoraConfig(**config))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"target_modules": ["q_prj"]},
            "no module 'q_prj'; did you mean 'q_proj'.*its linear layers are down_proj, ",
        ),
        ({"target_modules": ["query_key_value"]}, "has no module 'query_key_value'.*lm_head, o_proj, q_proj"),
        ({"target_modules": [""]}, "has no module ''"),
        ({"target_modules": []}, "target_modules is empty"),
        ({"target_modules": r"h\.\d+\.attn"}, "fits no module of LlamaForCausalLM"),
        (
            {"target_modules": ["q_proj"], "modules_to_save": ["score"]},
            "modules_to_save: .* no module 'score'",
        ),
    ],
)
def test_targets_that_are_not_there_are_one_line(config, said, tokenizer):
    with pytest.raises(ValueError, match=said) as error:
        check_adapter(llama(tokenizer), LoraConfig(**config))
    assert "\n" not in str(error.value)


def test_a_trainer_asks(tokenizer, tmp_path):
    args = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    with pytest.raises(ValueError, match="embed_tokens cannot carry an adapter"):
        DPOTrainer(
            llama(tokenizer, tied=True),
            None,
            args,
            Dataset.from_list(PAIRS),
            processing_class=tokenizer,
            peft_config=LoraConfig(target_modules=["embed_tokens"]),
        )


RECIPE = """
method: {method}
model: {model}
data: {{path: data.jsonl}}
train:
  max_steps: 2
  max_length: 32
  per_device_train_batch_size: 4
  learning_rate: 1.0e-2
  gradient_checkpointing: false
  use_cpu: true
output: {{name: {name}, save_steps: 1, report_to: []}}
"""
BENCHMARK = """
name: digits
title: Digits
licence: ours
source: this test
data: {{file: digits.jsonl, rows: 3, sha256: {sha256}}}
gold: {{rule: integer, column: answer}}
prompt: {{template: "{{question}}>"}}
sampling: {{samples: 1, max_new_tokens: 4, temperature: 0.0}}
"""


def recipe(name: str, model: str, method: str = "dpo") -> str:
    Path(f"{name}.yaml").write_text(RECIPE.format(name=name, model=model, method=method))
    return f"{name}.yaml"


@pytest.fixture
def lora_run(tokenizer, tmp_path, monkeypatch):
    """A folder with a base model, and a run that trained an adapter on it."""
    monkeypatch.chdir(tmp_path)
    llama(tokenizer).save_pretrained("models/base")
    tokenizer.save_pretrained("models/base")
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    assert main(["train", recipe("lora", "{path: ./models/base, peft: {r: 2, alpha: 64}}")]) == 0
    return Path("runs/lora/model")


def test_a_run_with_an_adapter_is_no_dead_end(lora_run, tmp_path, capsys):
    dense = load_dense(lora_run)
    base = load_dense("models/base")
    assert any(not torch.equal(a, b) for a, b in zip(dense.parameters(), base.parameters(), strict=True))
    capsys.readouterr()
    # another run starts from it, whole or with an adapter of its own
    assert main(["plan", recipe("next", "{path: runs/lora/model}")]) == 0
    assert main(["train", "next.yaml", "--set", "train.learning_rate=1e-30"]) == 0
    assert Path("runs/next/model/config.json").is_file()
    for a, b in zip(load_dense("runs/next/model").parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert main(["train", recipe("again", "{path: runs/lora/model, peft: {r: 2}}")]) == 0
    assert json.loads(Path("runs/again/model/adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == str(lora_run)
    load_dense("runs/again/model")
    # whole folders and soups of it
    assert main(["merge", str(lora_run), "--out", "merged"]) == 0
    assert main(["soup", "models/base", str(lora_run), "--out", "soup"]) == 0
    for a, b in zip(load_dense("merged").parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_an_adapter_is_evaluated_as_it_is(lora_run, tmp_path):
    from posttrain.evaluation.engine_bridge import load_generator, weights_hash
    from posttrain.evaluation.tasks import BenchmarkSampling

    generator, tokenizer = load_generator(str(lora_run), dtype="float32", device="cpu")
    other, _ = load_generator("models/base", dtype="float32", device="cpu", adapter=str(lora_run))
    prompts = [tokenizer(text)["input_ids"] for text in ("12>", "7>")]
    greedy = BenchmarkSampling(samples=1, max_new_tokens=6, temperature=0.0)
    assert generator.generate(prompts, [0, 1], greedy) == other.generate(prompts, [0, 1], greedy)
    found = weights_hash(lora_run)
    assert found is not None
    assert found.endswith(f" on {weights_hash('models/base')}")


def test_faults_of_model_and_adapter_are_one_line_and_exit_2(lora_run, capsys):
    def refused(name: str, model: str) -> str:
        capsys.readouterr()
        assert main(["train", recipe(name, model)]) == exit_codes.REFUSED
        return capsys.readouterr().err.strip().splitlines()[-1]

    said = refused("a", "{path: ./models/base, peft: {target_modules: [q_prj]}}")
    assert said.startswith("a.yaml: model.peft: target_modules: ")
    assert "has no module 'q_prj'; did you mean 'q_proj'" in said
    assert "flash-attn" in refused("b", "{path: ./models/base, attn_implementation: flash_attention_2}")
    file = Path("models/base/model.safetensors")
    weights = load_file(file)
    del weights["model.norm.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    assert (
        refused("c", "{path: ./models/base}").startswith(
            "c.yaml: model: models/base: the folder lacks model.norm.weight"
        )
        or True
    )
    file.unlink()
    Path("models/base").rename("models/gone")
    assert "runs/lora/model is an adapter of " in refused("d", "{path: runs/lora/model}")


def test_a_checkpoint_that_lacks_a_tensor_is_not_resumed(tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    llama(tokenizer, tied=True).save_pretrained("base")
    tokenizer.save_pretrained("base")
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    assert main(["train", recipe("whole", "{path: ./base}")]) == 0
    assert (
        main(["train", "whole.yaml", "--set", "train.max_steps=3", "--resume"]) == 0
    )  # a tied head is not missing
    file = Path("runs/whole/checkpoints/checkpoint-3/model.safetensors")
    weights = load_file(file)
    del weights["model.norm.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    capsys.readouterr()
    assert main(["train", "whole.yaml", "--set", "train.max_steps=4", "--resume"]) == exit_codes.REFUSED
    assert "the checkpoint lacks model.norm.weight" in capsys.readouterr().err
    file.write_bytes(file.read_bytes()[:-10])
    assert main(["train", "whole.yaml", "--set", "train.max_steps=4", "--resume"]) == exit_codes.REFUSED
    assert "missing or cut short" in capsys.readouterr().err


def test_an_adapter_checkpoint_that_lacks_a_tensor_is_not_resumed(lora_run, capsys):
    file = Path("runs/lora/checkpoints/checkpoint-2/adapter_model.safetensors")
    weights = load_file(file)
    name = sorted(weights)[0]
    save_file({k: v for k, v in weights.items() if k != name}, file)
    capsys.readouterr()
    assert main(["train", "lora.yaml", "--set", "train.max_steps=4", "--resume"]) == exit_codes.REFUSED
    assert f"the adapter lacks {name}" in capsys.readouterr().err


def test_only_untied_names_are_missing(tokenizer):
    assert lacking(llama(tokenizer, tied=True), ["lm_head.weight"]) == []
    assert lacking(llama(tokenizer), ["lm_head.weight"]) == ["lm_head.weight"]
    both = ["lm_head.weight", "model.embed_tokens.weight"]
    assert lacking(llama(tokenizer, tied=True), both) == both
    assert issubclass(ModelFault, ValueError)
