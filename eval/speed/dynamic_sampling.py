"""Generated tokens that GRPO takes to a held-out accuracy, with and without dynamic sampling, on the sort task.

    python eval/speed/dynamic_sampling.py [--seeds 0 1 2] [--steps 160] [--accuracy 0.9] [--start runs/demo-sft/model]

Trains recipes/smoke/grpo_sort.yaml once a seed and arm, through the product's own command, and reads the runs' metrics.
A run that is there is not repeated. What was thrown away counts as generated; evaluations do not. Nothing here depends
on how fast the machine is.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from posttrain.observe.writer import read_metrics  # noqa: E402  # after the path is set

RECIPE = ROOT / "recipes" / "smoke" / "grpo_sort.yaml"
EVERY = 4  # optimizer steps between evaluations: two rollouts
ARMS: dict[str, list[str]] = {
    "plain": [],
    "resample": ["rollout.resample={until: unequal, max_rounds: 4, on_short: train}"],
}


def train(arm: str, seed: int, steps: int, start: str) -> Path:
    """Trains where there is no finished run, and gives its folder."""
    name = f"dynamic-sampling/{arm}-{seed}"
    run = Path("runs") / name
    if (run / "model" / "model.safetensors").is_file():
        return run
    settings = [
        f"model.path={start}",
        f"train.seed={seed}",
        f"train.max_steps={steps}",
        f"train.eval_steps={EVERY}",
        "train.per_device_eval_batch_size=256",
        "data.eval={limit: 256}",
        f"output.name={name}",
        "output.save_steps=1000000",
        *ARMS[arm],
    ]
    words = [word for one in settings for word in ("--set", one)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "posttrain", "train", str(RECIPE), *words], check=True, env=env)
    return run


def measured(run: Path, accuracy: float, responses: int) -> dict[str, Any]:
    """Where the run first reached the accuracy: step, response tokens generated until then, its last accuracy."""
    tokens, reached, last = 0.0, None, 0.0
    thrown = carried = 0.0
    for row in read_metrics(run):
        if "completions/mean_length" in row:  # the first step of a rollout
            tokens += row.get("resample/tokens", row["completions/mean_length"] * responses)
        generated = row.get("signal/tokens", 0.0)
        thrown += generated * (row.get("signal/thrown_away") or 0.0)
        carried += generated * (row.get("signal/carried") or 0.0)
        if "eval_accuracy" in row:
            last = row["eval_accuracy"]
            if reached is None and last >= accuracy:
                reached = (row["step"], tokens)
    return {
        "reached": reached,
        "tokens": tokens,
        "last": last,
        "carried": carried / tokens,
        "thrown": thrown / tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--accuracy", type=float, default=0.9)
    parser.add_argument("--start", default="runs/demo-sft/model")
    args = parser.parse_args()
    print(f"held-out accuracy {args.accuracy:g}, 256 problems, every {EVERY} of {args.steps} steps")
    for arm in args.arms:
        found = [
            measured(train(arm, seed, args.steps, args.start), args.accuracy, 128) for seed in args.seeds
        ]
        for seed, one in zip(args.seeds, found, strict=True):
            at = "never" if one["reached"] is None else "step {}, {:,.0f} tokens".format(*one["reached"])
            print(
                f"{arm:9} seed {seed}: {at}; the whole run {one['tokens']:,.0f} tokens, carried gradient "
                f"{one['carried']:.1%}, thrown away {one['thrown']:.1%}; last accuracy {one['last']:.3f}"
            )
        if all(one["reached"] is not None for one in found):
            print(f"{arm:9} median {statistics.median(one['reached'][1] for one in found):,.0f} tokens")


if __name__ == "__main__":
    main()
