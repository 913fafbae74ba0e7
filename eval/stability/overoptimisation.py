"""Does a policy learn the task or the reward model's faults? Gold and proxy against the KL to the start, at toy size.

    OMP_NUM_THREADS=1 python eval/stability/overoptimisation.py [--seeds 0 1 2] [--steps 120] [--pairs 400]
    python eval/stability/overoptimisation.py --table          # from the stored file

The gold reward is known: whether digits are sorted right (the demo's task). Pairs are two samples of the start each,
the right one preferred, one label in five turned round; where both are right or both wrong the shorter is preferred, as
a hurried person might. A reward model is trained on them, policies are trained against it, and the gold, which no one
trains on, is counted beside it at every rollout. Best of n samples of the start, by the reward model, is the yardstick:
KL log n - (n - 1) / n.
"""

from __future__ import annotations

import argparse
import json
import math
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

import torch  # noqa: E402  # after the path and the threads are set
import yaml  # noqa: E402

from posttrain.data.sort import Sort  # noqa: E402
from posttrain.observe.writer import read_metrics  # noqa: E402
from posttrain.recipe import load_recipe  # noqa: E402
from posttrain.rewards.model_reward import ModelReward  # noqa: E402
from posttrain.rollout.base import Sampling  # noqa: E402
from posttrain.rollout.transformers_engine import TransformersEngine  # noqa: E402
from posttrain.run.train import run as run_recipe  # noqa: E402
from posttrain.trainers.models.load import load_pretrained  # noqa: E402
from posttrain.trainers.models.reward_scorer import RewardScorer  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results" / "overoptimisation.json"
START = ROOT / "runs" / "demo-sft" / "model"
NEW = 9
METHODS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "ppo": {"critic_warmup": 4, "critic_learning_rate": 1.0e-3},
    "ppo_max": {"critic_warmup": 4, "critic_learning_rate": 1.0e-3},
}
BETA = 1.0e-3
"""Small, so that the KL is logged and hardly held."""
SAMPLES = (1, 2, 4, 8, 16, 32, 64)


def generated(prompts: list[str], each: int, seed: int) -> list[list[str]]:
    """`each` samples of the start for each prompt, at temperature 1."""
    model, tokenizer = load_pretrained(str(START), dtype="float32")
    engine = TransformersEngine.of(model.eval(), pad_token_id=tokenizer.pad_token_id)
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    sampling = Sampling(
        n=each, max_new_tokens=NEW, temperature=1.0, seed=seed, stop_token_ids=(tokenizer.eos_token_id,)
    )
    texts = [
        tokenizer.decode(one.token_ids, skip_special_tokens=True) for one in engine.generate(ids, sampling)
    ]
    return [texts[i * each : (i + 1) * each] for i in range(len(prompts))]


def noisy_pairs(count: int, noise: float, seed: int) -> list[dict[str, str]]:
    generator = torch.Generator().manual_seed(seed)
    rows = list(Sort(size=count, seed=seed).rows("train", completions=False))
    pairs = []
    for row, (one, other) in zip(rows, generated([r["prompt"] for r in rows], 2, seed), strict=True):
        right = (one.strip() == row["answer"], other.strip() == row["answer"])
        first = right[0] if right[0] != right[1] else len(one) <= len(other)
        if torch.rand((), generator=generator) < noise:
            first = not first
        chosen, rejected = (one, other) if first else (other, one)
        if one != other and chosen.strip() and rejected.strip():
            pairs.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected})
    return pairs


def ran(recipe: dict[str, Any], folder: Path) -> Path:
    """Runs it; its folder."""
    path = folder / f"{recipe['output']['name']}.yaml"
    path.write_text(yaml.safe_dump({**recipe, "output": {**recipe["output"], "dir": str(folder)}}))
    run_recipe(load_recipe(str(path)))
    return folder / recipe["output"]["name"]


COMMON = {
    "lr_scheduler_type": "constant", "optim": "adamw_torch", "gradient_checkpointing": False, "use_cpu": True,
}  # fmt: skip


def reward_model(pairs: list[dict[str, str]], seed: int, folder: Path) -> str:
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    recipe = {
        "method": "reward_model", "model": {"path": str(START)}, "data": {"path": str(file)},
        "train": {**COMMON, "max_steps": 60, "max_length": 32, "per_device_train_batch_size": 64,
                  "learning_rate": 3.0e-4, "seed": seed},
        "output": {"name": "rm", "save_steps": 60},
    }  # fmt: skip
    return str(ran(recipe, folder) / "model")


def policy(method: str, proxy: str, seed: int, steps: int, folder: Path) -> list[dict[str, float]]:
    """One line a rollout: KL, proxy, gold, length."""
    recipe: dict[str, Any] = {
        "method": method, "model": {"path": str(START)}, "data": {"name": "sort"},
        "rewards": [{"model": proxy, "label": "proxy"}, {"name": "exact_match", "label": "gold", "weight": 0.0}],
        "objective": METHODS[method], "rollout": {"group_size": 8, "max_new_tokens": NEW},
        "train": {**COMMON, "max_steps": steps, "per_device_train_batch_size": 64, "steps_per_generation": 2,
                  "learning_rate": 3.0e-4, "beta": BETA, "seed": seed},
        "output": {"name": method, "save_steps": steps},
    }  # fmt: skip
    names = {
        "kl": "kl",
        "proxy": "rewards/proxy/mean",
        "gold": "rewards/gold/mean",
        "length": "completions/mean_length",
    }
    rows = read_metrics(ran(recipe, folder))
    return [
        {"step": row["step"], **{name: row[key] for name, key in names.items()}}
        for row in rows
        if all(key in row for key in names.values())
    ]


def best_of_n(proxy: str, seed: int, problems: int = 128) -> list[dict[str, float]]:
    rows = list(Sort(held_out=problems).rows("test", completions=False))
    drawn = generated([row["prompt"] for row in rows], max(SAMPLES), 1000 + seed)
    scorer = RewardScorer(ModelReward(proxy, batch_size=256), "cpu")
    found = []
    scores = [
        scorer.score([row["prompt"]] * len(texts), texts) for row, texts in zip(rows, drawn, strict=True)
    ]
    for n in SAMPLES:
        proxies, golds = [], []
        for row, texts, values in zip(rows, drawn, scores, strict=True):
            for start in range(0, len(texts), n):
                best = max(range(start, start + n), key=values.__getitem__)
                proxies.append(values[best])
                golds.append(float(texts[best].strip() == row["answer"]))
        kl = math.log(n) - (n - 1) / n
        found.append({"n": n, "kl": kl, "proxy": statistics.mean(proxies), "gold": statistics.mean(golds)})
    return found


def table(found: dict[str, Any]) -> str:
    lines = [
        "| | KL at the best gold | best gold | proxy there | KL at the end | gold at the end | proxy at the end |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for method in METHODS:
        runs = [_smooth(run) for run in found["policies"][method].values()]
        best = [max(run, key=lambda row: row["gold"]) for run in runs]
        cells = [
            [row[key] for row in ends]
            for ends in (best, [run[-1] for run in runs])
            for key in ("kl", "gold", "proxy")
        ]
        lines.append(f"| {method} | " + " | ".join(_spread(cell) for cell in cells) + " |")
    for i, n in enumerate(SAMPLES):
        rows = [one[i] for one in found["best_of_n"].values()]
        gold, proxy = (_spread([row[key] for row in rows]) for key in ("gold", "proxy"))
        lines.append(f"| best of {n} | {rows[0]['kl']:.2f} | {gold} | {proxy} | | | |")
    return "\n".join(lines)


def _smooth(rows: list[dict[str, float]], width: int = 5) -> list[dict[str, float]]:
    """Means of `width` rollouts in a row: a rollout has 16 problems."""
    windows = [rows[i : i + width] for i in range(0, max(1, len(rows) - width + 1))]
    return [{key: statistics.mean(row[key] for row in part) for key in part[0]} for part in windows]


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--noise", type=float, default=0.2)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if not args.table:
        if not START.is_dir():
            run_recipe(load_recipe(str(ROOT / "recipes" / "demo" / "sft.yaml")))
        found: dict[str, Any] = {
            "settings": {"steps": args.steps, "pairs": args.pairs, "noise": args.noise, "beta": BETA},
            "policies": {method: {} for method in METHODS}, "best_of_n": {},
        }  # fmt: skip
        for seed in args.seeds:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                proxy = reward_model(noisy_pairs(args.pairs, args.noise, seed), seed, folder)
                found["best_of_n"][str(seed)] = best_of_n(proxy, seed)
                for method in METHODS:
                    found["policies"][method][str(seed)] = policy(method, proxy, seed, args.steps, folder)
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            RESULTS.write_text(json.dumps(found) + "\n")
    print(table(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
