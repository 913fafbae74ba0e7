"""Masked diffusion at toy size, measured: what n passes buy, and the four methods beside each other.

    OMP_NUM_THREADS=1 python eval/stability/bgpo.py [--only gradient curves] [--seeds 0 1 2] [--rollouts 80]

    gradient  one rollout of the fine-tuned model; with the noise drawn anew for each n and design, the relative spread
              of BGPO's on-policy gradient, sqrt(E |g - E g|^2) / |E g|, and, after one update along it, the means of
              VRPO-OL's objective and of BGPO's bound
    curves    bgpo, vrpo_ol, diffu_grpo and coupled_grpo from the same start at the same learning rate, two updates per
              rollout, until each has spent the same number of forward passes per response, rollout and old terms
              included

The model is the one of recipes/smoke/mdlm_countdown.yaml (0.1 million parameters), trained first where its folder is
missing. Writes JSON, a table and a plot to results/bgpo. Nothing here shows what a method does at real size.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from preferences import ROOT, curve, spread, train  # noqa: E402  # after the path is set; it sets the threads

# isort: split
import os  # noqa: E402

import torch  # noqa: E402
from matplotlib import pyplot  # noqa: E402
from transformers import AutoTokenizer, LlamaForCausalLM  # noqa: E402

from posttrain.data.countdown import Countdown  # noqa: E402
from posttrain.objectives.base import Groups, StepTotals  # noqa: E402
from posttrain.objectives.bgpo import BGPO, bgpo_terms  # noqa: E402
from posttrain.objectives.masked_base import DiffusionBatch, reduced_loss  # noqa: E402
from posttrain.objectives.vrpo_ol import vrpo_objective  # noqa: E402
from posttrain.rewards.puzzles import countdown  # noqa: E402
from posttrain.rollout.base import Sampling  # noqa: E402
from posttrain.rollout.masked.masked_engine import MaskedDiffusionEngine  # noqa: E402
from posttrain.rollout.masked.predictor import MaskPredictor, load_mask_model, mask_id_of  # noqa: E402
from posttrain.rollout.masked.response_canvas import Canvas, lay_canvas  # noqa: E402
from posttrain.trainers.masked.likelihood import all_terms, draw_noise, pass_terms  # noqa: E402

RESULTS = HERE / "results" / "bgpo"
START, MADE_BY = "runs/smoke-mdlm/model", "recipes/smoke/mdlm_countdown.yaml"
LENGTH, GROUP, PROMPTS = 6, 8, 16
COUNTS, DESIGNS, REDRAWS = (1, 2, 4, 8, 16), ("bernoulli", "count"), 32
DRIFT = 0.3  # nats, the standard deviation over responses of their ELBOs' differences
UPDATES = 2
RATE = 2.0e-4
METHODS: dict[str, dict[str, Any]] = {
    "bgpo": {"samples": 8, "noise": "count", "tail": "fill"},
    "vrpo_ol": {"samples": 4, "noise": "count", "tail": "fill"},
    "diffu_grpo": {"tail": "fill"},
    "coupled_grpo": {"tail": "fill"},
}
PROBE_ROWS = 4  # of the check, at start-up, that the model looks both ways
PASSES = {"bgpo": 8, "vrpo_ol": 4, "diffu_grpo": 1, "coupled_grpo": 3}
Numbers = dict[str, Any]


def need_start() -> None:
    if not (ROOT / START).exists():
        train(MADE_BY, Path("runs"), "smoke-mdlm")


# ------------------------------------------------------------------------------------------------------ gradient


class Fixed:
    """One rollout of the fine-tuned model and its advantages."""

    def __init__(self) -> None:
        tokenizer = AutoTokenizer.from_pretrained(ROOT / START, padding_side="left")
        self.model = load_mask_model(str(ROOT / START), dtype="float32").eval()
        self.predictor = MaskPredictor.of(self.model, mask_id_of(tokenizer))
        task = Countdown(size=64, held_out=256, largest=9, operators="+-", in_order=True)
        rows = list(task.rows("train", completions=False))[:PROMPTS]
        prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
        engine = MaskedDiffusionEngine.of(self.predictor, pad_token_id=tokenizer.pad_token_id)
        sampling = Sampling(max_new_tokens=LENGTH, seed=0, n=GROUP, stop_token_ids=(tokenizer.eos_token_id,))
        sampled = [one.token_ids for one in engine.generate(prompts, sampling)]
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in sampled]
        each = [row for row in rows for _ in range(GROUP)]
        rewards = countdown(texts, numbers=[r["numbers"] for r in each], target=[r["target"] for r in each])
        grouped = torch.tensor([float(r or 0.0) for r in rewards]).view(PROMPTS, GROUP)
        groups = Groups(grouped, grouped.unsqueeze(-1), torch.ones(1))
        self.advantages = BGPO().advantages(groups)["advantages"].flatten()
        self.reward = grouped.mean().item()
        self.canvas = self._canvas(prompts, sampled, tokenizer.pad_token_id, tokenizer.eos_token_id)

    def _canvas(self, prompts: list[list[int]], sampled: list[list[int]], pad_id: int, end_id: int) -> Canvas:
        width = max(map(len, prompts))
        given = [prompt for prompt in prompts for _ in range(GROUP)]
        padded = torch.tensor([[pad_id] * (width - len(p)) + p for p in given])
        present = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in given])
        ids = torch.tensor([s + [pad_id] * (LENGTH - len(s)) for s in sampled])
        mask = torch.tensor([[1] * len(s) + [0] * (LENGTH - len(s)) for s in sampled])
        return lay_canvas(
            padded, present, ids, mask, tail="fill", length=LENGTH, mask_id=self.predictor.mask_id, end_id=end_id
        )  # fmt: skip

    def noise(self, n: int, design: str, redraw: int) -> Any:
        rows = torch.arange(len(self.advantages))
        objective = BGPO(samples=n, noise=design)  # type: ignore[arg-type]  # one of DESIGNS
        return draw_noise(objective, self.canvas, rows, iterations=1, seed=redraw, step=0)

    def gradient(self, n: int, design: str, redraw: int) -> torch.Tensor:
        """On-policy gradient of BGPO's loss, one backward a pass. (parameters,) float64."""
        self.model.zero_grad()
        noise, objective = self.noise(n, design, redraw), BGPO(samples=n)
        count = torch.tensor(float(len(self.advantages)))
        for j in range(n):
            terms = pass_terms(self.predictor, self.canvas, noise, j, "sequence")
            batch = DiffusionBatch(
                terms, terms.detach(), self.advantages, self.canvas.scored.float(), n, LENGTH
            )
            reduced_loss(objective, batch, StepTotals(count * LENGTH, count, LENGTH)).backward()
        return torch.cat([p.grad.flatten() for p in self.model.parameters()]).double()


def gradient() -> Numbers:
    need_start()
    fixed = Fixed()
    found: Numbers = {"reward": fixed.reward, "redraws": REDRAWS, "spread": {}, "objective": {}, "bound": {}}
    for design in DESIGNS:
        means, spreads = {}, {}
        for n in COUNTS:
            draws = torch.stack([fixed.gradient(n, design, 1000 * n + redraw) for redraw in range(REDRAWS)])
            means[n] = draws.mean(0)
            spreads[n] = (draws - means[n]).square().sum(1).sum().div(REDRAWS - 1).sqrt()
        best = means[
            COUNTS[-1]
        ].norm()  # the best estimate of |E g| serves every n: a mean of noise has a norm of its own
        found["spread"][design] = {str(n): (spreads[n] / best).item() for n in COUNTS}
        logs = [(math.log(n), math.log(found["spread"][design][str(n)])) for n in COUNTS]
        found.setdefault("slope", {})[design] = statistics.linear_regression(*zip(*logs, strict=True)).slope
    _off_policy(fixed, found)
    return found


def _off_policy(fixed: Fixed, found: Numbers) -> None:
    """One step along the gradient, as long as moves ELBOs by DRIFT nats; then both objectives over redraws."""
    noises = {
        (d, n): [fixed.noise(n, d, 1000 * n + r) for r in range(2 * REDRAWS)] for d in DESIGNS for n in COUNTS
    }
    terms = lambda noise: all_terms(fixed.predictor, fixed.canvas, noise, "sequence", rows_at_once=4096)  # noqa: E731
    old = {key: [terms(noise) for noise in several] for key, several in noises.items()}
    _step_until_drift(fixed, noises["count", COUNTS[-1]][0], old["count", COUNTS[-1]][0], terms)
    for (design, n), several in noises.items():
        objective, bound, drift = [], [], []
        for noise, before in zip(several, old[design, n], strict=True):
            now = terms(noise)
            objective.append(vrpo_objective(now, before, fixed.advantages).mean().item())
            bound.append(bgpo_terms(now, before, fixed.advantages).sum(1).mean().item())
            drift.append((now - before).mean(1).std().item())
        for name, values in (("objective", objective), ("bound", bound), ("drift", drift)):
            error = statistics.stdev(values) / math.sqrt(len(values))
            found.setdefault(name, {}).setdefault(design, {})[str(n)] = [statistics.fmean(values), error]


def _step_until_drift(fixed: Fixed, noise: Any, before: torch.Tensor, terms: Any) -> None:
    """Moves the model along its gradient, halving the step until the ELBOs' differences spread by DRIFT at most."""
    fixed.gradient(COUNTS[-1], "count", 0)
    start = [p.detach().clone() for p in fixed.model.parameters()]
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in fixed.model.parameters()))
    step = 1.0
    while True:
        with torch.no_grad():
            for parameter, old in zip(fixed.model.parameters(), start, strict=True):
                parameter.copy_(old - step / norm * parameter.grad)
        if (terms(noise) - before).mean(1).std() <= DRIFT:
            return
        step /= 2


# -------------------------------------------------------------------------------------------------------- curves


class Counted:
    """Rows that went through the language model's forward while inside."""

    def __enter__(self) -> Counted:
        self.rows = 0
        self._hook = torch.nn.modules.module.register_module_forward_hook(self._count)
        return self

    def _count(self, module: Any, _: Any, output: Any) -> None:
        if isinstance(module, LlamaForCausalLM):
            self.rows += len(output.logits)

    def __exit__(self, *_: Any) -> None:
        self._hook.remove()


def passes_a_rollout(method: str) -> int:
    """Forward passes of a response: its canvas, the old terms, each update (twice where a first pass is needed)."""
    n = PASSES[method]
    again = (
        2 if method in ("diffu_grpo", "coupled_grpo") else 1
    )  # other masks in each update, all drawn at once
    twice = 2 if method in ("vrpo_ol", "coupled_grpo") else 1
    return LENGTH + again * n + UPDATES * twice * n


def curves(seed: int, folder: Path, rollouts: int) -> Numbers:
    """Reward of each rollout and held-out accuracy, against forward passes per response."""
    need_start()
    budget = rollouts * passes_a_rollout("bgpo")
    found: Numbers = {}
    for method, objective in METHODS.items():
        cost = passes_a_rollout(method)
        steps = UPDATES * (budget // cost)
        began = time.process_time()
        with Counted() as counted:
            done = train(
                "recipes/smoke/bgpo_countdown.yaml",
                folder,
                f"{method}-{seed}",
                **{
                    "method": method,
                    "model": {"path": str(ROOT / START)},
                    "objective": objective,
                    "train.num_iterations": UPDATES,
                    "train.max_steps": steps,
                    "train.eval_steps": None,  # before and after only
                    "train.per_device_train_batch_size": 8 * GROUP,
                    "train.learning_rate": RATE,
                    "train.seed": seed,
                    "output.save_steps": steps,
                    "output.log_completions": False,
                },
            )
        evaluation = json.loads((done / "evaluation" / "summary.json").read_text(encoding="utf-8"))
        trained = counted.rows - 2 * 256 * LENGTH - PROBE_ROWS
        expected = steps // UPDATES * cost * 8 * GROUP
        if trained != expected:
            raise RuntimeError(f"{method}: {trained} rows went through the model, not {expected}")
        found[method] = {
            "passes_a_rollout": cost,
            "reward": curve(done, "reward"),
            "largest_drift": max(curve(done, "largest_drift")),
            "grad_norm": curve(done, "grad_norm"),
            "before": evaluation["before"]["accuracy"],
            "after": evaluation["after"]["accuracy"],
            "cpu_seconds": round(time.process_time() - began),
        }
    return found


# ------------------------------------------------------------------------------------------------ table and plot


def table(results: Numbers) -> str:
    lines: list[str] = []
    if "gradient" in results:
        its = results["gradient"]
        head = " | ".join(f"n = {n}" for n in COUNTS)
        lines += [f"| | {head} |", "|---|" + "---|" * len(COUNTS)]
        for design in DESIGNS:
            cells = " | ".join(f"{its['spread'][design][str(n)]:.2f}" for n in COUNTS)
            lines.append(f"| gradient spread, {design} (slope {its['slope'][design]:.2f}) | {cells} |")
        for name, title in (("objective", "VRPO-OL's objective"), ("bound", "BGPO's bound")):
            for design in DESIGNS:
                cells = " | ".join("{:.3g} +- {:.1g}".format(*its[name][design][str(n)]) for n in COUNTS)
                lines.append(f"| off-policy mean of {title}, {design} | {cells} |")
        lines.append("")
    if "curves" in results:
        runs = results["curves"]["runs"]
        lines += [
            "| method | passes per rollout | rollouts | held out: before | after "
            "| reward: first half | last fifth | largest drift |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for method in METHODS:
            mine = [run[method] for run in runs]
            last = [statistics.fmean(m["reward"][-(len(m["reward"]) // 5) :]) for m in mine]
            half = [statistics.fmean(m["reward"][: len(m["reward"]) // 2]) for m in mine]
            lines.append(
                f"| {method} | {mine[0]['passes_a_rollout']} | {len(mine[0]['reward'])} "
                f"| {spread([m['before'] for m in mine])} | {spread([m['after'] for m in mine])} "
                f"| {spread(half)} | {spread(last)} | {max(m['largest_drift'] for m in mine):.2g} |"
            )
    return "\n".join(lines) + "\n"


def plot(results: Numbers, path: Path) -> None:
    figure, axes = pyplot.subplots(1, len(results), figsize=(5.4 * len(results), 3.8), squeeze=False)
    for axis, (name, its) in zip(axes[0], results.items(), strict=True):
        (_draw_gradient if name == "gradient" else _draw_curves)(axis, its)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_gradient(axis: Any, its: Numbers) -> None:
    for design in DESIGNS:
        values = [its["spread"][design][str(n)] for n in COUNTS]
        axis.loglog(COUNTS, values, "-o", label=f"{design}, slope {its['slope'][design]:.2f}")
    first = its["spread"]["bernoulli"]["1"]
    axis.loglog(COUNTS, [first * n**-0.5 for n in COUNTS], ":", color="grey", label="slope -1/2")
    axis.set(title="BGPO's gradient over redraws", xlabel="passes n", ylabel="spread / norm of the mean")


def _draw_curves(axis: Any, its: Numbers) -> None:
    for number, method in enumerate(METHODS):
        colour = f"C{number}"
        runs = [run[method] for run in its["runs"]]
        mean = [statistics.fmean(values) for values in zip(*(run["reward"] for run in runs), strict=False)]
        for run in runs:
            axis.plot(
                *_smooth(run["reward"], run["passes_a_rollout"]), color=colour, alpha=0.25, linewidth=0.8
            )
        axis.plot(*_smooth(mean, runs[0]["passes_a_rollout"]), color=colour, label=method)
    axis.set(title="Reward of the rollouts", xlabel="forward passes per response", ylabel="reward")


def _smooth(values: Sequence[float], cost: int) -> tuple[list[int], list[float]]:
    """Means over a tenth of the run, at the passes spent by then."""
    width = max(1, len(values) // 10)
    ends = range(width, len(values) + 1, width)
    return [cost * end for end in ends], [statistics.fmean(values[end - width : end]) for end in ends]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=("gradient", "curves"), default=["gradient", "curves"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rollouts", type=int, default=80, help="of bgpo; the others spend as many passes")
    args = parser.parse_args()
    os.chdir(ROOT)
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    hardware = f"{os.cpu_count()} shared CPU cores, one thread"
    record = {"date": datetime.now(UTC).date().isoformat(), "hardware": hardware}
    if "gradient" in args.only:
        _store("gradient", {**record, **gradient()})
    if "curves" in args.only:
        with tempfile.TemporaryDirectory() as folder:
            runs = [curves(seed, Path(folder), args.rollouts) for seed in args.seeds]
        settings = {"seeds": args.seeds, "learning_rate": RATE, "updates": UPDATES, "methods": METHODS}
        _store("curves", {**record, **settings, "runs": runs})
    stored = {n: RESULTS / f"{n}.json" for n in ("gradient", "curves") if (RESULTS / f"{n}.json").exists()}
    results = {n: json.loads(path.read_text(encoding="utf-8")) for n, path in stored.items()}
    (RESULTS / "table.md").write_text(table(results), encoding="utf-8")
    plot(results, RESULTS / "curves.png")
    print(table(results))


def _store(name: str, found: Numbers) -> None:
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
