"""A curriculum: rows by a number, from one end to the other, shuffled among their like.

Rows are cut into bands of equal size by rank, and shuffled within them, anew in each epoch. Equal numbers are first
brought into a random order, so that a band that ends among them takes no more of one part of the file than of another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Curriculum:
    """
    keys   a number for each row, None where it has none: such rows come last
    first  the end to begin with
    bands  how many; each row is as far from its rank as its band is wide, at most
    """

    keys: tuple[float | None, ...]
    first: Literal["highest", "lowest"]
    bands: int

    def order(self, permutation: Callable[[int], Sequence[int]]) -> list[int]:
        """Each row's number once. `permutation(n)` draws an order of 0 to n - 1; the identity leaves rows sorted."""
        drawn = permutation(len(self.keys))
        known: list[tuple[float, int]] = []
        unknown: list[int] = []
        for row in drawn:
            key = self.keys[row]
            if key is None:
                unknown.append(row)
            else:
                known.append((-key if self.first == "highest" else key, row))
        known.sort(key=lambda pair: pair[0])  # stable: equal keys stay as they were drawn
        ordered: list[int] = []
        for band in range(self.bands):
            rows = known[band * len(known) // self.bands : (band + 1) * len(known) // self.bands]
            ordered += [rows[place][1] for place in permutation(len(rows))]
        return ordered + unknown

    def in_words(self, by: str) -> str:
        """`order: by pass_rate, highest first, in 10 bands of about 100 rows; 3 rows without a value come last`."""
        unknown = sum(key is None for key in self.keys)
        known = [key for key in self.keys if key is not None]
        size = max(1, round(len(known) / self.bands))
        text = f"order: by {by}, {self.first} first, in {self.bands} bands of about {size} rows"
        text += f", from {min(known):g} to {max(known):g}" if known else ""
        return text + (f"; {unknown} rows without a value come last" if unknown else "")
