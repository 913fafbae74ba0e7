"""One page about the lab's runs: python eval/stability/report.py  ->  eval/stability/results/report.html

Reads the stored curves only; the summaries are computed anew from them. Runs of other lengths than their regime's
are grouped apart and say their number of steps.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT)]

from regimes import REGIMES  # noqa: E402  # after the path is set
from run import RESULTS, summarise  # noqa: E402

from posttrain.observe import plots, report  # noqa: E402

COLUMNS = {
    "t5": "t5",
    "best": "best",
    "reward_last": "reward, last 10 rollouts",
    "entropy_last": "entropy",
    "grad_norm_mean": "grad norm",
    "grad_norm_spread": "its spread",
    "clip_share": "clipped",
    "rejected_mean": "rejected",
    "rejected_peak": "peak",
    "coverage": "coverage",
    "spearman": "Spearman",
    "kl_rejected_over_kept": "KL rejected / kept, median",
}
PLOTTED = (
    ("eval_accuracy", "Held-out accuracy", True),
    ("reward", "Reward of the rollouts", False),
    ("entropy", "Entropy [nats a token]", False),
    ("grad_norm", "Gradient norm", False),
    ("lab/coverage", "Responses with gradient", True),
    ("kept_share", "Tokens kept", True),
)
Run = dict[str, Any]


def load(folder: Path = RESULTS) -> list[Run]:
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*--*.json"))]
    for run in runs:
        run["summary"] = summarise(run["curves"])
    return runs


def numbers(runs: Sequence[Run], key: str) -> str:
    """Each seed's value, and their mean where there are several."""
    found = [run["summary"][key] for run in runs]
    known = [value for value in found if value is not None]
    if not known:
        return ""
    each = " ".join("-" if value is None else f"{value:.3g}" for value in found)
    return each if len(known) == 1 else f"{statistics.fmean(known):.3g} ({each})"


def table(runs: Sequence[Run]) -> str:
    cells = dict.fromkeys(run["cell"] for run in runs)
    rows = []
    for cell in cells:
        mine = [run for run in runs if run["cell"] == cell]
        seeds = " ".join(str(run["seed"]) for run in mine)
        values = "".join(f'<td class="number">{numbers(mine, key)}</td>' for key in COLUMNS)
        rows.append(f"<tr><td>{escape(cell)}</td><td>{seeds}</td>{values}</tr>")
    titles = "".join(f'<th class="number">{escape(title)}</th>' for title in COLUMNS.values())
    return f"<table><tr><th>method</th><th>seeds</th>{titles}</tr>{''.join(rows)}</table>"


def charts(runs: Sequence[Run]) -> str:
    """One panel a metric, one curve a method: the mean over the seeds at the steps they share."""
    cards = []
    for metric, title, percent in PLOTTED:
        curves = []
        for cell in dict.fromkeys(run["cell"] for run in runs):
            by_seed = [dict(map(tuple, run["curves"].get(metric, []))) for run in runs if run["cell"] == cell]
            steps = sorted(set.intersection(*(set(curve) for curve in by_seed)))
            if steps:
                means = [statistics.fmean(curve[step] for curve in by_seed) for step in steps]
                curves.append(plots.Curve(cell, steps, means))
        if curves:
            panel = plots.Panel(plots.Spec("Lab", title, (), percent=percent), curves)
            cards.append(f'<div class="card chart"><h3>{escape(title)}</h3>{plots.draw(panel)}</div>')
    return f'<div class="charts">{"".join(cards)}</div>'


def page(runs: Sequence[Run]) -> str:
    parts = [
        "<header><h1>Stability lab</h1><p>Sort task, 0.43 million parameters; mean over seeds (each seed)</p></header>"
    ]
    for name, regime in REGIMES.items():
        for steps in sorted({run["steps"] for run in runs if run["regime"] == name}):
            mine = [run for run in runs if (run["regime"], run["steps"]) == (name, steps)]
            starts = ", ".join(sorted({run["start"] for run in mine}))
            parts.append(f"<h2>{escape(name)}: {escape(regime.about)}</h2>")
            parts.append(f'<p class="muted">{steps} steps, started from {escape(starts)}</p>')
            parts += [f'<div class="card">{table(mine)}</div>', charts(mine)]
    hardware = "; ".join(sorted({f"{run['hardware']}, {run['date']}" for run in runs}))
    template = Path(report.__file__).with_name("report_template.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title="Stability lab", body="\n".join(parts), footer=escape(hardware)
    )


def main() -> None:
    runs = load()
    if not runs:
        sys.exit(f"no runs in {RESULTS}; make some with eval/stability/run.py")
    out = RESULTS / "report.html"
    out.write_text(page(runs), encoding="utf-8")
    for run in runs:
        shown = {key: round(value, 4) for key, value in run["summary"].items() if value is not None}
        print(f"{run['regime']} {run['cell']} seed {run['seed']} {run['steps']} steps: {shown}")
    print(f"page: {out}")


if __name__ == "__main__":
    main()
