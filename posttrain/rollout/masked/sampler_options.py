"""Options of masked-diffusion models and their sampler, and what is impossible among them.

No torch here: `posttrain plan` reads this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from annotated_types import Ge
from pydantic.dataclasses import dataclass

from posttrain.settings import STRICT

Remasking = Literal["low_confidence", "random", "entropy", "margin"]
EndRule = Literal["free", "last", "never"]

DIFFUSION_SAMPLING = frozenset({"temperature", "max_new_tokens", "stop_token_ids", "seed", "n"})
"""Names of the common sampling options that this engine honours; it has no truncation of the distribution."""


@dataclass(frozen=True, config=STRICT)
class DiffusionSampling:
    """How a canvas of masks is filled; length and temperature come with each call."""

    diffusion_steps: Annotated[int, Ge(1)] | None = None
    """forward passes per canvas; None: one per token"""
    block_length: Annotated[int, Ge(1)] | None = None
    """a canvas is filled left to right in blocks of this length; None: one block"""
    remasking: Remasking = "low_confidence"
    """what a position's turn depends on: the probability of its token (LLaDA), the entropy of its distribution, the
    margin between its two likeliest tokens, or chance"""
    cfg_scale: Annotated[float, Ge(0)] = 0.0
    """w of classifier-free guidance, u + (w + 1)(c - u)"""
    end_rule: EndRule = "free"
    """end tokens: free; last, revealed only when nothing else is left in the block; never"""
    sampler_rows: Annotated[int, Ge(1)] = 64
    """canvases per forward pass; bounds memory"""


def schedule(options: DiffusionSampling, max_new_tokens: int) -> tuple[int, int, int]:
    """(block length, blocks, forward passes a block). ValueError says which number to change to what."""
    block = options.block_length or max_new_tokens
    if max_new_tokens % block:
        raise ValueError(
            f"block_length {block} does not divide max_new_tokens {max_new_tokens}; "
            f"choose one of {_divisors(max_new_tokens)}"
        )
    blocks = max_new_tokens // block
    steps = options.diffusion_steps or max_new_tokens
    if steps % blocks:
        nearest = max(blocks, round(steps / blocks) * blocks)
        raise ValueError(
            f"diffusion_steps {steps} cannot be shared by {blocks} blocks; choose a multiple, such as {nearest}"
        )
    if steps > max_new_tokens:
        raise ValueError(
            f"diffusion_steps {steps} is more than max_new_tokens {max_new_tokens}: some passes would reveal nothing; "
            f"choose at most {max_new_tokens}"
        )
    return block, blocks, steps // blocks


def untrusted(path: str, auto_map: Mapping[str, object]) -> str:
    """What to say of a checkpoint whose own code (config.json's auto_map) may not be run."""
    classes = ", ".join(sorted(set(map(str, auto_map.values()))))
    return f"{path} brings its own model code ({classes}). Read it, then set model.trust_remote_code: true"


def _divisors(number: int) -> str:
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)
