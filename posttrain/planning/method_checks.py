"""What a method asks of the rest of the recipe: its own answers, and what holds for every method that samples, names
files or models, or trains in stages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from posttrain.planning.batch import length_in_words, rollout_of
from posttrain.planning.checks import maker_of
from posttrain.planning.shapes import is_folder_name
from posttrain.planning.tokenizer import plan_tokenizer
from posttrain.recipe import Recipe
from posttrain.recipe.methods import with_inner
from posttrain.recipe.sections import ModelSection, RolloutSection
from posttrain.recipe.train_options import PolicyTrain
from posttrain.settings import RunView, Settings

ONLY_WITH_REWARDS = frozenset(
    {
        "group_size",
        "eval_temperature",
        "staleness",
        "partial_budget",
        "importance_correction",
        "resample",
        "logged",
    }
)
"""Options of `rollout` that a method which draws one answer per prompt, between trainings, has no use for."""
VLLM_ONLY_WITH_REWARDS = {
    "sleep": "the engine is closed before training begins",
    "proof_limit": "the engine reads the policy's folder, and no weights are sent to it",
}
"""Options of `rollout.vllm` that such a method has no use for -> why."""


def method_faults(recipe: Recipe, processes: int) -> Iterator[str]:
    """Why the method, or the one it is built on, cannot run as the recipe stands, a sentence each."""
    for settings, run in _asked(recipe, processes):
        yield from settings.faults(run)
    if recipe.rollout is not None and recipe.rollout.resample is not None:
        for place, settings in with_inner(recipe.objective):
            if (reason := settings.learns_from_equal) is not None:
                yield (
                    f"rollout: 'resample' throws groups with equal rewards away, and {place} learns from them: "
                    f"{reason}; remove it, or take another method or baseline"
                )
    yield from _balance_faults(recipe)
    if recipe.rollout is not None and recipe.rollout.logged is not None:
        for place, settings in with_inner(recipe.objective):
            if (reason := settings.refuses_logged) is not None:
                yield (
                    f"rollout: 'logged' puts answers of the data among the samples, and {place} has no place for them: "
                    f"{reason}; remove it, or take another method"
                )
    if recipe.spec.family == "preference" and recipe.rollout is not None:
        yield from _sampling_faults(recipe, recipe.rollout)
    if recipe.objective.in_stages and recipe.data.eval is not None:
        yield (
            f"data: 'eval' is not read by method '{recipe.method}', whose pairs are made anew in each stage; "
            "remove it, or measure with an evaluation section"
        )
    named = recipe.objective.values()
    for name in recipe.objective.names_files:
        if named[name] is not None and not Path(named[name]).is_file():
            yield f"objective: {name}: no file '{named[name]}' here or beside the recipe"
    for name in recipe.objective.names_models:
        yield from _model_faults(recipe, name, named[name])
    for name in recipe.objective.same_tokenizer:
        if named[name] is not None:
            yield from _tokenizer_faults(recipe, name, named[name])


def _balance_faults(recipe: Recipe) -> Iterator[str]:
    """Why the KL coefficient cannot follow the prompt (`train.beta_by`), or be an input (`train.beta_family`)."""
    train = recipe.train
    if not isinstance(train, PolicyTrain) or recipe.objective.masked_diffusion:
        return
    by, key = train.beta_by, "beta_by" if train.beta_by is not None else "beta_family"
    if by is None and train.beta_family is None:
        return
    for place, settings in with_inner(recipe.objective):
        if getattr(settings, "kl_in_reward", False):
            yield (
                f"train: '{key}' is of a KL penalty in the loss, and {place} takes the KL off the reward or into its "
                "own loss; leave it out, or take another method or baseline"
            )
    if by in ("reference_entropy", "learned") and recipe.model.peft is not None:
        yield (
            f"train: beta_by: {by} asks the reference, and an adapter's is its own base, which is not held "
            "by itself; take beta_by: pass_rate"
        )
    if by == "learned" and not Path(str(train.beta_model)).is_file():
        yield (
            f"train: beta_model: no file '{train.beta_model}'; posttrain eval balance RUN writes one into the folder "
            "of a run with beta_family"
        )
    if train.beta_family is not None:
        yield from _family_faults(recipe, train)


def _family_faults(recipe: Recipe, train: PolicyTrain) -> Iterator[str]:
    reasons = {
        "model: 'peft'": recipe.model.peft is not None
        and "the reference is asked without the prefix, and an adapter's is its own base, which is not held by itself",
        "train: 'sync_ref_model'": train.sync_ref_model
        and "the reference would become a policy that is only ever asked with a prefix",
        "data: 'order'": recipe.data.order is not None and "each row is there once for each coefficient",
        "train: 'num_train_epochs'": train.num_train_epochs is not None
        and "each row is there once for each coefficient, so an epoch is longer; say max_steps",
        "tools or an environment": recipe.has_tools and "their turns are told apart by the prompt's tokens",
        "reward drift_penalty": any(one.name == "drift_penalty" for one in recipe.rewards)
        and "it reads the policy without its prefix",
        "an 'evaluation' section": recipe.evaluation is not None
        and "its benchmarks would be asked without a prefix; measure afterwards (posttrain eval --beta-value)",
        f"method {recipe.method}": recipe.objective.brings_reference
        and "the reference that it makes is asked with the policy's own prompts",
    }
    for what, reason in reasons.items():
        if reason:
            yield f"train: 'beta_family' does not go with {what}: {reason}"


def method_warnings(recipe: Recipe, processes: int) -> Iterator[str]:
    """What the method can run with and is better off without."""
    for settings, run in _asked(recipe, processes):
        yield from settings.warnings(run)


def _asked(recipe: Recipe, processes: int) -> Iterator[tuple[Settings, RunView]]:
    """The method and those it is built on, each with the recipe as it sees it."""
    rollout = rollout_of(recipe, processes)
    prompts = None if rollout is None else rollout.prompts
    for place, settings in with_inner(recipe.objective):
        yield (
            settings,
            RunView(
                method=recipe.method,
                place=place,
                train=recipe.train,
                data=recipe.data,
                model=recipe.model,
                rollout=recipe.rollout,
                processes=processes,
                prompts=prompts,
                rewards=len(recipe.rewards or []),
            ),
        )


def _sampling_faults(recipe: Recipe, rollout: RolloutSection) -> Iterator[str]:
    """Of a method that draws one answer per prompt, before or between trainings."""
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
    if recipe.model.path is None and not recipe.objective.in_stages:
        yield "rollout: engine 'vllm' loads a model folder, 'model.scratch' has none: train it with sft first"


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


def _tokenizer_faults(recipe: Recipe, name: str, path: str) -> Iterator[str]:
    """Where both tokenizers lie here and number their tokens differently; training looks again."""
    try:
        own, other = plan_tokenizer(recipe.model), plan_tokenizer(ModelSection(path=path))
    except ValueError:  # said elsewhere, or by whoever loads it
        return
    if own is None or other is None:
        return
    mine, theirs = own.backend.get_vocab(), other.backend.get_vocab()
    if mine != theirs:
        differ = sum(theirs.get(token) != number for token, number in mine.items())
        yield (
            f"objective: {name}: '{path}' has another tokenizer than the model ({differ} of {len(mine)} tokens "
            "differ), so it cannot be asked about the model's tokens; take one of the same family"
        )


def run_in_words(recipe: Recipe, processes: int, rows: int | None) -> str:
    """How long the run is; of a method in stages whose `train` speaks of one stage, how long a stage is."""
    words = length_in_words(recipe, processes, None if recipe.objective.makes_pairs else rows)
    stages = recipe.objective.stages
    return words if stages is None else f"{stages}, each {words}"
