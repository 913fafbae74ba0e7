"""Micro-batches by tokens: rows into parts that each hold at most so many tokens in one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def split_by_tokens(
    prompts: Sequence[int],
    completions: Sequence[int],
    groups: Sequence[int] | None,
    limit: int,
) -> list[list[int]]:
    """The rows' places, in parts of at most `limit` tokens; a row that holds more is a part of its own.

    prompts, completions  tokens of each row's prompt and of its completion
    groups  (B,) rows of one number share their prompt, which counts once in a part, and stay together as far as the
            limit allows: the shared layout. None: each row counts as the longest prompt and the longest completion of
            its part do, and rows of like length come together: the padded layouts
    """
    if groups is None:
        return _padded_parts(prompts, completions, limit)
    rows_of: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        rows_of.setdefault(group, []).append(row)
    parts: list[list[int]] = []
    held, filled = [], 0
    for rows in rows_of.values():
        for piece, cost in _pieces(rows, prompts, completions, limit):
            if held and filled + cost > limit:
                parts.append(held)
                held, filled = [], 0
            held, filled = held + piece, filled + cost
    return [*parts, held] if held else parts


def _pieces(
    rows: Sequence[int], prompts: Sequence[int], completions: Sequence[int], limit: int
) -> Iterator[tuple[list[int], int]]:
    """A group, whole where it fits, else cut; each piece with its tokens, the prompt counted in each."""
    piece: list[int] = []
    cost = prompts[rows[0]]
    for row in rows:
        if piece and cost + completions[row] > limit:
            yield piece, cost
            piece, cost = [], prompts[row]
        piece, cost = [*piece, row], cost + completions[row]
    yield piece, cost


def _padded_parts(prompts: Sequence[int], completions: Sequence[int], limit: int) -> list[list[int]]:
    parts: list[list[int]] = []
    widest = (0, 0)
    for row in sorted(range(len(prompts)), key=lambda at: (prompts[at] + completions[at], at)):
        wide = (max(widest[0], prompts[row]), max(widest[1], completions[row]))
        if parts and (len(parts[-1]) + 1) * sum(wide) <= limit:
            parts[-1].append(row)
            widest = wide
        else:
            parts.append([row])
            widest = (prompts[row], completions[row])
    return parts
