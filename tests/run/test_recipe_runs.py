"""Recipes as a user runs them: a reward of one's own, Ctrl-C, a resume, two processes, the Python way."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from posttrain.observe.writer import read_events, read_metrics, read_recipe_changes

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


def wait_for_step(folder: Path, step: int) -> None:
    metrics = folder / "runs" / "own" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not (
        metrics.exists() and f'"step": {step},' in metrics.read_text()
    ):
        time.sleep(0.05)


BATCH = "train.per_device_train_batch_size=12"  # one process's, for as many responses as two have


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
    wait_for_step(tmp_path / "cut", 1)
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
    (cut / "report.html").unlink()  # killed before its page was drawn
    assert "is finished" in finish(start("train", "own.yaml", "--resume", cwd=tmp_path / "cut"))
    assert (cut / "report.html").exists()
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
    assert "`bapo`" in (tmp_path / "runs" / "own" / "model" / "README.md").read_text()


@pytest.mark.distributed
def test_two_processes_stop_and_go_on_bit_for_bit(tmp_path):
    """SIGUSR1 in mid-window, under a launcher that would die of it; then the rest, and first by too few processes."""
    launcher = (
        "launch",
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    )
    words = (*launcher, "-m", "posttrain", "train", "own.yaml")
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, steps=6, batch=6)
    finish(start(*words, cwd=tmp_path / "whole"))
    process = start(*words, cwd=tmp_path / "cut")
    wait_for_step(tmp_path / "cut", 1)
    process.send_signal(signal.SIGUSR1)
    said = finish(process, code=130)
    last = said.strip().splitlines()[-1]
    assert last.startswith("stopped at step ")
    assert last.endswith("continue with: the same launcher and posttrain train own.yaml --resume")
    alone = finish(start("train", "own.yaml", "--resume", "--set", BATCH, cwd=tmp_path / "cut"), code=2)
    assert "was written by 2 processes, now there is 1" in alone
    finish(start(*words, "--resume", cwd=tmp_path / "cut"))
    expected = weights(tmp_path / "whole" / "runs" / "own")
    for name, value in weights(tmp_path / "cut" / "runs" / "own").items():
        assert torch.equal(expected[name], value), name


def test_what_a_resume_changes_is_applied_and_written_down(tmp_path):
    write(tmp_path, steps=8)
    (tmp_path / "own.yaml").write_text(
        (tmp_path / "own.yaml").read_text().replace("save_steps: 2", "save_steps: 1")
    )
    process = start("train", "own.yaml", cwd=tmp_path)
    wait_for_step(tmp_path, 1)
    assert process.stdout is not None
    process.stdout.close()  # `| head` has seen enough
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.wait(200) == 130, said[-3000:]
    assert "its output was closed: stopping after this step with a checkpoint" in said
    step = int(re.findall(r"stopped at step (\d+) of 8; continue with", said)[0])
    run = tmp_path / "runs" / "own"
    said = finish(start("train", "own.yaml", "--resume", "--set", "train.seed=1", cwd=tmp_path), code=2)
    assert "own.yaml: --resume: train.seed was 0, not 1" in said
    said = finish(start("train", "own.yaml", "--resume", "--set", "train.learning_rate=5e-3", cwd=tmp_path))
    assert f"from step {step + 1}: train.learning_rate: 0.001 -> 0.005" in said
    rates = {row["step"]: row["learning_rate"] for row in read_metrics(run) if "learning_rate" in row}
    by_hand = {n: (1e-3 if n <= step else 5e-3) * (8 - n + 1) / 8 for n in range(1, 9)}
    assert rates == pytest.approx(by_hand)
    (entry,) = read_recipe_changes(run)
    assert (entry.after_step, [str(c) for c in entry.changes]) == (
        step,
        ["train.learning_rate: 0.001 -> 0.005"],
    )
    assert (
        f"From step {step + 1}: train.learning_rate: 0.001 -&gt; 0.005." in (run / "report.html").read_text()
    )
    assert not (run / ".model.saving").exists()


BREAKS = """
import os

def breaks():
    if WHEN:
        raise KeyError("no such unit")
""" + REWARD.replace("    return [", "    breaks()\n    return [")
IN_SECOND_ROLLOUT = (
    """print(".", file=open("calls", "a")) or os.path.getsize("calls") > 4"""  # two bytes a call
)
PARENT = """int(open(f"/proc/{os.getppid()}/stat").read().rpartition(")")[2].split()[1])"""
ON_RANK_1 = f"""b"\\0RANK=1\\0" in open("/proc/%d/environ" % {PARENT}, "rb").read()"""
# a worker has no rank, nor has its keeper, whose parent is the trainer


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
def test_a_rank_that_is_stuck_ends_the_run_within_its_timeout(tmp_path, monkeypatch):
    """transformers passes train.ddp_timeout on where there is a GPU, and nowhere else."""
    monkeypatch.setenv(
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "1"
    )  # torchrun's own patience with the rank that is stuck
    write(tmp_path, steps=5000, batch=6)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    process = start("train", "own.yaml", "--set", "train.ddp_timeout=3", cwd=tmp_path, launcher=launcher)
    wait_for_step(tmp_path, 2)
    psutil.Process(process.pid).children()[-1].suspend()
    out, err = process.communicate(timeout=120)
    assert "have waited for each other in vain, though all are there" in out + err


@pytest.mark.distributed
def test_a_reward_that_raises_on_one_rank_stops_all_of_them(tmp_path):
    write(tmp_path, steps=3)
    (tmp_path / "my_reward.py").write_text(BREAKS.replace("WHEN", ON_RANK_1))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    said = finish(start("train", "own.yaml", cwd=tmp_path, launcher=launcher), code=1)
    assert "own.yaml: on rank 1: reward 'starts_low' failed on completion" in said
    assert "KeyError: 'no such unit'" in said
