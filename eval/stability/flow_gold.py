"""Does GRPO-Guard keep gold where Flow-GRPO loses it? Proxy and gold of digits at toy size, over optimizer steps.

    OMP_NUM_THREADS=1 python eval/stability/flow_gold.py [--seeds 0 1 2] [--steps 240]
    python eval/stability/flow_gold.py --table          # from the stored file

Each seed trains its own start (recipes/smoke/flow_sft_digits.yaml), then both methods from it, with the same images per
rollout, learning rate and number of updates, against a linear classifier's logit (recipes/smoke/digit_rewards.py). Each
method's clip is about one standard deviation of its own log-ratio at the later updates of a rollout. Gold, which no one
trains on, is measured on the 400 held-out prompts: another classifier's confidence, the distance to the nearest real
digit of the class, and the Frechet distance of pixels to real digits. What is compared is gold at equal proxy.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import numpy  # noqa: E402  # after the path and the threads are set
from PIL import Image  # noqa: E402

from posttrain.data.digits import Digits  # noqa: E402
from posttrain.observe.writer import read_metrics, read_samples  # noqa: E402
from posttrain.recipe import load_recipe  # noqa: E402
from posttrain.run.train import run as run_recipe  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results" / "flow_gold.json"
EVERY = 20
ARMS: dict[str, list[str]] = {
    "flow_grpo": ["objective.clip=4.0e-3"],
    "grpo_guard": ["objective.clip=1.0e-3"],
    "grpo_guard, no 1/|dt|": ["objective.clip=1.0e-3", "objective.reweigh=false"],
}
MEASURED = {
    "proxy": "eval_rewards/linear_logit/mean",
    "confidence": "eval_rewards/gold_confidence/mean",
    "distance": "eval_rewards/gold_distance/mean",
}


def real_pixels() -> numpy.ndarray:
    """The held-out real digits, (N, 64) from 0 to 1."""
    rows = Digits().rows("test", completions=False)
    return numpy.array([row["image"] for row in rows], dtype=float).reshape(-1, 64) / 255


def pixels_of(run_dir: Path, when: str) -> numpy.ndarray:
    columns = read_samples(run_dir, when) or {"image": []}
    images = [
        numpy.asarray(Image.open(io.BytesIO(one)).convert("L"), dtype=float) for one in columns["image"]
    ]
    return numpy.stack(images).reshape(-1, 64) / 255


def frechet(one: numpy.ndarray, other: numpy.ndarray) -> float:
    """Squared distance of two normal distributions that have the sets' means and covariances."""
    first, second = numpy.cov(one, rowvar=False), numpy.cov(other, rowvar=False)
    values, vectors = numpy.linalg.eigh(first)
    root = vectors @ numpy.diag(numpy.sqrt(values.clip(min=0))) @ vectors.T
    crossed = numpy.linalg.eigvalsh(root @ second @ root).clip(min=0)
    moved = ((one.mean(0) - other.mean(0)) ** 2).sum()
    return float(moved + numpy.trace(first) + numpy.trace(second) - 2 * numpy.sqrt(crossed).sum())


def one_run(arm: str, start: Path, folder: Path, seed: int, steps: int) -> dict[str, Any]:
    method = arm.partition(",")[0]
    name = f"{arm.replace(', ', '-').replace(' ', '-').replace('/', '-').replace('|', '')}-{seed}"
    recipe = load_recipe(
        ROOT / "recipes" / "smoke" / f"{method}_digits.yaml",
        [
            f"model.path={start}",
            f"output.dir={folder}",
            f"output.name={name}",
            "output.save_steps=100000",
            f"train.max_steps={steps}",
            f"train.seed={seed}",
            f"train.eval_steps={EVERY}",
            "train.num_iterations=2",
            *ARMS[arm],
        ],
    )
    if run_recipe(recipe):
        raise RuntimeError(f"{name} ended early")
    run_dir = folder / name
    rows = read_metrics(run_dir)
    curve = [
        {"step": row["step"], **{name: row[key] for name, key in MEASURED.items()}}
        for row in rows
        if MEASURED["proxy"] in row
    ]
    logged = [row for row in rows if f"{method}/log_ratio_std" in row]
    real = real_pixels()
    return {
        "arm": arm,
        "seed": seed,
        "curve": curve,
        "frechet": [frechet(pixels_of(run_dir, when), real) for when in ("before", "after")],
        "below": statistics.mean(row[f"{method}/outside_below"] for row in logged),
        "above": statistics.mean(row[f"{method}/outside_above"] for row in logged),
    }


def at_proxy(curve: list[dict[str, float]], level: float, name: str) -> float | None:
    """Gold where the proxy first reaches `level`, between two measurements; None where it does not."""
    for before, after in zip(curve, curve[1:], strict=False):
        if before["proxy"] < level <= after["proxy"]:
            share = (level - before["proxy"]) / (after["proxy"] - before["proxy"])
            return before[name] + share * (after[name] - before[name])
    return None


def table(found: list[dict[str, Any]]) -> str:
    lines = [
        "| arm | proxy | confidence | distance | Frechet | ratios below, above the clip |",
        "|---|---|---|---|---|---|",
    ]
    ends = [run["curve"][0] for run in found]
    starts = {name: [end[name] for end in ends] for name in MEASURED}
    before = [run["frechet"][0] for run in found]
    lines.append(
        f"| start | {' | '.join(_spread(starts[name]) for name in MEASURED)} | {_spread(before)} | |"
    )
    for arm in ARMS:
        runs = [run for run in found if run["arm"] == arm]
        if not runs:
            continue
        last = [_spread([run["curve"][-1][name] for run in runs]) for name in MEASURED]
        clipped = f"{_share(runs, 'below')}, {_share(runs, 'above')}"
        lines.append(
            f"| {arm} | {' | '.join(last)} | {_spread([run['frechet'][1] for run in runs])} | {clipped} |"
        )
    levels = [8.0, 9.0, 10.0, 11.0, 12.0]
    lines += ["", f"| gold at proxy | {' | '.join(f'{level:g}' for level in levels)} |"]
    lines += [f"|---|{'---|' * len(levels)}"]
    for name in ("distance", "confidence"):
        for arm in ARMS:
            runs = [run for run in found if run["arm"] == arm]
            cells = []
            for level in levels:
                values = [value for run in runs if (value := at_proxy(run["curve"], level, name)) is not None]
                cells.append(_spread(values) if len(values) == len(runs) and runs else "")
            lines.append(f"| {name}, {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _share(runs: list[dict[str, Any]], name: str) -> str:
    return f"{statistics.mean(run[name] for run in runs):.1%}"


def _spread(values: list[float]) -> str:
    """Mean and, of several, the range."""
    if not values:
        return ""
    text = f"{statistics.mean(values):.3f}"
    return text if len(values) == 1 else f"{text} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--table", action="store_true", help="print the stored results")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(RESULTS.read_text())))
        return
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in args.seeds:
            overrides = [f"output.dir={folder}", f"output.name=start-{seed}", f"train.seed={seed}"]
            overrides += [f"model.scratch.seed={seed}", "output.save_steps=100000"]
            run_recipe(load_recipe(ROOT / "recipes" / "smoke" / "flow_sft_digits.yaml", overrides))
            for arm in ARMS:
                found.append(one_run(arm, folder / f"start-{seed}" / "model", folder, seed, args.steps))
                RESULTS.write_text(json.dumps(found, indent=1) + "\n")
                print(table(found), flush=True)


if __name__ == "__main__":
    main()
