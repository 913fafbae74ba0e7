"""Jobs of a real Slurm, all of it on this machine: python eval/faults/slurm.py [--table FILE]

Starts slurmctld and two slurmd (Debian's slurm-wlm; started as root) in a folder of its own, writes the batch file of a
small BAPO run with `posttrain launch`, two machines of one process each, and submits it: to its end; with the warning
that Slurm sends before the time limit; and cancelled. Prints what became of each, and whether the weights are those of
the uninterrupted job, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import LIMIT_S, RECIPE, REWARD, digest

STEPS = 40
CONFIG = """
ClusterName=drill
SlurmctldHost={host}
SlurmUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldPort={port}
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
ReturnToService=2
MpiDefault=none
KillWait=30
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP MaxTime=INFINITE
"""


class Cluster:
    """Two nodes on one machine; a context manager ends them."""

    def __init__(self, folder: Path) -> None:
        host = socket.gethostname().partition(".")[0]
        (folder / "state").mkdir()
        text = CONFIG.format(
            folder=folder, host=host, port=16817, first=17001, last=17002, cpus=os.cpu_count() or 1
        )
        (folder / "slurm.conf").write_text(text)
        self.folder = folder
        self.env = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }

    def __enter__(self) -> Cluster:
        for command in (["slurmctld"], ["slurmd", "-N", "n1"], ["slurmd", "-N", "n2"]):
            subprocess.run(command, env=self.env, check=True)
        until = time.monotonic() + 30
        while self.ask("sinfo", "-h", "-o", "%t %D") != "idle 2":
            if time.monotonic() > until:
                raise RuntimeError(f"the nodes do not come up; see {self.folder}/slurmctld.log")
            time.sleep(0.5)
        return self

    def __exit__(self, *_: object) -> None:
        self.ask("scancel", "--full", "--user", "root")
        for file in self.folder.glob("*.pid"):
            os.kill(int(file.read_text()), signal.SIGTERM)

    def ask(self, *command: str) -> str:
        done = subprocess.run(command, env=self.env, text=True, capture_output=True)
        return (done.stdout + done.stderr).strip()


class Job:
    """One recipe's job: its folder, its number, what it has said."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.folder = cluster, cluster.folder / name
        self.folder.mkdir()
        (self.folder / "reward.py").write_text(REWARD)
        (self.folder / "drill.yaml").write_text(RECIPE.format(steps=STEPS, batch=4))
        file = self.folder / "drill.slurm.sh"
        rendered = subprocess.run(
            [
                sys.executable,
                "-m",
                "posttrain",
                "launch",
                "drill.yaml",
                "--slurm",
                "--dry-run",
                "--machines",
                "2",
            ]
            + ["--gpus", "1", "--time", "20"],
            cwd=self.folder,
            env=cluster.env,
            text=True,
            capture_output=True,
        )
        if rendered.returncode != 0:
            raise RuntimeError(rendered.stderr)
        file.write_text(rendered.stdout)
        self.began = time.monotonic()
        self.number = cluster.ask("sbatch", "--chdir", str(self.folder), str(file)).split()[-1]
        self.run = self.folder / "runs" / "drill"

    @property
    def state(self) -> str:
        told = self.cluster.ask("scontrol", "show", "job", self.number)
        return next((word.partition("=")[2] for word in told.split() if word.startswith("JobState=")), told)

    def reach(self, step: int) -> None:
        metrics = self.run / "metrics.jsonl"
        self.wait(lambda: metrics.exists() and f'"step": {step},' in metrics.read_text())

    def wait(self, there) -> None:
        until = time.monotonic() + LIMIT_S
        while not there():
            if time.monotonic() > until:
                raise RuntimeError(f"{self.folder.name}: {self.state}\n{self.said()[-2000:]}")
            time.sleep(0.2)

    def end(self) -> str:
        self.wait(lambda: self.state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"))
        return self.state

    def said(self) -> str:
        return "".join(file.read_text(errors="replace") for file in self.folder.glob("*.log"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--table", type=Path, help="also write the table here")
    args = parser.parse_args()
    if shutil.which("slurmctld") is None:
        print("there is no Slurm here: apt-get install slurm-wlm", file=sys.stderr)
        return 2
    rows = ["| job | state | seconds | starts | model |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory(prefix="posttrain-slurm-") as name, Cluster(Path(name)) as cluster:
        whole = Job(cluster, "whole")
        rows.append(_row(whole, "to its end", "made"))

        warned = Job(cluster, "warned")
        warned.reach(STEPS // 3)
        cluster.ask("scancel", "--batch", "--signal=USR1", warned.number)
        warned.wait(lambda: "queued again" in warned.said())
        cluster.ask(
            "scontrol", "update", f"JobId={warned.number}", "StartTime=now"
        )  # Slurm waits two minutes
        ended = warned.end()
        same = ended == "COMPLETED" and digest(warned.run) == digest(whole.run)
        rows.append(_row(warned, "warned before its limit, queued again", "equal" if same else "other"))

        cancelled = Job(cluster, "cancelled")
        cancelled.reach(STEPS // 3)
        cluster.ask("scancel", cancelled.number)
        cancelled.end()
        cancelled.wait(lambda: "stopped at step" in cancelled.said())
        rows.append(_row(cancelled, "cancelled", "saved: " + _last_checkpoint(cancelled.run)))
    print("\n".join(rows))
    if args.table is not None:
        args.table.write_text("\n".join(rows) + "\n")
    return 0 if same else 1


def _row(job: Job, what: str, model: str) -> str:
    state, seconds = job.end(), time.monotonic() - job.began
    starts = job.said().count("parameters, by") or job.said().count("step 1/")
    return f"| {what} | {state} | {seconds:.0f} | {starts} | {model} |"


def _last_checkpoint(run: Path) -> str:
    return max((run / "checkpoints").glob("checkpoint-*"), key=lambda file: file.stat().st_mtime).name


if __name__ == "__main__":
    sys.exit(main())
