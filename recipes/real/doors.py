"""One real model through every door: supervised, preferences, RL, LoRA, bfloat16, vLLM, export, a server, benchmarks.

    python recipes/real/doors.py --data DIR [NAME ...] [--list] [--again]        (or: make real-doors DATA=DIR)

DIR holds, a folder each, ultrafeedback_sample (train and eval, .jsonl.gz: prompt, chosen, rejected), dpo_kto_demo
(dpo_en_demo, kto_en_demo, .json.gz), gsm8k, math500, ifeval and alpaca_eval; `posttrain eval tasks` says where the
benchmarks' files come from. The model is runs/real/start (recipes/real/make_model.py). Every door is a few steps: it
shows that the door opens and what that costs, not what the method is worth.

Doors are gone through in order. The first that fails ends it with one line; the same command goes on there. What is
done stands in runs/real/doors/NAME.json and is not done again without --again. Seconds are the clock's and the
processor's, memory is the largest sum over a door's processes (a page that several share counted once), both with any
server that it starts.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
from rich.console import Console
from rich.table import Table

STATE = Path("runs/real/doors")
START = "runs/real/start"
PORT = 8765
SERVED = "real"
ANSWERS = "runs/eval/start"
BENCHMARKS = ("gsm8k", "math500", "ifeval")
SHORT = {
    "data__eval__limit": 8,
    "rollout__group_size": 4,
    "train__max_steps": 2,
    "train__eval_steps": 2,
    "train__warmup_steps": 0,
    "train__per_device_train_batch_size": 4,
    "train__gradient_accumulation_steps": 5,
    "train__per_device_eval_batch_size": 8,
    "output__logging_steps": 1,
}
"""The recipe of `make real`, cut to two steps of its eighteen, groups of four and 8 of its 128 held-out prompts."""

METRICS = (
    "loss",
    "eval_loss",
    "reward",
    "eval_reward",
    "rewards/margins",
    "rewards/accuracies",
    "salsa/kl_to_start",
    "salsa/kl_to_soup",
    "seppo/flip_rate",
    "copo/all_wrong",
    "copo/local_weight_mean",
    "capo/rejected_share",
    "rollout/proof_gap",
    "rollout/staleness",
    "kto/reference_point",
)


class Failed(Exception):
    """Which command of a door failed, and what it said last."""


@dataclass(frozen=True)
class Door:
    """name, what it shows, the commands in order; `run` names the run folders whose figures are kept, `evaluated` the
    folder of evaluations, `server` what is started before the commands and ended after them."""

    name: str
    shows: str
    commands: tuple[tuple[str, ...], ...]
    run: str = ""
    evaluated: str = ""
    server: tuple[str, ...] = ()


def posttrain(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "posttrain", *words)


def train(recipe: str, **values: Any) -> tuple[str, ...]:
    """`posttrain train`; values are overrides, `__` for a dot."""
    sets = [word for key, value in values.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]
    return posttrain("train", f"recipes/real/{recipe}.yaml", *sets)


def serve(model: str, *words: str) -> tuple[str, ...]:
    return ("bash", "launch/serve_vllm.sh", model, "--served-model-name", SERVED, *words)


def trainings(data: Path) -> Iterator[Door]:
    """The doors that need torch and transformers alone."""
    pairs, held_out = (data / "ultrafeedback_sample" / f"{part}.jsonl.gz" for part in ("train", "eval"))
    gsm8k = data / "gsm8k" / "train.jsonl.gz"
    answers = {"data__path": pairs, "data__eval__path": held_out}
    yield Door("sft", "supervised, on chosen answers", (train("sft", **answers),), run="real-sft1")
    second = train("sft", **answers, train__seed=2, output__name="real-sft2")
    yield Door("sft2", "the same with another order of rows", (second,), run="real-sft2")
    yield Door("rpo", "RPO, UltraFeedback's pairs", (train("rpo", data__path=pairs),), run="real-rpo")
    demo = data / "dpo_kto_demo"
    sharegpt = train("rpo", data__path=demo / "dpo_en_demo.json.gz", output__name="real-rpo-sharegpt")
    yield Door("rpo_sharegpt", "RPO, ShareGPT pairs as they come", (sharegpt,), run="real-rpo-sharegpt")
    marked = train("kto", data__path=demo / "kto_en_demo.json.gz")
    yield Door("kto", "KTO, marked answers as they come", (marked,), run="real-kto")
    yield Door("salsa", "SALSA, from the two SFT models", (train("salsa"),), run="real-salsa")
    for name, setting in (
        ("full", {}),
        ("lora", {"model__peft": "{r: 8, alpha: 16}"}),
        ("bf16", {"train__bf16": "true"}),
    ):
        run = f"real-instructions-{name}"
        command = train("instructions", **SHORT, **setting, output__name=run)
        yield Door(name, f"DAPO on instructions, {name}", (command,), run=run)
    yield Door(
        "seppo", "SePPO, UltraFeedback's chosen", (train("seppo", data__path=pairs),), run="real-seppo"
    )
    log, rows = "runs/real/log.jsonl", "runs/real/complaints"
    made = (sys.executable, "recipes/real/make_log.py", str(pairs), "--out", log)
    drift = (made, posttrain("data", "feedback", log, "--out", rows), train("drift"))
    yield Door("drift", "DRIFT, a log with made-up complaints", drift, run="real-drift")
    for name in ("copo", "capo"):
        yield Door(name, f"{name.upper()}, short GSM8K", (train(name, data__path=gsm8k),), run=f"real-{name}")


def engines(data: Path) -> Iterator[Door]:
    """The doors that need vLLM, and the benchmarks."""
    cache = "{gpu_memory_utilization: 0.2, max_model_length: 256, enforce_eager: true}"
    beside = train(
        "instructions", **SHORT, rollout__engine="vllm", rollout__vllm=cache, output__name="real-vllm"
    )
    yield Door("vllm", "DAPO, vLLM beside the trainer", (beside,), run="real-vllm")
    address = f'{{servers: ["http://127.0.0.1:{PORT}"], timeout_s: 120}}'
    settings = {"rollout__engine": "vllm_server", "rollout__staleness": 1, "rollout__vllm": address}
    ahead = train("instructions", **SHORT, **settings, output__name="real-server")
    server = serve(START, "--max-model-len", "256")
    yield Door("vllm_server", "DAPO, a server one step ahead", (ahead,), run="real-server", server=server)
    exported = "runs/real/exported"
    yield Door(
        "export",
        "LoRA's run as a whole model",
        (
            posttrain("export", "runs/real-instructions-lora", "--merge", "--out", exported),
            posttrain(
                "chat",
                exported,
                "--prompt",
                "What is the capital of France?",
                "--temperature",
                "0",
                "--max-new-tokens",
                "24",
            ),
        ),
    )
    question = (sys.executable, "recipes/real/doors.py", "--ask", "What is the capital of France?")
    yield Door(
        "serve",
        "the exported model behind HTTP",
        (question,),
        server=serve(exported, "--max-model-len", "512"),
    )
    how = "--engine vllm --dtype bfloat16 --limit 8 --max-new-tokens 1024 --gpu-memory-utilization 0.3"
    answers = posttrain(
        "eval", "generate", START, *BENCHMARKS, "alpaca_eval", *how.split(), "--data", str(data)
    )
    yield Door("answers", "benchmarks' first 8 problems, answered", (answers,))
    for name in BENCHMARKS:
        folder = f"{ANSWERS}/{name}"
        yield Door(name, "graded", (posttrain("eval", "grade", folder),), evaluated=folder)
    where = f"--judge {SERVED} --base-url http://127.0.0.1:{PORT}/v1 --swapped 6 --timeout 180".split()
    judge = posttrain("eval", "judge", f"{ANSWERS}/alpaca_eval", *where, "--data", str(data))
    server = serve(START, "--max-model-len", "4096")
    shows = "AlpacaEval, judged by the model itself"
    yield Door("alpaca_eval", shows, (judge,), evaluated=f"{ANSWERS}/alpaca_eval", server=server)


class Meter:
    """Memory of this process's children, several times a second: the largest sum of their proportional sets, bytes."""

    def __init__(self) -> None:
        self.peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            total = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:  # it has ended since
                    continue
            self.peak = max(self.peak, total)

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def processor_seconds() -> float:
    """Of all children that have ended and were waited for, theirs included."""
    used = os.times()
    return used.children_user + used.children_system


def told(command: Sequence[str]) -> str:
    """A command as one types it."""
    words = ["python" if word == sys.executable else word for word in command]
    return " ".join(f"'{word}'" if " " in word else word for word in words).replace(
        "python -m posttrain", "posttrain"
    )


@contextmanager
def served(command: Sequence[str], log: IO[str], wait_s: float = 600) -> Iterator[None]:
    """A vLLM server that answers while the block runs, and is ended after it. Raises Failed."""
    env = {**os.environ, "PORT": str(PORT), "PYTHON": sys.executable}
    with subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True) as process:
        try:
            until = time.monotonic() + wait_s
            while not healthy():
                if process.poll() is not None:
                    raise Failed(f"{told(command)}: the server ended with exit code {process.returncode}")
                if time.monotonic() > until:
                    raise Failed(f"{told(command)}: no answer after {wait_s:.0f} s")
                time.sleep(1)
            yield
        finally:
            end_group(process)


def end_group(process: subprocess.Popen[bytes], grace_s: float = 30) -> None:
    """Ends a process that leads a session, and what it has started there."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
            if sign == signal.SIGTERM:
                time.sleep(0.5)  # its children end a little later


def healthy() -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def ask(text: str) -> str:
    """The served model's answer to one message."""
    body = {
        "model": SERVED,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 24,
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


def figures(door: Door) -> dict[str, Any]:
    """What a run logged first and last, or the scores of an evaluation."""
    if door.evaluated:
        metrics = json.loads((Path(door.evaluated) / "metrics.json").read_text())
        scores = {name: found["value"] for name, found in metrics["metrics"].items()}
        counts = ("problems", "samples", "truncated", "no_answer", "cannot_judge")
        return {**scores, **{name: metrics.get(name) for name in counts}}
    if not door.run:
        return {}
    lines = (Path("runs") / door.run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    found = {name: [row[name] for row in rows if name in row] for name in METRICS}
    return {name: [values[0], values[-1]] for name, values in found.items() if values}


def go_through(door: Door, state: Path) -> dict[str, Any]:
    """Runs a door's commands, with their output in state/NAME.log. Raises Failed."""
    began, used = time.monotonic(), processor_seconds()
    log_path = state / f"{door.name}.log"
    with log_path.open("w") as log, Meter() as meter:

        def run_all() -> None:
            for command in door.commands:
                log.write(f"$ {told(command)}\n")
                log.flush()
                done = subprocess.run(command, stdout=log, stderr=log)
                if done.returncode:
                    raise Failed(f"{told(command)}: exit code {done.returncode}")

        if door.server:
            with served(door.server, log):
                run_all()
        else:
            run_all()
    return {
        "door": door.name,
        "commands": [told(command) for command in ((door.server,) if door.server else ()) + door.commands],
        "seconds": round(time.monotonic() - began, 1),
        "processor_seconds": round(processor_seconds() - used, 1),
        "peak_gib": round(meter.peak / 2**30, 2),
        "figures": figures(door),
    }


def shown(value: Any) -> str:
    if isinstance(value, list):
        return " -> ".join(map(shown, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def table(results: Sequence[dict[str, Any]]) -> Table:
    found = Table("door", "seconds", "of a processor", "GiB", "first -> last")
    for one in results:
        text = ", ".join(f"{name} {shown(value)}" for name, value in one["figures"].items())
        numbers = (f"{one['seconds']:.0f}", f"{one['processor_seconds']:.0f}", f"{one['peak_gib']:.1f}")
        found.add_row(one["door"], *numbers, text)
    return found


def through(doors: Sequence[Door], state: Path, console: Console, *, again: bool) -> int:
    """All of `doors`; 1 at the first that fails."""
    state.mkdir(parents=True, exist_ok=True)
    results = []
    for door in doors:
        file = state / f"{door.name}.json"
        if again or not file.is_file():
            console.print(f"{door.name}: {door.shows}", highlight=False)
            try:
                result = go_through(door, state)
            except Failed as error:
                log = (state / f"{door.name}.log").read_text(errors="replace").strip().splitlines()
                last = f": {log[-1].strip()}" if log else ""
                print(
                    f"doors: {door.name} failed, {error}{last} (all of it: {state / door.name}.log); the same command "
                    "goes on with this door",
                    file=sys.stderr,
                )
                return 1
            file.write_text(json.dumps(result, indent=1) + "\n")
        results.append(json.loads(file.read_text()))
    console.print(table(results))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="these doors alone")
    parser.add_argument("--data", type=Path, help="the folder with the data (above)")
    parser.add_argument("--list", action="store_true", help="say what there is, with every command, and end")
    parser.add_argument("--again", action="store_true", help="also what is done")
    parser.add_argument("--ask", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ask:
        print(ask(args.ask))
        return 0
    doors = [*trainings(args.data or Path("DIR")), *engines(args.data or Path("DIR"))]
    unknown = set(args.names) - {door.name for door in doors}
    if unknown:
        parser.error(
            f"no door {', '.join(sorted(unknown))}; there are {', '.join(door.name for door in doors)}"
        )
    chosen = [door for door in doors if not args.names or door.name in args.names]
    if args.list:
        for door in chosen:
            print(f"{door.name}: {door.shows}")
            for command in ((door.server,) if door.server else ()) + door.commands:
                print(f"    {told(command)}")
        return 0
    if args.data is None or not args.data.is_dir():
        parser.error(
            f"--data {args.data or 'DIR'}: no such folder"
            if args.data
            else "--data DIR says where the data are"
        )
    if not Path(START, "config.json").is_file():
        parser.error(f"{START}: no model there; make it with python recipes/real/make_model.py")
    return through(chosen, STATE, Console(), again=args.again)


if __name__ == "__main__":
    sys.exit(main())
