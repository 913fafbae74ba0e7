"""Refusals about the rollout engine beyond options that it lacks: servers, weights' way to them, cut rollouts."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from posttrain.planning.batch import rollout_of
from posttrain.recipe import Recipe
from posttrain.recipe.errors import suggest
from posttrain.recipe.sections import VLLMSection
from posttrain.rollout.engine_options import RESAMPLE_NOT_PARTIAL, check_servers
from posttrain.rollout.logged import NOT_WITH, LoggedRule


def engine_faults(recipe: Recipe, processes: int) -> Iterator[str]:
    """Why the engine of a recipe that learns from rewards cannot serve it, a sentence each."""
    rollout, batch = recipe.rollout, rollout_of(recipe, processes)
    if rollout is None or batch is None:
        return
    settings = rollout.vllm if rollout.vllm is not None else VLLMSection()
    if rollout.engine == "vllm_server":
        problems = check_servers(
            settings.servers,
            sync=settings.sync,
            sync_dir=settings.sync_dir,
            sync_host=settings.sync_host,
            use_cpu=recipe.train.use_cpu,
        )
        yield from (f"rollout.vllm: {problem}" for problem in problems)
        patience = max(settings.timeout_s, settings.start_timeout_s)
        if processes > 1 and patience >= recipe.train.ddp_timeout:
            yield (
                f"rollout.vllm: {patience:g} s of waiting for a server are not below train.ddp_timeout "
                f"{recipe.train.ddp_timeout}: the other processes would give up first; raise ddp_timeout or lower "
                "timeout_s and start_timeout_s"
            )
    if rollout.engine == "vllm" and recipe.model.path is None:
        yield "rollout: engine 'vllm' loads a model folder, 'model.scratch' has none: train it with sft first"
    if settings.sleep and recipe.train.use_cpu:
        yield "rollout.vllm: 'sleep' does nothing on a CPU (train.use_cpu); remove it"
    if rollout.resample is not None and rollout.partial_budget is not None:
        yield f"rollout: {RESAMPLE_NOT_PARTIAL}"
    if rollout.resample is not None and recipe.train.changed() & {"cache_implementation"}:
        yield (
            "rollout: resample asks the rollout engine for more samples, and train.cache_implementation generates "
            "without it; remove one of them"
        )
    yield from _logged_faults(recipe)
    if rollout.partial_budget is not None and not batch.whole_groups_per_process:
        yield (
            f"rollout: partial_budget needs whole groups on every process, and {batch.completions_per_process} "
            f"completions per process are no multiple of group_size {batch.group}; change "
            "train.per_device_train_batch_size or steps_per_generation"
        )


def _logged_faults(recipe: Recipe) -> Iterator[str]:
    """Why answers of the data cannot take places in the groups."""
    rollout = recipe.rollout
    if rollout is None or rollout.logged is None:
        return
    rule = LoggedRule(**rollout.logged.model_dump())
    yield from (f"rollout: {fault}" for fault in rule.faults(rollout.group_size))
    for name, reason in NOT_WITH.items():
        if name in rollout.changed():
            yield f"rollout: 'logged' does not go with {name}: {reason}; remove one of them"
    if recipe.train.changed() & {"cache_implementation"}:
        yield (
            "rollout: 'logged' shares places with the rollout engine, and train.cache_implementation generates without "
            "it; remove one of them"
        )


def logged_column_faults(recipe: Recipe, columns: Collection[str] | None) -> Iterator[str]:
    """Columns that `rollout.logged` reads and the rows lack; `columns` as rewards see them, None where they are not at
    hand."""
    if recipe.rollout is None or recipe.rollout.logged is None or columns is None:
        return
    logged = recipe.rollout.logged
    for key, name in (("column", logged.column), ("logprobs_column", logged.logprobs_column)):
        if name is not None and name not in columns:
            near = suggest(name, columns) or f"; the rows have {', '.join(sorted(columns))}"
            yield f"rollout.logged: {key}: no column {name!r} in the data{near}"
