"""How hard each row of a recipe's data is for the model the recipe starts from: `posttrain data difficulty`.

The trainer is made as `train` makes it, with plain GRPO in place of the method: what a method adds (a critic, a
teacher, a reference) has no say in what the first policy answers. Rows go through it in batches, each with a seed of
its own, so that a measurement that was interrupted goes on to the same numbers, and several processes, to whom the
batches are dealt, come to those of one. They do not speak to each other: each keeps what it has measured in a file, and
the first, when its own batches are done, waits until the files hold all.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import transformers.utils.logging

from posttrain.data import RowCounts, load_rows
from posttrain.data.measured_rows import (
    MeasuredBatch,
    PartFile,
    check_writable,
    part_files,
    source_rows,
    write_measured,
)
from posttrain.planning.row_needs import needs_of
from posttrain.process.dealt import ALONE, Place
from posttrain.process.phases import PHASES
from posttrain.recipe import Recipe, RecipeError
from posttrain.recipe.methods import METHODS
from posttrain.rollout.base import stable_seed
from posttrain.run.continuing import differences, flat, show
from posttrain.trainers.policy.pass_rates import PassRates
from posttrain.trainers.seam.resume import rows_fingerprint

_SAMPLES_WITH = (
    "seed",
    "bf16",
    "fp16",
    "tf32",
    "use_cpu",
    "torch_compile",
    "full_determinism",
    "chat_template_kwargs",
    "cache_implementation",
    "cast_lm_head_to_fp32",
    "gradient_checkpointing",
)
"""Keys of `train` that have a say in what is sampled."""
_OF_TRAINING = (
    "eval_temperature",
    "staleness",
    "partial_budget",
    "resample",
    "logged",
    "importance_correction",
    "importance_clip_max",
    "importance_clip_min",
)
"""Keys of `rollout` that have none."""
_LOOK_S = 0.2
"""Between two looks at what other processes have measured."""


@dataclass(frozen=True)
class Asked:
    """
    samples   responses a row
    at_once   rows that are sampled together
    pass_at, reward  as in PassRates
    """

    samples: int
    at_once: int
    pass_at: float = 1.0
    reward: str | None = None


@dataclass(frozen=True)
class Difficulty:
    """`batches` hold all rows' rates, `counts` is the account of the rows that were read."""

    batches: list[MeasuredBatch]
    counts: RowCounts


def measured_recipe(recipe: Recipe, samples: int) -> Recipe:
    """The recipe of a trainer that samples as the given one does, `samples` responses a row, and never trains. Raises
    RecipeError where its method learns from no rewards of texts."""
    family = recipe.spec.family
    if family not in ("policy", "diffusion") or recipe.rollout is None:
        raise RecipeError(
            f"{recipe.path}: method '{recipe.method}' learns from no rewards of sampled texts, so its rows have no "
            "pass rate; take a recipe of grpo, dapo or the like over the same data (posttrain methods)"
        )
    if not recipe.rewards and recipe.environment is None:
        raise RecipeError(f"{recipe.path}: it has no rewards, so nothing says whether a response passes")
    group = max(2, samples)  # TRL wants groups, which nothing here is trained on
    train = type(recipe.train)(
        max_steps=1,
        per_device_train_batch_size=group,
        **{key: vars(recipe.train)[key] for key in _SAMPLES_WITH if key in recipe.train.changed()},
    )
    rollout: Any = recipe.rollout
    kept = {key: vars(rollout)[key] for key in rollout.changed() if key not in _OF_TRAINING}
    own = family == "diffusion"
    method = recipe.method if own else "grpo"
    return replace(
        recipe,
        method=method,
        objective=recipe.objective if own else METHODS[method].load_settings()(),
        data=recipe.data.model_copy(update={"eval": None, "order": None}),
        rollout=type(rollout)(**{**kept, "group_size": group}),
        train=train,
        output=recipe.output.model_copy(update={"record": [], "hub": None, "logging_steps": 1}),
        evaluation=None,
    )


def measure(
    recipe: Recipe,
    asked: Asked,
    out: Path,
    *,
    resume: bool = False,
    replace_columns: bool = False,
    say: Callable[[str], None] = print,
    place: Place = ALONE,
) -> Difficulty | None:
    """Measures this process's share of the rows of a recipe made by `measured_recipe`; the first process writes `out`,
    the others return None. Raises RecipeError or DataError, what a rollout raises, and KeyboardInterrupt; batches that
    were done by then are kept for a resume."""
    part = PartFile(out, place.rank)
    questions: dict[str, Any] = {"asked": flat(vars(asked)), "recipe": _of_samples(recipe)}
    before = [(one, one.read(mend=one.path == part.path)) for one in part_files(out)] if resume else []
    for one, (old, _) in before:
        _same_questions(recipe, old, questions, one)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    PHASES.say("loading the trainer")
    # beside the results: a server that reads weights from a disk may see that folder, and none of this machine's own
    with tempfile.TemporaryDirectory(prefix=".difficulty-", dir=out.resolve().parent) as folder:
        trainer = _trainer(recipe, asked.samples, folder)
        _, counts, numbers, last, _ = load_rows(recipe.data, trainer.processing_class, needs=needs_of(recipe))
        rows = source_rows(recipe.data, last)
        check_writable(rows, out, replace=replace_columns)
        questions["rows"] = rows_fingerprint(trainer.train_dataset)
        for one, (old, _) in before:
            if old.get("rows") != questions["rows"]:
                raise RecipeError(_other(recipe, one, "the rows", old.get("rows"), questions["rows"]))
        if place.rank:
            _await_first(recipe, out, questions)
        if not part.exists():
            part.begin(questions)
        say(f"data: {counts.in_words()}")
        done = {batch.rates[0].number for _, (_, batches) in before for batch in batches}
        _measure_own(recipe, trainer, asked, numbers, done, part, place)
    if place.rank:
        return None
    batches = _all_batches(out, numbers[:: asked.at_once])
    write_measured(rows, {rate.number: rate for one in batches for rate in one.rates}, out)
    for one in reversed(part_files(out)):
        one.remove()
    return Difficulty(batches, counts)


def _measure_own(
    recipe: Recipe,
    trainer: Any,
    asked: Asked,
    numbers: Sequence[int],
    done: set[int],
    part: PartFile,
    place: Place,
) -> None:
    """Measures the batches that are dealt to this process, but for those whose first row is among `done`."""
    try:
        rates = PassRates(trainer, pass_at=asked.pass_at, reward=asked.reward)
    except ValueError as error:
        raise RecipeError(f"{recipe.path}: --reward: {error}") from None
    with PHASES.within("rows", len(numbers)) as phase:
        for turn, start in enumerate(range(0, len(numbers), asked.at_once)):
            if numbers[start] in done or not place.takes(turn):
                continue
            phase.at(start)
            rows = range(start, min(start + asked.at_once, len(numbers)))
            batch = rates.measure(
                [trainer.train_dataset[row] for row in rows],
                [numbers[row] for row in rows],
                seed=stable_seed(recipe.train.seed, "difficulty", start),
            )
            part.add(batch)


def _await_first(recipe: Recipe, out: Path, questions: Mapping[str, Any]) -> None:
    """Until the first process has found nothing against the measurement and has begun it. Where it has, it refuses by
    ending, and its launcher ends this process too."""
    first = PartFile(out)
    while not first.exists() or not first.path.stat().st_size:
        time.sleep(_LOOK_S)
    _same_questions(recipe, first.read(mend=False)[0], questions, first)


def _all_batches(out: Path, firsts: Sequence[int]) -> list[MeasuredBatch]:
    """All processes' batches, in the rows' order, as soon as they are there; firsts: the first row of each."""
    with PHASES.within("batches of all processes", len(firsts)) as phase:
        while True:
            files = [part.read(mend=False)[1] for part in part_files(out)]
            found = {batch.rates[0].number: batch for batches in files for batch in batches}
            if found.keys() >= set(firsts):
                return [found[number] for number in firsts]
            phase.at(len(found))
            time.sleep(_LOOK_S)


def _trainer(recipe: Recipe, samples: int, folder: str) -> Any:
    rollout: Any = recipe.rollout
    changes = {
        "eval_temperature": rollout.temperature,
        "num_generations_eval": samples,
        "per_device_eval_batch_size": samples,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return recipe.spec.load_trainer().from_recipe(recipe, output_dir=folder, **changes)


def _of_samples(recipe: Recipe) -> dict[str, Any]:
    """What decides the responses and their rewards, flat: all but where results go."""
    return flat(
        {key: value for key, value in recipe.resolved().items() if key not in ("output", "objective")}
    )


def _same_questions(recipe: Recipe, old: Mapping[str, Any], new: Mapping[str, Any], part: PartFile) -> None:
    """RecipeError with a line for each thing that is asked otherwise now than when the measurement began."""
    changes = [change for key in ("asked", "recipe") for change in differences(old.get(key, {}), new[key])]
    if changes:
        raise RecipeError(*(_other(recipe, part, one.key, one.old, one.new) for one in changes))


def _other(recipe: Recipe, part: PartFile, what: str, old: Any, new: Any) -> str:
    return (
        f"{recipe.path}: --resume: {what} was {show(old)}, not {show(new)}: the rows in {part.path} were measured with "
        "it; go on with the old value, or remove that file"
    )
