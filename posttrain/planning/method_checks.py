"""What a method's settings ask of the rest of the recipe. The method says it in class variables beside its settings:

in_stages      True: trained in stages, each with a trainer and a reference of its own
refused_train  options of `train` that must stay as they are -> why
steps_are      settings whose product is the run's number of optimizer steps
stages_are     the setting that counts the stages, where `train` speaks of one of them
first_stage_from  the setting whose file gives a stage before those
needs_beta     True: beta 0 would take the method's reference away
compares_prompts  True: one prompt a rollout has nothing to be compared with
bits_of_a_group   settings in bits, of which the answers of a group have at most log2 of their number
measured_first settings with which a run begins by measuring -> the setting that says for how many steps
models_optimizer  the setting that says which optimizer a method reckons with
unprotected    settings whose first steps nothing guards -> the setting that holds the policy still meanwhile
needs_columns  columns without which it cannot train, where they are not its family's
reads_columns  columns that it reads where the rows have them
writes_plain_lines  True: conversations of a model without a chat template are written as plain lines
names_files    settings that name a file
names_models   settings that name a model folder or hub name, or a list of them
"""

from __future__ import annotations

from collections.abc import Iterator
from math import log2, prod
from pathlib import Path
from typing import Any

from posttrain.planning.batch import RolloutSize, length_in_words, plural
from posttrain.planning.checks import maker_of
from posttrain.planning.shapes import is_folder_name
from posttrain.recipe import Recipe
from posttrain.recipe.methods import METHODS
from posttrain.recipe.sections import RolloutSection
from posttrain.recipe.settings import read_flags
from posttrain.recipe.train_options import PolicyTrain

ONLY_WITH_REWARDS = frozenset(
    {"group_size", "eval_temperature", "staleness", "partial_budget", "importance_correction"}
)
"""Options of `rollout` that a method which draws one answer a prompt, between trainings, has no use for."""
VLLM_ONLY_WITH_REWARDS = {
    "sleep": "the engine is closed before training begins",
    "proof_limit": "the engine reads the policy's folder, and no weights are sent to it",
}
"""Options of `rollout.vllm` that such a method has no use for -> why."""


def method_faults(recipe: Recipe) -> Iterator[str]:
    """Why the method cannot run as the recipe stands, a sentence each."""
    flags, settings = recipe.flags(), vars(recipe.objective)
    for key, reason in flags.get("refused_train", {}).items():
        if key in recipe.train.changed():
            yield f"train: '{key}' has no place with method '{recipe.method}': {reason}; leave it out"
    if flags.get("needs_beta") and isinstance(recipe.train, PolicyTrain) and recipe.train.beta == 0:
        yield f"train: beta 0 leaves method '{recipe.method}' without its reference; set beta above 0"
    if recipe.spec.family == "preference" and recipe.rollout is not None:
        yield from _sampling_faults(recipe, recipe.rollout, flags)
    yield from _step_faults(recipe, flags)
    yield from _stage_faults(recipe, flags)
    max_steps = recipe.train.max_steps
    for key, steps in flags.get("measured_first", {}).items():
        if settings[key] and max_steps is not None and settings[steps] >= max_steps - 1:
            yield f"objective: '{steps}' {settings[steps]} leaves nothing of train.max_steps {max_steps} to use it in"
    for name in flags.get("names_files", ()):
        if settings[name] is not None and not Path(settings[name]).is_file():
            yield f"objective: {name}: no file '{settings[name]}' here or beside the recipe"
    for name in flags.get("names_models", ()):
        yield from _model_faults(recipe, name, settings[name])


def batch_faults(recipe: Recipe, rollout: RolloutSize | None) -> Iterator[str]:
    """Why a rollout of this size is of no use to the method."""
    base = recipe.flags().get("settings_of", {}).values()
    built_on = [METHODS[vars(recipe.objective)[chooser]].settings for chooser in base]
    compares = [read_flags(path).get("compares_prompts") for path in (recipe.spec.settings, *built_on)]
    if rollout is not None and rollout.prompts == 1 and any(compares):
        yield (
            f"rollout: method '{recipe.method}' compares prompts with each other, and one rollout has one; raise "
            "train.per_device_train_batch_size or steps_per_generation, or lower rollout.group_size"
        )


def method_warnings(recipe: Recipe) -> Iterator[str]:
    """What the method can run with and is better off without."""
    values = vars(recipe.objective)
    for key, guard in recipe.flags().get("unprotected", {}).items():
        if values[key] and not values[guard] and not recipe.train.warmup_steps:
            yield (
                f"objective: '{key}' lets the first steps at the full learning rate through unguarded; set "
                f"{guard}: true, or train.warmup_steps"
            )
    for key in recipe.flags().get("bits_of_a_group", ()):
        size = recipe.rollout.group_size if recipe.rollout is not None else 1
        if values[key] > log2(size):
            yield (
                f"objective: {key} {values[key]:g} is more than the {log2(size):.3g} bits that {size} answers can "
                "differ by: the weight stays below one half in every group"
            )
    modelled = recipe.flags().get("models_optimizer")
    if modelled is not None:
        yield from _optimizer_warnings(recipe.train, modelled, values)


def _optimizer_warnings(train: Any, key: str, values: dict[str, Any]) -> Iterator[str]:
    """Where the optimizer that is reckoned with is not the one that steps."""
    taken = {"sgd": train.optim == "sgd", "adam": "adam" in train.optim}
    if not taken[values[key]]:
        yield f"objective: {key} {values[key]!r} predicts steps that train.optim {train.optim!r} does not take"
    betas = (train.adam_beta1, train.adam_beta2)
    if values[key] == "adam" and "moment_decay" in values and tuple(values["moment_decay"]) != betas:
        yield f"objective: moment_decay {tuple(values['moment_decay'])} is not train's adam_beta1, adam_beta2 {betas}"


def _sampling_faults(recipe: Recipe, rollout: RolloutSection, flags: dict[str, Any]) -> Iterator[str]:
    """Of a method that draws one answer a prompt, before or between trainings."""
    for key in sorted(ONLY_WITH_REWARDS & rollout.changed()):
        yield f"rollout: '{key}' does nothing with method '{recipe.method}'; remove it"
    if rollout.engine == "vllm_server":
        yield (
            f"rollout: engine 'vllm_server' is for training with rewards; method '{recipe.method}' samples before or "
            "between trainings, in this process; use transformers or vllm"
        )
    if rollout.engine != "vllm":
        return
    changed = set() if rollout.vllm is None else rollout.vllm.changed()
    for key in sorted(VLLM_ONLY_WITH_REWARDS.keys() & changed):
        reason = VLLM_ONLY_WITH_REWARDS[key]
        yield f"rollout.vllm: '{key}' does nothing with method '{recipe.method}': {reason}; remove it"
    if recipe.model.path is None and not flags.get("in_stages"):
        yield "rollout: engine 'vllm' loads a model folder, 'model.scratch' has none: train it with sft first"


def _step_faults(recipe: Recipe, flags: dict[str, Any]) -> Iterator[str]:
    if "steps_are" not in flags:
        return
    values = vars(recipe.objective)
    steps = prod(values[name] for name in flags["steps_are"])
    product = " x ".join(flags["steps_are"])
    if recipe.train.max_steps is None:
        yield (
            f"train: {product} = {steps} is how long method '{recipe.method}' runs: "
            f"write max_steps: {steps}, not epochs"
        )
    elif recipe.train.max_steps != steps:
        yield f"train: max_steps is {recipe.train.max_steps}, but {product} = {steps}; make them agree"


def _stage_faults(recipe: Recipe, flags: dict[str, Any]) -> Iterator[str]:
    if not flags.get("in_stages"):
        return
    if recipe.data.eval is not None:
        yield (
            f"data: 'eval' is not read by method '{recipe.method}', whose pairs are made anew in each stage; "
            "remove it, or measure with an evaluation section"
        )


def _model_faults(recipe: Recipe, name: str, named: str | list[str] | None) -> Iterator[str]:
    for path in [named] if isinstance(named, str) else named or []:
        folder = Path(path)
        if not is_folder_name(path, recipe.output.dir):
            continue
        if not folder.is_dir():
            yield (
                f"objective: {name}: no folder '{path}' here or beside the recipe; "
                f"first train {maker_of(folder, recipe)}"
            )
        elif not {"config.json", "adapter_config.json"} & {file.name for file in folder.iterdir()}:
            yield f"objective: {name}: folder '{path}' holds no config.json, so it is not a saved model"


def run_in_words(recipe: Recipe, processes: int, rows: int | None) -> str:
    """How long the run is; of a method in stages whose `train` speaks of one stage, how long a stage is."""
    flags = recipe.flags()
    words = length_in_words(recipe, processes, rows)
    repeated = flags.get("stages_are")
    if repeated is None:
        return words
    stages = vars(recipe.objective)[repeated]
    seeded = flags.get("first_stage_from")
    before = " after a seed stage" if seeded and vars(recipe.objective)[seeded] is not None else ""
    return f"{plural(stages, repeated.removesuffix('s'))}{before}, each {words}"
