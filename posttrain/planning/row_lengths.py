"""Lengths of rows before a model is loaded, by the tokenizer and chat template that lie on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.data.conversations import Messages
from posttrain.data.files import Row
from posttrain.data.tokens import prompt_ids, whole_ids
from posttrain.planning.rendered import template_options
from posttrain.planning.row_needs import needs_of
from posttrain.planning.tokenizer import PlanTokenizer
from posttrain.recipe import Recipe

LOOKED_AT = 2_000
"""Rows that are tokenised; of a larger data set so many, evenly spaced. Templates are slow to render."""

LONGEST_READ = 200_000
"""Characters of a text that are tokenised here; of a longer one the rest is reckoned to be like them."""


@dataclass(frozen=True)
class RowLengths:
    """In tokens, one per row looked at, as the trainer will read them.

    prompts  of the prompt, with what a chat template puts around it
    whole    of the prompt and its longest answer; None for methods that make their answers themselves
    rows     rows there are
    """

    prompts: list[int]
    whole: list[int] | None
    rows: int

    @property
    def exact(self) -> bool:
        return len(self.prompts) == self.rows

    @property
    def longest(self) -> int:
        return max(self.prompts)


def beyond(lengths: Sequence[int], limit: int) -> int:
    """How many are longer than `limit`."""
    return sum(length > limit for length in lengths)


def row_lengths(recipe: Recipe, rows: Sequence[Row], tokenizer: PlanTokenizer | None) -> RowLengths | None:
    """None where there are no rows, or nothing here says how text becomes tokens."""
    if not rows or tokenizer is None:
        return None
    if isinstance(rows[0]["prompt"], list) and tokenizer.chat_template is None:
        return None  # written as plain lines by the method itself
    count = min(len(rows), LOOKED_AT)
    picked = [rows[i * len(rows) // count] for i in range(count)]
    options = template_options(recipe)
    given = recipe.spec.family in ("sft", "preference")
    answers = [name for name in needs_of(recipe).texts or () if given and name in rows[0]]
    prompts = [_length(tokenizer, row["prompt"], **options) for row in picked]
    whole = [
        max((_whole(tokenizer, row["prompt"], row[name]) for name in answers), default=0) for row in picked
    ]
    return RowLengths(prompts, whole if answers else None, len(rows))


def _length(tokenizer: PlanTokenizer, prompt: str | Messages, **options: Any) -> int:
    if isinstance(prompt, str):
        return _scaled(prompt, lambda text: prompt_ids(tokenizer, text))
    return len(prompt_ids(tokenizer, prompt, **options))


def _whole(tokenizer: PlanTokenizer, prompt: str | Messages, answer: str | Messages) -> int:
    if isinstance(prompt, str) or isinstance(answer, str):
        return _scaled(f"{prompt}{answer}", lambda text: whole_ids(tokenizer, "", text))
    return len(whole_ids(tokenizer, prompt, answer))


def _scaled(text: str, tokens: Callable[[str], list[int]]) -> int:
    """Of a very long text the beginning is tokenised."""
    return int(len(tokens(text[:LONGEST_READ])) * max(len(text) / LONGEST_READ, 1.0))
