"""Recipes as a user runs them: a reward of one's own, Ctrl-C, a resume, two processes, the Python way."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from posttrain.observe.writer import read_events, read_metrics

RECIPE = """
method: bapo
model: {{scratch: {{hidden_size: 32, layers: 2, heads: 2, max_positions: 64}}}}
data: {{name: sort}}
rewards:
  - {{name: "{reward}:starts_low", args: {{limit: 5}}}}
rollout: {{group_size: 4, max_new_tokens: 6}}
train:
  max_steps: {steps}
  per_device_train_batch_size: {batch}
  num_iterations: 2
  learning_rate: 1.0e-3
  gradient_checkpointing: false
  use_cpu: true
output: {{name: own, save_steps: 2, report_to: [], record: [2]}}
"""
REWARD = '''
def starts_low(completions, *, answer, limit, **_):
    """The first digit is below the limit; the right answer counts twice."""
    return [float(c[:1].isdigit() and int(c[:1]) < limit) + (c == a) for c, a in zip(completions, answer)]
'''


def write(folder: Path, *, steps: int, batch: int = 8) -> Path:
    (folder / "my_reward.py").write_text(REWARD)
    recipe = folder / "own.yaml"
    recipe.write_text(RECIPE.format(reward="my_reward.py", steps=steps, batch=batch))
    return recipe


def start(*words: str, cwd: Path, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "posttrain", *words],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, out[-2000:] + err[-3000:]
    return out + err


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


BENCHMARK = """
name: digits
title: Digits
licence: ours
source: this test
data: {{file: digits.jsonl, rows: 3, sha256: {sha256}}}
gold: {{rule: integer, column: answer}}
prompt: {{template: "{{question}}>"}}
sampling: {{samples: 1, max_new_tokens: 4, temperature: 0.0}}
answer: {{grader: math, args: {{rule: boxed}}}}
"""


def with_benchmark(folder: Path) -> None:
    rows = "".join(json.dumps({"question": f"{i}1", "answer": 1}) + "\n" for i in range(3))
    (folder / "digits.jsonl").write_text(rows)
    sha256 = hashlib.sha256(rows.encode()).hexdigest()
    (folder / "digits.yaml").write_text(BENCHMARK.format(sha256=sha256))
    recipe = folder / "own.yaml"
    section = "evaluation: {every: 4, benchmarks: [digits.yaml], data: .}\n"
    recipe.write_text(recipe.read_text() + section)


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path):
    """Ctrl-C in the middle saves and stops with a word on how to go on; the resumed run ends with the same weights."""
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, steps=8)
    with_benchmark(tmp_path / "whole")  # and so: a run with benchmarks trains like one without
    finish(start("train", "own.yaml", cwd=tmp_path / "whole"))
    evaluated = tmp_path / "whole" / "runs" / "own" / "benchmarks"
    assert sorted(p.name for p in evaluated.iterdir()) == ["step-000000", "step-000004", "step-000008"]
    assert json.loads((evaluated / "step-000008" / "digits" / "metrics.json").read_text())["problems"] == 3

    process = start("train", "own.yaml", cwd=tmp_path / "cut")
    metrics = tmp_path / "cut" / "runs" / "own" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not (metrics.exists() and '"step": 1' in metrics.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = finish(process, code=130)
    assert "continue with: posttrain train own.yaml --resume" in said

    said = finish(start("train", "own.yaml", "--resume", cwd=tmp_path / "cut"))
    whole, cut = tmp_path / "whole" / "runs" / "own", tmp_path / "cut" / "runs" / "own"
    for name, value in weights(whole).items():
        assert torch.equal(weights(cut)[name], value), name
    steps = [row["step"] for row in read_metrics(cut) if "loss" in row]
    assert steps == list(range(1, 9))
    assert [event["event"] for event in read_events(cut)].count("resume") == 1

    # a finished run is left as it is, and one killed before its model was saved gets it without a step more
    assert "is finished" in finish(start("train", "own.yaml", "--resume", cwd=tmp_path / "cut"))
    shutil.rmtree(cut / "model")
    finish(start("train", "own.yaml", "--resume", cwd=tmp_path / "cut"))
    for name, value in weights(whole).items():
        assert torch.equal(weights(cut)[name], value), name
    assert max(row["step"] for row in read_metrics(cut)) == 8
    assert list((whole / "records").glob("step-000002.rank0.*"))


@pytest.mark.distributed
def test_two_processes_from_one_recipe(tmp_path):
    write(tmp_path, steps=2, batch=6)  # a group of four straddles the ranks
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    finish(start("train", "own.yaml", cwd=tmp_path, launcher=launcher))
    rows = read_metrics(tmp_path / "runs" / "own")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    assert (tmp_path / "runs" / "own" / "model" / "model.safetensors").exists()


BREAKS = """
import os

def breaks():
    if WHEN:
        raise KeyError("no such unit")
""" + REWARD.replace("    return [", "    breaks()\n    return [")
IN_SECOND_ROLLOUT = (
    """print(".", file=open("calls", "a")) or os.path.getsize("calls") > 4"""  # two bytes a call
)
ON_RANK_1 = (
    """b"\\0RANK=1\\0" in open(f"/proc/{os.getppid()}/environ", "rb").read()"""  # a worker has no rank
)


def test_a_reward_that_raises_leaves_a_checkpoint_that_goes_on_as_if_it_had_not(tmp_path):
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, steps=3)
    finish(start("train", "own.yaml", cwd=tmp_path / "whole"))
    broken = tmp_path / "broken"
    (broken / "my_reward.py").write_text(BREAKS.replace("WHEN", IN_SECOND_ROLLOUT))
    said = finish(start("train", "own.yaml", cwd=broken), code=4)
    words = said[said.index("own.yaml: reward 'starts_low' failed on completions") :]
    assert "KeyError: 'no such unit'" in words
    assert "my_reward.py" in words
    assert "worker.py" not in words  # only the frames of the reward's own
    assert "saved as of step 2" in words
    assert "on_error: skip" in words
    (broken / "my_reward.py").write_text(REWARD)
    finish(start("train", "own.yaml", "--resume", cwd=broken))
    expected = weights(tmp_path / "whole" / "runs" / "own")
    for name, value in weights(broken / "runs" / "own").items():
        assert torch.equal(expected[name], value), name


@pytest.mark.distributed
def test_a_reward_that_raises_on_one_rank_stops_all_of_them(tmp_path):
    write(tmp_path, steps=3)
    (tmp_path / "my_reward.py").write_text(BREAKS.replace("WHEN", ON_RANK_1))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    said = finish(start("train", "own.yaml", cwd=tmp_path, launcher=launcher), code=1)
    assert "own.yaml: on rank 1: reward 'starts_low' failed on completion" in said
    assert "KeyError: 'no such unit'" in said
