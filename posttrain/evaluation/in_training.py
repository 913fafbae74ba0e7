"""Benchmarks at checkpoints of a training run: what a recipe's `evaluation` section asks for, and doing it.

Results lie in RUN/benchmarks/step-000100/NAME/, in the same files as those of `posttrain eval`, and are
found by `posttrain eval report RUN` and by the run report. No torch at import time: `posttrain plan` checks
the section.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.data.overlap import overlap
from posttrain.evaluation import store, tasks
from posttrain.evaluation.graders import missing_for
from posttrain.recipe.sections import EvaluationSection

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from posttrain.rollout.base import Engine

BENCHMARKS = "benchmarks"


def sampling_of(settings: EvaluationSection, benchmark: tasks.Benchmark) -> tasks.BenchmarkSampling:
    """The benchmark's sampling with the section's changes."""
    named = {
        "samples": settings.samples,
        "max_new_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
    }
    changed = {key: value for key, value in named.items() if value is not None}
    return tasks.BenchmarkSampling.model_validate(benchmark.sampling.model_dump() | changed)


def benchmark_faults(settings: EvaluationSection) -> list[str]:
    """What would fail at the first evaluation, one sentence each: said before training instead."""
    found = [] if settings.benchmarks else ["evaluation.benchmarks is empty; name one, or drop the section"]
    folder = tasks.data_folder(settings.data)
    for name in settings.benchmarks:
        try:
            benchmark = tasks.load(name)
            sampling_of(settings, benchmark)
            missing = missing_for(benchmark.answer.grader, benchmark.answer.args)
            if missing is not None:
                raise ValueError(missing)
            if folder is not None:
                tasks.problems(benchmark, folder)
            elif benchmark.data.hub is None:
                tasks.problems(benchmark, None)
        except ValueError as error:
            found.append(f"evaluation: {error}")
    return found


def overlaps(settings: EvaluationSection, training: Sequence[str]) -> list[str]:
    """Warnings about benchmarks whose problems share 13 words in a row with these training prompts."""
    folder = tasks.data_folder(settings.data)
    found = []
    for name in settings.benchmarks if folder is not None else ():
        try:
            benchmark = tasks.load(name)
            asked = tasks.questions(benchmark, tasks.problems(benchmark, folder, settings.limit))
        except ValueError:  # `benchmark_faults` says it
            continue
        shared = overlap(training, asked)
        if shared.hits:
            found.append(
                f"{len(shared.hits)} of {shared.tests} problems of {benchmark.name} share a run of 13 words with "
                "training prompts: its score measures memory too"
            )
    return found


def evaluate_checkpoint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluationSection,
    run_dir: str | Path,
    *,
    step: int,
    engine: Engine | None = None,
    grade_workers: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, float]:
    """Generates and grades every benchmark with the model as it is; {"benchmarks/NAME/METRIC": value} to log.

    Called on one process that holds the whole model, or with the rollout `engine` that holds its weights.
    Evaluated again (after a resume), a finished benchmark is read and an interrupted one continued; where the resumed
    run came to this step with other weights, the benchmark is measured anew.
    Benchmarks that need a judge are generated only. `progress(name, done, of)`.
    """
    from posttrain.evaluation.engine_bridge import EvaluationEngine, end_tokens, positions, tensors_hash
    from posttrain.evaluation.generate import generate
    from posttrain.evaluation.grade import grade

    generator = EvaluationEngine.around(model, tokenizer)
    if engine is not None:
        generator = EvaluationEngine(
            engine, end_tokens(model, tokenizer), positions(model), {"dtype": engine.dtype}
        )
    weights = tensors_hash(model)
    named = {"path": str(model.name_or_path), "run": Path(run_dir).name, "step": step, "weights": weights}
    values: dict[str, float] = {}
    for name in settings.benchmarks:
        benchmark = tasks.load(name)
        problems = tasks.problems(benchmark, tasks.data_folder(settings.data), settings.limit)
        out = checkpoint_folder(run_dir, step) / benchmark.name
        report = None if progress is None else _named(progress, benchmark.name)
        generate(
            benchmark,
            problems,
            generator,
            tokenizer,
            out,
            model=named,
            sampling=sampling_of(settings, benchmark),
            seed=settings.seed,
            batch_size=settings.batch_size,
            overwrite=_of_other_weights(out, weights),
            progress=report,
        )
        if benchmark.answer.grader == "judge":
            continue
        done = out / store.METRICS
        metrics = store.read_json(done) if done.exists() else grade(out, workers=grade_workers)
        values |= flat_metrics(benchmark.name, metrics)
    return values


def _of_other_weights(out: Path, weights: str) -> bool:
    """A run killed after an evaluation and resumed before it need not repeat itself bit for bit on a GPU."""
    run = out / store.RUN
    return run.exists() and store.read_json(run)["model"]["weights"] != weights


def checkpoint_folder(run_dir: str | Path, step: int) -> Path:
    return Path(run_dir) / BENCHMARKS / f"step-{step:06d}"


def flat_metrics(name: str, metrics: dict[str, Any]) -> dict[str, float]:
    """{"benchmarks/NAME/accuracy": ...}, with the share of responses cut off."""
    values = {
        f"{BENCHMARKS}/{name}/{key}": float(entry["value"])
        for key, entry in metrics["metrics"].items()
        if entry["value"] is not None
    }
    if metrics["truncated"] is not None and metrics["samples"]:
        values[f"{BENCHMARKS}/{name}/truncated"] = metrics["truncated"] / metrics["samples"]
    return values


def evaluation_section(run_dir: str | Path) -> str:
    """The evaluation part of a run's page, as HTML for report_template.html; "" where nothing was
    evaluated."""
    from posttrain.evaluation.grades_page import section
    from posttrain.evaluation.results import collect

    folder = Path(run_dir) / BENCHMARKS
    if not any(folder.rglob(store.METRICS)):
        return ""
    return (
        f'<section id="benchmarks"><h2>Benchmarks at checkpoints</h2>{section(collect([folder]))}</section>'
    )


def _named(progress: Callable[[str, int, int], None], name: str) -> Callable[[int, int], None]:
    return lambda done, of: progress(name, done, of)
