"""What a resumed run may change: its recipe against the one that the checkpoint was trained with. No torch.

Every difference is either applied, and said, or refused with the reason; none is ignored. `VERDICTS` holds the answer
for every key, by the longest prefix; a key without an answer is refused, and a test asks for one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from posttrain.observe.writer import RECIPE, RecipeChange, read_recipe_changes
from posttrain.planning.batch import rollout_of
from posttrain.recipe import Recipe, RecipeError, load_recipe

_ROWS = "rows would be repeated or skipped"
_WEIGHTS = "the checkpoint holds the weights of that model"
_BUFFER = "the checkpoint holds rollouts that were made with it"
_PRECISION = "the checkpoint's state belongs to that arithmetic"
_STAGES = "stages that are done were made with it"

VERDICTS: dict[str, str | None] = {
    "method": "the checkpoint belongs to that method",
    "model": _WEIGHTS,
    "model.attn_implementation": None,
    "model.trust_remote_code": None,
    "model.peft.dropout": None,
    "data": _ROWS,
    "data.eval": None,
    "rewards": None,
    "tools": None,
    "environment": None,
    "objective": None,
    "rollout": None,
    "rollout.group_size": _BUFFER,
    "rollout.staleness": _BUFFER,
    "rollout.partial_budget": _BUFFER,
    "rollout.logged": _BUFFER,
    "rollout.resample": None,  # but whether there is any: see _refusal
    "output": None,
    "evaluation": None,
    # train: one line a key
    "train.per_device_train_batch_size": _ROWS,
    "train.gradient_accumulation_steps": _ROWS,
    "train.max_steps": None,
    "train.num_train_epochs": None,
    "train.learning_rate": None,
    "train.lr_scheduler_type": None,
    "train.lr_scheduler_kwargs": None,
    "train.warmup_steps": None,
    "train.optim": "the checkpoint holds the state of that optimizer",
    "train.optim_args": "the checkpoint holds the state of that optimizer",
    "train.weight_decay": None,
    "train.adam_beta1": None,
    "train.adam_beta2": None,
    "train.adam_epsilon": None,
    "train.max_grad_norm": None,
    "train.bf16": _PRECISION,
    "train.fp16": _PRECISION,
    "train.tf32": None,
    "train.gradient_checkpointing": None,
    "train.gradient_checkpointing_kwargs": None,
    "train.use_cpu": None,
    "train.torch_compile": None,
    "train.torch_empty_cache_steps": None,
    "train.seed": "the order of the rows follows from it",
    "train.data_seed": "the order of the rows follows from it",
    "train.full_determinism": None,
    "train.dataloader_num_workers": None,
    "train.ddp_find_unused_parameters": None,
    "train.ddp_timeout": None,
    "train.per_device_eval_batch_size": None,
    "train.eval_steps": None,
    "train.eval_on_start": None,
    "train.router_aux_loss_coef": None,
    "train.steps_per_generation": _BUFFER,
    "train.num_iterations": _BUFFER,
    "train.beta": None,
    "train.beta_by": _BUFFER,
    "train.beta_low": _BUFFER,
    "train.beta_high": _BUFFER,
    "train.beta_model": _BUFFER,
    "train.beta_family": "the prompts would be others",
    "train.beta_prefixes": "the prompts would be others",
    "train.disable_dropout": None,
    "train.shuffle_dataset": _ROWS,
    "train.train_sampling_strategy": _ROWS,
    "train.mask_truncated_completions": None,
    "train.entropy_coef": None,
    "train.top_entropy_quantile": None,
    "train.off_policy_mask_threshold": None,
    "train.use_bias_correction_kl": None,
    "train.sync_ref_model": "the checkpoint holds the reference, or none",
    "train.ref_model_mixup_alpha": None,
    "train.ref_model_sync_steps": None,
    "train.cast_lm_head_to_fp32": None,
    "train.layout": None,
    "train.max_tokens_per_micro_batch": None,
    "train.ds3_gather_for_generation": None,
    "train.cache_implementation": None,
    "train.chat_template_kwargs": "the prompts would be others",
    "train.max_length": "the rows would be cut at another length",
    "train.dataset_num_proc": None,
    "train.activation_offloading": None,
    "train.packing": _ROWS,
    "train.packing_strategy": _ROWS,
    "train.padding_free": None,
    "train.assistant_only_loss": "the rows would teach other tokens",
    "train.neftune_noise_alpha": None,
    "train.precompute_ref_log_probs": None,
    "train.precompute_ref_batch_size": None,
}
"""Key, or the section it is part of -> why a checkpoint cannot go on with another value; None: it can."""

SAMPLED_ONCE: dict[str, str | None] = {
    "rollout": "answers were sampled with it before the first step",
    "rollout.engine": None,
    "rollout.vllm": None,
}
"""What preference methods answer otherwise."""

STAGED: dict[str, str | None] = {
    **SAMPLED_ONCE,
    "objective": _STAGES,
    "train.beta": _STAGES,
    "train.max_steps": _STAGES,
    "train.num_train_epochs": _STAGES,
}
"""What runs in stages answer otherwise."""

IMAGES: dict[str, str | None] = dict.fromkeys(
    [f"rollout.{key}" for key in ("denoising_steps", "sampler", "noise_level", "cfg_scale")], _BUFFER
)
"""What methods that make images answer otherwise."""

_BATCH = ("train.per_device_train_batch_size", "train.gradient_accumulation_steps")
_SCORED_WITH = "rollout.temperature"
_RESAMPLES = "rollout.resample.until"
"""Unset where a run does not sample over."""
_SAYS_NOTHING = ("output.overwrite",)
"""Keys that act at the start of a fresh run alone."""


@dataclass(frozen=True)
class Compared:
    """What a resume found: `changes` take effect after `step`; `note` where there was nothing to compare with."""

    step: int
    changes: tuple[RecipeChange, ...] = ()
    note: str | None = None

    def in_words(self) -> list[str]:
        return [f"from step {self.step + 1}: {change}" for change in self.changes]


def compare(recipe: Recipe, run_dir: Path, step: int, processes: int) -> Compared:
    """The recipe against the one that trained `run_dir` up to `step`. RecipeError has a line for each key refused."""
    path = run_dir / RECIPE
    if not path.is_file():
        return Compared(step, note=f"{path} is missing: what the checkpoint was trained with is not known")
    before = recipe_at(run_dir, step)
    changes = tuple(differences(before, flat(recipe.resolved())))
    refused = [(change, reason) for change in changes if (reason := _refusal(recipe, change, changes))]
    rollout = rollout_of(recipe, processes)
    for change in changes:
        if change.key == _SCORED_WITH and rollout is not None and step % max(rollout.optimizer_steps, 1):
            every = rollout.optimizer_steps
            reason = f"step {step} lies within a rollout, whose old log-probs were taken at it; "
            refused.append((change, reason + f"resume from a checkpoint at a multiple of {every} steps"))
    if refused:
        raise RecipeError(
            *(
                f"{recipe.path}: --resume: {change.key} was {show(change.old)}, not {show(change.new)}: {reason}; "
                "resume with the old value, or start anew with --set output.name=NAME"
                for change, reason in refused
            )
        )
    return Compared(step, changes)


def recipe_at(run_dir: Path, step: int) -> dict[str, Any]:
    """The flat recipe that trained the run's steps up to `step`: what a later attempt changed is taken back."""
    values = flat(_resolved(run_dir / RECIPE))
    for entry in reversed(read_recipe_changes(run_dir)):
        if entry.after_step >= step:
            for change in entry.changes:
                values.pop(change.key, None)
                if change.old is not None:
                    values[change.key] = change.old
    return values


def _resolved(path: Path) -> Mapping[str, Any]:
    """With today's defaults where an older version wrote the file; as it stands where it cannot be read as a recipe."""
    try:
        return load_recipe(path).resolved()
    except RecipeError:
        pass
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"{path}: not readable ({reason}), so what the run was cannot be told") from None
    if not isinstance(found, dict):
        raise RecipeError(
            f"{path}: no mapping, so what the run was cannot be told; restore it, or start another run"
        )
    return found


def flat(resolved: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train.learning_rate": 1e-5, "rewards.math_answer.weight": 1.0, ...}; a list of rewards by its labels."""
    values: dict[str, Any] = {}
    for name, value in resolved.items():
        key = f"{prefix}{name}"
        if key == "rewards":
            value = {reward.get("label") or reward.get("name") or reward["model"]: reward for reward in value}
        if isinstance(value, Mapping) and value:
            values |= flat(value, f"{key}.")
        elif value is not None:
            values[key] = value
    return values


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[RecipeChange]:
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if key not in _SAYS_NOTHING and not _same(before, after):
            yield RecipeChange(key, before, after)


def show(value: Any) -> str:
    return "unset" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _same(old: Any, new: Any) -> bool:
    if old == new or (isinstance(old, list | tuple) and isinstance(new, list | tuple) and [*old] == [*new]):
        return True
    if not (isinstance(old, str) and isinstance(new, str) and "/" in old + new):
        return False
    return Path(old).exists() and Path(new).exists() and Path(old).samefile(new)


def _refusal(recipe: Recipe, change: RecipeChange, changes: Sequence[RecipeChange]) -> str | None:
    settings = recipe.objective
    section, _, setting = change.key.partition(".")
    if section == "objective":
        fixed = [*settings.fixed_on_resume, *settings.names_files, *settings.names_models]
        if setting.partition(".")[0] in fixed:
            return "the checkpoint was made with it"
    reads_texts = not settings.in_stages and recipe.spec.family in ("sft", "preference")
    if change.key == _RESAMPLES and None in (change.old, change.new):
        return "the checkpoint's place in the data is another with it than without; " + _ROWS
    if change.key in _BATCH and reads_texts and _rows_per_step(recipe) == _rows_per_step(recipe, changes):
        return None  # the same rows in every step, in other micro-batches
    exceptions = STAGED if settings.in_stages else SAMPLED_ONCE if recipe.spec.family == "preference" else {}
    exceptions = IMAGES if settings.makes_images else exceptions
    return verdict(change.key, exceptions)


def _rows_per_step(recipe: Recipe, changes: Sequence[RecipeChange] = ()) -> int:
    """Of one process; with `changes` taken back, as it was."""
    old = {change.key: change.old for change in changes}
    train = recipe.train
    batch = old.get(_BATCH[0], train.per_device_train_batch_size)
    return batch * old.get(_BATCH[1], train.gradient_accumulation_steps)


def verdict(key: str, exceptions: Mapping[str, str | None]) -> str | None:
    """Why the key is fixed, or None; the longest prefix that has an answer gives it, exceptions first at its length."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        for answers in (exceptions, VERDICTS):
            if prefix in answers:
                return answers[prefix]
    return "whether a checkpoint can go on with another value is not known"
