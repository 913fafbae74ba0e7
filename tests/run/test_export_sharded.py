"""Checkpoints of engines that shard, as two processes write them: the export is what they had in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from export_helpers import written_recipe
from places import SUPPORT
from safetensors.torch import load_file

from posttrain.cli import main
from posttrain.rollout.model_folder import load_whole
from posttrain.trainers.models.load import character_tokenizer, scratch_llama

SCRIPT = SUPPORT / "sharded_command.py"
DEEPSPEED = (pytest.mark.deepspeed, pytest.mark.distributed)


def run(kind: str, changed: tuple[str, str], root: Path, model: dict, precision: str = "no") -> dict:
    """runs/KIND on two processes, with the launch file of a user but for one change; the weights in memory."""
    text = (root / "launch" / "accelerate" / f"{kind}.yaml").read_text()
    assert changed[0] in text
    Path("launch.yaml").write_text(text.replace(*changed))
    train = {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "gradient_checkpointing": False,
    }
    train |= {"bf16": precision == "bf16"}
    recipe = written_recipe(kind, model=model, train=train)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch.yaml"]
    command += ["--num_processes", "2", "--mixed_precision", precision]
    command += [str(SCRIPT), kind, "kept.pt", "train", recipe]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    Path("said.txt").write_text(done.stdout)
    return torch.load("kept.pt", weights_only=True)


SCRATCH = {"scratch": {"hidden_size": 32, "layers": 2, "heads": 2, "max_positions": 64}}
FULL = ("FULL_STATE_DICT", "SHARDED_STATE_DICT")
UNGATHERED = ("zero3_save_16bit_model: true", "zero3_save_16bit_model: false")


@pytest.mark.parametrize(
    ("kind", "changed", "named"),
    [
        pytest.param("fsdp2", FULL, "shards of FSDP", marks=pytest.mark.distributed),
        pytest.param("zero3", UNGATHERED, "shards of ZeRO", marks=DEEPSPEED),
    ],
)
def test_a_model_in_shards(
    kind: str,
    changed: tuple[str, str],
    named: str,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = run(kind, changed, root, SCRATCH)
    assert f"gather them with: posttrain export runs/{kind} --out DIR" in Path("said.txt").read_text()
    assert main(["export", f"runs/{kind}", "--out", "out"]) == 0
    assert named in capsys.readouterr().out
    found = load_file("out/model.safetensors")
    assert found.keys() == kept.keys()
    assert all(torch.equal(found[name], kept[name]) for name in kept)
    load_whole("out")


@pytest.mark.deepspeed
@pytest.mark.distributed
def test_an_adapter_under_zero3(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers gathers adapters whatever zero3_save_16bit_model says."""
    monkeypatch.chdir(tmp_path)
    tokenizer = character_tokenizer()
    scratch_llama(tokenizer, **SCRATCH["scratch"]).save_pretrained("base")
    tokenizer.save_pretrained("base")
    kept = run("zero3", UNGATHERED, root, {"path": "./base", "peft": {"r": 2, "alpha": 64}})
    assert main(["export", "runs/zero3", "--out", "out"]) == 0
    assert Path("out/adapter_model.safetensors").is_file()
    assert main(["export", "runs/zero3", "--out", "merged", "--merge"]) == 0
    found, base = load_file("merged/model.safetensors"), load_file("base/model.safetensors")
    assert max((found[name] - base[name]).abs().max().item() for name in base) > 1e-4
    for name, tensor in kept.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=name)


@pytest.mark.deepspeed
@pytest.mark.distributed
def test_float32_of_a_run_in_16_bits_comes_from_the_shards(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run("zero2", ("zero_stage: 2", "zero_stage: 2"), root, SCRATCH, "bf16")
    assert main(["export", "runs/zero2", "--out", "narrow"]) == 0
    assert "from runs/zero2/model; bfloat16" in capsys.readouterr().out
    assert main(["export", "runs/zero2", "--out", "wide", "--dtype", "float32"]) == 0
    assert "checkpoint-2 (shards of ZeRO, gathered); float32" in capsys.readouterr().out
    narrow, wide = load_file("narrow/model.safetensors"), load_file("wide/model.safetensors")
    for name, tensor in wide.items():
        assert torch.equal(tensor.bfloat16(), narrow[name]), name
    assert any(not torch.equal(tensor, narrow[name].float()) for name, tensor in wide.items())
