"""Models from disk: whole or refused by the tensor's name; an adapter is found with its base, merged, from anywhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from posttrain.cli import main
from posttrain.process import exit_codes
from posttrain.rollout.adapter_base import BaseMissing, ModelFault, base_of
from posttrain.rollout.model_folder import dense_folder, load_dense, load_whole, tokenizer_of
from posttrain.trainers.models.load import character_tokenizer, load_pretrained
from posttrain.trainers.models.policy_folder import load_policy
from posttrain.trainers.models.soups import save_soup

UP = "model.layers.1.mlp.up_proj.weight"


def llama(*, tied: bool = False, kind=LlamaForCausalLM):
    torch.manual_seed(0)
    return kind(
        LlamaConfig(
            vocab_size=len(character_tokenizer()),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            tie_word_embeddings=tied,
        )
    )


def saved(folder: Path, model=None, **changes) -> Path:
    (model or llama(**changes)).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


def without(folder: Path, name: str) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})


def adapter(base: Path, folder: Path, named: str | None = None, **config) -> Path:
    """A LoRA with weights that do something, saved as a run saves it."""
    model = LlamaForCausalLM.from_pretrained(base)
    model.name_or_path = named or str(base)
    tuned = get_peft_model(model, LoraConfig(**{"r": 2, "target_modules": ["q_proj", "up_proj"], **config}))
    torch.manual_seed(1)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    tuned.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def ids():
    return torch.arange(5, 15).unsqueeze(0)


@pytest.mark.parametrize("name", ["lm_head.weight", UP, "model.embed_tokens.weight"])
def test_a_folder_that_lacks_a_tensor_is_refused_by_its_name(name, tmp_path):
    folder = saved(tmp_path / "m")
    load_whole(folder)
    without(folder, name)
    with pytest.raises(ModelFault, match=f"the folder lacks {name}; it is not a whole LlamaForCausalLM"):
        load_whole(folder)


def test_tied_embeddings_are_not_missing(tmp_path):
    folder = saved(tmp_path / "m", tied=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    load_whole(folder)
    without(folder, "model.embed_tokens.weight")
    with pytest.raises(ModelFault, match=r"model\.embed_tokens\.weight"):
        load_whole(folder)


def test_a_backbone_has_no_head_to_train(tmp_path):
    with pytest.raises(ModelFault, match=r"lacks lm_head\.weight"):
        load_whole(saved(tmp_path / "m", kind=LlamaModel))
    load_whole(tmp_path / "m", LlamaModel)


def test_another_shape_is_refused(tmp_path):
    folder = saved(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(5)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFault, match=r"model\.norm\.weight is \(5,\) in the folder, but \(16,\)"):
        load_whole(folder)


def test_a_shard_that_is_missing_or_cut_short_is_refused(tmp_path):
    folder = tmp_path / "m"
    llama().save_pretrained(folder, max_shard_size="10KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(ModelFault, match=f"a weights file is missing: .*{shard.name}"):
        load_whole(folder)
    shard.write_bytes(content[:-20])
    with pytest.raises(ModelFault, match="cannot be read"):
        load_whole(folder)


def test_an_attention_kernel_that_is_not_installed_is_one_line(tmp_path):
    with pytest.raises(ModelFault, match=r"^[^\n]*FlashAttention2[^\n]*$"):
        load_whole(saved(tmp_path / "m"), attn_implementation="flash_attention_2")


@pytest.mark.parametrize(
    "config", [{}, {"use_dora": True}, {"use_rslora": True}, {"modules_to_save": ["lm_head"]}]
)
def test_an_adapter_is_merged_into_its_base(config, ids, tmp_path):
    base = saved(tmp_path / "base")
    folder = adapter(base, tmp_path / "lora", **config)
    tuned = load_policy(folder)
    expected = tuned(ids).logits
    assert (expected - load_whole(base)(ids).logits).abs().max() > 0.01
    for model in (load_dense(folder), load_pretrained(str(folder))[0]):
        assert not hasattr(model, "peft_config")
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_an_adapter_on_an_adapter_starts_from_the_first_one(ids, tmp_path):
    first = adapter(saved(tmp_path / "base"), tmp_path / "first")
    model = load_dense(first)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["v_proj"]))
    torch.nn.init.normal_(next(w for n, w in tuned.named_parameters() if "lora_B" in n))
    tuned.save_pretrained(tmp_path / "second")
    assert base_of(tmp_path / "second") == str(first)
    torch.testing.assert_close(
        load_dense(tmp_path / "second")(ids).logits, tuned(ids).logits, rtol=1e-4, atol=1e-5
    )


def test_a_relative_base_is_found_from_anywhere_and_after_a_move(tmp_path, monkeypatch):
    work = tmp_path / "work"
    saved(work / "runs/sft/model")
    monkeypatch.chdir(work)
    adapter(Path("runs/sft/model"), Path("runs/lora/model"))
    assert base_of("runs/lora/model") == "runs/sft/model"
    monkeypatch.chdir(tmp_path)
    assert Path(base_of("work/runs/lora/model")).samefile(work / "runs/sft/model")
    work.rename(tmp_path / "moved")
    assert Path(base_of("moved/runs/lora/model")).samefile(tmp_path / "moved/runs/sft/model")
    shutil.rmtree(tmp_path / "moved/runs/sft")
    with pytest.raises(BaseMissing, match="adapter of the base model runs/sft/model, which is not there"):
        base_of("moved/runs/lora/model")


def test_a_base_that_is_not_named(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": None}))
    with pytest.raises(BaseMissing, match="names no base model"):
        base_of(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(BaseMissing, match="cannot be read"):
        base_of(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "Qwen/Qwen2.5-7B"}))
    assert base_of(tmp_path) == "Qwen/Qwen2.5-7B"


def test_an_adapter_that_lacks_a_tensor_or_fits_another_model(tmp_path):
    folder = adapter(saved(tmp_path / "base"), tmp_path / "lora")
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    name = sorted(weights)[0]
    save_file({k: v for k, v in weights.items() if k != name}, file)
    with pytest.raises(ModelFault, match=f"the adapter lacks {name}"):
        load_dense(folder)
    save_file({**weights, name: torch.ones(2, 3)}, file)
    with pytest.raises(ModelFault, match="does not fit its base model: size mismatch"):
        load_dense(folder)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["embed_tokens"]},
        {"target_modules": r".*\.(q_proj|embed_tokens)"},
        {"modules_to_save": ["embed_tokens"]},
    ],
)
def test_an_adapter_on_tied_embeddings_is_not_merged(config, tmp_path):
    folder = adapter(saved(tmp_path / "base", tied=True), tmp_path / "lora", **config)
    with pytest.raises(ModelFault, match="head is tied to its embeddings"):
        load_dense(folder)
    for number, targets in enumerate((["q_proj", "up_proj"], r".*\.(q|v)_proj")):
        load_dense(adapter(tmp_path / "base", tmp_path / f"other{number}", target_modules=targets))


def test_engines_that_read_a_folder_get_a_whole_one(ids, tmp_path):
    base = saved(tmp_path / "base")
    folder = adapter(base, tmp_path / "lora")
    with dense_folder(str(base)) as same:
        assert same == str(base)
    with dense_folder(str(folder)) as whole:
        torch.testing.assert_close(load_whole(whole)(ids).logits, load_dense(folder)(ids).logits)
    assert not Path(whole).exists()


def test_the_merge_command_writes_a_whole_folder(ids, tmp_path, capsys):
    base = saved(tmp_path / "base")
    folder, out = adapter(base, tmp_path / "lora" / "model"), tmp_path / "out"
    tokenizer = character_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(folder)
    assert main(["merge", str(tmp_path / "lora"), "--out", str(out)]) == exit_codes.DONE  # a run's folder
    assert f"merged into {base} (float32)" in capsys.readouterr().out
    torch.testing.assert_close(load_whole(out)(ids).logits, load_dense(folder)(ids).logits)
    assert tokenizer_of(out).chat_template == tokenizer.chat_template
    assert (out / "generation_config.json").is_file()
    assert main(["merge", str(folder), "--out", str(out)]) == exit_codes.REFUSED  # never over what is there
    assert (
        main(["merge", str(folder), "--out", str(tmp_path / "half"), "--dtype", "bfloat16"])
        == exit_codes.DONE
    )
    half = load_whole(tmp_path / "half", dtype="auto")
    assert half.dtype == torch.bfloat16
    whole = load_dense(folder).state_dict()
    assert all(
        torch.equal(value, whole[name].bfloat16()) for name, value in half.state_dict().items()
    )  # rounded once
    capsys.readouterr()


def test_the_merge_command_refuses_in_one_line(tmp_path, capsys):
    base = saved(tmp_path / "base")
    assert main(["merge", str(base), "--out", str(tmp_path / "out")]) == exit_codes.REFUSED
    assert "holds no adapter_config.json" in capsys.readouterr().err
    assert main(["merge", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == exit_codes.REFUSED
    assert capsys.readouterr().err == f"posttrain merge: there is no folder {tmp_path / 'nowhere'}\n"
    folder = adapter(base, tmp_path / "lora")
    shutil.rmtree(base)
    assert main(["merge", str(folder), "--out", str(tmp_path / "out")]) == exit_codes.REFUSED
    error = capsys.readouterr().err.strip()
    assert "which is not there" in error
    assert "\n" not in error


def test_a_soup_of_an_adapter_and_a_model(ids, tmp_path):
    base = saved(tmp_path / "base")
    folder = adapter(base, tmp_path / "lora")
    save_soup([str(base), str(folder)], [0.5, 0.5], tmp_path / "soup")
    one, two = load_whole(base).state_dict(), load_dense(folder).state_dict()
    for name, value in load_whole(tmp_path / "soup").state_dict().items():
        torch.testing.assert_close(value, (one[name] + two[name]) / 2)
