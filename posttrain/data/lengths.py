"""Lengths in tokens: what is too long is dropped, cut or refused as the recipe says, and always counted."""

from __future__ import annotations

from typing import Any

from posttrain.data.conversations import Dropped, Messages
from posttrain.data.files import DataError, Row
from posttrain.data.row_layout import Needs
from posttrain.data.tokens import TemplateCheck, learned_ids, prompt_ids
from posttrain.recipe.data_sections import DataSection


class Limits:
    """What the tokenizer has to say about a row: whether its template takes it, and whether it is too long.

    lengths  False: whatever their length
    """

    def __init__(
        self, section: DataSection, tokenizer: Any, max_length: int | None = None, *, lengths: bool = True
    ) -> None:
        self.section = section
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.lengths = lengths
        self._template = None if tokenizer is None else TemplateCheck(tokenizer)

    def check(self, row: Row, needs: Needs) -> tuple[Row, bool]:
        """The row within its limits, and whether it was cut or will be. Raises Dropped or DataError."""
        if self._template is not None and not needs.without_template:
            self._template(row)
        if not self.lengths:
            return row, False
        return check_lengths(row, self.section, self.tokenizer, self.max_length)


def check_lengths(row: Row, section: DataSection, tokenizer: Any, max_length: int | None) -> tuple[Row, bool]:
    """The row within its limits, and whether it was cut or will be by the trainer. Raises Dropped or DataError."""
    if section.max_prompt_tokens is None and max_length is None:
        return row, False
    if tokenizer is None:
        raise ValueError("limits on length need the tokenizer")
    cut = False
    if section.max_prompt_tokens is not None:
        row, cut = limit_prompt(row, section, tokenizer)
    if max_length is not None:
        learned = learned_ids(tokenizer, row["prompt"], row["completion"])
        if learned.spans[0][0] >= max_length:
            raise Dropped(f"prompt fills train.max_length ({max_length})")
        cut = cut or len(learned.ids) > max_length
    return row, cut


def limit_prompt(row: Row, section: DataSection, tokenizer: Any) -> tuple[Row, bool]:
    limit = section.max_prompt_tokens
    assert limit is not None
    length = prompt_tokens(row["prompt"], tokenizer)
    if length <= limit:
        return row, False
    if section.on_long == "error":
        raise DataError(
            f"a prompt has {length} tokens, more than max_prompt_tokens ({limit}): {_start(row['prompt'])}"
        )
    if section.on_long == "drop":
        raise Dropped(f"prompt longer than {limit} tokens")
    return row | {"prompt": shortened(row["prompt"], limit, tokenizer)}, True


def shortened(prompt: str | Messages, limit: int, tokenizer: Any) -> str | Messages:
    """The prompt's end: the last tokens of a text, the latest turns of a conversation (its system message stays)."""
    if isinstance(prompt, str):
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        for kept in range(limit, 0, -1):
            text = tokenizer.decode(ids[-kept:], skip_special_tokens=False)
            # Text cut inside a word may come back as more tokens than it was cut to.
            if prompt_tokens(text, tokenizer) <= limit:
                return text
        raise Dropped(f"prompt longer than {limit} tokens, however cut")
    system = [message for message in prompt if message["role"] == "system"]
    turns = [message for message in prompt if message["role"] != "system"]
    while len(turns) > 1:
        turns = turns[1:]
        starts_well = turns[0]["role"] == "user" or all(turn["role"] != "user" for turn in turns)
        if starts_well and prompt_tokens([*system, *turns], tokenizer) <= limit:
            return [*system, *turns]
    raise Dropped(f"last turn longer than {limit} tokens")


def prompt_tokens(prompt: str | Messages, tokenizer: Any) -> int:
    return len(prompt_ids(tokenizer, prompt))


def _start(prompt: str | Messages) -> str:
    text = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
    return repr(text[:60])
