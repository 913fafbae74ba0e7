"""The stability lab: methods x regimes x seeds on the sort task, through the product's own recipe and trainer.

    python eval/stability/run.py [--only REGIME ...] [--methods NAME ...] [--seeds 0 1 2] [--steps N] [--start FOLDER]
                                 [--cuda] [--jobs N] [--out FOLDER]

Every run leaves its curves and summary in its regime's file (store.py); a run that is stored is skipped, so that the
command can be stopped and repeated. Without --start each seed gets a warm-up of its own
(runs/lab-warmup-...); the regimes on a real model start from runs/real/start. `--jobs` trains so many cells at once,
each in a process of its own. `--out` stores elsewhere (and skips what is stored there), for another machine;
`store.py --merge` brings it home. eval/stability/report.py makes the page.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
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
    *(
        "eval_accuracy",
        "eval_reward",
        "reward",
        "entropy",
        "grad_norm",
        "clip_ratio/region_mean",
        "kept_share",
    ),
    *("signal/carried", "signal/equal_rewards", "completions/mean_length", "kl", "rewards/repetition/mean"),
    "resample/groups",
)
OWN = ("bapo/", "bnpo/", "copo/", "capo/", "lab/")


def overrides(
    regime: Regime, cell: Cell, seed: int, start: Path, name: str, folder: Path, cuda: bool = False
) -> list[str]:
    """The `--set` values of one run; what the cell says comes last. On a GPU products are in bfloat16."""
    chosen: dict[str, Any] = {
        **regime.overrides,
        "method": cell.method,
        "model.path": str(start),
        "train.seed": seed,
        "output.name": name,
        "output.dir": str(folder),
        **{f"train.{key}": value for key, value in cell.train.items()},
        **{f"rollout.{key}": value for key, value in cell.rollout.items()},
        **({"train.use_cpu": False, "train.bf16": True} if cuda else {}),
    }
    if cell.objective:
        chosen["objective"] = dict(cell.objective)
    return [f"{key}={json.dumps(value)}" for key, value in chosen.items()]


def train(recipe: Recipe, cell: Cell) -> tuple[Path, float]:
    """Trains and returns the run folder and the seconds it took."""
    import torch
    from measure import RandomRejection, ShiftMeter, WatchedCAPO, watch_coverage

    from posttrain.observe.progress import ProgressView
    from posttrain.run.run_folder import CHECKPOINTS, opened, replaced
    from posttrain.run.session import Session

    torch.set_num_threads(1)
    with opened(recipe, None) as start, ProgressView(recipe.output.name, enabled=False) as view:
        with replaced(start.run_dir):
            folder = str(start.run_dir / CHECKPOINTS)
            trainer = recipe.spec.load_trainer().from_recipe(recipe, output_dir=folder)
            watch_coverage(trainer)
            if cell.method == "capo":
                watched = RandomRejection if cell.random_rejection else WatchedCAPO
                trainer.objective = watched(**cell.objective)
                trainer.add_callback(ShiftMeter(trainer))
            Session(recipe, trainer, start.run_dir, view).begin(start.compared)
        begun = time.perf_counter()
        trainer.train()
        return start.run_dir, time.perf_counter() - begun


def collect(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """{metric: [[step, value], ...]} of what the lab keeps."""
    curves: dict[str, list[list[float]]] = {}
    for row in rows:
        for name, value in row.items():
            kept = name in CURVES or name.startswith(OWN)
            if kept and isinstance(value, int | float):
                curves.setdefault(name, []).append([row["step"], value])
    return curves


def summarise(
    curves: Mapping[str, Sequence[Sequence[float]]], held_out: str = "eval_accuracy"
) -> dict[str, float | None]:
    """The report's numbers of one run; None where there was nothing to measure."""

    # CAPO's calibration with the policy held: nothing kept, and nothing rejected by a test
    tested = {step for step, share in curves.get("capo/rejected_share", []) if share > 0}
    held = {step for step, kept in curves.get("kept_share", []) if kept == 0} - tested

    def values(name: str) -> list[float]:
        return [value for step, value in curves.get(name, []) if step not in held]

    def mean(found: Sequence[float]) -> float | None:
        return statistics.fmean(found) if found else None

    accuracy, norms = curves.get(held_out, []), values("grad_norm")
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
        "length_last": mean(values("completions/mean_length")[-10:]),
        "kl_last": mean(values("kl")[-10:]),
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
    if kind.startswith("real"):
        if kind == "real_sums":
            write_sums(ROOT / "runs")
        model = ROOT / "runs" / "real" / "start"
        if not model.is_dir():
            sys.exit(f"{model} is not there; make it: python recipes/real/make_model.py {model}")
        return model
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


def write_sums(folder: Path) -> None:
    """Sums, differences and products of small numbers, as a user would ask for them; 256 of them are held out."""
    signs = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
    sums = [
        (a, sign, b) for a in range(2, 20) for b in range(2, 20) for sign in signs if sign != "*" or a < 10
    ]
    random.Random("stability/real_sums").shuffle(sums)
    rows = [
        {"prompt": f"What is {a} {sign} {b}? Answer with the number only.", "answer": str(signs[sign](a, b))}
        for a, sign, b in sums
    ]
    for name, part in (("lab-real-sums", rows[256:]), ("lab-real-sums-test", rows[:256])):
        aside = folder / f"{name}.{os.getpid()}.tmp"
        aside.write_text("".join(json.dumps(row) + "\n" for row in part))
        aside.replace(folder / f"{name}.jsonl")


def run_cell(regime_name: str, cell_name: str, seed: int, args: argparse.Namespace) -> None:
    suffix = f"-{args.steps}steps" if args.steps else ""
    name = f"{cell_name}--seed{seed}{suffix}"
    if name in store.read(regime_name, args.out):
        return
    regime = REGIMES[regime_name]
    cell = regime.cells[cell_name]
    start = args.start or warm_up(regime.warmup, seed)
    chosen = overrides(regime, cell, seed, start, f"{regime_name}--{name}", ROOT / "runs" / "lab", args.cuda)
    if args.steps:
        chosen.append(f"train.max_steps={args.steps}")
    recipe = load_recipe(HERE / regime.base, chosen)
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
        "hardware": hardware(args),
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(seconds, 1),
        "summary": summarise(curves, regime.held_out),
        "curves": curves,
    }
    store.add([found], args.out)
    print(f"{regime_name} {name}: " + json.dumps(found["summary"]), flush=True)


def hardware(args: argparse.Namespace) -> str:
    if not args.cuda:
        return f"{os.cpu_count()} CPU cores, one thread"
    import torch

    return f"{torch.cuda.get_device_name()}, bfloat16"


def in_processes(cells: Sequence[tuple[str, str, int]], args: argparse.Namespace) -> int:
    """Trains cells, `--jobs` at a time, each in a process of this script. The number that failed."""
    waiting, running, failed = list(cells), {}, 0
    while waiting or running:
        while waiting and len(running) < args.jobs:
            regime, cell, seed = waiting.pop(0)
            command = [sys.executable, __file__, "--only", regime, "--methods", cell, "--seeds", str(seed)]
            command += ["--steps", str(args.steps)] if args.steps else []
            command += ["--start", str(args.start)] if args.start else []
            command += ["--cuda"] if args.cuda else []
            command += ["--out", str(args.out)]
            running[subprocess.Popen(command)] = f"{regime} {cell} seed {seed}"
        for process in [one for one in running if one.poll() is not None]:
            name = running.pop(process)
            if process.returncode:
                print(f"{name}: ended with {process.returncode}; nothing is stored", file=sys.stderr)
                failed += 1
        time.sleep(0.2)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=list(REGIMES), default=list(REGIMES))
    parser.add_argument("--methods", nargs="*", help="cells to run; by default all of a regime")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="shorter or longer than the regime says")
    parser.add_argument("--start", type=lambda text: Path(text).resolve(), help="one model for all seeds")
    parser.add_argument("--cuda", action="store_true", help="on a GPU")
    parser.add_argument("--out", type=Path, default=store.RESULTS, help="folder to store the runs in")
    parser.add_argument("--jobs", type=int, default=1, help="cells trained at once")
    args = parser.parse_args()
    known = {name for regime in args.only for name in REGIMES[regime].cells}
    unknown = set(args.methods or ()) - known
    if unknown:
        parser.error(
            f"no regime of {', '.join(args.only)} runs {', '.join(sorted(unknown))}; they run {sorted(known)}"
        )
    cells = [
        (regime, cell, seed)
        for seed in args.seeds
        for regime in args.only
        for cell in REGIMES[regime].cells
        if args.methods is None or cell in args.methods
    ]
    if args.jobs > 1:
        for kind, seed in sorted({(REGIMES[regime].warmup, seed) for regime, _, seed in cells}):
            args.start or warm_up(kind, seed)
        sys.exit(1 if in_processes(cells, args) else 0)
    for regime, cell, seed in cells:
        run_cell(regime, cell, seed, args)


if __name__ == "__main__":
    main()
