"""Near-duplicate texts by MinHash: characters' 5-grams, 48 minima in 12 bands, every pair found held against the truth.

Broder 1997 (resemblance, minima of permutations), Leskovec, Rajaraman and Ullman (bands). Two texts are near
duplicates where their sets of 5-grams have a Jaccard similarity of at least 0.8. A pair of similarity s is found with
probability 1 - (1 - s^4)^12: 0.998 at 0.8; and since each pair found is compared exactly, none is reported that is not
one. Work is linear in the number of characters read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

GRAM = 5
BANDS, ROWS_OF_BAND = 12, 4
SIMILAR = 0.8
LONGEST_COMPARED = 4_000
"""Characters of a text: of a longer one the first and the last 2,000."""
COMMON_SHARE, COMMON_FROM, COMMON_SAMPLE = 0.2, 50, 2_000
"""5-grams that more than a fifth of the texts hold (a template around each prompt) are not compared, from 50 texts on;
which they are is read from 2,000 of them, evenly spaced."""
_LEADERS = 4  # of a bucket that a new text is compared with: bounds the work where thousands fall into one
_KEPT = 4_096  # sets of 5-grams in memory at once
_SLOTS = 2**20  # of the table of common 5-grams
Hashes = NDArray[np.uint64]


def near_groups(texts: Sequence[str]) -> list[int]:
    """For each of the distinct texts the index of the first one of its group; its own where it is like no other."""
    common = common_grams(texts)

    @lru_cache(maxsize=_KEPT)
    def grams_of(index: int) -> Hashes:
        return grams(texts[index], common)

    rng = np.random.default_rng(0)
    size = BANDS * ROWS_OF_BAND
    factors = rng.integers(1, 2**63, size=size, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    shifts = rng.integers(0, 2**63, size=size, dtype=np.uint64)
    groups = list(range(len(texts)))
    buckets: dict[tuple[int, bytes], list[int]] = {}
    for index in range(len(texts)):
        found = _kept(hashes(texts[index]), common)
        if not len(found):
            continue
        minima = (factors[:, None] * found + shifts[:, None]).min(axis=1)
        compared: set[int] = set()
        for band in range(BANDS):
            key = (band, minima[band * ROWS_OF_BAND : (band + 1) * ROWS_OF_BAND].tobytes())
            leaders = buckets.setdefault(key, [])
            for leader in leaders:
                if leader not in compared and _root(groups, leader) != _root(groups, index):
                    compared.add(leader)
                    if jaccard(grams_of(index), grams_of(leader)) >= SIMILAR:
                        _join(groups, leader, index)
            if len(leaders) < _LEADERS:
                leaders.append(index)
    return [_root(groups, index) for index in range(len(texts))]


def grams(text: str, common: NDArray[np.bool_] | None = None) -> Hashes:
    """The hashed 5-grams of a text, each once and in order.

    common  a table of those that are left out, by the low bits of their hash: one in thousands is left out by chance,
            and then from every text
    """
    return np.unique(_kept(hashes(text), common))


def hashes(text: str) -> Hashes:
    """The 5-grams of a text, hashed, in its own order; a text of fewer characters is one gram, an empty one none."""
    if len(text) > LONGEST_COMPARED:
        half = LONGEST_COMPARED // 2
        text = text[:half] + text[-half:]
    codes = np.frombuffer(text.encode("utf-32-le", "replace"), dtype=np.uint32).astype(np.uint64)
    if not len(codes):
        return codes
    width = min(GRAM, len(codes))
    count = len(codes) - width + 1
    hashed = codes[:count]
    for offset in range(1, width):
        hashed = hashed * np.uint64(1_099_511_628_211) + codes[offset : offset + count]
    return _mixed(hashed)


def _kept(found: Hashes, common: NDArray[np.bool_] | None) -> Hashes:
    return found if common is None else found[~common[found & np.uint64(_SLOTS - 1)]]


def common_grams(texts: Sequence[str]) -> NDArray[np.bool_] | None:
    """The table of 5-grams that stand in too many texts to tell them apart; None for few texts."""
    if len(texts) < COMMON_FROM:
        return None
    count = min(len(texts), COMMON_SAMPLE)
    picked = [texts[i * len(texts) // count] for i in range(count)]
    found, times = np.unique(np.concatenate([grams(text) for text in picked]), return_counts=True)
    table = np.zeros(_SLOTS, dtype=np.bool_)
    table[found[times > COMMON_SHARE * count] & np.uint64(_SLOTS - 1)] = True
    return table


def jaccard(one: Hashes, other: Hashes) -> float:
    """Size of the intersection over size of the union, 1 for two empty sets."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    union = len(one) + len(other) - shared
    return shared / union if union else 1.0


def _mixed(values: Hashes) -> Hashes:
    """splitmix64's finisher: every bit of the result depends on every bit of the value."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _root(groups: list[int], index: int) -> int:
    while groups[index] != index:
        groups[index] = groups[groups[index]]
        index = groups[index]
    return index


def _join(groups: list[int], one: int, other: int) -> None:
    first, second = sorted((_root(groups, one), _root(groups, other)))
    groups[second] = first
