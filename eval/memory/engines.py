"""Which engine holds which model on how many GPUs, by the planner's estimate: python eval/memory/engines.py

Prints the tables of docs/launch.md: for each size and number of GPUs the first of ddp, zero2 and zero3 that fits with a
tenth to spare, and its GiB per GPU. The recipe is recipes/bapo/qwen2.5-7b_math_two_machines.yaml (float32 weights under
bfloat16 arithmetic, AdamW, rollouts by servers elsewhere), one response of 4096 tokens at a time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from posttrain.planning.memory import GIB
from posttrain.recipe import load_recipe
from posttrain.run.jobs.job_layout import SPARE, peaks_of

ROOT = Path(__file__).resolve().parents[2]
SIZES = ("0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B")
GPUS = (1, 2, 4, 8, 16, 32, 64)
KINDS = {
    "all weights": [],
    "LoRA, rank 16, weights in bfloat16": ["model.peft={r: 16, alpha: 32}", "model.dtype=bfloat16"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--memory", type=float, default=80.0, help="GiB of one GPU")
    args = parser.parse_args()
    for kind, overrides in KINDS.items():
        print(f"\n| {kind} | " + " | ".join(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in GPUS) + " |")
        print("|---" * (len(GPUS) + 1) + "|")
        for size in SIZES:
            print(
                f"| {size} | " + " | ".join(_cell(size, gpus, args.memory, overrides) for gpus in GPUS) + " |"
            )


def _cell(size: str, gpus: int, memory: float, overrides: list[str]) -> str:
    recipe = load_recipe(
        str(ROOT / "recipes" / "bapo" / "qwen2.5-7b_math_two_machines.yaml"),
        [f"model.path=Qwen/Qwen2.5-{size}-Instruct", "train.per_device_train_batch_size=1", *overrides],
    )
    for name, peak in peaks_of(recipe, gpus):
        if peak <= SPARE * memory * GIB:
            return f"{'one process' if gpus == 1 else name}, {peak / GIB:.0f}"
    return "–"


if __name__ == "__main__":
    main()
