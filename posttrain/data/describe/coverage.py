"""Trajectory quality and state-action coverage of a data set. Schweighofer et al. 2021, arXiv 2111.04714.

    TQ    (mean return of the data - minimum) / (best - minimum)
    SACo  unique state-action pairs of the data / those of the reference

Exact: both formulas. Transferred: a trajectory is one step long, its state the prompt, its action the whole answer,
both normalised (`duplicates.normalised`); its return is the row's score. Where the paper has the mean returns of a
random and of the best policy, `minimum` and `best` are here those of two policies made of the reference's rows: the one
that gives each prompt its lowest-scored answer, and the one that gives it the highest. Where the reference has one
answer per prompt the two are the same and TQ needs a `minimum` from elsewhere, for example the mean reward of an
untrained model. Not transferred: the paper's reference for SACo is the replay buffer of an online run of the same size;
here it is whatever file is named, so SACo grows with the data's size, and `rows` and `reference_rows` stand beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from posttrain.data.describe.described_rows import DescribedRow
from posttrain.data.describe.duplicates import normalised


@dataclass(frozen=True)
class Step:
    """One prompt and answer, normalised, and the return where the row has a score."""

    prompt: str
    answer: str
    score: float | None


@dataclass(frozen=True)
class Coverage:
    """TQ and SACo, with what they are made of.

    quality, why       TQ, or None and the reason
    coverage           SACo
    prompts_shared     share of the reference's prompts that the data has too
    pairs_shared       share of the reference's prompts and answers that the data has too
    """

    reference: str
    quality: float | None
    why: str
    mean_return: float | None
    minimum: float | None
    best: float | None
    coverage: float | None
    rows: int
    reference_rows: int
    pairs: int
    reference_pairs: int
    prompts_shared: float
    pairs_shared: float


def trajectory_quality(mean_return: float, minimum: float, best: float) -> float:
    """TQ: 0 for data as good as the minimum, 1 as the best; above 1 where the data is better. ValueError where best is
    not above minimum."""
    if best <= minimum:
        raise ValueError(f"the best return ({best:g}) is not above the minimum ({minimum:g})")
    return (mean_return - minimum) / (best - minimum)


def state_action_coverage(pairs: Iterable[tuple[str, str]], reference: Iterable[tuple[str, str]]) -> float:
    """SACo: unique pairs over unique pairs of the reference. ValueError for an empty reference."""
    whole = len(set(reference))
    if not whole:
        raise ValueError("the reference holds no prompt with an answer")
    return len(set(pairs)) / whole


def steps_of(rows: Sequence[DescribedRow]) -> list[Step]:
    """Every answer to a prompt: the completion, or both of a pair, or the gold answer where a row has no other."""
    steps = []
    for row in rows:
        prompt = normalised(row.text("prompt") or "")
        roles = [role for role in ("completion", "chosen", "rejected") if row.text(role)] or ["answer"]
        for role in roles:
            answer = normalised(row.text(role) or "")
            if prompt and answer:
                steps.append(Step(prompt, answer, row.scores.get("completion" if role == "answer" else role)))
    return steps


def coverage_of(
    steps: Sequence[Step], reference: Sequence[Step], name: str, minimum: float | None = None
) -> Coverage:
    """`minimum`: the mean return of a random or untrained policy, where the reference cannot tell it."""
    pairs, whole = {(s.prompt, s.answer) for s in steps}, {(s.prompt, s.answer) for s in reference}
    prompts, all_prompts = {s.prompt for s in steps}, {s.prompt for s in reference}
    returns = [s.score for s in steps if s.score is not None]
    low, best = _ends(reference)
    low = minimum if minimum is not None else low
    mean_return = fmean(returns) if returns else None
    quality, why = None, ""
    if mean_return is None:
        why = "the data has no score, reward, rating or label for its answers"
    elif low is None or best is None:
        why = "the reference has no score, reward, rating or label for its answers"
    else:
        try:
            quality = trajectory_quality(mean_return, low, best)
        except ValueError as error:
            why = f"{error}; give the mean return of a random or untrained policy with --minimum"
    return Coverage(
        reference=name,
        quality=quality,
        why=why,
        mean_return=mean_return,
        minimum=low,
        best=best,
        coverage=state_action_coverage(pairs, whole) if whole else None,
        rows=len(steps),
        reference_rows=len(reference),
        pairs=len(pairs),
        reference_pairs=len(whole),
        prompts_shared=len(prompts & all_prompts) / len(all_prompts) if all_prompts else 0.0,
        pairs_shared=len(pairs & whole) / len(whole) if whole else 0.0,
    )


def _ends(reference: Sequence[Step]) -> tuple[float | None, float | None]:
    """Mean over the prompts of the lowest and of the highest return among the reference's answers."""
    returns: dict[str, list[float]] = {}
    for step in reference:
        if step.score is not None:
            returns.setdefault(step.prompt, []).append(step.score)
    if not returns:
        return None, None
    return fmean(min(found) for found in returns.values()), fmean(max(found) for found in returns.values())
