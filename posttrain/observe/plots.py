"""The curves of a run as inline SVG, drawn by matplotlib; a panel exists only where its metrics were logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from statistics import median
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from posttrain.observe.curves import metric_names, series
from posttrain.observe.plot_style import MUTED, PALETTE, dress, svg
from posttrain.observe.reasons import CARRIED, CLASSES, PREFIX
from posttrain.observe.reliability import ReliabilityTable
from posttrain.observe.watch import methods_in, who_logs_as
from posttrain.rollout.resample import RESAMPLE

SIGNAL_COLOURS = {
    "carried": "#059669",
    "unjudged": "#78716c",
    "equal_rewards": "#94a3b8",
    "thrown_away": "#65a30d",
    "truncated": "#f59e0b",
    "tool": "#a78bfa",
    "importance": "#ec4899",
    "left_out": "#c4b5fd",
    "clipped_low": "#60a5fa",
    "clipped_high": "#1d4ed8",
    "dual_clipped": "#0e7490",
    "curvature": "#b45309",
    "nonfinite": "#dc2626",
    "other": "#cbd5e1",
}
_SMOOTH_FROM = 80  # points from which a running median is drawn over the raw curve


@dataclass(frozen=True)
class Spec:
    """A panel: its section, title, metrics as (pattern, label) and scale; `{}` in a label is the pattern's star.

    percent  the values are shares of 1
    zoom     with percent: the axis shows the values' range, not 0 to 100 %
    log      logarithmic where the values span more than a factor of fifty
    raw      never smoothed: the jumps are the message
    band     metrics whose range is shaded
    target   key of the recipe's objective section drawn as a level
    """

    section: str
    title: str
    metrics: tuple[tuple[str, str], ...]
    percent: bool = False
    zoom: bool = False
    log: bool = False
    raw: bool = False
    band: tuple[str, str] | None = None
    target: str | None = None


SPECS = (
    Spec(
        "Learning",
        "Reward",
        (("reward", "weighted sum"), ("rewards/*/mean", "{}"), ("eval_reward", "held-out")),
    ),
    Spec("Learning", "Accuracy", (("accuracy", "sampled"), ("eval_accuracy", "held-out")), percent=True),
    Spec(
        "Learning",
        "Preferred response scored higher",
        (("rewards/accuracies", "training"), ("eval_rewards/accuracies", "held-out")),
        percent=True,
    ),
    Spec(
        "Learning",
        "Token accuracy",
        (("mean_token_accuracy", "training"), ("eval_mean_token_accuracy", "held-out")),
        percent=True,
    ),
    Spec("Learning", "Loss", (("loss", "training"), ("eval_loss", "held-out"))),
    Spec("Learning", "Implicit reward", (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected"))),
    Spec(
        "Learning", "Reward margin", (("rewards/margins", "training"), ("eval_rewards/margins", "held-out"))
    ),
    Spec(
        "Learning",
        "Log-prob of the responses [nats]",
        (("logps/chosen", "chosen"), ("logps/rejected", "rejected")),
    ),
    Spec("Policy", "Entropy [nats per token]", (("entropy", "policy"),)),
    Spec("Policy", "Gradient norm", (("grad_norm", "before clipping"),), log=True),
    Spec("Policy", "KL to the reference [nats per token]", (("kl", "k3 estimate"),)),
    Spec(
        "Policy",
        "Response length [tokens]",
        (("completions/mean_length", "mean"),),
        band=("completions/min_length", "completions/max_length"),
    ),
    Spec("Policy", "Responses cut at the limit", (("completions/clipped_ratio", "share"),), percent=True),
    Spec("Policy", "Clip bounds of the ratio", (("*/clip_low", "lower"), ("*/clip_high", "upper")), raw=True),
    Spec(
        "Policy",
        "Positive share of the signal",
        (("*/positive_share_before", "at the starting bounds"), ("*/positive_share", "at the bounds used")),
        percent=True,
        zoom=True,
        target="target",
    ),
    Spec(
        "Policy",
        "Clipped tokens",
        (("clip_ratio/low_mean", "low"), ("clip_ratio/high_mean", "high")),
        percent=True,
    ),
    Spec(
        "Policy",
        "Tool calls per response",
        (("tools/call_frequency", "calls"), ("tools/turns", "turns of the model")),
    ),
    Spec(
        "Policy",
        "What tools wrote, and what went wrong",
        (
            ("tools/token_share", "tokens that tools wrote"),
            ("tools/failure_frequency", "calls that failed"),
            ("tools/unanswered", "responses that end with a call"),
        ),
        percent=True,
    ),
    Spec("Policy", "Groups with equal rewards", (("frac_reward_zero_std", "share of groups"),), percent=True),
    Spec(
        "Policy",
        "Groups sampled per rollout",
        (("resample/groups", "sampled"), ("resample/taught_groups", "taught")),
    ),
    Spec(
        "Policy",
        "Reward of everything sampled",
        (("resample/sampled_reward", "reward"), ("resample/sampled_accuracy", "accuracy")),
    ),
    Spec("Policy", "Tokens the objective kept", (("kept_share", "share of loss tokens"),), percent=True),
    Spec("Policy", "ELBO [nats per token]", (("elbo_per_token", "policy"),)),
    Spec("Policy", "ELBO drift since the rollout [nats]", (("drift", "mean"), ("largest_drift", "largest"))),
    Spec("Policy", "Tokens no pass hid", (("unhidden", "share"),), percent=True),
    Spec(
        "Run",
        "Age of the sampled tokens [optimizer steps]",
        (("rollout/staleness", "mean"), ("rollout/staleness_max", "oldest")),
    ),
    Spec(
        "Run",
        "Tokens per second",
        (
            ("tokens_per_second", "rollout tokens"),
            ("resample/taught_tokens_per_second", "response tokens that taught"),
        ),
    ),
    Spec("Run", "Passes over the data", (("resample/passes", "with the prompts sampled over"),)),
    Spec(
        "Run",
        "Seconds per step",
        (
            ("step_time", "whole step"),
            ("rollout/wait_s", "waiting for samples"),
            ("rollout/sync_s", "sending weights"),
        ),
    ),
    Spec("Run", "Learning rate", (("learning_rate", "schedule"),), raw=True),
    Spec(
        "Run",
        "Log-prob gap between sampler and trainer [nats]",
        (
            ("sampling/sampling_logp_difference/mean", "mean"),
            ("sampling/sampling_logp_difference/max", "largest"),
            ("rollout/proof_gap", "after a sync, largest"),
        ),
        log=True,
    ),
)
SHARED = (
    "rewards/",
    "completions/",
    "clip_ratio/",
    "sampling/",
    "logps/",
    "logits/",
    "tools/",
    "eval_",
    PREFIX,
    RESAMPLE,
)


@dataclass(frozen=True)
class Curve:
    """colour: by default the palette's, by the curve's place in its panel; dash: matplotlib's line style."""

    label: str
    steps: list[int]
    values: list[float]
    colour: str | None = None
    dash: str = "-"


@dataclass(frozen=True)
class Panel:
    spec: Spec
    curves: list[Curve]
    band: tuple[list[int], list[float], list[float]] | None = None
    marks: list[tuple[int, float]] = field(default_factory=list)
    level: float | None = None


def panels(
    rows: Sequence[Mapping[str, Any]],
    recipe: Mapping[str, Any],
    evaluation: Mapping[str, Mapping[str, float]],
) -> list[Panel]:
    """Every panel that has something to show, in the order of `specs_of`; a method's own metrics one each."""
    names = metric_names(rows)
    claimed: set[str] = set()
    own = f"{recipe.get('method')}/"
    found = []
    for spec in specs_of(rows):
        if spec.title == "Loss" and "reward" in names:  # a surrogate's value says nothing about learning
            spec = replace(spec, section="Run")
        curves = _curves(spec, names, rows, claimed)
        marks = _marks(spec, rows, evaluation)
        if not curves and not marks:
            continue
        level = (recipe.get("objective") or {}).get(spec.target) if spec.target else None
        found.append(
            Panel(spec, curves, _band(spec, rows), marks, level if isinstance(level, float) else None)
        )
    for name in names:
        if "/" not in name or name in claimed or name.startswith((*SHARED, "reward_failures/")):
            continue
        steps, values = series(rows, name)
        if values and len(set(values)) > 1:
            spec = Spec("Method" if name.startswith(own) else "Run", name, ((name, ""),), log=min(values) > 0)
            found.append(Panel(spec, [Curve("", steps, values)]))
    return found


def specs_of(rows: Sequence[Mapping[str, Any]]) -> list[Spec]:
    """The panels of every run, and those that the methods of these rows declare."""
    own = [
        Spec("Method", title, tuple((f"{method}/{name}", label) for name, label in curves))
        for method in methods_in(rows)
        for cls in who_logs_as(method)
        for title, curves in cls.panels.items()
    ]
    return [*SPECS, *own]


def draw(panel: Panel) -> str:
    """One panel as an <svg> element."""
    figure = Figure(figsize=(5.6, 2.55), layout="constrained")
    ax = figure.add_subplot()
    for i, curve in enumerate(panel.curves):
        colour = curve.colour or PALETTE[i % len(PALETTE)]
        few = len(curve.values) < 12
        if len(curve.values) >= _SMOOTH_FROM and not panel.spec.raw:
            ax.plot(curve.steps, curve.values, color=colour, alpha=0.28, linewidth=1.0)
            ax.plot(
                curve.steps, running_median(curve.values), color=colour, linewidth=1.9, linestyle=curve.dash,
                label=curve.label,
            )  # fmt: skip
        else:
            ax.plot(
                curve.steps, curve.values, color=colour, linewidth=1.7, marker="o" if few else "", ms=3.5,
                linestyle=curve.dash, label=curve.label,
            )  # fmt: skip
    if panel.band is not None:
        ax.fill_between(*panel.band, color=PALETTE[0], alpha=0.10, linewidth=0, label="shortest to longest")
    if panel.marks:
        ax.plot(
            *zip(*panel.marks, strict=True), color="#dc2626", linestyle=":", linewidth=1.2, marker="D", ms=5,
            label="held-out, before and after",
        )  # fmt: skip
    if panel.level is not None:
        ax.axhline(panel.level, color=MUTED, linestyle="--", linewidth=1, label=f"target {panel.level:g}")
    _scale(ax, panel)
    _dress(ax)
    labels = [label for label in ax.get_legend_handles_labels()[1] if label]
    if len(labels) > 1:
        ax.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=min(4, len(labels)), frameon=False, fontsize=8,
            borderaxespad=0.1, handlelength=1.4, columnspacing=1.2,
        )  # fmt: skip
    return svg(figure, panel.spec.title)


def draw_signal(rows: Sequence[Mapping[str, Any]], counted: str = "tokens") -> str:
    """The classes of what was generated over the steps, stacked to 100 %."""
    logged = [row for row in rows if PREFIX + CARRIED in row]
    steps = [row["step"] for row in logged]
    shown = [name for name in CLASSES if any(row.get(PREFIX + name) for row in logged)]
    figure = Figure(figsize=(11.6, 2.6), layout="constrained")
    ax = figure.add_subplot()
    stacks = [[float(row.get(PREFIX + name) or 0.0) for row in logged] for name in shown]
    if len(steps) == 1:  # an area needs two ends
        steps, stacks = [steps[0] - 0.5, steps[0] + 0.5], [stack * 2 for stack in stacks]
    ax.stackplot(steps, stacks, colors=[SIGNAL_COLOURS[name] for name in shown], linewidth=0)
    ax.set_xlim(min(steps), max(steps))
    ax.set_ylim(0, 1)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    _dress(ax)
    return svg(figure, f"Generated {counted} by class over the steps")


def draw_reliability(table: ReliabilityTable) -> str:
    """Observed against predicted, with 95 % intervals, over a bar of each bin's pairs."""
    figure = Figure(figsize=(5.6, 3.9), layout="constrained")
    ax, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    said, was = [one.predicted for one in table.bins], [one.observed for one in table.bins]
    low, high = zip(*(one.interval for one in table.bins), strict=True)
    ax.plot((0.5, 1), (0.5, 1), color=MUTED, linestyle="--", linewidth=1, label="as sure as it is right")
    ax.vlines(said, low, high, color=PALETTE[0], linewidth=1.2, alpha=0.6)
    ax.plot(
        said, was, color=PALETTE[0], linewidth=1.4, marker="o", ms=5, label="held-out pairs, 95 % interval"
    )
    ax.set_ylim(min(0.45, *low) - 0.02, 1.03)
    ax.set_ylabel("preferred", color=MUTED, fontsize=8.5)
    ax.legend(loc="upper left", frameon=False, fontsize=8)
    bars = below.bar(said, [one.pairs for one in table.bins], width=0.03, color=PALETTE[0], alpha=0.45)
    below.bar_label(bars, fmt="{:,.0f}", color=MUTED, fontsize=8)
    below.set_ylim(0, max(one.pairs for one in table.bins) * 1.35)
    below.set_ylabel("pairs", color=MUTED, fontsize=8.5)
    below.set_xlim(0.48, 1.02)
    dress(ax, "")
    dress(below, "predicted probability that the answer scored higher is the preferred one")
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    below.xaxis.set_major_formatter(PercentFormatter(1.0))
    below.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    return svg(figure, "Reliability of the reward model")


def running_median(values: Sequence[float]) -> list[float]:
    """Centred median over a twentieth of the curve, at least five points, shorter at the ends: a single spike
    stays a spike of the raw curve."""
    half = max(2, len(values) // 40)
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [median(window) for window in windows]


def _curves(
    spec: Spec, names: Sequence[str], rows: Sequence[Mapping[str, Any]], claimed: set[str]
) -> list[Curve]:
    curves: list[Curve] = []
    for pattern, label in spec.metrics:
        for name in names:
            if not matches(name, pattern) or name in claimed:
                continue
            claimed.add(name)
            curve = Curve(label.format(starred(name, pattern)), *series(rows, name))
            # a single reward function with weight one is its own sum: one line is enough
            if curve.values and not any((curve.steps, curve.values) == (c.steps, c.values) for c in curves):
                curves.append(curve)
    return curves


def matches(name: str, pattern: str) -> bool:
    """Whether a metric is one of a `Spec`'s."""
    return fnmatchcase(name, pattern)


def starred(name: str, pattern: str) -> str:
    """What the pattern's star stands for in the name."""
    before, star, after = pattern.partition("*")
    return name[len(before) : len(name) - len(after)] if star else name


def _band(spec: Spec, rows: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[float], list[float]] | None:
    if spec.band is None:
        return None
    (steps, low), (other, high) = series(rows, spec.band[0]), series(rows, spec.band[1])
    return (steps, low, high) if steps and steps == other else None


def _marks(
    spec: Spec, rows: Sequence[Mapping[str, Any]], evaluation: Mapping[str, Mapping[str, float]]
) -> list[tuple[int, float]]:
    """Held-out accuracy before and after training, where it was measured outside the training loop."""
    if spec.title != "Accuracy" or not rows or series(rows, "eval_accuracy")[0]:
        return []
    ends = (("before", max(0, rows[0]["step"] - 1)), ("after", rows[-1]["step"]))
    return [
        (step, evaluation[when]["accuracy"]) for when, step in ends if "accuracy" in evaluation.get(when, {})
    ]


def _scale(ax: Any, panel: Panel) -> None:
    values = [v for curve in panel.curves for v in curve.values] + [v for _, v in panel.marks]
    if panel.spec.log and min(values) > 0 and max(values) > 50 * min(values):
        ax.set_yscale("log")
        return
    if panel.spec.percent:
        top = max([*values, panel.level or 0.0])
        if not panel.spec.zoom:
            ax.set_ylim(0, 1.0 if top > 0.5 else max(0.02, top * 1.15))
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if top > 0.05 else 1))
    elif max(values) - min(values) <= 1e-3 * max(map(abs, values)):  # a flat curve must not be drawn as noise
        spread = abs(values[0]) * 0.1 or 0.1
        ax.set_ylim(values[0] - spread, values[0] + spread)
    elif min(values) >= 0 and min(values) < 0.5 * max(values):
        ax.set_ylim(bottom=0)
    ax.yaxis.set_major_locator(MaxNLocator(5))


def _dress(ax: Any) -> None:
    dress(ax, "step")
    ax.xaxis.set_major_locator(MaxNLocator(7, integer=True))
