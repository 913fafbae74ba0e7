"""Which modules an adapter may sit on, said before a step is trained: names that are there, and none whose merge would
change more than was trained."""

from __future__ import annotations

from typing import Any

from accelerate.utils import is_peft_model
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from posttrain.recipe.errors import suggest
from posttrain.rollout.model_folder import is_tied

_ALL = "all-linear"


def check_adapter(model: Any, config: PeftConfig | None) -> None:
    """Raises ValueError where `config` names no module, one that is not there, or one that cannot carry an adapter.

    A model that brings its adapter is asked about that one; a path is not looked at.
    """
    if not isinstance(model, nn.Module):
        return
    whole: Any = model
    if is_peft_model(whole):
        _check_places(whole.get_base_model(), _adapted(whole))
        return
    if config is None:
        return
    targets, saved = vars(config).get("target_modules"), vars(config).get("modules_to_save") or []
    names = [name for name, _ in model.named_modules() if name]
    if isinstance(targets, list | set | tuple):
        _check_names("target_modules", sorted(targets), names, model)
        if not targets and not saved:
            raise ValueError(
                "target_modules is empty: no weight would be trained; name modules, or 'all-linear'"
            )
    _check_names("modules_to_save", sorted(saved), names, model)
    places = {name for name in names if _ends_with(name, saved)}
    if targets != _ALL and vars(config).get("target_modules") is not None:
        places |= {name for name in names if check_target_module_exists(config, name)}
    if isinstance(targets, str) and targets != _ALL and not places:
        raise ValueError(f"target_modules {targets!r} fits no module of {type(model).__name__}")
    if not (vars(config).get("ensure_weight_tying") and is_tied(model)):
        _check_places(model, places)


def _check_names(setting: str, wanted: list[str], names: list[str], model: nn.Module) -> None:
    for one in wanted:
        if not any(_ends_with(name, [one]) for name in names):
            kinds = sorted(
                {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)}
            )
            raise ValueError(
                f"{setting}: {type(model).__name__} has no module {one!r}{suggest(one, kinds)}; its linear layers are "
                f"{', '.join(kinds)}"
            )


def _check_places(model: Any, places: set[str]) -> None:
    """`places` are names of the model's modules that an adapter changes."""
    by_name = dict(model.named_modules())
    for name in sorted(places):
        module = _inner(by_name[name])
        if module is _inner(model.get_output_embeddings()):
            raise ValueError(
                f"{name} cannot carry an adapter: log-probs come from TRL's fused head; leave it out"
            )
        if module is _inner(model.get_input_embeddings()) and _tied(model):
            raise ValueError(
                f"{name} cannot carry an adapter: the model's head is tied to it (tie_word_embeddings), so a merge "
                "would change the head as well, which is not trained with it; leave it out, or untie the model first"
            )


def _adapted(model: Any) -> set[str]:
    kinds = (BaseTunerLayer, ModulesToSaveWrapper)
    return {name for name, one in model.get_base_model().named_modules() if isinstance(one, kinds) and name}


def _tied(model: Any) -> bool:
    head, embedding = _inner(model.get_output_embeddings()), _inner(model.get_input_embeddings())
    return head is not None and embedding is not None and head.weight is embedding.weight


def _inner(module: Any) -> Any:
    """The module of the base model, under what an adapter wraps around it."""
    if isinstance(module, ModulesToSaveWrapper):
        return module.original_module
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _ends_with(name: str, wanted: Any) -> bool:
    return any(name == one or name.endswith(f".{one}") for one in wanted)


def copies_reference(model: Any, adapter: Any) -> bool:
    """Whether the reference is a copy made here: an adapter's is its base, and under ZeRO-3 TRL loads it."""
    adapted = adapter is not None or (not isinstance(model, str) and is_peft_model(model))
    return not (adapted or is_deepspeed_zero3_enabled())
