"""A run folder, read back as facts: what ran, how it ended, what to worry about. No torch, no drawing."""

from __future__ import annotations

import fnmatch
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.observe import writer
from posttrain.observe.basis import held_out_basis, steps_basis
from posttrain.observe.curves import edges, series, width_of_edge
from posttrain.observe.family_table import FamilyTable, family_table
from posttrain.observe.logged_table import LoggedTable, logged_table
from posttrain.observe.pairs import BeforeAfter, read_pairs
from posttrain.observe.progress import clock
from posttrain.observe.reasons import CARRIED, CLASSES, PREFIX, REASONS
from posttrain.observe.reliability import ReliabilityTable, read_reliability
from posttrain.observe.resampled import Resampled, resampled_of
from posttrain.observe.watch import methods_in, run_notes, who_logs_as
from posttrain.recipe.methods import METHODS
from posttrain.rollout.resample import RESAMPLE

FAILURES = "reward_failures/"
TAUGHT_SPEED = RESAMPLE + "taught_tokens_per_second"
_SHORT = 5  # fewer logged steps than this make no curve
# metrics that can stand for the run's result, best first: (name, label)
_RESULTS = (
    ("eval_accuracy", "held-out accuracy"),
    ("eval_reward", "held-out reward"),
    ("reward", "reward"),
    ("eval_rewards/accuracies", "held-out preference accuracy"),
    ("rewards/accuracies", "preference accuracy"),
    ("eval_loss", "held-out loss"),
    ("loss", "loss"),
)


@dataclass(frozen=True)
class Summary:
    """Everything the report shows, apart from the curves, which are drawn from `rows`.

    result      (label, before, after) or None
    basis       what the result rests on: problems and interval, or steps; "" where it is not known
    signal      (class, meaning, share of all generated tokens), empty classes left out
    own         (metric, meaning, mean over the steps) of what the method logs of itself
    resampled   what dynamic sampling threw away; None where the run did not sample over
    reliability how sure a reward model is of held-out pairs, and how right; None for other methods
    logged      the account of logged answers; None where every response was sampled
    family      reward and KL of each KL coefficient; None where the policy has one
    failures    (reward function, reason, responses)
    recipe_changes  (step, change): what resumes from that step changed; `recipe` is what the last steps had
    evaluation  {"before": {metric: value}, "after": {...}}
    """

    name: str
    recipe: dict[str, Any]
    environment: dict[str, Any]
    rows: list[dict[str, Any]]
    steps: int
    total_steps: int | None
    duration_s: float
    result: tuple[str, float, float] | None
    basis: str
    signal: list[tuple[str, str, float]]
    own: list[tuple[str, str, float]]
    failures: list[tuple[str, str, int]]
    evaluation: dict[str, dict[str, float]]
    pairs: list[BeforeAfter]
    pair_titles: tuple[str, str]
    recipe_changes: list[tuple[int, writer.RecipeChange]] = field(default_factory=list)
    resampled: Resampled | None = None
    reliability: ReliabilityTable | None = None
    logged: LoggedTable | None = None
    family: FamilyTable | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def stretches(self) -> list[tuple[str, int, int | None, Any]]:
        """(setting, first step, last step or None for the end, value) of every setting that a resume changed."""
        found = []
        for key in dict.fromkeys(change.key for _, change in self.recipe_changes):
            changes = [(after, change) for after, change in self.recipe_changes if change.key == key]
            first = 1
            for after, change in changes:
                if after >= first:  # a resume from the checkpoint of step 0 leaves no step with the old value
                    found.append((key, first, after, "unset" if change.old is None else change.old))
                first = after + 1
            new = changes[-1][1].new
            found.append((key, first, None, "unset" if new is None else new))
        return found

    @property
    def method(self) -> str:
        return str(self.recipe.get("method", "unknown"))

    @property
    def counted(self) -> str:
        """What the signal account counts: a denoising step takes a token's place where images are made."""
        known = METHODS.get(self.method)
        return "denoising steps" if known is not None and known.family == "images" else "tokens"

    @property
    def model(self) -> str:
        return describe_model(self.recipe.get("model") or {})

    @property
    def data(self) -> str:
        data = self.recipe.get("data") or {}
        return str(data.get("name") or data.get("path") or "unknown")


def summarise(run_dir: str | Path) -> Summary:
    """Reads a run folder. FileNotFoundError where it is none; parts that are missing stay empty."""
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise FileNotFoundError(f"{run_dir}: no such run folder")
    known = (writer.METRICS, writer.RECIPE, writer.ENVIRONMENT)
    if not any((run_dir / name).exists() for name in known):
        raise FileNotFoundError(f"{run_dir}: not a run folder: none of {', '.join(known)} is in it")
    recipe = _read_yaml(run_dir / writer.RECIPE)
    rows = writer.read_metrics(run_dir)
    events = writer.read_events(run_dir)
    evaluation = writer.read_evaluation(run_dir)
    result, basis = _result(run_dir, rows, evaluation)
    pairs, titles = read_pairs(run_dir, last_step=rows[-1]["step"] if rows else 0)
    summary = Summary(
        name=run_dir.resolve().name,
        recipe=recipe,
        environment=_read_json(run_dir / writer.ENVIRONMENT),
        rows=rows,
        steps=rows[-1]["step"] if rows else 0,
        total_steps=_total_steps(events, recipe),
        duration_s=max((row.get("time_s") or 0.0 for row in rows), default=0.0),
        result=result,
        basis=basis,
        signal=signal_shares(rows),
        own=own_means(rows),
        failures=_failures(rows),
        evaluation=evaluation,
        pairs=pairs,
        pair_titles=titles,
        recipe_changes=[
            (entry.after_step, change)
            for entry in writer.read_recipe_changes(run_dir)
            for change in entry.changes
        ],
        resampled=resampled_of(rows),
        reliability=read_reliability(run_dir),
        logged=logged_table(rows),
        family=family_table(rows),
    )
    summary.notes.extend(_notes(summary, events))
    return summary


def signal_shares(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, float]]:
    """(class, meaning, share) over the whole run, each step weighted by its tokens; [] where not logged."""
    logged = [row for row in rows if PREFIX + CARRIED in row]
    weights = [float(row.get(PREFIX + "tokens") or 1.0) for row in logged]
    total = sum(weights)
    if not total:
        return []
    meanings = {CARRIED: "carried gradient", **REASONS}
    shares = {
        name: sum(w * float(row.get(PREFIX + name) or 0.0) for row, w in zip(logged, weights, strict=True))
        / total
        for name in CLASSES
    }
    return [(name, meanings[name], share) for name, share in shares.items() if share > 0 or name == CARRIED]


def own_means(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, float]]:
    """(metric, meaning, mean over the steps that log it; of `_min` and `_max` the extreme); [] where none is."""
    found = []
    for method in methods_in(rows):
        meanings = {key: meaning for cls in who_logs_as(method) for key, meaning in cls.logs.items()}
        for key, meaning in meanings.items():
            if values := series(rows, f"{method}/{key}")[1]:
                extreme = min if key.endswith("_min") else max if key.endswith("_max") else None
                value = extreme(values) if extreme is not None else sum(values) / len(values)
                found.append((f"{method}/{key}", meaning, value))
    return found


def describe_model(model: Mapping[str, Any]) -> str:
    if model.get("path"):
        path = Path(str(model["path"]))
        name = "/".join(("…", *path.parts[-2:])) if path.is_absolute() else str(path)
        return f"{name} + LoRA" if model.get("peft") else name
    scratch = model.get("scratch")
    if scratch:
        shape = [
            f"{scratch[k]} {word}"
            for k, word in (("layers", "layers"), ("hidden_size", "hidden"))
            if k in scratch
        ]
        return "from scratch" + (f" ({', '.join(shape)})" if shape else "")
    return "unknown"


def _total_steps(events: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any]) -> int | None:
    totals = [event["total"] for event in events if event.get("total")]
    planned = (recipe.get("train") or {}).get("max_steps")
    return totals[-1] if totals else planned if planned and planned > 0 else None


def _result(
    run_dir: Path, rows: list[dict[str, Any]], evaluation: dict[str, dict[str, float]]
) -> tuple[tuple[str, float, float] | None, str]:
    """(label, before, after) of what stands for the run, and what it rests on."""
    before, after = evaluation.get("before", {}), evaluation.get("after", {})
    shared = [name for name in after if name in before]
    for pattern in ("accuracy", "*accurac*", "reward", "rewards/*/mean", "loss"):
        for name in fnmatch.filter(shared, pattern):
            ends = before[name], after[name]
            return (f"held-out {name.replace('_', ' ')}", *ends), held_out_basis(
                run_dir, name, evaluation, ends
            )
    for name, label in _RESULTS:
        _, values = series(rows, name)
        if len(values) < 2:
            continue
        if name.startswith(
            "eval_"
        ):  # one evaluation covers a whole held-out set: its ends stand for themselves
            ends = values[0], values[-1]
            of_last = {"before": after, "after": after}  # the same rows each time
            return (label, *ends), held_out_basis(run_dir, name.removeprefix("eval_"), of_last, ends)
        return (label, *edges(values)), steps_basis(run_dir, width_of_edge(values), len(values))
    return None, ""


def _failures(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, int]]:
    counts: dict[tuple[str, str], float] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith(FAILURES) and value:
                function, _, reason = name.removeprefix(FAILURES).rpartition("/")
                counts[function, reason] = counts.get((function, reason), 0.0) + float(value)
    return [(function, reason, round(count)) for (function, reason), count in sorted(counts.items())]


def _notes(s: Summary, events: Sequence[Mapping[str, Any]]) -> list[str]:
    if not s.rows:
        return ["No step was logged: the run stopped before its first update, or has not reached it yet."]
    notes = []
    if len(s.rows) < _SHORT:
        notes.append(f"Only {len(s.rows)} steps were logged: the curves say little.")
    if s.total_steps and s.steps < s.total_steps:
        notes.append(f"The run has not reached its end: last logged step {s.steps} of {s.total_steps}.")
    elif not any(event["event"] == "end" for event in events):
        notes.append(f"The run did not close its log: it was stopped at step {s.steps}, or is still going.")
    resumed = [str(event["step"]) for event in events if event["event"] == "resume"]
    if resumed:
        notes.append(f"Resumed from step {', '.join(resumed)}; superseded steps are left out.")
    notes += [f"From step {after + 1}: {change}." for after, change in s.recipe_changes]
    notes += [str(event["text"]) for event in events if event["event"] == "note"]
    shares = {name: share for name, _, share in s.signal}
    if shares and shares[CARRIED] < 0.5:
        worst = max(REASONS, key=lambda name: shares.get(name, 0.0))
        notes.append(
            f"Only {shares[CARRIED]:.0%} of the generated {s.counted} carried gradient; "
            f"the largest loss is {worst} ({shares.get(worst, 0.0):.0%}: {REASONS[worst]})."
        )
    notes += run_notes(s.rows)
    odd = sorted(
        {k for row in s.rows for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)}
    )
    if odd:
        notes.append(f"NaN or infinity was logged for {', '.join(odd)}.")
    if s.failures:
        notes.append(
            f"{sum(count for *_, count in s.failures):,} responses could not be judged by a reward function."
        )
    _, truncated = series(s.rows, "completions/clipped_ratio")
    if truncated and edges(truncated)[1] > 0.25:
        notes.append(f"{edges(truncated)[1]:.0%} of the last responses hit the length limit.")
    return notes


def facts(s: Summary) -> list[tuple[str, str]]:
    """(label, value) for the header and the terminal."""
    steps = f"{s.steps:,}" + (f" of {s.total_steps:,}" if s.total_steps else "")
    found = [("method", s.method), ("model", s.model), ("data", s.data), ("steps", steps)]
    found.append(("duration", clock(s.duration_s)))
    _, speed = series(s.rows, "tokens_per_second")
    if speed:
        found.append(("tokens/s", f"{edges(speed)[1]:,.0f}"))
    _, taught = series(s.rows, TAUGHT_SPEED)
    if taught:
        found.append(("tokens/s that taught", f"{edges(taught)[1]:,.0f}"))
    return found


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}
