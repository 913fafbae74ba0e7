"""Online DPO, with and without PARL's term, beside GRPO on the demo's task, at equal samples.

    OMP_NUM_THREADS=1 python eval/stability/online_pairs.py [--seeds 0 1 2] [--steps 80] [--only ARM ...]
    python eval/stability/online_pairs.py --table          # from the stored file

Every arm starts from the same warm-up and sees 128 responses a rollout, 8 to a prompt, in two optimizer steps. Held-out
accuracy is sampled at temperature 1, on 512 problems, before and after.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import yaml  # noqa: E402  # after the path and the threads are set

from posttrain.observe.writer import read_metrics  # noqa: E402
from posttrain.recipe import load_recipe  # noqa: E402
from posttrain.run.train import run as run_recipe  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results" / "online_pairs.json"
START = ROOT / "runs" / "demo-sft" / "model"
LAST = 10
"""Logged steps at the end that a mean is taken over: five rollouts."""
DRAWN = {"pairs": "drawn"}
ARMS: dict[str, tuple[str, dict[str, Any], float]] = {
    "grpo": ("grpo", {}, 1e-4),
    "grpo, lr / 3": ("grpo", {}, 3e-5),
    "grpo, lr x 3": ("grpo", {}, 3e-4),
    "best and worst": ("online_dpo", {}, 1e-4),
    "best and worst, lr x 3": ("online_dpo", {}, 3e-4),
    "drawn": ("online_dpo", DRAWN, 1e-4),
    "drawn, lr / 3": ("online_dpo", DRAWN, 3e-5),
    "drawn, lr x 3": ("online_dpo", DRAWN, 3e-4),
    "drawn, PARL 0.03": ("online_dpo", {**DRAWN, "parl_coef": 0.03}, 1e-4),
    "drawn, PARL 0.03, against log 1/2": (
        "online_dpo",
        {**DRAWN, "parl_coef": 0.03, "parl_baseline": "indifferent"},
        1e-4,
    ),
    "drawn, PARL 0.1": ("online_dpo", {**DRAWN, "parl_coef": 0.1}, 1e-4),
    "drawn, PARL 0.3": ("online_dpo", {**DRAWN, "parl_coef": 0.3}, 1e-4),
    "drawn, PARL 0.3, lr x 3": ("online_dpo", {**DRAWN, "parl_coef": 0.3}, 3e-4),
    "drawn, PARL 1": ("online_dpo", {**DRAWN, "parl_coef": 1.0}, 1e-4),
    "drawn, PARL 0.3, no baseline": (
        "online_dpo",
        {**DRAWN, "parl_coef": 0.3, "parl_baseline": "none"},
        1e-4,
    ),
}
"""Name -> method, its settings, learning rate."""
FIGURES = {"before": "held out, before", "after": "after", "kl": "KL", "carried": "tokens with gradient"}


def ran(arm: str, seed: int, steps: int, folder: Path) -> dict[str, float]:
    method, settings, rate = ARMS[arm]
    recipe: dict[str, Any] = {
        "method": method, "model": {"path": str(START)},
        "data": {"name": "sort", "eval": {"limit": 512}}, "rewards": [{"name": "exact_match"}],
        "objective": settings, "rollout": {"group_size": 8, "max_new_tokens": 9, "eval_temperature": 1.0},
        "train": {"max_steps": steps, "per_device_train_batch_size": 64, "steps_per_generation": 2,
                  "per_device_eval_batch_size": 64, "learning_rate": rate, "lr_scheduler_type": "constant",
                  "optim": "adamw_torch", "gradient_checkpointing": False, "use_cpu": True, "seed": seed,
                  "beta": 0.1 if method == "online_dpo" else 0.001},
        "output": {"name": "run", "save_steps": steps, "dir": str(folder), "logging_steps": 1},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    run_recipe(load_recipe(str(path)))
    rows = read_metrics(folder / "run")
    held_out = [row["eval_accuracy"] for row in rows if "eval_accuracy" in row]

    def mean(name: str) -> float:
        return statistics.mean([row[name] for row in rows if name in row][-LAST:])

    found = {
        "before": held_out[0],
        "after": held_out[-1],
        "kl": mean("kl"),
        "carried": mean("signal/carried"),
    }
    more = ("ties", "accuracy", "margin", "parl_size")
    return found | {
        one: mean(f"{method}/{one}") for one in more if any(f"{method}/{one}" in row for row in rows)
    }


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = [f"| arm | {' | '.join(FIGURES.values())} |", "|---" * (len(FIGURES) + 1) + "|"]
    for arm in (one for one in ARMS if one in found):
        seeds = found[arm]
        lines.append(
            f"| {arm} | "
            + " | ".join(_spread([one[key] for one in seeds.values()]) for key in FIGURES)
            + " |"
        )
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--only", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not args.table:
        if not START.is_dir():
            run_recipe(load_recipe(str(ROOT / "recipes" / "demo" / "sft.yaml")))
        for seed in args.seeds:
            for arm in args.only:
                with tempfile.TemporaryDirectory() as name:
                    found.setdefault(arm, {})[str(seed)] = ran(arm, seed, args.steps, Path(name))
                RESULTS.parent.mkdir(parents=True, exist_ok=True)
                RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
