"""Texts that stand more than once: the same after normalisation, or nearly the same."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from posttrain.data.describe.shingles import near_groups

MOST_COMPARED = 100_000
"""Distinct texts among which near duplicates are looked for; of more the first so many."""


@dataclass(frozen=True)
class Repeats:
    """Of the rows' texts under one role.

    texts      that are not empty
    distinct   different ones after normalisation; texts - distinct rows repeat an earlier one
    most       how often the most frequent one stands, and `example` how it begins
    near       distinct texts that nearly equal an earlier one; None where they were not looked for
    compared   distinct texts among which they were looked for
    groups     sizes of the largest groups of near duplicates, in rows
    """

    texts: int
    distinct: int
    most: int
    example: str
    near: int | None = None
    compared: int = 0
    groups: tuple[int, ...] = ()

    @property
    def repeated(self) -> int:
        return self.texts - self.distinct


def normalised(text: str) -> str:
    """NFKC, without case, every run of white space one blank. Punctuation and digits stay: 2+2 is not 2-2."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def shown(text: str, longest: int) -> str:
    """The beginning of a text on one line, as it can be printed: half a character becomes a question mark."""
    return " ".join(text[:longest].split()).encode("utf-8", "replace").decode("utf-8")


@dataclass(frozen=True)
class Grouped:
    """Distinct texts in their order, each with the rows that hold it; an empty one stands nowhere.

    roots  of each text the index of the first one of its group: its own where near duplicates were not looked for
    """

    counts: dict[str, int]
    roots: list[int]
    near: bool

    def of(self, texts: Sequence[str]) -> list[int]:
        """The group of each text; -1 for an empty one."""
        numbers = {text: root for text, root in zip(self.counts, self.roots, strict=True)}
        return [numbers[text] if text else -1 for text in texts]


def grouped(texts: Sequence[str], *, near: bool) -> Grouped:
    """Normalised texts in groups: equal ones, or with `near` those that nearly equal each other."""
    counts = dict(Counter(text for text in texts if text))
    roots = near_groups(list(counts)[:MOST_COMPARED]) if near else []
    return Grouped(counts, [*roots, *range(len(roots), len(counts))], near)


def repeats(found: Grouped) -> Repeats | None:
    """What repeats; None where no text stands."""
    if not found.counts:
        return None
    example = max(found.counts, key=lambda text: found.counts[text])
    base = Repeats(sum(found.counts.values()), len(found.counts), found.counts[example], shown(example, 160))
    if not found.near:
        return base
    sizes: Counter[int] = Counter()
    for text, root in zip(found.counts, found.roots, strict=True):
        sizes[root] += found.counts[text]
    unlike = sum(root == index for index, root in enumerate(found.roots))
    together = {root for index, root in enumerate(found.roots) if root != index}
    return replace(
        base,
        near=len(found.counts) - unlike,
        compared=min(len(found.counts), MOST_COMPARED),
        groups=tuple(sorted((sizes[root] for root in together), reverse=True)[:5]),
    )
