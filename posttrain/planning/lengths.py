"""Lengths of prompts before torch is loaded: by a tokenizer file that lies on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.data.files import Row
from posttrain.planning.shapes import local_file
from posttrain.planning.tokenizer import backend_of
from posttrain.recipe.sections import ModelSection

TEMPLATE_TOKENS = 32
"""Taken for what a chat template adds around the words of a conversation."""

LONGEST_READ = 200_000
"""Characters of a text that are tokenised here; of a longer one the rest is reckoned to be like them."""


@dataclass(frozen=True)
class PromptLengths:
    """In tokens, one a row. `exact` is False where a chat template will add to them."""

    tokens: list[int]
    exact: bool

    @property
    def longest(self) -> int:
        return max(self.tokens)

    def longer_than(self, limit: int) -> int:
        return sum(length > limit for length in self.tokens)


def prompt_lengths(model: ModelSection, rows: Sequence[Row]) -> PromptLengths | None:
    """None where neither the recipe nor a file here says how text becomes tokens."""
    prompts = [row["prompt"] for row in rows]
    if not prompts:
        return None
    chat = isinstance(prompts[0], list)
    texts = [" ".join(str(m["content"]) for m in prompt) if chat else prompt for prompt in prompts]
    added = TEMPLATE_TOKENS if chat else 0
    if model.scratch is not None:
        return PromptLengths([len(text) + added for text in texts], exact=not chat)
    file = _tokenizer_file(model)
    if file is None:
        return None
    try:
        tokenizer = backend_of(file)
    except ValueError:  # plan_tokenizer says it
        return None
    tokenizer.no_truncation()
    encoded = tokenizer.encode_batch([text[:LONGEST_READ] for text in texts], add_special_tokens=False)
    scales = [max(len(text) / LONGEST_READ, 1.0) for text in texts]
    tokens = [int(len(encoding.ids) * scale) + added for encoding, scale in zip(encoded, scales, strict=True)]
    return PromptLengths(tokens, exact=not chat and max(scales) == 1)


def _tokenizer_file(model: ModelSection) -> Path | None:
    name = model.tokenizer or model.path
    assert name is not None
    return local_file(name, "tokenizer.json", model.revision if model.tokenizer is None else None)
