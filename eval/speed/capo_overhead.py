"""What CAPO's statistics cost: whole training steps of CAPO against GRPO's, in alternating runs.

    python eval/speed/capo_overhead.py [--vocabulary 32000 --hidden 512 --layers 8 --responses 16 --tokens 64]

Both train the same model on the same prompts; CAPO's tests are off, so that both have the same loss and differ in
the statistics alone. Generation is timed apart: the overhead is given as a share of the whole step and of the update
without generation. Ratios are of CPU seconds of the process, which other work on the machine hardly moves, and of
seconds on the clock. Prints a table and writes eval/speed/results/capo_overhead-*.json. The two first steps of a run
are not counted: they warm up, and the Adam model starts cold.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  # after the number of threads is set
from datasets import Dataset  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from posttrain.trainers.models.load import character_tokenizer  # noqa: E402
from posttrain.trainers.policy import bindings  # noqa: E402

RESULTS = Path(__file__).with_name("results")
METHODS: dict[str, dict[str, Any]] = {
    "GRPO": {},
    "CAPO sgd": {"optimizer_model": "sgd", "objective_threshold": 0.0, "policy_threshold": 0.0},
    "CAPO adam": {"objective_threshold": 0.0, "policy_threshold": 0.0},
}
WARM_UP = 2
CLOCKS = ("cpu", "clock")
PARTS = tuple(f"{clock} {part}" for clock in CLOCKS for part in ("step", "update"))


def by_length(completions: list[str], **_: Any) -> list[float]:
    """Any reward that differs within a group."""
    return [float(index % 2) for index, _ in enumerate(completions)]


def clocks() -> tuple[float, float]:
    """(CPU seconds of this process, seconds on the clock)."""
    return time.process_time(), time.perf_counter()


def measure(name: str, model: LlamaForCausalLM, tokenizer: Any, args: argparse.Namespace) -> dict[str, float]:
    """Mean seconds per step, whole and without generation, by either clock."""
    method = name.split()[0]
    settings = dict(METHODS[name])
    if method == "CAPO":
        settings["num_candidates"] = args.candidates
    ends: list[tuple[float, float]] = []
    generating: list[tuple[float, ...]] = []

    class Timed(getattr(bindings, f"{method}Trainer")):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            begun = clocks()
            output = super()._generate_and_score_completions(inputs)
            generating.append(tuple(b - a for a, b in zip(begun, clocks(), strict=True)))
            return output

        def training_step(self, *arguments: Any, **named: Any) -> Any:
            loss = super().training_step(*arguments, **named)
            ends.append(clocks())
            return loss

    with tempfile.TemporaryDirectory() as folder:
        config = getattr(bindings, f"{method}Config")(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1000,
            per_device_train_batch_size=args.responses,
            num_generations=4,
            max_completion_length=args.tokens,
            learning_rate=1e-6,
            max_steps=args.steps + WARM_UP,
            seed=0,
            **settings,
        )
        rows = Dataset.from_list([{"prompt": f"{i}+{i}="} for i in range(64)])
        trainer = Timed(copy.deepcopy(model), by_length, config, rows, processing_class=tokenizer)
        trainer.train()
    found = {}
    for place, clock in enumerate(CLOCKS):
        # from the end of one step's backward to the next: the optimizer's work counts, generation is taken out
        whole = (ends[-1][place] - ends[WARM_UP - 1][place]) / args.steps
        found[f"{clock} step"] = whole
        found[f"{clock} update"] = whole - statistics.fmean(g[place] for g in generating[WARM_UP:])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for flag, value in (
        *(("vocabulary", 32000), ("hidden", 512), ("layers", 8), ("responses", 16)),
        *(("tokens", 64), ("candidates", 50), ("steps", 2), ("rounds", 3)),
    ):
        parser.add_argument(f"--{flag}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=8,
        bos_token_id=None,
        eos_token_id=args.vocabulary - 1,
        pad_token_id=0,
    )
    model, tokenizer = LlamaForCausalLM(config), character_tokenizer()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for done in range(args.rounds):
        for name in METHODS:
            runs[name].append(measure(name, model, tokenizer, args))
            print(f"round {done + 1}, {name}: {runs[name][-1]}", file=sys.stderr, flush=True)
    print("medians of", args.rounds, "rounds; over GRPO of the same round, by CPU seconds and by the clock")
    print(f"{'':10} {'step, CPU s':>12} {'step':>8} {'update':>8} {'step, clock':>12} {'update, clock':>14}")
    found: dict[str, Any] = {}
    for name, mine in runs.items():
        over = {
            part: statistics.median(
                its[part] / base[part] - 1 for its, base in zip(mine, runs["GRPO"], strict=True)
            )
            for part in PARTS
        }
        seconds = statistics.median(run["cpu step"] for run in mine)
        values = [over[part] for part in PARTS]
        print(
            f"{name:10} {seconds:12.2f} {values[0]:8.1%} {values[1]:8.1%} {values[2]:12.1%} {values[3]:14.1%}"
        )
        found[name] = {"runs": mine, "overhead": over}
    RESULTS.mkdir(exist_ok=True)
    out = RESULTS / f"capo_overhead-hidden{args.hidden}-layers{args.layers}.json"
    hardware = f"{os.cpu_count()} CPU cores, one thread, load {os.getloadavg()[0]:.1f}"
    date = datetime.now(UTC).date().isoformat()
    out.write_text(
        json.dumps({"date": date, "hardware": hardware, "settings": vars(args), "methods": found}, indent=1)
        + "\n"
    )


if __name__ == "__main__":
    main()
