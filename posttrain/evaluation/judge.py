"""Stage two for AlpacaEval: a judge compares each response with the reference's. Writes judgements.jsonl,
grades.jsonl and metrics.json.

What a win rate hides stands beside it: how often the judge changes its mind when the order is swapped, how
often it prefers what it sees first, ties, failed judgements, and the mean lengths of both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from posttrain.evaluation import alpaca, estimators, store
from posttrain.evaluation.alpaca import OutputPair, Rates
from posttrain.evaluation.answer_files import read_annotations, read_outputs
from posttrain.evaluation.tasks import Benchmark, Problem, task_hash
from posttrain.evaluation.transport import Transport
from posttrain.judges.judge_server import JudgeServer

SWAPPED = 200
"""How many of the 805 pairs are also judged in the other order, unless told otherwise."""


@dataclass(frozen=True)
class Sides:
    """What is judged: 805 pairs in canonical order, or the first of them, with the ids and groups of their problems."""

    pairs: list[OutputPair]
    ids: list[str]
    groups: list[str | None]
    reference: str
    truncated: int | None = None


def sides_of_generations(folder: Path) -> Sides:
    """The responses `posttrain eval generate` wrote: all 805, or with --limit the first so many, which have a win rate
    and no length-controlled one. ValueError where some are missing."""
    run = store.read_json(folder / store.RUN)
    if run["benchmark"] != "alpaca_eval":
        raise ValueError(f"{folder}: {run['benchmark']} has a grader of its own; use `posttrain eval grade`")
    rows = [row for row in store.read_lines(folder / store.GENERATIONS) if row["sample"] == 0]
    asked = run["task"]["problems"]
    if len(rows) != asked:
        raise ValueError(
            f"{folder}: {len(rows)} of {asked} instructions have a response; run `posttrain eval generate` to its end"
        )
    rows.sort(key=lambda row: int(row["id"]))
    golds = [row["gold"] for row in rows]
    return Sides(
        pairs=[
            OutputPair(g["instruction"], g["reference"], r["text"]) for g, r in zip(golds, rows, strict=True)
        ],
        ids=[row["id"] for row in rows],
        groups=[row["group"] for row in rows],
        reference=golds[0]["reference_generator"],
        truncated=sum(row["finish"] == "length" for row in rows),
    )


def sides_of_outputs(outputs: Path, benchmark: Benchmark, problems: Sequence[Problem], folder: Path) -> Sides:
    """Outputs that another tool wrote, in the package's format: a list of "instruction", "output",
    "generator".

    `problems` are the benchmark's. Writes run.json into `folder`.
    """
    rows = read_outputs(outputs)
    if (folder / store.GENERATIONS).exists():
        raise ValueError(
            f"{folder} holds what `posttrain eval generate` wrote; give {outputs} a folder of its own"
        )
    references = _references(problems)
    pairs = alpaca.join(references, rows)
    generators = sorted({row["generator"] for row in rows})
    task = task_hash(benchmark, problems)
    _write_run(folder, ", ".join(generators), benchmark, task, {"outputs": _named(outputs)})
    groups = [problem.group for problem in problems]
    return Sides(pairs, [p.id for p in problems], groups, references[0]["generator"])


def _references(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    golds = [problem.gold for problem in problems if isinstance(problem.gold, dict)]
    return [
        {"instruction": g["instruction"], "output": g["reference"], "generator": g["reference_generator"]}
        for g in golds
    ]


def judge(
    folder: Path,
    sides: Sides,
    server: JudgeServer,
    *,
    annotator: str = alpaca.ANNOTATOR,
    swapped: int = SWAPPED,
    gamed: Path | None = None,
    resamples: int = alpaca.LC_RESAMPLES,
    progress: Callable[[int, int], None] | None = None,
    trouble: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Judges both sides, writes judgements.jsonl, grades.jsonl and metrics.json into `folder`; the metrics.

    Judgements already in judgements.jsonl are not asked for again. JudgeLost where the judge is down or gives no
    verdicts: nothing but judgements.jsonl is written then.
    """
    run = store.read_json(folder / store.RUN)
    pairs = sides.pairs
    again = _swapped_rows(min(swapped, len(pairs)), len(pairs))
    total = len(pairs) + len(again)
    if progress is not None:
        progress(0, total)
    transport = Transport(
        server,
        folder / store.JUDGEMENTS,
        None if progress is None else lambda seen: progress(min(seen, total), total),
        trouble,
    )
    panel = alpaca.Annotator(annotator, transport)
    transport.readable = panel.readable
    preferences, first = panel.judge(pairs)
    second, second_first = panel.judge([pairs[i] for i in again], swapped=True) if again else ([], math.nan)
    other = dict(zip(again, second, strict=True))
    name = f"{server.model} ({annotator})"
    rates = alpaca.rates(
        pairs,
        preferences,
        model=str(run["model"]["path"]),
        reference=sides.reference,
        judge=name,
        gamed=gamed,
        resamples=resamples,
    )
    position = _position(first, second_first, len(pairs), len(again))
    metrics = _metrics(run, name, sides, preferences, other, rates, position, gamed)
    metrics["judge"] = {
        "model": server.model,
        "base_url": server.base_url,
        "annotator": annotator,
        "answers_asked_for": transport.asked,
        "failed_requests": dict(sorted(transport.errors.items())),
        "failed_judgements": dict(sorted(panel.failures.items())),
    }
    store.write_lines(folder / store.GRADES, _grades(sides, preferences, other))
    store.write_json(folder / store.METRICS, metrics)
    return metrics


def judge_stored(
    annotations: Path,
    benchmark: Benchmark,
    problems: Sequence[Problem],
    out: Path,
    *,
    gamed: Path | None = None,
    resamples: int = alpaca.LC_RESAMPLES,
) -> dict[str, Any]:
    """The rates of an annotation file that the alpaca_eval package (or its leaderboard) wrote; no judge is
    asked.

    `problems` are the benchmark's 805, in canonical order; the file's rows may stand in any order. Swap
    agreement is not in such a file, so it is null.
    """
    rows = read_annotations(annotations)
    kinds = {key: sorted({row[key] for row in rows}) for key in ("annotator", "generator_1", "generator_2")}
    for key, values in kinds.items():
        if len(values) != 1:
            raise ValueError(
                f"{annotations}: {key} is not one but {', '.join(values)}; give one model's annotations"
            )
    by_instruction = {row["instruction"]: row for row in rows}
    references = _references(problems)
    outputs = [{"instruction": row["instruction"], "output": row["output_2"]} for row in rows]
    # lengths come from the file's own reference outputs: those are what the judge saw
    pairs = [
        OutputPair(p.instruction, by_instruction[p.instruction]["output_1"], p.output)
        for p in alpaca.join(references, outputs)
    ]
    preferences = [_preference(by_instruction[p.instruction]["preference"]) for p in pairs]
    judge_name, reference, model = kinds["annotator"][0], kinds["generator_1"][0], kinds["generator_2"][0]
    rates = alpaca.rates(
        pairs,
        preferences,
        model=model,
        reference=reference,
        judge=judge_name,
        gamed=gamed,
        resamples=resamples,
    )
    same = all(pair.reference == row["output"] for pair, row in zip(pairs, references, strict=True))
    task = (
        task_hash(benchmark, problems)
        if same
        else store.digest([[p.instruction, p.reference] for p in pairs])
    )
    run = _write_run(out, model, benchmark, task, {"annotations": _named(annotations)})
    sides = Sides(pairs, [p.id for p in problems], [p.group for p in problems], reference)
    metrics = _metrics(run, judge_name, sides, preferences, {}, rates, math.nan, gamed)
    store.write_lines(out / store.GRADES, _grades(sides, preferences, {}))
    store.write_json(out / store.METRICS, metrics)
    return metrics


def _write_run(
    folder: Path, model: str, benchmark: Benchmark, task: str, source: dict[str, Any]
) -> dict[str, Any]:
    run = {
        "format": 1,
        "benchmark": "alpaca_eval",
        "model": {"path": model, "weights": None},
        "task": {
            "hash": task,
            "problems": alpaca.COUNT,
            "of": alpaca.COUNT,
            "definition": benchmark.model_dump(exclude={"sampling"}),
        },
        **source,
        "versions": store.versions(),
    }
    store.write_json(folder / store.RUN, run)
    return run


def _named(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": store.file_hash([path])}


def _preference(value: Any) -> float:
    if value is None or (isinstance(value, float) and math.isnan(value)) or value == -1:
        return math.nan
    return 1.5 if float(value) == 0 else float(value)


def _swapped_rows(count: int, of: int) -> list[int]:
    """A fixed sample, so that a second attempt asks for the same ones."""
    return sorted(int(i) for i in np.random.default_rng(0).choice(of, size=count, replace=False))


def _position(first: float, second: float, judged: int, swapped: int) -> float:
    if math.isnan(second) or not swapped:
        return first
    return first if math.isnan(first) else (first * judged + second * swapped) / (judged + swapped)


def _grades(sides: Sides, preferences: Sequence[float], other: Mapping[int, float]) -> list[dict[str, Any]]:
    return [
        {
            "id": sides.ids[i],
            "sample": 0,
            "group": sides.groups[i],
            "score": None if math.isnan(preference) else preference - 1,
            "swapped_score": None if math.isnan(other.get(i, math.nan)) else other[i] - 1,
            "outcome": _outcome(preference),
            "length": len(pair.output),
            "reference_length": len(pair.reference),
        }
        for i, (pair, preference) in enumerate(zip(sides.pairs, preferences, strict=True))
    ]


def _outcome(preference: float) -> str:
    if math.isnan(preference):
        return "failed"
    return "win" if preference > 1.5 else "loss" if preference < 1.5 else "tie"


def _metrics(
    run: Mapping[str, Any],
    judge_name: str,
    sides: Sides,
    preferences: Sequence[float],
    other: Mapping[int, float],
    rates: Rates,
    position: float,
    gamed: Path | None,
) -> dict[str, Any]:
    pairs = sides.pairs
    valid = [p - 1 for p in preferences if not math.isnan(p)]
    outcomes = [_outcome(p) for p in preferences]
    interval = estimators.estimate(valid)
    counts = {"unit": "percent", "problems": len(valid), "samples": len(valid)}
    metrics: dict[str, Any] = {
        f"win_rate [{judge_name}]": {
            "value": rates.win_rate,
            "standard_error": rates.standard_error,
            "interval": [100 * interval.low, 100 * interval.high],
            "method": interval.method,
            **counts,
        },
        f"lc_win_rate [{judge_name}]": _length_controlled(rates) | counts,
    }
    agreement = swap_agreement(preferences, other)
    return {
        "format": 1,
        "benchmark": run["benchmark"],
        "task": run["task"]["hash"],
        "metrics": metrics,
        "problems": len(pairs),
        "samples": len(pairs),
        "truncated": sides.truncated,
        "no_answer": sum(not p.output.strip() for p in pairs),
        "timeouts": 0,
        "cannot_judge": outcomes.count("failed"),
        "preference": {
            "wins": outcomes.count("win"),
            "losses": outcomes.count("loss"),
            "ties": outcomes.count("tie"),
            "failed": outcomes.count("failed"),
            "discrete_win_rate": rates.discrete_win_rate,
            "swap_agreement": agreement,
            "prefers_first_shown": None if math.isnan(position) else position,
            "mean_length": float(np.mean([len(p.output) for p in pairs])),
            "mean_length_reference": float(np.mean([len(p.reference) for p in pairs])),
            "lc_missing": rates.lc_missing,
            "gamed_rows": None if gamed is None else store.file_hash([gamed]),
        },
    }


def _length_controlled(rates: Rates) -> dict[str, Any]:
    if rates.length_controlled is None:
        return {"value": None, "standard_error": None, "interval": None, "method": rates.lc_missing}
    if rates.lc_standard_error is None:
        ends, method = None, "not resampled"
    else:
        half = NormalDist().inv_cdf(0.975) * rates.lc_standard_error
        ends = [max(0.0, rates.length_controlled - half), min(100.0, rates.length_controlled + half)]
        method = "normal, error from fits to resampled instructions"
    return {
        "value": rates.length_controlled,
        "standard_error": rates.lc_standard_error,
        "interval": ends,
        "method": method,
    }


def swap_agreement(preferences: Sequence[float], other: Mapping[int, float]) -> dict[str, Any] | None:
    """How often both orders name the same winner, among the pairs judged in both; None where none was.

    A judge that only looks at positions agrees never; two ties agree, a tie and a winner do not.
    """
    both = [
        (preferences[i], p) for i, p in other.items() if not math.isnan(p) and not math.isnan(preferences[i])
    ]
    if not both:
        return None
    same = [float(_outcome(a) == _outcome(b)) for a, b in both]
    found = estimators.estimate(same)
    averaged = estimators.estimate([(a + b) / 2 - 1 for a, b in both])
    return {
        "value": found.value,
        "interval": [found.low, found.high],
        "pairs": len(both),
        "win_rate_of_both_orders": 100 * averaged.value,
    }
