"""A LoRA's targets against the modules a checkpoint has, by the names and shapes in its files' headers. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.planning.shapes import local_file, read_header
from posttrain.recipe import Recipe
from posttrain.recipe.errors import suggest
from posttrain.recipe.sections import ModelSection


def adapter_faults(recipe: Recipe) -> Iterator[str]:
    """Targets that no module of the model answers to, or that no adapter can sit on."""
    peft = recipe.model.peft
    if peft is None:
        return
    modules = module_shapes(recipe.model)
    if modules is None:
        return
    matrices = {name: shape for name, shape in modules.items() if len(shape) == 2}
    known = sorted({name.rpartition(".")[2] for name in matrices})
    if isinstance(peft.target_modules, list):
        for target in peft.target_modules:
            found = [name for name in modules if _answers(name, target)]
            if not found:
                hint = suggest(target, known) or f"; it has {', '.join(known)}"
                yield f"model.peft: target_modules: the model has no module {target!r}{hint}"
            elif not any(name in matrices for name in found):
                yield (
                    f"model.peft: target_modules: {target!r} is no linear map or embedding; "
                    f"take of {', '.join(known)}"
                )
    names = {part for name in modules for part in _parents(name)}
    for target in peft.modules_to_save:
        if not any(_answers(name, target) for name in names):
            hint = suggest(target, {name.rpartition(".")[2] for name in names})
            yield f"model.peft: modules_to_save: the model has no module {target!r}{hint}"
    narrowest = min(
        (min(shape) for name, shape in matrices.items() if _is_target(name, recipe)), default=None
    )
    if narrowest is not None and peft.r > narrowest:
        yield (
            f"model.peft: r {peft.r} is more than the {narrowest} of the narrowest map it sits on, so it adds nothing "
            "but memory; lower it"
        )


def _is_target(name: str, recipe: Recipe) -> bool:
    peft = recipe.model.peft
    assert peft is not None
    if isinstance(peft.target_modules, list):
        return any(_answers(name, target) for target in peft.target_modules)
    return not any(word in name for word in ("embed", "lm_head", "wte", "wpe"))  # "all-linear"


def _answers(module: str, target: str) -> bool:
    """As peft matches a name in a list: the whole name or its last parts."""
    return module == target or module.endswith(f".{target}")


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


def module_shapes(model: ModelSection) -> dict[str, tuple[int, ...]] | None:
    """Module -> shape of its weight, from the headers of the checkpoint's safetensors files; None without any."""
    if model.path is None:
        return None
    config = local_file(model.path, "config.json", model.revision)
    files = sorted(config.parent.glob("*.safetensors")) if config is not None else []
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        for name, entry in read_header(file).items():
            module, _, kind = name.rpartition(".")
            if kind == "weight":
                found[module] = tuple(entry["shape"])
    return found or None
