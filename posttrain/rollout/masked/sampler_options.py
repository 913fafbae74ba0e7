"""Options of masked-diffusion models and their sampler, and what is impossible among them.

No torch here: `posttrain plan` reads this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from pydantic.dataclasses import dataclass

from posttrain.settings import STRICT

Remasking = Literal["low_confidence", "random", "entropy", "margin"]
EndRule = Literal["free", "last", "never"]
CacheKind = Literal["none", "prefix", "dual"]

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
    cache: CacheKind = "none"
    """which keys and values are kept within a block (Fast-dLLM, arXiv 2505.22618): none; prefix, of prompt and finished
    blocks; dual, of everything outside of the block. Samples come from a slightly other distribution with it"""
    confidence: Annotated[float, Gt(0), Le(1)] | None = None
    """every token of at least this probability is revealed in a pass, and one in any case, in place of a fixed number
    of passes (Fast-dLLM)"""


def schedule(options: DiffusionSampling, max_new_tokens: int) -> tuple[int, int, int]:
    """(block length, blocks, forward passes per block; with `confidence` the most it can take). ValueError says which
    number to change to what."""
    block = options.block_length or max_new_tokens
    if max_new_tokens % block:
        raise ValueError(
            f"block_length {block} does not divide max_new_tokens {max_new_tokens}; "
            f"choose one of {_divisors(max_new_tokens)}"
        )
    blocks = max_new_tokens // block
    if options.confidence is not None:
        _check_confidence(options)
        return block, blocks, block
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


def _check_confidence(options: DiffusionSampling) -> None:
    if options.diffusion_steps is not None:
        raise ValueError(
            f"confidence {options.confidence} decides how many passes a block takes, and diffusion_steps "
            f"{options.diffusion_steps} does as well; leave one of them out"
        )
    if options.remasking != "low_confidence":
        raise ValueError(
            f"confidence {options.confidence} is a token's probability, and turns go by remasking "
            f"{options.remasking}; choose remasking low_confidence, or leave confidence out"
        )


def cache_fault(architecture: str, own_code: bool) -> str | None:
    """Why the keys and values of a model of this class cannot be kept; None where they can."""
    if own_code:
        return f"{architecture} comes with the checkpoint's own code, which keeps none"
    if not architecture.endswith("ForCausalLM"):
        return f"{architecture} keeps no keys and values"
    return None


def untrusted(path: str, auto_map: Mapping[str, object]) -> str:
    """What to say of a checkpoint whose own code (config.json's auto_map) may not be run."""
    classes = ", ".join(sorted(set(map(str, auto_map.values()))))
    return f"{path} brings its own model code ({classes}). Read it, then set model.trust_remote_code: true"


def _divisors(number: int) -> str:
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)
