"""A GRPO step here against TRL's own trainer: seconds a step by the clock and of CPU time, in alternating runs.

    python eval/speed/step.py [--hidden 128 --layers 2 --prompts 16 --group 8 --tokens 32 --steps 8 --rounds 3]

Both train the same random model on the same prompts with the same in-process reward, learning rate and batch; ours is
started from a recipe, as `posttrain train` does, so its engine, reward runner and signal account are on. A random model
ends a response at any token with a chance of about one in its vocabulary, so lengths are unequal. The first two steps
of a run are not counted. CPU time is that of the process and its reward workers, which other work on the machine
hardly touches. Prints a table and writes eval/speed/results/step-*.json; a ratio below 1 is faster than TRL.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402  # after the number of threads is set
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import ProgressCallback, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from posttrain.data.sort import Sort  # noqa: E402
from posttrain.recipe import load_recipe  # noqa: E402
from posttrain.trainers.models.load import character_tokenizer, load_pretrained, scratch_llama  # noqa: E402

RESULTS = Path(__file__).with_name("results")
WARM_UP = 2
RECIPE = """\
method: grpo
model: {{path: {model}}}
data: {{name: sort}}
rewards: [{{name: "{here}:even"}}]
rollout: {{group_size: {group}, max_new_tokens: {tokens}}}
train: {{max_steps: {steps}, per_device_train_batch_size: {batch}, learning_rate: 1.0e-4, lr_scheduler_type: constant,
  optim: adamw_torch, gradient_checkpointing: false, use_cpu: {cpu}}}
output: {{name: step, dir: {folder}, report_to: [], overwrite: true, save_steps: 1000000}}
"""


def even(completions: list[str], **_: Any) -> list[float]:
    """A reward that differs within nearly every group."""
    return [float(len(text) % 2) for text in completions]


class StepClock(TrainerCallback):
    """(wall, CPU) seconds of each optimizer step, rollout and logging with it."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ends.append((time.perf_counter(), cpu_seconds()))

    def median(self) -> tuple[float, float]:
        steps = list(zip(self.ends[WARM_UP - 1 :], self.ends[WARM_UP:], strict=False))
        return (
            statistics.median(end[0] - begin[0] for begin, end in steps),
            statistics.median(end[1] - begin[1] for begin, end in steps),
        )


def cpu_seconds() -> float:
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def ours(model: Path, args: argparse.Namespace, folder: Path) -> Any:
    recipe = folder / "grpo.yaml"
    recipe.write_text(
        RECIPE.format(
            model=model, here=Path(__file__).resolve(), group=args.group, tokens=args.tokens, folder=folder,
            steps=args.steps + WARM_UP, batch=args.prompts * args.group, cpu=str(not torch.cuda.is_available()).lower(),
        )
    )  # fmt: skip
    checked = load_recipe(recipe)
    return checked.spec.load_trainer().from_recipe(checked, output_dir=str(folder / "ours"))


def trl(model: Path, args: argparse.Namespace, folder: Path) -> Any:
    policy, tokenizer = load_pretrained(str(model), dtype="float32")
    rows = Dataset.from_list([{"prompt": row["prompt"]} for row in Sort().rows("train", completions=False)])
    config = GRPOConfig(
        output_dir=str(folder / "trl"), max_steps=args.steps + WARM_UP, learning_rate=1e-4, report_to=[],
        per_device_train_batch_size=args.prompts * args.group, num_generations=args.group, loss_type="grpo",
        max_completion_length=args.tokens, lr_scheduler_type="constant", optim="adamw_torch", bf16=False, beta=0.0,
        gradient_checkpointing=False, use_cpu=not torch.cuda.is_available(), save_strategy="no", logging_steps=1,
        disable_tqdm=True,
    )  # fmt: skip
    return GRPOTrainer(policy, even, config, rows, processing_class=tokenizer)


def run(make: Callable[..., Any], model: Path, args: argparse.Namespace) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        trainer = make(model, args, Path(folder))
        trainer.remove_callback(ProgressCallback)
        clock = StepClock()
        trainer.add_callback(clock)
        trainer.train()
        return clock.median()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = {"hidden": 128, "layers": 2, "prompts": 16, "group": 8, "tokens": 32, "steps": 8, "rounds": 3}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    peers = {"TRL": trl, "posttrain": ours}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = character_tokenizer("0123456789>")
        model = scratch_llama(
            tokenizer, hidden_size=args.hidden, layers=args.layers, max_positions=args.tokens + 32
        )
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for _ in range(args.rounds):
            for name, make in peers.items():
                found[name].append(run(make, Path(folder), args))
    ratios: dict[str, list[float]] = {}
    for place, clock in enumerate(("wall", "CPU")):
        rounds = {name: [seconds[place] for seconds in runs] for name, runs in found.items()}
        for name, seconds in rounds.items():
            shown = ", ".join(f"{second:.3f}" for second in seconds)
            print(f"{name:10} {clock:4} {statistics.median(seconds):.3f} s a step (rounds {shown})")
        ratios[clock] = [
            mine / theirs for mine, theirs in zip(rounds["posttrain"], rounds["TRL"], strict=True)
        ]
        shown = ", ".join(f"{ratio:.2f}" for ratio in ratios[clock])
        print(f"ratio      {clock:4} {statistics.median(ratios[clock]):.2f} (rounds {shown})")
    RESULTS.mkdir(exist_ok=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{device}, {torch.get_num_threads()} thread, load {os.getloadavg()[0]:.1f}",
        "settings": vars(args),
        "wall_and_cpu_seconds_a_step": found,
        "ratio": ratios,
    }
    path = RESULTS / f"step-hidden{args.hidden}-layers{args.layers}-tokens{args.tokens}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
