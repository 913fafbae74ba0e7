"""What a base model in 4 bits asks of the rest of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from posttrain.recipe import Recipe
from posttrain.rollout.adapter_base import holds_adapter

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Per parameter: 4 bits, an 8-bit scale for every 64 of them, a float32 scale for every 256 of those (double
quantisation, Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, section 3)."""


def quantization_faults(recipe: Recipe) -> Iterator[str]:
    model = recipe.model
    if model.quantization is None:
        return
    where = "model: 'quantization'"
    if model.peft is None:
        yield f"{where} freezes the base weights, so an adapter has to be trained; give 'peft'"
    elif model.peft.dora:
        yield f"{where} and model.peft.dora: the norm of a weight in 4 bits is not the one DoRA decomposes; drop one"
    if find_spec("bitsandbytes") is None:
        yield f"{where} needs the package bitsandbytes: pip install 'posttrain[bnb]'"
    if model.path is not None and holds_adapter(model.path):
        yield f"{where}: {model.path} is an adapter, which is merged into whole weights; `posttrain merge` it first"
    if recipe.rollout is not None and recipe.rollout.engine != "transformers":
        yield f"{where} leaves no weights that a vLLM engine could be sent; set rollout.engine: transformers"
    objective = recipe.objective
    if objective.masked_diffusion:
        yield f"{where} is not carried through masked-diffusion models; remove it"
    elif objective.in_stages or objective.reference_copies(adapter=True) is not None:
        yield f"{where}: {recipe.method} loads further models of its own, in whole weights; remove it"
