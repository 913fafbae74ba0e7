"""What a file of preferences says about itself: equal answers, longer ones preferred, contradicting labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.data.describe.described_rows import DescribedRow
from posttrain.data.describe.duplicates import normalised
from posttrain.data.describe.spread import ShareOf, Spread, share_of, spread


@dataclass(frozen=True)
class PairFacts:
    """Of rows with a chosen and a rejected answer that are not empty.

    equal          pairs whose answers are the same after normalisation
    longer_chosen  pairs with the longer answer chosen, of those of unequal length, in characters
    same_length    the others
    difference     chosen minus rejected, in characters
    contradicting  pairs whose answers stand the other way round in another row of the same prompt
    both_ways      prompts that have an answer which is chosen in one row and rejected in another
    score_ties     pairs whose two scores are equal, of `scored`
    score_reversed pairs whose rejected answer has the higher score, of `scored`
    """

    pairs: int
    equal: int
    longer_chosen: ShareOf
    same_length: int
    difference: Spread | None
    contradicting: int
    both_ways: int
    scored: int
    score_ties: int
    score_reversed: int


@dataclass(frozen=True)
class RatingFacts:
    """Of the scores of single answers.

    values         the commonest ones and their rows
    contradicting  rows whose prompt and answer also stand with another score
    one_score      prompts with several answers that all have the same score: no advantage tells them apart
    several        prompts with several scored answers
    """

    scores: Spread
    distinct: int
    values: dict[str, int]
    contradicting: int
    one_score: int
    several: int


def pair_facts(rows: Sequence[DescribedRow]) -> PairFacts | None:
    """None where no row holds a pair."""
    found = [
        (normalised(row.text("prompt") or ""), chosen, rejected, row.scores)
        for row in rows
        if (chosen := row.text("chosen"))
        and (rejected := row.text("rejected"))
        and chosen.strip()
        and rejected.strip()
    ]
    if not found:
        return None
    keys = [(prompt, normalised(chosen), normalised(rejected)) for prompt, chosen, rejected, _ in found]
    differences = [len(chosen) - len(rejected) for _, chosen, rejected, _ in found]
    unequal = [difference for difference in differences if difference]
    ordered = set(keys)
    contradicting = sum(one != other and (prompt, other, one) in ordered for prompt, one, other in keys)
    chosen_ones = {(prompt, one) for prompt, one, other in keys if one != other}
    rejected_ones = {(prompt, other) for prompt, one, other in keys if one != other}
    scores = [(s["chosen"], s["rejected"]) for *_, s in found if {"chosen", "rejected"} <= s.keys()]
    return PairFacts(
        pairs=len(found),
        equal=sum(one == other for _, one, other in keys),
        longer_chosen=share_of(sum(d > 0 for d in unequal), len(unequal)),
        same_length=len(differences) - len(unequal),
        difference=spread(differences),
        contradicting=contradicting,
        both_ways=len({prompt for prompt, _ in chosen_ones & rejected_ones}),
        scored=len(scores),
        score_ties=sum(one == other for one, other in scores),
        score_reversed=sum(one < other for one, other in scores),
    )


def rating_facts(rows: Sequence[DescribedRow]) -> RatingFacts | None:
    """None where no single answer has a score."""
    found = [
        (normalised(row.text("prompt") or ""), normalised(row.learned or ""), row.scores["completion"])
        for row in rows
        if "completion" in row.scores
    ]
    if not found:
        return None
    scores = [score for *_, score in found]
    of_answer: dict[tuple[str, str], set[float]] = {}
    of_prompt: dict[str, list[float]] = {}
    for prompt, answer, score in found:
        of_answer.setdefault((prompt, answer), set()).add(score)
        if prompt:
            of_prompt.setdefault(prompt, []).append(score)
    counts: dict[float, int] = {}
    for score in scores:
        counts[score] = counts.get(score, 0) + 1
    common = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:10]
    several = [values for values in of_prompt.values() if len(values) > 1]
    whole = spread(scores)
    assert whole is not None
    return RatingFacts(
        scores=whole,
        distinct=len(counts),
        values={f"{score:g}": count for score, count in common},
        contradicting=sum(len(of_answer[prompt, answer]) > 1 for prompt, answer, _ in found),
        one_score=sum(len(set(values)) == 1 for values in several),
        several=len(several),
    )


def contradicting_golds(rows: Sequence[DescribedRow]) -> int:
    """Prompts that stand with several gold answers, which no reward can serve at once."""
    golds: dict[str, set[str]] = {}
    for row in rows:
        prompt, gold = normalised(row.text("prompt") or ""), row.gold
        if prompt and gold is not None and gold.strip():
            golds.setdefault(prompt, set()).add(normalised(gold))
    return sum(len(found) > 1 for found in golds.values())
