"""`args` of a trainer made into the trainer's own config: the default, its own kind, or TRL's.

TRL's config has most arguments in common with ours. Those of its loss body that mean the same here become the method's
settings; those nobody would read are refused by name; nothing of either is passed over in silence.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainingArguments

from posttrain.recipe.methods import METHODS
from posttrain.settings import Settings

logger = logging.getLogger(__name__)

_OURS = "posttrain."


def own_arguments(trainer: type, args: Any, config_class: type, trl_class: type, method: str) -> Any:
    """`args` as a `config_class`.

    method  the method's name in a recipe; TRL's `loss_type` may say the same

    Raises TypeError for another kind of config, ValueError for a TRL argument that would have no effect.
    """
    if args is None:  # upstream refuses its own defaults, in bfloat16, where there is nothing but a CPU
        return config_class() if torch.accelerator.is_available() else config_class(use_cpu=True)
    if isinstance(args, config_class):
        return args
    ours = type(args).__module__.startswith(_OURS)
    general = ours and issubclass(
        config_class, type(args)
    )  # PolicyConfig, PreferenceConfig: no method's settings
    if not general and (ours or not isinstance(args, trl_class)):
        hint = f" or a trl.{trl_class.__name__}" if isinstance(args, TrainingArguments) else ""
        raise TypeError(
            f"{trainer.__name__}: args is a {type(args).__module__}.{type(args).__name__}, whose settings are not this "
            f"method's; pass a posttrain.trainers.{config_class.__name__}{hint}"
        )
    return _as(config_class, args, method, trl_class)


def _as(config_class: type, args: Any, method: str, trl_class: type) -> Any:
    """A copy with the method's settings added: at their defaults, or as TRL's arguments say."""
    values = dict(vars(args))
    own = {f.name: _default(f) for f in dataclasses.fields(config_class) if f.init and f.name not in values}
    found = _meanings(values, own, _defaults(trl_class), method)
    # Not made anew: TRL's arguments have been resolved already, and some cannot be given twice.
    taken = object.__new__(config_class)
    vars(taken).update({**values, **own, **found})
    taken.check_carried()
    if PartialState().is_main_process:
        said = ", ".join(f"{name} {value}" for name, value in (own | found).items() if name not in values)
        logger.warning(
            "%s taken over as %s; the loss is that of method %s%s",
            type(args).__name__, config_class.__name__, method, f" with {said}" if said else "",
        )  # fmt: skip
    return taken


def _meanings(
    values: dict[str, Any], own: dict[str, Any], defaults: dict[str, Any], method: str
) -> dict[str, Any]:
    """The method's settings that TRL's changed arguments mean, and those arguments back at their defaults."""
    changed = {name for name, default in defaults.items() if name in values and values[name] != default}
    found: dict[str, Any] = {}

    def take(name: str, **settings: Any) -> None:
        found.update(settings)
        found[name] = defaults[name]

    if "epsilon" in changed and "clip_low" in own:
        both = {"clip_low": values["epsilon"]}
        take("epsilon", **(both if "epsilon_high" in changed else {**both, "clip_high": values["epsilon"]}))
    if "epsilon_high" in changed and "clip_high" in own:
        take("epsilon_high", clip_high=values["epsilon_high"])
    if "scale_rewards" in changed and "scale" in own:
        take("scale_rewards", scale=values["scale_rewards"])
    # What else TRL's words mean to a method stands beside its settings (settings/base.py).
    known: type[Settings] = METHODS[method].load_settings() if method in METHODS else Settings
    alike = values.get("loss_type") in (method, [method]) and known.is_trls_loss
    for name, value in known.built_in.items():
        if name in changed and values[name] == value:
            take(name)
    for name, setting in known.settings_in_trl.items():
        if name in changed and alike:
            take(name, **{setting: values[name]})
    if "loss_type" in changed and alike:
        take("loss_type")
    return found


def _defaults(config_class: type) -> dict[str, Any]:
    return {f.name: _default(f) for f in dataclasses.fields(config_class) if f.init}


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def refuse_changed(config: Any, names: dict[str, str], trl_class: type) -> None:
    """ValueError for an argument of `trl_class` in `names` (name -> remedy) that is not at its default."""
    defaults = _defaults(trl_class)
    for name, remedy in names.items():
        if name in defaults and vars(config)[name] != defaults[name]:
            raise ValueError(f"{type(config).__name__}: {name} has no effect here: {remedy}")
