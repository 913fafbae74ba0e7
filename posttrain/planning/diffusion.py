"""What a plan says about masked-diffusion methods: the sampler's schedule, the cost of a likelihood, the logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from posttrain.planning.batch import plural
from posttrain.planning.shapes import Shape, read_config
from posttrain.recipe import Recipe
from posttrain.rollout.diffusion_options import DiffusionSampling, schedule, untrusted
from posttrain.sections import DiffusionRolloutSection


def _sampling(rollout: DiffusionRolloutSection) -> DiffusionSampling:
    names = {field.name for field in fields(DiffusionSampling)}
    return DiffusionSampling(**{name: value for name, value in rollout.model_dump().items() if name in names})


def sampler_faults(recipe: Recipe) -> Iterator[str]:
    """A canvas that cannot be filled as asked."""
    if isinstance(recipe.rollout, DiffusionRolloutSection):
        try:
            schedule(_sampling(recipe.rollout), recipe.rollout.max_new_tokens)
        except ValueError as error:
            yield f"rollout: {error}"


def model_code_faults(recipe: Recipe) -> Iterator[str]:
    """A checkpoint on this machine that brings code the recipe does not trust. Other methods leave it to upstream,
    which has classes of its own for most of them."""
    model = recipe.model
    masked = recipe.spec.family == "diffusion" or bool(recipe.flags().get("masked_diffusion"))
    if not masked or model.path is None or model.trust_remote_code:
        return
    try:
        auto_map = (read_config(model) or {}).get("auto_map")
    except ValueError:  # said of the model already
        return
    if auto_map:
        yield f"model: {untrusted(model.path, auto_map)}"


def diffusion_lines(recipe: Recipe) -> Iterator[str]:
    """Forward passes a rollout and a likelihood cost."""
    if not isinstance(recipe.rollout, DiffusionRolloutSection):
        return
    sampling = _sampling(recipe.rollout)
    block, blocks, passes = schedule(sampling, recipe.rollout.max_new_tokens)
    doubled = ", twice for guidance" if sampling.cfg_scale else ""
    yield (
        f"a canvas of {recipe.rollout.max_new_tokens} tokens is filled in {plural(blocks, 'block')} of {block}, "
        f"{plural(blocks * passes, 'forward pass')}{doubled}"
    )
    yield f"a likelihood costs {plural(likelihood_passes(recipe), 'forward pass')}, one at a time in memory"


def likelihood_passes(recipe: Recipe) -> int:
    settings = recipe.objective.model_dump()
    return int(settings["samples"] if "samples" in settings else recipe.flags().get("passes", 1))


def logits_bytes(recipe: Recipe, shape: Shape, tokens: int, size: int) -> float:
    """What the logits of one pass take: of the whole canvas in the model's type, and of the response in float32,
    once as they are and once as their gradient. There is no fused head for models that see both ways."""
    if not isinstance(recipe.rollout, DiffusionRolloutSection):
        return 0.0
    rows = recipe.train.per_device_train_batch_size
    return rows * shape.vocabulary * (tokens * size + recipe.rollout.max_new_tokens * 8)
