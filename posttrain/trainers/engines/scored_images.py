"""Images of all ranks once they were scored: what rewards, reports and advantages read of them."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

KEPT, HELD_OUT = 96, 1000
"""Images of one rollout, and of one evaluation, that the run folder keeps."""


@dataclass
class ScoredImages:
    """In global order: a group's G images are neighbours. Without rewards `rewards_per_function` has no columns."""

    prompts: list[str]
    images: list[Any]
    columns: dict[str, list[Any]]
    rewards_per_function: Tensor  # (B, K), NaN = not judged
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)
    logged: dict[str, list[float]] = field(default_factory=dict)
    advantages: list[float] | None = None


def image_columns(
    scored: ScoredImages, names: list[str], weights: list[float], kept: int = KEPT
) -> dict[str, list[Any]]:
    """One row an image, of the first `kept`, in the columns `RunWriter.write_completions` knows; `image` is a PNG."""
    per_function = [[None if v != v else v for v in row] for row in scored.rewards_per_function.tolist()]
    columns: dict[str, list[Any]] = {
        "prompt": [str(prompt) for prompt in scored.prompts],
        "image": [png_of(image) for image in scored.images[:kept]],
        "reward": [_weighted(row, weights) for row in per_function],
    }
    for k, name in enumerate(names):
        columns[f"rewards/{name}"] = [row[k] for row in per_function]
    columns["advantage"] = scored.advantages or [None] * len(per_function)
    return {name: values[:kept] for name, values in columns.items()}


def png_of(image: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def _weighted(row: list[float | None], weights: list[float]) -> float | None:
    judged = [value * weight for value, weight in zip(row, weights, strict=True) if value is not None]
    return sum(judged) if judged else None
