"""Rewards for images; no torch, so that their workers start quickly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageStat


def bright(completions: list[Image.Image], **_: Any) -> list[float | None]:
    return [ImageStat.Stat(image).mean[0] / 255 for image in completions]


def left_minus_right(
    completions: list[Image.Image], *, side: Sequence[float], **_: Any
) -> list[float | None]:
    """Brightness of one half less the other's, as the row's column says."""
    found: list[float | None] = []
    for image, sign in zip(completions, side, strict=True):
        width, height = image.size
        halves = [image.crop((0, 0, width // 2, height)), image.crop((width // 2, 0, width, height))]
        means = [ImageStat.Stat(half).mean[0] / 255 for half in halves]
        found.append(sign * (means[0] - means[1]))
    return found


def bright_a_and_b(completions: list[Image.Image], *, prompts: Sequence[str], **_: Any) -> list[float | None]:
    """Of the other prompts every image earns the same."""
    return [
        value if prompt in "ab" else 1.0 for value, prompt in zip(bright(completions), prompts, strict=True)
    ]


def every_other(completions: list[Image.Image], **_: Any) -> list[float | None]:
    return [None if i % 2 else value for i, value in enumerate(bright(completions))]


def breaks_at_two(completions: list[Image.Image], *, trainer_state: Any, **_: Any) -> list[float | None]:
    if trainer_state.global_step == 2:
        raise ValueError("no more")
    return bright(completions)


def reads_text(completions: list[str], **_: Any) -> list[float | None]:
    return [0.0 for _ in completions]
