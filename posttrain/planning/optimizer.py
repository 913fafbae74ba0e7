"""Options that upstream hands on by name: what each optimizer and schedule takes. What it does not take is refused.

The tables are held to upstream's own signatures by tests/planning/test_insane_settings.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from posttrain.planning.batch import plural, steps_of
from posttrain.recipe import Recipe
from posttrain.recipe.errors import show, suggest

SCHEDULE_OPTIONS: dict[str, dict[str, type]] = {
    "linear": {},
    "constant": {},
    "constant_with_warmup": {},
    "cosine": {"num_cycles": float},
    "cosine_with_restarts": {"num_cycles": int},
    "cosine_with_min_lr": {"num_cycles": float, "min_lr": float, "min_lr_rate": float},
    "polynomial": {"lr_end": float, "power": float},
    "inverse_sqrt": {"timescale": int},
    "warmup_stable_decay": {
        "num_decay_steps": int,
        "num_stable_steps": int,
        "warmup_type": str,
        "decay_type": str,
        "min_lr_ratio": float,
        "num_cycles": float,
    },
}
"""lr_scheduler_type -> keys of lr_scheduler_kwargs and the type of each."""
SCHEDULE_NEEDS = {
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "warmup_stable_decay": ("num_decay_steps",),
}
"""lr_scheduler_type -> keys of which it needs exactly one."""
SCHEDULE_WORDS = {"warmup_type": ("linear", "cosine", "1-sqrt"), "decay_type": ("linear", "cosine", "1-sqrt")}
LR_END = 1e-7
"""Where `polynomial` ends unless lr_end says otherwise."""
OPTIMIZER_OPTIONS = {
    "sgd": {"momentum": float, "dampening": float, "weight_decay": float, "nesterov": bool},
    "rmsprop": {"momentum": float, "alpha": float, "eps": float, "weight_decay": float, "centered": bool},
}
"""optim -> keys of optim_args; the others take none."""
CHECKPOINTING_OPTIONS = {
    "use_reentrant": bool,
    "preserve_rng_state": bool,
    "determinism_check": str,
    "debug": bool,
    "early_stop": bool,
}


def optimizer_faults(recipe: Recipe, processes: int, rows: int | None) -> Iterator[str]:
    """Named options that nobody takes, and schedules that do not fit the run; `rows` None: not known."""
    yield from (f"train: {fault}" for fault in _optim_args(recipe.train.optim, recipe.train.optim_args))
    yield from (f"train: {fault}" for fault in _schedule(recipe))
    given = recipe.train.gradient_checkpointing_kwargs or {}
    yield from (
        f"train: {fault}"
        for fault in _unfit("gradient_checkpointing_kwargs", given, CHECKPOINTING_OPTIONS, "checkpointing")
    )
    warmup, steps = recipe.train.warmup_steps, steps_of(recipe, processes, rows)
    if warmup >= 1 and warmup != int(warmup):
        yield f"train: 'warmup_steps' {warmup:g} is neither a share below 1 nor a whole number of steps"
    elif steps is not None and warmup > steps:
        yield (
            f"train: 'warmup_steps' {warmup:g} is more than the run's {plural(steps, 'step')}: "
            "the learning rate would never be reached; lower it, or write a share below 1"
        )


def _schedule(recipe: Recipe) -> Iterator[str]:
    kind, given = recipe.train.lr_scheduler_type, recipe.train.lr_scheduler_kwargs or {}
    yield from _unfit("lr_scheduler_kwargs", given, SCHEDULE_OPTIONS[kind], f"lr_scheduler_type {kind!r}")
    for key, words in SCHEDULE_WORDS.items():
        if isinstance(given.get(key), str) and given[key] not in words:
            yield f"lr_scheduler_kwargs: {key} must be one of {', '.join(words)}, not {show(given[key])}"
    needed = SCHEDULE_NEEDS.get(kind)
    if needed is not None and sum(key in given for key in needed) != 1:
        yield (
            f"lr_scheduler_type {kind!r} needs lr_scheduler_kwargs: {{{' or '.join(needed)}: ...}}, and one of them"
            if needed[1:]
            else f"lr_scheduler_type {kind!r} needs lr_scheduler_kwargs: {{{needed[0]}: ...}}"
        )
    if kind == "polynomial" and recipe.train.learning_rate <= given.get("lr_end", LR_END):
        end = given.get("lr_end", LR_END)
        yield (
            f"lr_scheduler_type 'polynomial' falls to lr_end {end:g}, which is not below learning_rate "
            f"{recipe.train.learning_rate:g}; write lr_scheduler_kwargs: {{lr_end: 0}}"
        )


def _optim_args(optim: str, text: str | None) -> Iterator[str]:
    if text is None:
        return
    known = OPTIMIZER_OPTIONS.get(optim)
    if known is None:
        yield (
            f"'optim_args' does nothing with optim {optim!r} (only {' and '.join(OPTIMIZER_OPTIONS)} take any); "
            "remove it"
        )
        return
    given: dict[str, Any] = {}
    for part in text.replace(" ", "").split(","):
        key, equals, value = part.partition("=")
        if not equals or not key or not value or "=" in value:
            yield f"'optim_args' {show(text)} must be key=value pairs between commas: momentum=0.9,nesterov=true"
            return
        given[key] = _value(value)
    yield from _unfit("optim_args", given, known, f"optim {optim!r}")


def _value(text: str) -> Any:
    if text.lower() in ("true", "yes", "false", "no"):
        return text.lower() in ("true", "yes")
    try:
        return float(text)
    except ValueError:
        return text


def _unfit(place: str, given: Mapping[str, Any], known: Mapping[str, type], owner: str) -> Iterator[str]:
    """A fault for each key that `owner` does not know, or value of a wrong type."""
    for key, value in given.items():
        if key not in known:
            takes = suggest(key, known) or (f"; it takes {', '.join(known)}" if known else "; it takes none")
            yield f"{place}: {owner} has no {key!r}{takes}"
        elif not _fits(value, known[key]):
            wanted = {float: "a finite number of 0 or more", int: "a whole number of 0 or more"}
            wanted |= {bool: "true or false", str: "text"}
            yield f"{place}: {key} must be {wanted[known[key]]}, not {show(value)}"


def _fits(value: Any, wanted: type) -> bool:
    if isinstance(value, bool) or wanted is bool:
        return isinstance(value, bool) and wanted is bool
    if wanted is str:
        return isinstance(value, str)
    if not isinstance(value, int | float) or not isfinite(value) or value < 0:
        return False
    return wanted is float or value == int(value)
