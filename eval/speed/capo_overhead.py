"""What CAPO's statistics cost: whole training steps of CAPO against GRPO's, in alternating runs.

    python eval/speed/capo_overhead.py [--vocabulary 32000 --hidden 256 --layers 4 --responses 8 --tokens 24]

Both train the same model on the same prompts; CAPO's tests are off, so that both have the same loss and differ in
the statistics alone. Generation is timed apart: the overhead is given as a share of the whole step and of the update
without generation. Prints a table and writes eval/speed/results/capo_overhead-*.json. The two first steps of a run
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

from posttrain.trainers import bindings  # noqa: E402
from posttrain.trainers.models import character_tokenizer  # noqa: E402

RESULTS = Path(__file__).with_name("results")
METHODS: dict[str, dict[str, Any]] = {
    "GRPO": {},
    "CAPO sgd": {"optimizer_model": "sgd", "objective_threshold": 0.0, "policy_threshold": 0.0},
    "CAPO adam": {"objective_threshold": 0.0, "policy_threshold": 0.0},
}
WARM_UP = 2


def by_length(completions: list[str], **_: Any) -> list[float]:
    """Any reward that differs within a group."""
    return [float(index % 2) for index, _ in enumerate(completions)]


def measure(
    name: str, model: LlamaForCausalLM, tokenizer: Any, args: argparse.Namespace
) -> tuple[float, float]:
    """Mean seconds a step: (whole, without generation)."""
    method = name.split()[0]
    settings = dict(METHODS[name])
    if method == "CAPO":
        settings["num_candidates"] = args.candidates
    ends: list[float] = []
    generating: list[float] = []

    class Timed(vars(bindings)[f"{method}Trainer"]):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            begun = time.perf_counter()
            output = super()._generate_and_score_completions(inputs)
            generating.append(time.perf_counter() - begun)
            return output

        def training_step(self, *arguments: Any, **named: Any) -> Any:
            loss = super().training_step(*arguments, **named)
            ends.append(time.perf_counter())
            return loss

    with tempfile.TemporaryDirectory() as folder:
        config = vars(bindings)[f"{method}Config"](
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
    # from the end of one step's backward to the next: the optimizer's work counts, generation is taken out
    whole = (ends[-1] - ends[WARM_UP - 1]) / args.steps
    return whole, whole - statistics.fmean(generating[WARM_UP:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for flag, value in (
        *(("vocabulary", 32000), ("hidden", 256), ("layers", 4), ("responses", 8)),
        *(("tokens", 24), ("candidates", 50), ("steps", 4), ("rounds", 3)),
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
        num_attention_heads=4,
        bos_token_id=None,
        eos_token_id=args.vocabulary - 1,
        pad_token_id=0,
    )
    model, tokenizer = LlamaForCausalLM(config), character_tokenizer()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in METHODS}
    for _ in range(args.rounds):
        for name in METHODS:
            seconds[name].append(measure(name, model, tokenizer, args))
    found: dict[str, Any] = {}
    print(
        f"{'':10} {'step s':>8} {'update s':>9} {'of a step':>10} {'of an update':>13}   (medians of {args.rounds})"
    )
    for name, runs in seconds.items():
        whole, update = (statistics.median(part) for part in zip(*runs, strict=True))
        # ratios within a round, so that a machine that slows down meets both
        ratios = [
            [mine[part] / its[part] - 1 for mine, its in zip(runs, seconds["GRPO"], strict=True)]
            for part in (0, 1)
        ]
        of_step, of_update = (statistics.median(part) for part in ratios)
        print(f"{name:10} {whole:8.3f} {update:9.3f} {of_step:10.1%} {of_update:13.1%}")
        found[name] = {"runs": runs, "overhead_step": of_step, "overhead_update": of_update}
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
