"""Grades to metrics.json, and the comparison of two graded runs. No torch, no model, no grader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from posttrain.evaluation import estimators, store
from posttrain.evaluation.estimators import Difference, Estimate

Grades = Sequence[Mapping[str, Any]]


def summarise(run: Mapping[str, Any], grades: Grades) -> dict[str, Any]:
    """The content of metrics.json.

    accuracy    mean over problems of the mean score of their samples (avg@n)
    flexible    the same by the flexible rule, where there is one
    pass@k      for k = 2, 4, ... and n, where there are n > 1 samples of right or wrong
    maj@n       score of the most frequent answer
    Responses that cannot be judged (score null) are left out and counted.
    """
    problems = by_problem(grades)
    samples = sum(map(len, problems.values()))
    metrics = {"accuracy": _entry(_means(problems, "score"), samples)}
    for key in ("flexible", "prompt_loose"):
        if any(key in row for row in grades):
            metrics[key] = _entry(_means(problems, key), samples)
    metrics |= _instruction_level(grades)
    metrics |= _of_many(problems, samples)
    answered = any(row.get("reason") == "checked" for row in grades)
    return {
        "format": 1,
        "benchmark": run["benchmark"],
        "task": run["task"]["hash"],
        "metrics": metrics,
        "problems": len(problems),
        "samples": samples,
        "truncated": sum(bool(row["truncated"]) for row in grades),
        "no_answer": None if answered else sum(_unanswered(row) for row in grades),
        "timeouts": sum(row["reason"] == "timeout" for row in grades),
        "cannot_judge": sum(row["score"] is None for row in grades),
        "mean_tokens": float(np.mean([row["tokens"] for row in grades])) if grades else None,
        "reasons": _count(row["reason"] for row in grades),
        "groups": _groups(problems),
    }


def _unanswered(row: Mapping[str, Any]) -> bool:
    return row["answer"] is None and row["score"] is not None and row["reason"] != "timeout"


def _count(values: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for value in values:
        found[value] = found.get(value, 0) + 1
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def by_problem(grades: Grades) -> dict[str, list[Mapping[str, Any]]]:
    """Judged samples of each problem, in sample order; a problem none of whose samples could be judged is
    gone."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in grades:
        if row["score"] is not None:
            found.setdefault(row["id"], []).append(row)
    return {key: sorted(rows, key=lambda row: row["sample"]) for key, rows in found.items()}


def _means(problems: Mapping[str, list[Mapping[str, Any]]], key: str) -> list[float]:
    return [float(np.mean([row.get(key) or 0.0 for row in rows])) for rows in problems.values()]


def _entry(values: Sequence[float], samples: int) -> dict[str, Any]:
    if not values:
        return {
            "value": None, "standard_error": None, "interval": None, "method": "nothing could be judged",
            "unit": "share", "problems": 0, "samples": 0,
        }  # fmt: skip
    return as_entry(estimators.estimate(values), samples)


def as_entry(found: Estimate, samples: int) -> dict[str, Any]:
    return {
        "value": found.value,
        "standard_error": None if np.isnan(found.standard_error) else found.standard_error,
        "interval": None if np.isnan(found.low) else [found.low, found.high],
        "method": found.method,
        "unit": "share",
        "problems": found.problems,
        "samples": samples,
    }


def _of_many(problems: Mapping[str, list[Mapping[str, Any]]], samples: int) -> dict[str, Any]:
    """pass@k and maj@n, where every problem has the same n > 1 judged samples of right or wrong."""
    counts = {len(rows) for rows in problems.values()}
    scores = [[row["score"] for row in rows] for rows in problems.values()]
    if len(counts) != 1 or counts == {1} or not np.isin(np.concatenate(scores), (0.0, 1.0)).all():
        return {}
    n = counts.pop()
    powers = [2**i for i in range(1, 12) if 2**i < n]
    found = {f"pass@{k}": _entry(estimators.pass_at_k(scores, k).tolist(), samples) for k in (*powers, n)}
    classes = [[row["class"] for row in rows] for rows in problems.values()]
    if any(c is not None for row in classes for c in row):
        found[f"maj@{n}"] = _entry(estimators.maj_at_n(scores, classes).tolist(), samples)
    return found


def _instruction_level(grades: Grades) -> dict[str, Any]:
    """IFEval's share of all instructions followed: a ratio, its error clustered by prompt."""
    found = {}
    for key, name in (("instructions", "instruction_strict"), ("instructions_loose", "instruction_loose")):
        rows = [row for row in grades if row.get(key)]
        if not rows:
            continue
        flat = [value for row in rows for value in row[key]]
        error = estimators.clustered_standard_error(flat, [row["id"] for row in rows for _ in row[key]])
        half = NormalDist().inv_cdf(0.975) * error
        value = float(np.mean(flat))
        found[name] = {
            "value": value,
            "standard_error": None if np.isnan(error) else error,
            "interval": None if np.isnan(error) else [max(0.0, value - half), min(1.0, value + half)],
            "method": "normal, clustered by problem",
            "unit": "share",
            "problems": len({row["id"] for row in rows}),
            "samples": len(flat),
        }
    return found


def _groups(problems: Mapping[str, list[Mapping[str, Any]]]) -> dict[str, Any]:
    names = sorted({str(rows[0]["group"]) for rows in problems.values() if rows[0].get("group") is not None})
    found = {}
    for name in names:
        part = {key: rows for key, rows in problems.items() if str(rows[0]["group"]) == name}
        found[name] = _entry(_means(part, "score"), sum(map(len, part.values())))
    return found


def compare(first: Path, second: Path, key: str = "score") -> Difference:
    """Second minus first on one benchmark, paired by problem.

    ValueError where they were asked other questions, or judged by other judges, or hold other problems.
    """
    before, after = store.read_json(first / store.METRICS), store.read_json(second / store.METRICS)
    if before["benchmark"] != after["benchmark"] or before["task"] != after["task"]:
        raise ValueError(
            f"{first} and {second} are not the same task ({before['benchmark']} {before['task'][:8]}, "
            f"{after['benchmark']} {after['task'][:8]}): other problems, prompts or answer rule; nothing to pair"
        )
    if before.get("preference") and list(before["metrics"]) != list(after["metrics"]):
        raise ValueError(f"{first} and {second} were judged by different judges; nothing to pair")
    a, b = (by_problem(store.read_lines(folder / store.GRADES)) for folder in (first, second))
    shared = [name for name in a if name in b]
    if len(shared) != max(len(a), len(b)) and not before.get("preference"):
        raise ValueError(
            f"{first} and {second} hold judged responses to different problems ({len(a)} and {len(b)}, {len(shared)} "
            "in both); grade both again"
        )
    return estimators.paired_difference(
        *([float(np.mean([row.get(key) or 0.0 for row in x[name]])) for name in shared] for x in (a, b))
    )
