"""Rows of prompt groups as one packed row: each prompt once, behind it the completions of its group.

A completion attends to its prompt and to its own past, and to nothing else; its tokens stand at the positions they
would have behind the prompt. A completion's last token predicts nothing, so it is left out: the packed row has
P + G (T - 1) tokens for a group of G completions of T tokens to a prompt of P, where padded rows have G (P + T).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Span = tuple[int, int]


@dataclass(frozen=True)
class PromptGroup:
    """Spans [start, end) in the packed row: of a prompt, and of the completions that follow it."""

    prompt: Span
    completions: tuple[Span, ...]

    @property
    def end(self) -> int:
        return self.completions[-1][1] if self.completions else self.prompt[1]


@dataclass(frozen=True)
class SharedRows:
    """B rows of T completion tokens, packed into N tokens, of which M are scored.

    ids, positions  (1, N)
    groups          in the order of the packed row, one behind the other
    predicting      (M,) the place in the packed row whose output predicts the scored token
    targets         (M,) the scored tokens
    scattered       (M,) their places in the flattened (B, T)
    shape           (B, T)
    """

    ids: Tensor
    positions: Tensor
    groups: tuple[PromptGroup, ...]
    predicting: Tensor
    targets: Tensor
    scattered: Tensor
    shape: tuple[int, int]
    _masks: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_tokens(self) -> int:
        return self.ids.size(1)

    def padded(self, values: Tensor) -> Tensor:
        """Values (M, ...) of the scored tokens in their places, zeros elsewhere. (B, T, ...)."""
        rows, length = self.shape
        whole = values.new_zeros(rows * length, *values.shape[1:])
        return whole.index_copy(0, self.scattered, values).view(rows, length, *values.shape[1:])

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once per packed row: every layer asks for the same masks."""
        if key not in self._masks:
            self._masks[key] = make()
        return self._masks[key]

    @property
    def membership(self) -> Tensor:
        """(N,) the number of each token's group."""
        sizes = torch.tensor([group.end - group.prompt[0] for group in self.groups], device=self.ids.device)
        return torch.arange(len(self.groups), device=self.ids.device).repeat_interleave(sizes)

    @property
    def completion_of(self) -> Tensor:
        """(N,) the number of each token's completion, -1 in prompts."""
        spans = [span for group in self.groups for span in (group.prompt, *group.completions)]
        sizes = torch.tensor([end - start for start, end in spans], device=self.ids.device)
        prompt = {group.prompt for group in self.groups}
        numbers = [-1 if span in prompt else number for number, span in enumerate(spans)]
        return torch.tensor(numbers, device=self.ids.device).repeat_interleave(sizes)

    def mask(self, queries: int, before: int, window: int | None) -> Tensor:
        """(queries, before + queries) bool: what each of `queries` tokens behind `before` others may look at."""

        def make() -> Tensor:
            allowed = torch.ones(queries, before + queries, dtype=torch.bool, device=self.ids.device)
            allowed = allowed.tril_(before)
            return allowed if window is None else allowed.triu_(before - window + 1)

        return self.once((queries, before, window), make)


def share_prompts(input_ids: Tensor, attention_mask: Tensor, length: int) -> SharedRows:
    """Packs rows (B, L) whose last `length` columns are the completion, padded left, right or both.

    Rows with equal prompts share one, wherever in the batch they stand. A row without any completion token has no
    scored token. A ValueError names a row without a prompt.
    """
    present = attention_mask.bool()
    split = input_ids.size(1) - length
    ids, kept = input_ids.tolist(), present.tolist()
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for row, (tokens, here) in enumerate(zip(ids, kept, strict=True)):
        prompt = tuple(token for token, is_there in zip(tokens[:split], here, strict=False) if is_there)
        if not prompt:
            raise ValueError(f"share_prompts: row {row} has no prompt token to predict its first token from")
        rows_of.setdefault(prompt, []).append(row)
    packed: list[int] = []
    positions: list[int] = []
    predicting: list[int] = []
    targets: list[int] = []
    scattered: list[int] = []
    groups: list[PromptGroup] = []
    for prompt, rows in rows_of.items():
        start = len(packed)
        packed += prompt
        positions += range(len(prompt))
        end, spans = len(packed), []
        for row in rows:
            columns = [column for column in range(length) if kept[row][split + column]]
            completion = [ids[row][split + column] for column in columns]
            begin = len(packed)
            packed += completion[:-1]
            positions += range(len(prompt), len(prompt) + len(completion) - 1)
            spans.append((begin, len(packed)))
            predicting += [end - 1, *range(begin, len(packed))][: len(completion)]
            targets += completion
            scattered += [row * length + column for column in columns]
        groups.append(PromptGroup((start, end), tuple(spans)))

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=input_ids.device)

    return SharedRows(
        ids=tensor(packed)[None],
        positions=tensor(positions)[None],
        groups=tuple(groups),
        predicting=tensor(predicting),
        targets=tensor(targets),
        scattered=tensor(scattered),
        shape=(input_ids.size(0), length),
    )
