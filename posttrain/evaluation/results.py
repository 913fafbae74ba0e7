"""Graded evaluations as a report needs them: collected from folders, labelled, ordered, paired. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from posttrain.evaluation import store
from posttrain.evaluation.estimators import Difference
from posttrain.evaluation.grade_metrics import compare

_STEP = re.compile(r"(?:checkpoint|step)-0*(\d+)/?$")
_SAVED = ("model", "checkpoints")
"""What a run calls the folders of what it saves: they tell no models apart."""


@dataclass(frozen=True)
class Result:
    """One model on one benchmark.

    label   what tells the models of a report apart
    series  models of one training run share it; `step` orders them
    """

    folder: Path
    run: Mapping[str, Any]
    metrics: Mapping[str, Any]
    label: str
    series: str
    step: int | None

    @property
    def benchmark(self) -> str:
        return self.run["benchmark"]

    @property
    def title(self) -> str:
        definition = self.run["task"].get("definition") or {}
        of, problems = self.run["task"]["of"], self.run["task"]["problems"]
        name = definition.get("title", self.benchmark)
        return name if of == problems else f"{name}, first {problems} of {of}"

    @property
    def headline(self) -> tuple[str, Mapping[str, Any]]:
        """The metric a table shows first."""
        return next(iter(self.metrics["metrics"].items()))

    @property
    def limit(self) -> int | None:
        return (self.run.get("sampling") or {}).get("max_new_tokens")

    @cached_property
    def grades(self) -> list[dict[str, Any]]:
        return store.read_lines(self.folder / store.GRADES)

    @cached_property
    def generations(self) -> dict[tuple[str, int], dict[str, Any]]:
        rows = store.read_lines(self.folder / store.GENERATIONS)
        return {(row["id"], row["sample"]): row for row in rows}


@dataclass(frozen=True)
class Comparison:
    """`after` minus `before` on one benchmark, or why there is none."""

    before: Result
    after: Result
    difference: Difference | None
    refusal: str = ""


def collect(paths: Sequence[str | Path]) -> list[Result]:
    """Every graded evaluation below the paths, benchmark by benchmark, models in the order given, steps
    ascending.

    ValueError where nothing is graded.
    """
    found = []
    for folder in store.folders(paths):
        if (folder / store.METRICS).is_file():
            found.append(
                (folder, store.read_json(folder / store.RUN), store.read_json(folder / store.METRICS))
            )
    if not found:
        raise ValueError(f"{', '.join(map(str, paths))}: nothing is graded; run `posttrain eval grade` first")
    labels = _labels([run["model"] for _, run, _ in found])
    results = [
        Result(folder, run, metrics, label, _series(run["model"]), _step(run["model"]))
        for (folder, run, metrics), label in zip(found, labels, strict=True)
    ]
    order = {name: i for i, name in enumerate(dict.fromkeys(r.benchmark for r in results))}
    models = {name: i for i, name in enumerate(dict.fromkeys(r.series for r in results))}
    return sorted(results, key=lambda r: (order[r.benchmark], r.title, models[r.series], r.step or 0))


def comparisons(results: Sequence[Result]) -> list[Comparison]:
    """On each benchmark, everything against its first result: the first model given, or the earliest step."""
    found = []
    for group in by_benchmark(results):
        for after in group[1:]:
            try:
                found.append(Comparison(group[0], after, compare(group[0].folder, after.folder)))
            except ValueError as error:
                found.append(Comparison(group[0], after, None, str(error)))
    return found


def by_benchmark(results: Sequence[Result]) -> list[list[Result]]:
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.title, []).append(result)
    return list(groups.values())


def curves(results: Sequence[Result]) -> dict[str, list[tuple[str, list[Result]]]]:
    """benchmark title -> (series, its results by step), where a series has at least two steps."""
    found: dict[str, list[tuple[str, list[Result]]]] = {}
    for group in by_benchmark(results):
        for series in dict.fromkeys(r.series for r in group):
            steps = [r for r in group if r.series == series and r.step is not None]
            if len({r.step for r in steps}) > 1:
                found.setdefault(group[0].title, []).append((series, steps))
    return found


def failed(grade: Mapping[str, Any]) -> bool:
    """Not right; against a judge's preference: not won."""
    return grade["outcome"] != "win" if "outcome" in grade else grade["score"] != 1.0


def failed_items(result: Result, count: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(grade, generation) of responses that were not right, at most `count`, spread over the reasons.

    The first of each reason, then the second of each, and so on: the same ones every time.
    """
    queues: dict[str, list[dict[str, Any]]] = {}
    for grade in result.grades:
        if failed(grade) and (grade["id"], grade["sample"]) in result.generations:
            queues.setdefault(grade.get("reason", grade.get("outcome", "")), []).append(grade)
    longest = max(map(len, queues.values()), default=0)
    chosen = [queue[i] for i in range(longest) for queue in queues.values() if i < len(queue)][:count]
    return [(grade, result.generations[grade["id"], grade["sample"]]) for grade in chosen]


def _series(model: Mapping[str, Any]) -> str:
    if model.get("run"):
        return str(model["run"])
    return _STEP.sub("", str(model["path"])) or str(model["path"])


def model_name(path: str) -> str:
    """A name for the model at `path`, the run's for what a run saves: r1 for runs/r1/model, r1-checkpoint-200 for
    runs/r1/checkpoints/checkpoint-200."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")] or [path]
    last = parts.pop()
    while parts and parts[-1] in _SAVED:
        parts.pop()
    if not parts or not (last in _SAVED or _STEP.fullmatch(last)):
        return last
    return parts[-1] if last in _SAVED else f"{parts[-1]}-{last}"


def _step(model: Mapping[str, Any]) -> int | None:
    if model.get("step") is not None:
        return int(model["step"])
    match = _STEP.search(str(model["path"]))
    return int(match.group(1)) if match else None


def _labels(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """The shortest ends of the paths that tell different models apart, with the step or adapter behind."""
    paths = list(dict.fromkeys(_series(model).rstrip("/") for model in models))
    short: dict[str, str] = {}
    for path in paths:
        parts = path.split("/")
        least = next((n for n in range(1, len(parts)) if parts[-n] not in _SAVED), len(parts))
        for length in range(least, len(parts) + 1):
            tail = "/".join(parts[-length:])
            if sum(other == tail or other.endswith("/" + tail) for other in paths) == 1:
                break
        short[path] = re.sub(rf"(?:/(?:{'|'.join(_SAVED)}))+$", "", tail)
    labels = []
    for model in models:
        step, adapter = _step(model), model.get("adapter")
        label = short[_series(model).rstrip("/")]
        label += f" @ step {step}" if step is not None else ""
        labels.append(label + (f" + {Path(str(adapter)).name}" if adapter else ""))
    return labels
