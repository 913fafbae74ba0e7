"""What there is to look at before training on a data set, a sentence each. The limits stand here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.data.describe.description import Description, FoundFault
from posttrain.data.describe.text_faults import CHAT_TOKENS, CUT, ECHO, EMPTY, SPEAKERS

REPEATED_SHARE = 0.05
"""Of rows that repeat an earlier one, from which it is said."""
FEWEST_ROWS, FEWEST_PAIRS = 8, 30
"""Of fewer rows nothing is said about repeats, of fewer pairs nothing about lengths: a trial file is no sample."""
CUT_SHARE = 0.05
"""Of answers that end in mid-sentence: below it the rule's own errors would be the message."""
BY_CHANCE_SHARE = 0.01
"""Of texts with a speaker's name, or with their prompt in them: a few quote a dialogue, or the question."""
OTHER_LANGUAGE_SHARE = 0.05
BIASED_SHARE = 0.6
"""Of pairs with the longer answer chosen; said where the whole interval lies beyond one half, too."""
ONE_SCORE_SHARE = 0.5
UNREAD_SHARE = 0.2


def warnings_of(found: Description) -> list[str]:
    """The warnings, gravest first; no input but the description."""
    return [
        *_rows(found),
        *(_fault(fault) for fault in found.faults if _is_worth_saying(fault)),
        *_labels(found),
        *_repeats(found),
        *_lengths_and_languages(found),
    ]


def _rows(found: Description) -> Iterator[str]:
    if found.kind == "unknown":
        yield "no column that holds prompts was found; name it with --role prompt=COLUMN"
    for reason, (count, first) in found.refused.items():
        yield f"training would stop at row {first}: {reason} ({_rows_in_words(count)})"
    for reason, (count, first) in found.dropped.items():
        yield f"training would drop {_rows_in_words(count)}: {reason} (first: row {first})"


def _is_worth_saying(fault: FoundFault) -> bool:
    if fault.fault == EMPTY:
        return False  # a reason to drop the row, and said there
    least = {CUT: CUT_SHARE, ECHO: BY_CHANCE_SHARE, SPEAKERS: BY_CHANCE_SHARE}.get(fault.fault, 0.0)
    return fault.rows > least * fault.looked_at


def _fault(fault: FoundFault) -> str:
    share = f"{fault.rows:,} of {fault.looked_at:,}"
    where = (
        f"(first: row {fault.first}: {fault.excerpt!r})" if fault.excerpt else f"(first: row {fault.first})"
    )
    name = {"answer": "gold answers", "prompt": "prompts"}.get(fault.role, f"{fault.role} texts")
    said = {
        CHAT_TOKENS: "hold marks of a chat template, which the model's own template would write again",
        SPEAKERS: "name a speaker at the start of a line; with data.chat: true marked dialogues become turns",
        ECHO: "hold their whole prompt, which is then learned as part of the answer",
        CUT: "end in mid-sentence; a model learns to stop there",
    }[fault.fault]
    return f"{share} {name} {said} {where}"


def _labels(found: Description) -> Iterator[str]:
    pairs, ratings = found.pairs, found.ratings
    if pairs is not None:
        if pairs.equal:
            yield f"{pairs.equal:,} of {pairs.pairs:,} pairs have the same answer twice"
        if pairs.contradicting:
            yield f"{pairs.contradicting:,} of {pairs.pairs:,} pairs stand the other way round in another row"
        if pairs.score_reversed:
            yield f"{pairs.score_reversed:,} of {pairs.scored:,} scored pairs reject the answer with the higher score"
        if pairs.score_ties:
            yield f"{pairs.score_ties:,} of {pairs.scored:,} scored pairs have equal scores"
        longer = pairs.longer_chosen
        if longer.trials >= FEWEST_PAIRS and longer.share > BIASED_SHARE and longer.low > 0.5:
            yield (
                f"the longer answer is chosen in {longer.share:.0%} of the pairs (95 % interval {longer.low:.0%} to "
                + (f"{longer.high:.0%}): length alone tells them apart")
            )
        if longer.trials >= FEWEST_PAIRS and longer.share < 1 - BIASED_SHARE and longer.high < 0.5:
            yield f"the shorter answer is chosen in {1 - longer.share:.0%} of the pairs (95 % interval " + (
                f"{1 - longer.high:.0%} to {1 - longer.low:.0%}): length alone tells them apart"
            )
    if ratings is not None:
        if ratings.contradicting:
            yield f"{ratings.contradicting:,} rows give one answer to one prompt different scores"
        if ratings.distinct == 1:
            yield "every answer has the same score, so nothing can be learned from the scores"
        elif ratings.several and ratings.one_score > ONE_SCORE_SHARE * ratings.several:
            yield f"{ratings.one_score:,} of {ratings.several:,} prompts with several answers score them all alike"
    if found.contradicting_golds:
        yield f"{found.contradicting_golds:,} prompts stand with several gold answers, which no reward serves at once"
    if found.logs is not None and found.logs.why:
        yield f"posttrain data feedback refuses the log: {found.logs.why}"


def _repeats(found: Description) -> Iterator[str]:
    if found.rows < FEWEST_ROWS:
        return
    whole = found.repeated.get("whole row")
    prompt = found.repeated.get("prompt")
    if whole is not None and whole.repeated > REPEATED_SHARE * whole.texts:
        yield f"{whole.repeated:,} of {whole.texts:,} rows repeat an earlier row"
    elif prompt is not None and prompt.repeated > REPEATED_SHARE * prompt.texts and found.kind == "prompts":
        yield f"{prompt.repeated:,} of {prompt.texts:,} prompts repeat an earlier one"
    if prompt is not None and prompt.near is not None and prompt.near > REPEATED_SHARE * prompt.compared:
        yield f"{prompt.near:,} of {prompt.compared:,} distinct prompts nearly equal an earlier one"
    for role in ("completion", "chosen", "rejected"):
        one = found.repeated.get(role)
        if one is not None and one.most > max(3, REPEATED_SHARE * one.texts):
            yield f"one {role} text stands in {one.most:,} of {one.texts:,} rows: {one.example[:60]!r}"


def _lengths_and_languages(found: Description) -> Iterator[str]:
    other = found.answers_in_another_language
    if other > OTHER_LANGUAGE_SHARE * found.languages_of:
        yield f"{other:,} of {found.languages_of:,} answers are in another language than their prompt"
    kinds = found.answer_kinds
    if kinds is not None and kinds.role == "answer":
        unread = kinds.kinds.get("none", 0)
        if unread > UNREAD_SHARE * kinds.looked_at:
            yield f"{unread:,} of {kinds.looked_at:,} gold answers give no answer that a reward can read"


def _rows_in_words(count: int) -> str:
    return f"{count:,} {'row' if count == 1 else 'rows'}"
