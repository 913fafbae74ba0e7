"""A job's file: what runs where, the engine that is chosen, and what the scripts do (with stand-ins)."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.cli import main
from posttrain.recipe import RecipeError, load_recipe
from posttrain.run.jobs.job_file import JobOptions, Kind, job_file
from posttrain.run.jobs.job_layout import Job, lay_out

TWO_MACHINES = "recipes/bapo/qwen2.5-7b_math_two_machines.yaml"
ONE_MACHINE = "recipes/bapo/qwen2.5-1.5b_gsm8k_server.yaml"
NO_SERVER = "recipes/bapo/qwen2.5-7b_math.yaml"
OPTIONS = JobOptions(command="posttrain launch RECIPE --slurm")


@pytest.fixture(autouse=True)
def _at_the_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)


def laid_out(path: str, *overrides: str, **words: Any) -> Job:
    return lay_out(load_recipe(path, list(overrides)), **words)


def four_servers(*ports: int) -> str:
    return f"rollout.vllm.servers={[f'http://10.0.0.9:{port}' for port in ports]}"


# ---- what runs where


def test_machines_by_hand() -> None:
    job = laid_out(TWO_MACHINES)
    assert (job.machines, job.trainers, job.per_machine, job.processes) == (2, 1, 8, 8)
    assert [(s.machine, s.port, s.gpus) for s in job.servers] == [(1, 8000, (0,)), (1, 8001, (1,))]

    job = laid_out(TWO_MACHINES, machines=4, per_server=8)
    assert (job.machines, job.trainers, job.processes) == (4, 2, 16)
    assert [(s.machine, s.gpus) for s in job.servers] == [(2, tuple(range(8))), (3, tuple(range(8)))]

    job = laid_out(TWO_MACHINES, four_servers(8000, 8001, 9000, 9001), gpus=4, per_server=2)
    places = [(s.machine, s.port, s.gpus) for s in job.servers]
    assert places == [(1, 8000, (0, 1)), (1, 8001, (2, 3)), (2, 9000, (0, 1)), (2, 9001, (2, 3))]


def test_on_one_machine_the_servers_have_the_last_gpus() -> None:
    job = laid_out(ONE_MACHINE, gpus=4)
    assert (job.machines, job.per_machine) == (1, 3)
    assert [(s.machine, s.port, s.gpus) for s in job.servers] == [(0, 8000, (3,))]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"machines": 1, "per_server": 4}, "nothing is left to train on"),
        ({"machines": 2, "per_server": 8}, "nothing is left to train on"),
        ({"per_server": 16}, "a server of 16 GPUs does not fit a machine of 8"),
    ],
)
def test_what_does_not_fit_is_refused(words: dict[str, int], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        laid_out(TWO_MACHINES, **words)


def test_the_engine_is_the_first_that_fits() -> None:
    peaks = dict(
        re.findall(r"(\w+) (\d+) GiB", laid_out(NO_SERVER, memory_gib=10_000).reason.partition(": ")[2])
    )
    assert list(peaks) == ["ddp", "zero2", "zero3"]
    sizes = {name: float(peak) for name, peak in peaks.items()}
    assert sizes["ddp"] > sizes["zero2"] > sizes["zero3"]
    for name, size in sizes.items():
        assert laid_out(NO_SERVER, memory_gib=(size + 1) / 0.9).engine == name
    with pytest.raises(RecipeError, match="does not fit"):
        laid_out(NO_SERVER, memory_gib=sizes["zero3"] * 0.9)
    assert laid_out(NO_SERVER, memory_gib=sizes["zero3"] * 0.9, engine="fsdp2").engine == "fsdp2"
    assert (
        laid_out(NO_SERVER, "train.per_device_train_batch_size=128", gpus=1, memory_gib=10_000).engine is None
    )


def test_a_plan_s_refusals_are_the_job_s(root: Path) -> None:
    with pytest.raises(RecipeError, match="group"):
        laid_out(NO_SERVER, "rollout.group_size=7", engine="zero3")


# ---- the files


@pytest.mark.parametrize("kind", ["slurm", "torchrun"])
@pytest.mark.parametrize("path", [TWO_MACHINES, ONE_MACHINE, NO_SERVER])
def test_scripts_are_shell(path: str, kind: Kind) -> None:
    text = job_file(laid_out(path), kind, OPTIONS)
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr
    assert "{{" not in text
    assert "{%" not in text
    assert not re.search(r"[ \t]+$", text, re.MULTILINE)


def test_a_batch_file_by_hand() -> None:
    options = JobOptions(
        command="c", time="4:00:00", notice_s=120, partition="a100", account="lab", restarts=5
    )
    text = job_file(laid_out(TWO_MACHINES, "train.bf16=true", machines=3), "slurm", options)
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, re.MULTILINE))
    assert asked["nodes"] == "3"
    assert asked["gpus-per-node"] == "8"
    assert asked["time"] == "4:00:00"
    assert asked["partition"] == "a100"
    assert asked["account"] == "lab"
    assert asked["signal"] == "B:USR1@120"
    assert "requeue" in asked
    assert "--num_machines 2 --num_processes 16" in text
    assert "--deepspeed_multinode_launcher standard" in text
    assert '[ "${SLURM_RESTART_COUNT:-0}" -lt 5 ]' in text
    assert "--max-model-len 4096" in text


def test_a_task_of_skypilot() -> None:
    task = yaml.safe_load(job_file(laid_out(TWO_MACHINES), "skypilot", OPTIONS))
    assert task["num_nodes"] == 2
    assert task["resources"] == {"accelerators": "H100:8"}
    assert task["secrets"] == {"VLLM_API_KEY": None}
    assert task["setup"] == "pip install -e '.[vllm,deepspeed]'\n"
    assert subprocess.run(["bash", "-n"], input=task["run"], text=True).returncode == 0


def test_the_command_prints_or_writes(capsys, monkeypatch, tmp_path, root: Path) -> None:
    assert main(["launch", TWO_MACHINES, "--slurm", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("#!/bin/bash\n")
    monkeypatch.setenv("PATH", "/nowhere")
    out = tmp_path / "job.sh"
    assert main(["launch", TWO_MACHINES, "--slurm", "--out", str(out)]) == 2
    assert out.read_text().splitlines()[5:] == printed.splitlines()[5:]
    assert "there is no sbatch here; start it with: sbatch" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert main(["launch", str(root / TWO_MACHINES), "--slurm"]) == 2
    assert "start from the repository's folder" in capsys.readouterr().err


# ---- what the scripts do


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


SERVER = """#!/usr/bin/env bash
echo "$HOST $PORT $DTYPE $SYNC $VLLM_API_KEY $*" > served-$PORT
mkdir -p health-$PORT && touch health-$PORT/health
exec {python} -m http.server --bind "$HOST" --directory health-$PORT "$PORT"
"""
TRAINER = """#!/usr/bin/env bash
echo "$*" > trained-$NODE
{does}
"""
WAITS = "trap 'sleep 0.3; echo saved > saved; exit 130' TERM; touch steps; while :; do sleep 0.05; done"


class Script:
    """The script of a job in a folder of its own, its trainer and servers stand-ins."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, does: str, machines: int = 1):
        self.ports = (free_port(), free_port())
        urls = [f"http://{'127.0.0.1' if machines == 1 else '10.0.0.2'}:{port}" for port in self.ports]
        job = laid_out(TWO_MACHINES, f"rollout.vllm.servers={urls}", machines=machines)
        bin_, launch = folder / "bin", folder / "launch"
        for made in (bin_, launch):
            made.mkdir()
        for file, text in (
            (bin_ / "posttrain", TRAINER.format(does=does)),
            # not a link: python looks for its environment beside the name it is called by
            (bin_ / "python", '#!/usr/bin/env bash\nexec {python} "$@"\n'),
            (launch / "serve_vllm.sh", SERVER),
        ):
            file.write_text(text.replace("{python}", sys.executable))
            file.chmod(0o755)
        monkeypatch.chdir(folder)
        setup = f"export PATH={bin_}:$PATH"
        (folder / "job.sh").write_text(job_file(job, "torchrun", JobOptions("c", setup=setup)))
        self.folder = folder

    def start(self, **environment: str) -> subprocess.Popen[str]:
        root = str(Path(__file__).resolve().parents[2])
        env = {**os.environ, "PYTHONPATH": root, **environment}
        return subprocess.Popen(
            ["bash", "job.sh"],
            cwd=self.folder,
            env=env,
            text=True,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def wait_for(self, name: str) -> None:
        end = time.monotonic() + 30
        while not (self.folder / name).exists():
            assert time.monotonic() < end, name
            time.sleep(0.05)

    def servers_are_gone(self) -> bool:
        def taken(port: int) -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        return not any(taken(port) for port in self.ports)


def test_servers_then_trainer_then_the_end_of_both(tmp_path: Path, monkeypatch) -> None:
    script = Script(tmp_path, monkeypatch, "exit 3")
    assert script.start().wait(60) == 3
    words = (tmp_path / "trained-0").read_text()
    urls = ",".join(f"http://127.0.0.1:{port}" for port in script.ports)
    assert f"--set rollout.vllm.servers=[{urls}] --resume auto" in words
    host, port, dtype, sync, key, *served = (tmp_path / f"served-{script.ports[0]}").read_text().split()
    assert (host, port, dtype, sync) == ("127.0.0.1", str(script.ports[0]), "bfloat16", "nccl")
    assert re.fullmatch("[0-9a-f]{48}", key)
    assert served == ["Qwen/Qwen2.5-7B-Instruct", "--max-model-len", "4096"]
    assert script.servers_are_gone()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_job_that_is_asked_to_end_saves(tmp_path: Path, monkeypatch, number: signal.Signals) -> None:
    script = Script(tmp_path, monkeypatch, WAITS)
    job = script.start()
    script.wait_for("steps")
    job.send_signal(number)
    assert job.wait(30) == 130
    assert (tmp_path / "saved").read_text() == "saved\n"
    assert script.servers_are_gone()


def test_servers_that_do_not_come_up_end_the_job(tmp_path: Path, monkeypatch) -> None:
    script = Script(tmp_path, monkeypatch, "exit 0")
    (tmp_path / "launch" / "serve_vllm.sh").write_text("#!/usr/bin/env bash\nexit 1\n")
    job = script.start(SERVERS_WITHIN_S="0")
    _, said = job.communicate(timeout=30)
    assert job.returncode == 3
    assert "did not answer within 0 s; see its log" in said
    assert not (tmp_path / "trained-0").exists()


def test_a_machine_of_servers_ends_with_the_training(tmp_path: Path, monkeypatch) -> None:
    script = Script(tmp_path, monkeypatch, "sleep 3; exit 0", machines=2)
    words = {"NODES": "127.0.0.1 127.0.0.1", "VLLM_API_KEY": "k", "PORT": str(free_port())}
    head, other = script.start(NODE="0", **words), script.start(NODE="1", **words)
    assert head.wait(60) == 0
    assert other.poll() is None
    assert "--machine_rank 0" in (tmp_path / "trained-0").read_text()
    assert "sync_host=127.0.0.1" in (tmp_path / "trained-0").read_text()
    assert not (tmp_path / "trained-1").exists()
    assert other.wait(60) == 0
    assert script.servers_are_gone()


def test_a_script_for_several_machines_wants_to_know_which(tmp_path: Path, monkeypatch) -> None:
    job = Script(tmp_path, monkeypatch, "exit 0", machines=2).start(NODES="10.0.0.1")
    assert job.wait(30) == 2
