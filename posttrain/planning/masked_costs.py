"""What a plan says about masked-diffusion methods: the sampler's schedule, the cost of a likelihood, the logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from posttrain.planning.activations import Arithmetic
from posttrain.planning.batch import plural
from posttrain.planning.shapes import Shape, read_config
from posttrain.recipe import Recipe
from posttrain.recipe.sections import DiffusionRolloutSection
from posttrain.rollout.masked.sampler_options import DiffusionSampling, cache_fault, schedule, untrusted


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
        yield from _cache_faults(recipe, recipe.rollout.cache)


def _cache_faults(recipe: Recipe, cache: str) -> Iterator[str]:
    if cache == "none" or recipe.model.path is None:
        return
    try:
        config = read_config(recipe.model) or {}
    except ValueError:  # said of the model already
        return
    own_code = bool(config.get("auto_map"))
    architecture = (config.get("architectures") or [config.get("model_type") if own_code else None])[0]
    reason = None if architecture is None else cache_fault(architecture, own_code)
    if reason is not None:
        yield f"rollout: cache: {cache} is not possible with this model: {reason}; leave it out"


def model_code_faults(recipe: Recipe) -> Iterator[str]:
    """A checkpoint on this machine that brings code the recipe does not trust. Other methods leave it to upstream,
    which has classes of its own for most of them."""
    model = recipe.model
    if not recipe.objective.masked_diffusion or model.path is None or model.trust_remote_code:
        return
    try:
        auto_map = (read_config(model) or {}).get("auto_map")
    except ValueError:  # said of the model already
        return
    if auto_map:
        yield f"model: {untrusted(model.path, auto_map)}"


def diffusion_lines(recipe: Recipe) -> Iterator[str]:
    """Forward passes per rollout and a likelihood cost."""
    if not isinstance(recipe.rollout, DiffusionRolloutSection):
        return
    sampling = _sampling(recipe.rollout)
    block, blocks, passes = schedule(sampling, recipe.rollout.max_new_tokens)
    doubled = ", twice for guidance" if sampling.cfg_scale else ""
    most = "" if sampling.confidence is None else "at most "
    kept = {"none": "", "prefix": ", of which all but the first of a block leave what stands before it out"}
    kept["dual"] = ", of which all but the first of a block compute that block alone"
    yield (
        f"a canvas of {recipe.rollout.max_new_tokens} tokens is filled in {plural(blocks, 'block')} of {block}, "
        f"{most}{plural(blocks * passes, 'forward pass')}{doubled}{kept[sampling.cache]}"
    )
    yield f"a likelihood costs {plural(recipe.objective.num_passes, 'forward pass')}, one at a time in memory"


@dataclass(frozen=True)
class Logits:
    """Bytes while the log-probs of a masked-diffusion model are made, and while their gradient is."""

    forward: float
    backward: float


def logits_bytes(recipe: Recipe, shape: Shape, rows: int, tokens: int, how: Arithmetic) -> Logits | None:
    """What the logits of one pass take; None for the models that are scored through a fused head.

    They are counted whole, of the canvas and its prompt: there is no fused head for models that see both ways
    (a decoder of transformers leaves the prompt's out, code that comes with a checkpoint does not). In the forward as
    they are computed and, where that is in 16 bits, in float32. In the backward beside those the gradient of the
    picked logits, of the normaliser, and their sum.
    """
    if not recipe.objective.masked_diffusion:
        return None
    numbers = float(rows * tokens * shape.vocabulary)
    forward = numbers * (4 if how.compute == 4 else 6)
    return Logits(forward, forward + numbers * 12)


def sampling_bytes(recipe: Recipe, shape: Shape, completions: int, tokens: int, size: int) -> float:
    """What the sampler's logits take: of the whole canvas once, and of the open block in float64 five times (logits,
    draws, noise, their difference, the choice)."""
    if not isinstance(recipe.rollout, DiffusionRolloutSection):
        return 0.0
    rows = min(completions, recipe.rollout.sampler_rows)
    block = recipe.rollout.block_length or recipe.rollout.max_new_tokens
    whole, opened = rows * tokens * shape.vocabulary * size, rows * block * shape.vocabulary * 8
    return float(max(whole + opened, 5 * opened))
