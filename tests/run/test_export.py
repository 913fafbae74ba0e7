"""`posttrain export`: the folder is the trained model, whole or not there; every refusal says what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from export_helpers import logits, trained
from peft import PeftModel
from remote_double import remote_checkpoint
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.cli import main
from posttrain.observe.writer import RunWriter
from posttrain.process import exit_codes
from posttrain.rollout.adapter_base import base_of
from posttrain.rollout.masked.predictor import load_mask_model
from posttrain.run import exporting
from posttrain.trainers.models.load import character_tokenizer, scratch_llama

IDS = torch.arange(5, 15).unsqueeze(0)
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory):
    """A folder to work in, for all tests of this file: their runs do not meet."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def whole(place: Path) -> Any:
    """runs/whole, and its model in memory."""
    return trained("whole")


@pytest.fixture(scope="module")
def lora(place: Path) -> Any:
    """runs/lora, an adapter on models/base, and its model in memory."""
    tokenizer = character_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    base = scratch_llama(tokenizer, hidden_size=32, layers=2, heads=2, max_positions=64, seed=0)
    base.save_pretrained("models/base")
    tokenizer.save_pretrained("models/base")
    return trained("lora", model={"path": "./models/base", "peft": {"r": 2, "alpha": 64}})


def export(*words: str, code: int = exit_codes.DONE) -> None:
    assert main(["export", *words]) == code


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    export(*words, code=exit_codes.REFUSED)
    said = capsys.readouterr().err.strip()
    assert said.startswith("posttrain export: ")
    assert "\n" not in said
    return said.removeprefix("posttrain export: ")


def test_the_folder_is_the_model_in_memory(whole: Any, capsys: pytest.CaptureFixture[str]) -> None:
    export("runs/whole", "--out", "out/whole")
    assert "step 4, from runs/whole/model; float32\nwritten: out/whole" in capsys.readouterr().out
    loaded = AutoModelForCausalLM.from_pretrained("out/whole")
    assert torch.equal(logits(loaded, IDS), logits(whole, IDS))
    assert loaded.generation_config.eos_token_id == whole.generation_config.eos_token_id
    assert AutoTokenizer.from_pretrained("out/whole").get_vocab() == character_tokenizer().get_vocab()
    assert {path.name for path in Path("out/whole").iterdir()} == {
        *("README.md", "config.json", "generation_config.json", WEIGHTS),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    card = Path("out/whole/README.md").read_text()
    assert "with `sft`" in card
    assert "for 4 optimizer steps" in card
    assert "* exported: `posttrain export`, from model, weights in float32" in card
    assert "learning_rate: 0.01" in card
    assert "* versions: posttrain" in card


def test_an_earlier_step_in_another_precision(whole: Any) -> None:
    export("runs/whole", "--out", "out/second", "--checkpoint", "2", "--dtype", "bfloat16")
    saved = load_file(f"runs/whole/checkpoints/checkpoint-2/{WEIGHTS}")
    found = load_file(f"out/second/{WEIGHTS}")
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name].bfloat16()) for name in saved)
    assert any(not torch.equal(saved[name], tensor) for name, tensor in whole.state_dict().items())
    assert AutoModelForCausalLM.from_pretrained("out/second", dtype="auto").dtype == torch.bfloat16
    card = Path("out/second/README.md").read_text()
    assert "for 2 of the run's 4 optimizer steps" in card
    assert "from checkpoints/checkpoint-2, weights in bfloat16" in card


def test_an_adapter_is_kept_or_merged(lora: Any, tmp_path: Path) -> None:
    export("runs/lora", "--out", str(tmp_path / "kept"))
    assert base_of(tmp_path / "kept") == str(Path("models/base").resolve())  # found from anywhere
    base = AutoModelForCausalLM.from_pretrained("models/base")
    kept = PeftModel.from_pretrained(base, str(tmp_path / "kept"))
    assert torch.equal(logits(kept.eval(), IDS), logits(lora, IDS))
    export("runs/lora", "--out", "out/merged", "--merge")
    merged = AutoModelForCausalLM.from_pretrained("out/merged")
    torch.testing.assert_close(logits(merged, IDS), logits(lora, IDS), rtol=1e-4, atol=1e-5)
    assert not Path("out/merged/adapter_config.json").exists()
    assert AutoTokenizer.from_pretrained("out/merged").chat_template == "{{ messages[0]['content'] }}"
    assert "the adapter merged into its base" in Path("out/merged/README.md").read_text()
    main(["merge", "runs/lora", "--out", "out/by-merge"])
    one, two = load_file(f"out/merged/{WEIGHTS}"), load_file(f"out/by-merge/{WEIGHTS}")
    assert all(torch.equal(one[name], two[name]) for name in two)


def shards(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """As accelerate writes a model under SHARDED_STATE_DICT; nothing else of the model is in such a checkpoint."""
    folder.mkdir(parents=True)
    save_shards(
        {"model": weights},
        storage_writer=FileSystemWriter(str(folder / "pytorch_model_fsdp_0")),
        no_dist=True,
    )
    (folder / "trainer_state.json").write_text(
        json.dumps({"global_step": int(folder.name.rpartition("-")[2])})
    )


def test_shards_are_gathered(whole: Any, capsys: pytest.CaptureFixture[str]) -> None:
    state = {f"_orig_mod.{name}": tensor for name, tensor in whole.state_dict().items()}
    shards(Path("runs/whole/checkpoints/checkpoint-9"), state)
    export("runs/whole", "--out", "out/gathered")
    assert "checkpoint-9 (shards of FSDP, gathered)" in capsys.readouterr().out
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained("out/gathered"), IDS), logits(whole, IDS))
    AutoTokenizer.from_pretrained("out/gathered")
    lacks = {name: tensor for name, tensor in state.items() if "layers.1.mlp.up_proj" not in name}
    shards(Path("runs/whole/checkpoints/checkpoint-7"), lacks)
    said = refusal(capsys, "runs/whole", "--out", "out/lacks", "--checkpoint", "7")
    assert said.startswith("the shards lack model.layers.1.mlp.up_proj.weight")
    shards(Path("runs/whole/checkpoints/checkpoint-8"), state | {"more": torch.ones(2)})
    assert "have more, which" in refusal(capsys, "runs/whole", "--out", "out/lacks", "--checkpoint", "8")


def test_shards_of_an_adapter(lora: Any) -> None:
    saved = load_file("runs/lora/model/adapter_model.safetensors")  # names as peft saves them
    shards(Path("runs/lora/checkpoints/checkpoint-9"), saved)
    named = {name: tensor for name, tensor in lora.state_dict().items() if "lora_" in name}
    assert all(".default." in name for name in named)  # names as modules have them
    shards(Path("runs/lora/checkpoints/checkpoint-8"), named)
    for step in ("8", "9"):
        export("runs/lora", "--out", f"out/adapter{step}", "--checkpoint", step)
        found = load_file(f"out/adapter{step}/adapter_model.safetensors")
        assert found.keys() == saved.keys()
        assert all(torch.equal(found[name], saved[name]) for name in saved)
    export("runs/lora", "--out", "out/merged9", "--checkpoint", "9", "--merge")
    merged = AutoModelForCausalLM.from_pretrained("out/merged9")
    torch.testing.assert_close(logits(merged, IDS), logits(lora, IDS), rtol=1e-4, atol=1e-5)


VLLM = """
import sys
from vllm import LLM, SamplingParams
model = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=64)
sampling = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
print(*model.generate([{"prompt_token_ids": list(range(5, 15))}], sampling)[0].outputs[0].token_ids)
"""


@pytest.mark.vllm
def test_vllm_reads_it(place: Path, tmp_path: Path) -> None:
    scratch = {
        "hidden_size": 64,
        "layers": 2,
        "heads": 2,
        "max_positions": 64,
    }  # heads as vLLM wants them on a CPU
    whole = trained("served", model={"scratch": scratch})
    export("runs/served", "--out", str(tmp_path / "model"))
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, "-c", VLLM, str(tmp_path / "model")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = whole.generate(IDS, do_sample=False, max_new_tokens=8, min_new_tokens=8, eos_token_id=[])
    assert done.stdout.strip().splitlines()[-1].split() == [str(int(i)) for i in expected[0, IDS.shape[1] :]]


def test_masked_diffusion_with_code_of_its_own(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("models/double")
    folder.mkdir(parents=True)
    tokenizer = character_tokenizer("0123456789+-*/()=,>")
    remote_checkpoint(folder, "Double", vocabulary=len(tokenizer))
    tokenizer.save_pretrained(folder)
    data = {"name": "countdown", "args": {"size": 32, "held_out": 8, "demonstrations": 2}}
    made = trained(
        "double",
        method="mdlm_sft",
        model={"path": "models/double", "trust_remote_code": True},
        data=data,
        objective={"canvas_length": 24},
    )
    export("runs/double", "--out", "out/double")
    assert "not as a decoder" in capsys.readouterr().out
    assert Path("out/double/modeling_double.py").is_file()
    loaded = load_mask_model("out/double", trust_remote_code=True)
    assert torch.equal(logits(loaded, IDS), logits(made, IDS))
    Path("runs/double/model/modeling_double.py").unlink()
    export("runs/double", "--out", "out/double-again")  # the code is that of model.path
    assert Path("out/double-again/modeling_double.py").is_file()
    (folder / "modeling_double.py").unlink()
    said = refusal(capsys, "runs/double", "--out", "out/without-code")
    assert "code, modeling_double.py, that is neither there nor in models/double" in said


def test_a_run_in_stages(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, tokenizer = Path("runs/stages"), character_tokenizer()
    RunWriter(run).write_environment(seed=0)
    checkpoints = run / "checkpoints"
    (checkpoints / "run.json").write_text("{}")
    assert "has finished none yet" in refusal(capsys, str(run), "--out", "out/stages")
    for number in range(3):
        model = scratch_llama(tokenizer, hidden_size=16, layers=1, heads=2, seed=number)
        model.save_pretrained(checkpoints / "policies" / f"{number:03d}")
        tokenizer.save_pretrained(checkpoints / "policies" / f"{number:03d}")
        (checkpoints / "stages" / f"{number:03d}").mkdir(parents=True)
        (checkpoints / "stages" / f"{number:03d}" / "done.json").write_text('{"steps": 5}')
    export(str(run), "--out", "out/stages")
    assert "step 10, from" in capsys.readouterr().out
    assert torch.equal(
        load_file(f"out/stages/{WEIGHTS}")["lm_head.weight"],
        load_file(checkpoints / "policies" / "002" / WEIGHTS)["lm_head.weight"],
    )
    assert "after 1, 2" in refusal(capsys, str(run), "--out", "out/none", "--checkpoint", "7")


def test_what_cannot_be_exported(whole: Any, lora: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", "out/refused")
    assert refusal(capsys, "nowhere", *out).startswith("there is no folder nowhere; give a run's folder")
    assert "no run of posttrain" in refusal(capsys, "models", *out)
    assert "or its run, runs/whole" in refusal(capsys, "runs/whole/model", *out)
    checkpoint = "runs/whole/checkpoints/checkpoint-2"
    assert "runs/whole --checkpoint 2" in refusal(capsys, checkpoint, *out)
    RunWriter(Path("runs/begun")).write_environment(seed=0)
    assert "no checkpoint and no model yet; train it on" in refusal(capsys, "runs/begun", *out)
    assert "there are those of 2, 4" in refusal(capsys, "runs/whole", *out, "--checkpoint", "3")
    assert "write a number or last" in refusal(capsys, "runs/whole", *out, "--checkpoint", "best")
    assert "float32, bfloat16, float16" in refusal(capsys, "runs/whole", *out, "--dtype", "int3")
    assert "did you mean 'bfloat16'?" in refusal(capsys, "runs/whole", *out, "--dtype", "bfloat-16")
    assert "has no adapter; leave it out" in refusal(
        capsys, "runs/whole", *out, "--merge", "--checkpoint", "2"
    )
    assert "is no name the hub takes" in refusal(capsys, "runs/whole", *out, "--push", "a/b/c")
    assert refusal(capsys, "runs/whole", "--out", "models").startswith("--out: models is not empty; name")
    assert sorted(Path("out").glob(".*")) == []
    assert not Path("out/refused").exists()


def test_nothing_is_left_of_an_export_that_fails(
    whole: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("runs/whole/checkpoints/checkpoint-6")
    folder.mkdir()
    (folder / "config.json").write_text(Path("runs/whole/model/config.json").read_text())
    weights = load_file(f"runs/whole/model/{WEIGHTS}")
    save_file(weights | {"lm_head.weight": weights["lm_head.weight"] + 1e5}, folder / WEIGHTS)
    said = refusal(capsys, "runs/whole", "--out", "a/large", "--checkpoint", "6", "--dtype", "float16")
    assert "lm_head.weight is not finite in torch.float16" in said
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10])
    said = refusal(capsys, "runs/whole", "--out", "a/cut", "--checkpoint", "6")
    assert "cannot be read" in said

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "write_card", full)
    said = refusal(capsys, "runs/whole", "--out", "a/full", "--checkpoint", "4")
    assert said.startswith("--out: a/full cannot be written: No space left on device; make room")
    assert list(Path("a").iterdir()) == []


def test_a_push_and_one_that_fails(
    whole: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[tuple[str, list[str], bool]] = []

    class FakeApi:
        fails = False

        def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> Any:
            if self.fails:
                raise ConnectionError("nobody there")
            self.private = private
            return SimpleNamespace(repo_id=repo)

        def upload_folder(self, *, repo_id: str, folder_path: Path, **_: Any) -> Any:
            sent.append((repo_id, sorted(path.name for path in folder_path.iterdir()), self.private))
            return SimpleNamespace(repo_url=f"https://hub/{repo_id}")

    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    export("runs/whole", "--out", "out/pushed", "--checkpoint", "4", "--push", "anna/mine")
    assert "hub: pushed to https://hub/anna/mine" in capsys.readouterr().out
    ((repo, names, private),) = sent
    assert (repo, private) == ("anna/mine", True)
    assert {"README.md", WEIGHTS, "config.json"} <= set(names)
    assert "training_args.bin" not in names
    monkeypatch.setattr(FakeApi, "fails", True)
    export(
        "runs/whole",
        "--out",
        "out/alone",
        "--checkpoint",
        "4",
        "--push",
        "anna/mine",
        code=exit_codes.REFUSED,
    )
    assert "not pushed to anna/mine (ConnectionError: nobody there)" in capsys.readouterr().err
    AutoModelForCausalLM.from_pretrained("out/alone")  # what was exported stands
