"""How much the answers to one question differ. After Belkhale, Cui and Sadigh 2023, arXiv 2306.02437.

A state is a group of prompts that are equal or near duplicates (`shingles`: Jaccard of 5-grams at least 0.8). Of a
group with n >= 2 answers, of which m normalised ones differ and stand n_1, ..., n_m times:

    H = - sum_i (n_i / n) ln(n_i / n)      nats, from 0 (one answer) to ln n (all different)

The data set's value is the mean of H over its groups, weighted by n; the relative one divides the weighted sums of H
and of ln n. Transferred: the paper's wish for actions of low entropy in a state. Not transferred: its transition
diversity, the noise of the next state given state and action; the next state of a text is the text with the token
appended, without noise, so that term is zero here. An answer is compared as a whole, so any two phrasings differ.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from posttrain.data.describe.described_rows import DescribedRow
from posttrain.data.describe.duplicates import normalised


@dataclass(frozen=True)
class AnswerEntropy:
    """nats: weighted mean of H; relative: of its largest possible value; groups: states with several answers."""

    nats: float
    relative: float
    groups: int
    answers: int


def entropy(answers: Sequence[Hashable]) -> float:
    """Of the empirical distribution, in nats; 0 for none."""
    counts = Counter(answers)
    return math.fsum(-n / len(answers) * math.log(n / len(answers)) for n in counts.values())


def answer_entropy(rows: Sequence[DescribedRow], states: Sequence[int]) -> AnswerEntropy | None:
    """`states`: of each row's prompt, -1 for none. None where no state has several answers."""
    said: dict[int, list[str]] = {}
    for row, state in zip(rows, states, strict=True):
        answer = normalised(row.learned or "")
        if state >= 0 and answer:
            said.setdefault(state, []).append(answer)
    several = [answers for answers in said.values() if len(answers) > 1]
    if not several:
        return None
    total = sum(map(len, several))
    nats = math.fsum(len(answers) * entropy(answers) for answers in several) / total
    largest = math.fsum(len(answers) * math.log(len(answers)) for answers in several) / total
    return AnswerEntropy(nats, nats / largest, len(several), total)
