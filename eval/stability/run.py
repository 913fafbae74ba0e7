"""The stability lab: methods x regimes x seeds on the sort task, through the product's own recipe and trainer.

    python eval/stability/run.py [--only REGIME ...] [--methods NAME ...] [--seeds 0 1 2] [--steps N] [--start FOLDER]

Every run leaves its curves and summary in its regime's file (store.py); a run that is stored is skipped, so that the
command can be stopped and repeated. Without --start each seed gets a warm-up of its own
(runs/lab-warmup-...). eval/stability/report.py makes the page.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT)]

import store  # noqa: E402  # after the path is set
from regimes import REGIMES, Cell, Regime  # noqa: E402  # after the path is set

from posttrain.data.sort import Sort, mistake  # noqa: E402
from posttrain.observe.writer import read_metrics  # noqa: E402
from posttrain.recipe import Recipe, load_recipe  # noqa: E402

CURVES = (
    *("eval_accuracy", "reward", "entropy", "grad_norm", "clip_ratio/region_mean", "kept_share"),
    *("signal/carried", "signal/equal_rewards", "completions/mean_length"),
)
OWN = ("bapo/", "bnpo/", "copo/", "capo/", "lab/")


def overrides(regime: Regime, cell: Cell, seed: int, start: Path, name: str, folder: Path) -> list[str]:
    """The `--set` values of one run; what the cell says comes last."""
    chosen: dict[str, Any] = {
        **regime.overrides,
        "method": cell.method,
        "model.path": str(start),
        "train.seed": seed,
        "output.name": name,
        "output.dir": str(folder),
        **{f"train.{key}": value for key, value in cell.train.items()},
    }
    if cell.objective:
        chosen["objective"] = dict(cell.objective)
    return [f"{key}={json.dumps(value)}" for key, value in chosen.items()]


def train(recipe: Recipe, cell: Cell) -> tuple[Path, float]:
    """Trains and returns the run folder and the seconds it took."""
    import torch
    from measure import RandomRejection, ShiftMeter, WatchedCAPO, watch_coverage

    from posttrain.run.session import Session
    from posttrain.run.train import CHECKPOINTS, open_run_dir, replaced

    torch.set_num_threads(1)
    run_dir = Path(recipe.output.run_dir)
    open_run_dir(recipe, run_dir, None)
    with replaced(run_dir):
        trainer = recipe.spec.load_trainer().from_recipe(recipe, output_dir=str(run_dir / CHECKPOINTS))
    watch_coverage(trainer)
    if cell.method == "capo":
        watched = RandomRejection if cell.random_rejection else WatchedCAPO
        trainer.objective = watched(**cell.objective)
        trainer.add_callback(ShiftMeter(trainer))
    Session(recipe, trainer, run_dir).begin(resumed=False)
    begun = time.perf_counter()
    trainer.train()
    return run_dir, time.perf_counter() - begun


def collect(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """{metric: [[step, value], ...]} of what the lab keeps."""
    curves: dict[str, list[list[float]]] = {}
    for row in rows:
        for name, value in row.items():
            kept = name in CURVES or name.startswith(OWN)
            if kept and isinstance(value, int | float):
                curves.setdefault(name, []).append([row["step"], value])
    return curves


def summarise(curves: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, float | None]:
    """The report's numbers of one run; None where there was nothing to measure."""

    # CAPO's calibration with the policy held: nothing kept, and nothing rejected by a test
    tested = {step for step, share in curves.get("capo/rejected_share", []) if share > 0}
    held = {step for step, kept in curves.get("kept_share", []) if kept == 0} - tested

    def values(name: str) -> list[float]:
        return [value for step, value in curves.get(name, []) if step not in held]

    def mean(found: Sequence[float]) -> float | None:
        return statistics.fmean(found) if found else None

    accuracy, norms = curves.get("eval_accuracy", []), values("grad_norm")
    ratios = values("lab/kl_rejected_over_kept")
    rejected = [1 - kept for kept in values("kept_share")]
    reached = {level: next((s for s, v in accuracy if v >= level), None) for level in (0.8, 0.9)}
    return {
        "t5": mean([v for _, v in accuracy][-5:]) if len(accuracy) > 5 else None,
        "reward_last": mean(values("reward")[-10:]),
        "best": max((v for _, v in accuracy), default=None),
        "first": accuracy[0][1] if accuracy else None,
        "steps_to_80": reached[0.8],
        "steps_to_90": reached[0.9],
        "entropy_last": mean(values("entropy")[-10:]),
        "grad_norm_mean": mean(norms),
        "grad_norm_spread": statistics.stdev(norms) if len(norms) > 1 else None,
        "clip_share": mean(values("clip_ratio/region_mean")),
        "rejected_mean": mean(rejected),
        "rejected_peak": max(rejected, default=None),
        "rejected_push_down": mean(values("lab/rejected_push_down")),
        "rejected_push_up": mean(values("lab/rejected_push_up")),
        "coverage": mean(values("lab/coverage")),
        "spearman": mean(values("lab/spearman")),
        "kl_rejected_over_kept": statistics.median(ratios) if ratios else None,  # few tokens: outliers
    }


def warm_up(kind: str, seed: int) -> Path:
    """A model to start from, made once for each kind and seed by the demo's SFT recipe."""
    name = f"lab-warmup-{kind}-{seed}"
    model = ROOT / "runs" / name / "model"
    if model.is_dir():
        return model
    chosen = [f"model.scratch.seed={seed}", f"train.seed={seed}", f"output.name={name}"]
    if kind == "long_wrong":
        path = ROOT / "runs" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in long_wrong_rows()))
        chosen += [f"data={json.dumps({'path': str(path), 'completion': 'completion'})}"]
    from posttrain.run.train import run

    run(load_recipe(ROOT / "recipes" / "demo" / "sft.yaml", chosen))
    return model


def long_wrong_rows(accuracy: float = 0.4, demonstrations: int = 4) -> list[dict[str, str]]:
    """Demonstrations of a teacher that writes its wrong answers twice."""
    rng = random.Random("stability/long_wrong")
    rows = []
    for digits in Sort().problems("train"):
        for _ in range(demonstrations):
            answer = "".join(sorted(digits))
            right = rng.random() < accuracy
            rows.append({"prompt": f"{digits}>", "completion": answer if right else mistake(digits, rng) * 2})
    return rows


def run_cell(regime_name: str, cell_name: str, seed: int, args: argparse.Namespace) -> None:
    suffix = f"-{args.steps}steps" if args.steps else ""
    name = f"{cell_name}--seed{seed}{suffix}"
    if name in store.read(regime_name):
        return
    regime = REGIMES[regime_name]
    cell = regime.cells[cell_name]
    start = args.start or warm_up(regime.warmup, seed)
    chosen = overrides(regime, cell, seed, start, f"{regime_name}--{name}", ROOT / "runs" / "lab")
    if args.steps:
        chosen.append(f"train.max_steps={args.steps}")
    recipe = load_recipe(HERE / "base.yaml", chosen)
    run_dir, seconds = train(recipe, cell)
    curves = collect(read_metrics(run_dir))
    done = max(int(step) for curve in curves.values() for step, _ in curve)
    if recipe.train.max_steps is not None and done < recipe.train.max_steps:
        sys.exit(
            f"{regime_name} {name}: stopped at step {done} of {recipe.train.max_steps}; nothing is stored"
        )
    start_name = str(start.relative_to(ROOT)) if start.is_relative_to(ROOT) else start.name
    found = {
        "name": name,
        "regime": regime_name,
        "cell": cell_name,
        "method": cell.method,
        "objective": dict(cell.objective),
        "random_rejection": cell.random_rejection,
        "seed": seed,
        "steps": recipe.train.max_steps,
        "start": start_name,
        "hardware": f"{os.cpu_count()} CPU cores, one thread",
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(seconds, 1),
        "summary": summarise(curves),
        "curves": curves,
    }
    store.add([found])
    print(f"{regime_name} {name}: " + json.dumps(found["summary"]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=list(REGIMES), default=list(REGIMES))
    parser.add_argument("--methods", nargs="*", help="cells to run; by default all of a regime")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="shorter or longer than the regime says")
    parser.add_argument("--start", type=lambda text: Path(text).resolve(), help="one model for all seeds")
    args = parser.parse_args()
    known = {name for regime in args.only for name in REGIMES[regime].cells}
    unknown = set(args.methods or ()) - known
    if unknown:
        parser.error(
            f"no regime of {', '.join(args.only)} runs {', '.join(sorted(unknown))}; they run {sorted(known)}"
        )
    for seed in args.seeds:
        for regime in args.only:
            for cell in REGIMES[regime].cells:
                if args.methods is None or cell in args.methods:
                    run_cell(regime, cell, seed, args)


if __name__ == "__main__":
    main()
