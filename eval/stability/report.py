"""One page about the lab's runs: python eval/stability/report.py  ->  eval/stability/results/report.html

    python eval/stability/report.py --markdown REGIME [--columns t5 best]      the regime's table, for a method's card
    python eval/stability/report.py --family                                   t5 of all methods in all regimes
    python eval/stability/report.py --variants                                 departures beside GRPO, all seeds

Reads the stored curves only; the summaries are computed anew from them. Runs of other lengths than their regime's
are grouped apart and say their number of steps. The seeds that departures were chosen on stand in the last table alone.
Steps at which a calibration holds the policy are left out.
"""

from __future__ import annotations

import argparse
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

import overopt_table  # noqa: E402  # after the path is set
from regimes import CHOOSING_SEEDS, FAMILY, REGIMES, VARIANTS  # noqa: E402  # after the path is set
from run import summarise  # noqa: E402
from store import RESULTS, read_all  # noqa: E402

from posttrain.observe import plots, run_page  # noqa: E402
from posttrain.observe.plot_style import PALETTE  # noqa: E402

COLUMNS = {
    "t5": (
        "t5",
        "mean of the last five evaluations on 512 held-out problems (reward on 128 prompts in the regimes real)",
    ),
    "best": ("best", "best of the evaluations"),
    "steps_to_90": ("to .90", "first evaluated step at which held-out accuracy is at least .90"),
    "entropy_last": ("entropy", "nats per token, mean of the last ten steps"),
    "length_last": ("length", "tokens per response, mean of the last ten steps"),
    "kl_last": ("KL", "estimated KL to the start, nats per token, mean of the last ten steps"),
    "grad_norm_mean": ("grad norm", "gradient norm, mean over steps, before clipping"),
    "grad_norm_spread": ("its spread", "standard deviation over steps"),
    "clip_share": ("clipped", "tokens whose ratio is clipped, mean over steps"),
    "rejected_mean": ("rejected", "loss tokens CAPO rejects, mean over steps"),
    "rejected_peak": ("peak", "the same, largest step"),
    "rejected_push_down": (
        "of down",
        "of the summed A (1 - p) of tokens with A < 0, what rejected tokens hold, mean over every fourth step",
    ),
    "rejected_push_up": ("of up", "the same of tokens with A > 0"),
    "coverage": ("coverage", "responses with gradient on at least one token, mean over steps"),
    "spearman": (
        "rank corr.",
        "Spearman of predicted policy shift and exact KL of the update, mean over every fourth step",
    ),
    "kl_rejected_over_kept": (
        "KL ratio",
        "exact KL of rejected tokens over kept ones, median over every fourth step",
    ),
}
PLOTTED = (
    ("eval_accuracy", "Held-out accuracy", True),
    ("eval_reward", "Held-out reward", False),
    ("reward", "Reward of the rollouts", False),
    ("entropy", "Entropy [nats per token]", False),
    ("grad_norm", "Gradient norm", False),
    ("lab/coverage", "Responses with gradient", True),
    ("kept_share", "Tokens kept", True),
)
REFERENCE = "grpo"
DRAWN_FOR_ALL = ("eval_accuracy", "eval_reward", "entropy", "grad_norm")
AT_ONCE = 5  # curves beside the reference's that a panel can hold apart
STYLE = """
.seeds { font-size: 10.5px; } .wide { overflow-x: auto; margin-bottom: 12px; }
.wide td, .wide th { padding-right: 7px; font-size: 12.5px; }
.glossary { display: grid; grid-template-columns: max-content 1fr; gap: 3px 14px; font-size: 13px; margin: 0; }
.glossary dd { margin: 0; }
"""
COLOURS = (*PALETTE, "#1f2937", "#a16207", "#94a3b8", "#be123c", "#4338ca", "#15803d")
Run = dict[str, Any]


def load(folder: Path = RESULTS) -> list[Run]:
    runs = list(read_all(folder))
    for run in runs:
        run["summary"] = summarise(run["curves"], REGIMES[run["regime"]].held_out)
    return runs


def number(value: float | None, digits: int = 3) -> str:
    """Without the leading zero of a share; a dash where nothing was measured."""
    if value is None:
        return "-"
    text = f"{value:.{digits}f}" if abs(value) < 10 else f"{value:.0f}"
    return text[1:] if text.startswith("0.") else text


def numbers(runs: Sequence[Run], key: str) -> str:
    """The mean over the seeds that have the number, and each seed's in small below."""
    found = [run["summary"][key] for run in runs]
    known = [value for value in found if value is not None]
    if not known:
        return ""
    # a level that some seeds never reach has no mean
    mean = number(statistics.fmean(known)) if len(known) == len(found) else "-"
    each = " ".join(number(value, 3 if key == "t5" else 2) for value in found)
    return f'{mean}<br><span class="muted seeds">{each}</span>' if len(found) > 1 else mean


def table(runs: Sequence[Run], cells: Sequence[str]) -> str:
    shown = {key: title for key, title in COLUMNS.items() if any(r["summary"][key] is not None for r in runs)}
    rows = []
    for cell in cells:
        mine = [run for run in runs if run["cell"] == cell]
        values = "".join(f'<td class="number">{numbers(mine, key)}</td>' for key in shown)
        rows.append(f"<tr><td>{escape(cell)}</td><td>{len(mine)}</td>{values}</tr>")
    titles = "".join(
        f'<th class="number" title="{escape(about)}">{escape(title)}</th>' for title, about in shown.values()
    )
    return f"<table><tr><th>method</th><th>seeds</th>{titles}</tr>{''.join(rows)}</table>"


def charts(runs: Sequence[Run], cells: Sequence[str], metrics: Sequence[str] | None = None) -> str:
    """One panel a metric, one curve a method: the mean over the seeds at the steps they share."""
    cards = []
    for metric, title, percent in PLOTTED:
        if metrics is not None and metric not in metrics:
            continue
        curves = []
        for cell in cells:
            by_seed = [moving(run, metric) for run in runs if run["cell"] == cell]
            steps = sorted(set.intersection(*(set(curve) for curve in by_seed)))
            if steps:
                means = [statistics.fmean(curve[step] for curve in by_seed) for step in steps]
                curves.append(plots.Curve(cell, steps, means, COLOURS[cells.index(cell) % len(COLOURS)]))
        if curves:
            panel = plots.Panel(
                plots.Spec("Lab", title, (), percent=percent, zoom=metric == "kept_share"), curves
            )
            cards.append(f'<div class="card chart"><h3>{escape(title)}</h3>{plots.draw(panel)}</div>')
    return f'<div class="charts">{"".join(cards)}</div>'


def all_charts(runs: Sequence[Run], cells: Sequence[str], own: Sequence[str]) -> str:
    """What the regime is about first, then the rest of the family, always beside GRPO."""
    first = [cell for cell in cells if cell in own]
    rest = [cell for cell in cells if cell not in own and cell != REFERENCE]
    parts = [charts(runs, [REFERENCE, *first])]
    for start in range(0, len(rest), AT_ONCE):
        parts.append(charts(runs, [REFERENCE, *rest[start : start + AT_ONCE]], DRAWN_FOR_ALL))
    return "".join(parts)


def family(runs: Sequence[Run]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Regimes, and for each method t5 there: the mean of the seeds, lowest and highest in brackets."""
    stored = {run["regime"] for run in runs}
    regimes = [name for name, regime in REGIMES.items() if regime.family and name in stored]
    methods = [cell for cell in REGIMES["on_policy"].cells if cell in FAMILY]
    rows = []
    for method in methods:
        cells = []
        for name in regimes:
            mine = [
                run["summary"]["t5"]
                for run in runs
                if (run["regime"], run["cell"], run["steps"]) == (name, method, full_length(name))
            ]
            low_high = f" ({number(min(mine), 2)}-{number(max(mine), 2)})" if len(mine) > 1 else ""
            cells.append(f"{number(statistics.fmean(mine), 2)}{low_high}" if mine else "")
        rows.append((method, cells))
    return regimes, rows


def full_length(regime: str) -> int:
    return REGIMES[regime].overrides["train.max_steps"]


def family_table(runs: Sequence[Run]) -> str:
    regimes, rows = family(runs)
    head = "".join(f'<th class="number">{escape(name)}</th>' for name in regimes)
    body = "".join(
        f"<tr><td>{escape(method)}</td>"
        + "".join(f'<td class="number">{escape(cell)}</td>' for cell in cells)
        + "</tr>"
        for method, cells in rows
    )
    return f"<table><tr><th>t5</th>{head}</tr>{body}</table>"


def family_markdown(runs: Sequence[Run]) -> str:
    regimes, rows = family(runs)
    lines = [
        "| | " + " | ".join(f"`{name}`" for name in regimes) + " |",
        "|---|" + "---|" * len(regimes),
    ]
    return "\n".join([*lines, *(f"| {method} | " + " | ".join(cells) + " |" for method, cells in rows)])


def over_reference(t5: dict[int, float], reference: dict[int, float]) -> str:
    """Mean difference over the seeds both have, its standard error, and how many seeds."""
    both = [t5[seed] - reference[seed] for seed in sorted(t5.keys() & reference.keys())]
    if len(both) < 2:
        return ""
    error = statistics.stdev(both) / len(both) ** 0.5
    mean = statistics.fmean(both)
    return f"{'-' if mean < 0 else '+'}{number(abs(mean))} +- {number(error)} ({len(both)})"


def variants_markdown(runs: Sequence[Run]) -> str:
    """t5 by seed, those that departures were chosen on first, and the difference to the reference of that seed."""
    tables = []
    for regime, cells in VARIANTS.items():
        found: dict[str, dict[int, float]] = {}
        for run in runs:
            if run["regime"] == regime and run["cell"] in cells and run["steps"] == full_length(regime):
                found.setdefault(run["cell"], {})[run["seed"]] = run["summary"]["t5"]
        lines = [
            f"| `{regime}` | {' '.join(map(str, CHOOSING_SEEDS))} | 0 1 2 | over {cells[0]} | on all seeds |",
            "|---|---|---|---|---|",
        ]
        for cell in (cell for cell in cells if cell in found):
            mine = found[cell]
            chosen, judged = (
                " ".join(number(mine[seed]) for seed in sorted(mine) if (seed in CHOOSING_SEEDS) == choosing)
                for choosing in (True, False)
            )
            reference = found.get(cells[0], {}) if cell != cells[0] else {}
            judges = {seed: value for seed, value in mine.items() if seed not in CHOOSING_SEEDS}
            differences = f"{over_reference(judges, reference)} | {over_reference(mine, reference)}"
            lines.append(f"| {cell} | {chosen} | {judged} | {differences} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def moving(run: Run, metric: str) -> dict[float, float]:
    """{step: value} of the steps at which the policy was not held."""
    held = {step for step, kept in run["curves"].get("kept_share", []) if kept == 0}
    return {step: value for step, value in run["curves"].get(metric, []) if step not in held}


def page(runs: Sequence[Run]) -> str:
    glossary = "".join(
        f"<dt>{escape(title)}</dt><dd>{escape(about)}</dd>" for title, about in COLUMNS.values()
    )
    parts = [
        f"<style>{STYLE}</style><header><h1>Stability lab</h1><p>Sort task, 0.43 million parameters, and "
        "instructions, 135 million (the regimes real); equal samples for all methods of a regime; mean over seeds, "
        "each seed below</p></header>",
        f'<div class="card"><dl class="glossary">{glossary}</dl></div>',
        "<h2>The family in every regime of the sort task: mean of the seeds, lowest and highest in brackets</h2>",
        f'<div class="card wide">{family_table(runs)}</div>',
    ]
    for name, regime in REGIMES.items():
        order = list(regime.cells)
        for steps in sorted({run["steps"] for run in runs if run["regime"] == name}):
            mine = [run for run in runs if (run["regime"], run["steps"]) == (name, steps)]
            cells = sorted({run["cell"] for run in mine}, key=order.index)
            starts = ", ".join(sorted({run["start"] for run in mine}))
            parts.append(f"<h2>{escape(name)}: {escape(regime.about)}</h2>")
            parts.append(f'<p class="muted">{steps} steps, started from {escape(starts)}</p>')
            parts += [
                f'<div class="card wide">{table(mine, cells)}</div>',
                all_charts(mine, cells, regime.own),
            ]
    parts.append(overopt_table.section())
    hardware = "; ".join(sorted({f"{run['hardware']}, {run['date']}" for run in runs}))
    template = Path(run_page.__file__).with_name("report_template.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title="Stability lab", body="\n".join(parts), footer=escape(hardware)
    )


def markdown(runs: Sequence[Run], regime: str, columns: Sequence[str]) -> str:
    """Each seed's numbers of the regime's full-length runs, one line a method."""
    lines = [
        "| | seeds | " + " | ".join(COLUMNS[key][0] for key in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for cell in REGIMES[regime].cells:
        mine = [run for run in runs if (run["regime"], run["cell"]) == (regime, cell)]
        if mine:
            seeds = " ".join(str(run["seed"]) for run in mine)
            values = [" ".join(number(run["summary"][key]) for run in mine) for key in columns]
            lines.append(f"| {cell} | {seeds} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--markdown", metavar="REGIME", choices=list(REGIMES))
    parser.add_argument("--columns", nargs="*", choices=list(COLUMNS), default=["t5", "best", "entropy_last"])
    parser.add_argument("--family", action="store_true")
    parser.add_argument("--variants", action="store_true")
    args = parser.parse_args()
    runs = load()
    if not runs:
        sys.exit(f"no runs in {RESULTS}; make some with eval/stability/run.py")
    if args.variants:
        print(variants_markdown(runs))
        return
    runs = [run for run in runs if run["seed"] not in CHOOSING_SEEDS]
    if args.markdown:
        print(markdown(runs, args.markdown, args.columns))
        return
    if args.family:
        print(family_markdown(runs))
        return
    out = RESULTS / "report.html"
    out.write_text(page(runs), encoding="utf-8")
    for run in runs:
        shown = {key: round(value, 4) for key, value in run["summary"].items() if value is not None}
        print(f"{run['regime']} {run['cell']} seed {run['seed']} {run['steps']} steps: {shown}")
    print(f"page: {out}")


if __name__ == "__main__":
    main()
