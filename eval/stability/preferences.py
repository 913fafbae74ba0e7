"""What the preference methods do at toy size, measured: curves, a table and a plot in results/preferences.

    OMP_NUM_THREADS=1 python eval/stability/preferences.py [--only drift rpo seppo salsa] [--seeds 0 1 2]

    drift   rate of rule violations after each iteration, guided and unguided, on requests that were not trained on
    rpo     log-prob of the chosen answers under DPO and under RPO with growing eta
    seppo   flip rate in each round, for each way to choose the reference; the same of all winners against the start
    salsa   reward at matched KL to the first SFT model, soup against plain reference

The models are character-level Llamas of 0.1 and 0.4 million parameters, trained by the recipes in recipes/smoke and
recipes/demo, which are run first where their folders are missing. Nothing here shows what a method does at real size.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  # after the path and the threads are set
from matplotlib import pyplot  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from posttrain.observe.writer import read_metrics  # noqa: E402
from posttrain.recipe import load_recipe  # noqa: E402
from posttrain.rollout.base import Sampling  # noqa: E402
from posttrain.run.train import run as run_recipe  # noqa: E402
from posttrain.trainers.engines.answers import EngineGenerator, prompt_ids, transformers_engine_of  # noqa: E402
from posttrain.trainers.models.policy_folder import load_dense  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results" / "preferences"
CALM, SORT, SORT2 = "runs/smoke-calm-sft/model", "runs/demo-sft/model", "runs/smoke-salsa-sft2/model"
MADE_BY = {
    CALM: "recipes/smoke/sft_calm.yaml",
    SORT: "recipes/demo/sft.yaml",
    SORT2: "recipes/smoke/salsa_sft2.yaml",
}
DRIFT_ITERATIONS = 4
ETAS = (0.0, 0.05, 0.5, 2.0)
REFERENCES = ("random", "latest", "initial")
ALPHAS = (1.0, 0.5)
Numbers = dict[str, Any]


def grammar() -> Any:
    spec = importlib.util.spec_from_file_location("make_log", ROOT / "recipes" / "drift" / "make_log.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError("recipes/drift/make_log.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def need(*folders: str) -> None:
    """Trains what an experiment starts from, where it is missing."""
    for folder in folders:
        if not (ROOT / folder).exists():
            train(MADE_BY[folder], Path("runs"), Path(folder).parent.name)


def train(recipe: str, folder: Path, name: str, **changes: Any) -> Path:
    """Runs a recipe with `changes` ("train.seed": 1) and returns the run's folder."""
    values = {"output.dir": str(folder), "output.name": name, "output.report_to": [], **changes}
    checked = load_recipe(recipe, [f"{key}={json.dumps(value)}" for key, value in values.items()])
    if run_recipe(checked) != 0:
        raise RuntimeError(f"{recipe} did not finish")
    return folder / name


def curve(folder: Path, name: str) -> list[float]:
    return [row[name] for row in read_metrics(folder) if row.get(name) is not None]


# DRIFT


def drift(seed: int, folder: Path) -> Numbers:
    """Violation rate of the policy before and after each iteration, on 128 requests of other conversations."""
    need(CALM)
    found: Numbers = {}
    for guided in (True, False):
        name = "guided" if guided else "unguided"
        settings = {"iterations": DRIFT_ITERATIONS, "guided": guided}
        done = train(
            "recipes/smoke/drift_calm.yaml",
            folder,
            f"{name}-{seed}",
            **{"objective": settings, "train.seed": seed},
        )
        policies = sorted((done / "checkpoints" / "policies").glob("[0-9]*"))
        found[name] = [violation_rate(policy, seed) for policy in policies]
        found[f"{name}_entropy"] = [
            statistics.fmean(part) for part in chunks(curve(done, "entropy"), DRIFT_ITERATIONS)
        ]
    return found


def violation_rate(policy: Path, seed: int, requests: int = 128) -> float:
    """Share of answers, sampled at temperature 1, that break the grammar's rule."""
    make_log = grammar()
    tokenizer = AutoTokenizer.from_pretrained(policy)
    prompts = [row["prompt"] for row in make_log.pair_rows(requests, 10_000 + seed)]
    sampling = Sampling(max_new_tokens=12, seed=seed, stop_token_ids=(tokenizer.eos_token_id,))
    generator = EngineGenerator(tokenizer, transformers_engine_of(tokenizer))
    answers = generator(policy, [prompt_ids(tokenizer, prompt) for prompt in prompts], sampling)
    return sum(make_log.violates(answer) for answer in answers) / requests


# RPO


def rpo(seed: int, folder: Path) -> Numbers:
    """Mean log-prob of the chosen answers of all pairs, before and after 100 steps; eta 0 is DPO."""
    need(CALM)
    pairs = grammar().pair_rows(160, 2)
    found: Numbers = {"before": statistics.fmean(chosen_logps(ROOT / CALM, pairs))}
    for eta in ETAS:
        done = train(
            "recipes/smoke/rpo_calm.yaml",
            folder,
            f"eta{eta}-{seed}",
            **{"objective": {"eta": eta}, "train.max_steps": 100, "train.seed": seed},
        )
        found[str(eta)] = {
            "after": statistics.fmean(chosen_logps(done / "model", pairs)),
            "margin": statistics.fmean(curve(done, "rewards/margins")[-10:]),
            "curve": curve(done, "logps/chosen"),
        }
    return found


@torch.no_grad()
def chosen_logps(model_folder: Path, pairs: Sequence[dict[str, str]]) -> list[float]:
    """log pi(chosen | prompt) of each pair, end token included, in nats."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = load_dense(model_folder).eval()
    found = []
    for row in pairs:
        start = len(tokenizer(row["prompt"])["input_ids"])
        ids = torch.tensor([tokenizer(row["prompt"] + row["chosen"] + tokenizer.eos_token)["input_ids"]])
        logps = model(ids).logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None])
        found.append(float(logps[start - 1 :].sum()))
    return found


# SePPO


def seppo(seed: int, folder: Path) -> Numbers:
    """Flip rate of each round of 15 steps, and the violation rate at the end.

    A tie is no flip, so the first step of a run, where policy and reference are one, says nothing and is left out.
    `below_start` is free of batches: the share of all winners that the policy after each round explains less well
    than the policy before the first.
    """
    need(CALM)
    winners = grammar().pair_rows(160, 2)
    found: Numbers = {}
    for reference in REFERENCES:
        done = train(
            "recipes/smoke/seppo_calm.yaml",
            folder,
            f"{reference}-{seed}",
            **{
                "objective": {"rounds": 6, "steps_per_round": 15, "reference": reference},
                "train.max_steps": 90,
                "train.learning_rate": 3.0e-4,
                "train.seed": seed,
            },
        )
        flips = curve(done, "seppo/flip_rate")
        pool = done / "checkpoints" / "policies"
        start, *later = [chosen_logps(policy, winners) for policy in sorted(pool.glob("[0-9]*"))]
        found[reference] = {
            "flip_rate": [statistics.fmean(part) for part in chunks(flips, 6)],
            "steps": flips,
            "below_start": [share_below(logps, start) for logps in later],
            "draws": json.loads((pool / "pool.json").read_text(encoding="utf-8"))["draws"],
            "violations": violation_rate(done / "model", seed),
        }
    return found


def share_below(values: Sequence[float], others: Sequence[float]) -> float:
    return sum(a < b for a, b in zip(values, others, strict=True)) / len(values)


# SALSA


def salsa(seed: int, folder: Path) -> Numbers:
    """Reward along the KL to the first SFT model, for the plain reference (alpha 1) and the soup (alpha 0.5)."""
    need(SORT, SORT2)
    found: Numbers = {}
    for alpha in ALPHAS:
        done = train(
            "recipes/smoke/salsa_sort.yaml",
            folder,
            f"alpha{alpha}-{seed}",
            **{
                "objective": {"others": [SORT2], "weights": [alpha, 1 - alpha]},
                "train.max_steps": 60,
                "train.seed": seed,
                "train.beta": 0.1,
                "data.eval": None,
                "rollout.eval_temperature": 0.0,
            },
        )
        # The first of a rollout's two steps: reward and distances of the policy that sampled it.
        rows = [row for row in read_metrics(done) if row.get("reward") is not None]
        found[str(alpha)] = {
            "reward": [row["reward"] for row in rows],
            "kl_to_start": [row["salsa/kl_to_start"] for row in rows],
            "kl_to_soup": [row["salsa/kl_to_soup"] for row in rows],
        }
    return found


def reward_at(kl: Sequence[float], reward: Sequence[float], target: float, window: int = 8) -> float | None:
    """Mean reward of the `window` rollouts whose KL lies nearest to `target`; None where the run never came near."""
    pairs = sorted(zip(kl, reward, strict=True), key=lambda pair: abs(pair[0] - target))[:window]
    if not pairs or max(kl) < target:
        return None
    return statistics.fmean(value for _, value in pairs)


def chunks(values: Sequence[float], count: int) -> list[Sequence[float]]:
    size = len(values) // count
    return [values[i * size : (i + 1) * size] for i in range(count)]


# Table and plot


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and the range over seeds."""
    return f"{statistics.fmean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(results: dict[str, list[Numbers]]) -> str:
    lines = ["| what | measured, mean over seeds (lowest to highest) |", "|---|---|"]
    if "drift" in results:
        for name in ("guided", "unguided"):
            for k in range(DRIFT_ITERATIONS + 1):
                rates = [run[name][k] for run in results["drift"]]
                lines.append(f"| DRIFT {name}: violation rate after iteration {k} | {spread(rates)} |")
    if "rpo" in results:
        before = [run["before"] for run in results["rpo"]]
        lines.append(f"| log-prob of chosen answers before training | {spread(before, 2)} |")
        for eta in ETAS:
            name = "DPO (eta 0)" if eta == 0 else f"RPO, eta {eta}"
            after = [run[str(eta)]["after"] for run in results["rpo"]]
            margin = [run[str(eta)]["margin"] for run in results["rpo"]]
            lines.append(f"| {name}: log-prob of chosen answers after 100 steps | {spread(after, 2)} |")
            lines.append(f"| {name}: reward margin of the last 10 steps | {spread(margin, 2)} |")
    if "seppo" in results:
        for reference in REFERENCES:
            runs = [run[reference] for run in results["seppo"]]
            for first, last in ((2, 3), (4, 6)):
                early = [statistics.fmean(run["steps"][first - 1 : last]) for run in runs]
                lines.append(
                    f"| SePPO {reference}: flip rate in steps {first} to {last} | {spread(early, 2)} |"
                )
            for k in range(6):
                rates = [run["flip_rate"][k] for run in runs]
                lines.append(f"| SePPO {reference}: flip rate in round {k + 1} | {spread(rates, 2)} |")
            for k in (0, 2, 5):
                below = [run["below_start"][k] for run in runs]
                lines.append(
                    f"| SePPO {reference}: share of all winners below the start, after round {k + 1} | "
                    f"{spread(below, 2)} |"
                )
            lines.append(
                f"| SePPO {reference}: violation rate at the end | {spread([r['violations'] for r in runs])} |"
            )
    if "salsa" in results:
        for target in (0.05, 0.1, 0.2):
            for alpha in ALPHAS:
                found = [
                    reward_at(run[str(alpha)]["kl_to_start"], run[str(alpha)]["reward"], target)
                    for run in results["salsa"]
                ]
                near = [value for value in found if value is not None]
                text = spread(near) if near else "never reached"
                reached = f"{len(near)} of {len(found)} runs" if near else ""
                name = "plain reference" if alpha == 1.0 else f"soup, alpha {alpha}"
                lines.append(f"| SALSA {name}: reward at KL to SFT1 = {target} {reached} | {text} |")
    return "\n".join(lines) + "\n"


def plot(results: dict[str, list[Numbers]], path: Path) -> None:
    draw: dict[str, Callable[[Any, list[Numbers]], None]] = {
        "drift": _draw_drift,
        "rpo": _draw_rpo,
        "seppo": _draw_seppo,
        "salsa": _draw_salsa,
    }
    figure, axes = pyplot.subplots(1, len(results), figsize=(4.6 * len(results), 3.6), squeeze=False)
    for axis, (name, runs) in zip(axes[0], results.items(), strict=True):
        draw[name](axis, runs)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _mean(curves: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.fmean(values) for values in zip(*curves, strict=False)]


def _draw_drift(axis: Any, runs: list[Numbers]) -> None:
    for name, style in (("guided", "-o"), ("unguided", "--s")):
        axis.plot(_mean([run[name] for run in runs]), style, label=name)
        for run in runs:
            axis.plot(run[name], style[:-1], color="grey", alpha=0.3, linewidth=0.8)
    axis.set_xticks(range(DRIFT_ITERATIONS + 1))
    axis.set(title="DRIFT", xlabel="iteration", ylabel="rate of rule violations", ylim=(0, None))


def _draw_rpo(axis: Any, runs: list[Numbers]) -> None:
    for eta in ETAS:
        smooth = _mean([run[str(eta)]["curve"] for run in runs])
        blocks = [statistics.fmean(part) for part in chunks(smooth, 20)]
        axis.plot(range(5, 105, 5), blocks, label="DPO" if eta == 0 else f"RPO, eta {eta}")
    axis.set(title="RPO", xlabel="step", ylabel="log-prob of the chosen answers")


def _draw_seppo(axis: Any, runs: list[Numbers]) -> None:
    for reference, colour in zip(REFERENCES, ("tab:blue", "tab:orange", "tab:green"), strict=True):
        flips = _mean([run[reference]["flip_rate"] for run in runs])
        axis.plot(range(1, 7), flips, "-o", color=colour, label=f"{reference}: flips")
        below = _mean([run[reference]["below_start"] for run in runs])
        axis.plot(range(1, 7), below, ":", color=colour, label=f"{reference}: winners below the start")
    axis.axhline(0.5, color="grey", linewidth=0.8)
    axis.set(title="SePPO", xlabel="round", ylabel="flip rate", ylim=(0, 1))


def _draw_salsa(axis: Any, runs: list[Numbers]) -> None:
    for alpha, colour in zip(ALPHAS, ("tab:blue", "tab:orange"), strict=True):
        label = "plain reference" if alpha == 1.0 else f"soup, alpha {alpha}"
        for run in runs:
            values = run[str(alpha)]
            axis.scatter(values["kl_to_start"], values["reward"], s=5, color=colour, alpha=0.5, label=label)
            label = None
    axis.set(
        title="SALSA", xlabel="KL to the first SFT model, nats per token", ylabel="reward of the rollout"
    )


EXPERIMENTS: dict[str, Callable[[int, Path], Numbers]] = {
    "drift": drift,
    "rpo": rpo,
    "seppo": seppo,
    "salsa": salsa,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    os.chdir(ROOT)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            runs = [EXPERIMENTS[name](seed, Path(folder) / name) for seed in args.seeds]
        record = {"seeds": args.seeds, "cpu_seconds": round(time.process_time() - began), "runs": runs}
        (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    stored = {n: RESULTS / f"{n}.json" for n in EXPERIMENTS if (RESULTS / f"{n}.json").exists()}
    results = {n: json.loads(path.read_text(encoding="utf-8"))["runs"] for n, path in stored.items()}
    (RESULTS / "table.md").write_text(table(results), encoding="utf-8")
    plot(results, RESULTS / "curves.png")
    print(table(results))


if __name__ == "__main__":
    main()
