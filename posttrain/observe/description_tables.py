"""The tables of a data set's description, the same for the terminal and the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from posttrain.data.describe.answer_entropy import AnswerEntropy
from posttrain.data.describe.coverage import Coverage
from posttrain.data.describe.description import Description, ModelFit
from posttrain.data.describe.log_facts import LogFacts
from posttrain.data.describe.pair_facts import PairFacts, RatingFacts
from posttrain.data.describe.spread import ShareOf, Spread
from posttrain.observe.run_page import number

MOST_LANGUAGES = 8
_SPREAD = ("median", "90 %", "99 %", "largest")


@dataclass(frozen=True)
class DescriptionTable:
    """head: a leading "#" marks a column of numbers and is not shown; note: a sentence below."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def tables_of(found: Description) -> list[DescriptionTable]:
    """Every table that has something to say, in the order of reading."""
    tables = [
        _columns(found),
        _unused(found),
        _lengths(found),
        _repeats(found),
        _languages(found),
        _faults(found),
        _kinds(found),
        _facts("Pairs", () if found.pairs is None else _pairs(found.pairs)),
        _facts("Scores", () if found.ratings is None else _ratings(found.ratings)),
        _facts("Log", () if found.logs is None else _logs(found.logs)),
        _entropy(found.entropy_same, found.entropy),
        _facts(
            "Trajectory quality and state-action coverage",
            () if found.coverage is None else _coverage(found.coverage),
            _on_coverage(found.coverage),
        ),
        _model(found.model),
    ]
    return [table for table in tables if table is not None and table.rows]


def share(hits: float, of: float) -> str:
    """12.3 %, and "" of nothing."""
    return f"{hits / of:.1%}".replace("%", " %") if of else ""


def interval(found: ShareOf) -> str:
    """12.3 % (10.1 % to 14.5 %), and "-" of nothing."""
    if not found.trials:
        return "-"
    return f"{found.share:.1%} ({found.low:.1%} to {found.high:.1%})".replace("%", " %")


def _columns(found: Description) -> DescriptionTable:
    rows = tuple(
        (
            column.name,
            column.role or "-",
            _holds(column.holds),
            f"{column.missing:,}" if column.missing else "",
        )
        for column in found.columns
    )
    return DescriptionTable("Columns", ("column", "role", "holds", "#missing"), rows)


def _holds(holds: Mapping[str, int]) -> str:
    if len(holds) == 1:
        return next(iter(holds))
    return ", ".join(f"{kind} {count:,}" for kind, count in holds.items())


def _unused(found: Description) -> DescriptionTable:
    rows = [(f"refused: {reason}", f"{n:,}", f"{first:,}") for reason, (n, first) in found.refused.items()]
    rows += [(f"dropped: {reason}", f"{n:,}", f"{first:,}") for reason, (n, first) in found.dropped.items()]
    return DescriptionTable(
        "Rows that training would not use", ("reason", "#rows", "#first row"), tuple(rows)
    )


def _lengths(found: Description) -> DescriptionTable:
    rows = []
    note = ""
    for role, lengths in found.lengths.items():
        rows.append((role, "characters", f"{lengths.characters.count:,}", *_ranks(lengths.characters)))
        if lengths.tokens is not None:
            rows.append((role, "tokens", f"{lengths.tokens.count:,}", *_ranks(lengths.tokens)))
            if lengths.tokenised < lengths.characters.count:
                note = (
                    f"tokens: of {lengths.tokenised:,} texts of a role, evenly spaced; the largest of those"
                )
    head = ("text", "unit", "#rows", *(f"#{word}" for word in _SPREAD))
    return DescriptionTable("Lengths", head, tuple(rows), note)


def _ranks(found: Spread) -> tuple[str, ...]:
    return tuple(number(value) for value in (found.median, found.p90, found.p99, found.largest))


def _repeats(found: Description) -> DescriptionTable:
    rows = tuple(
        (
            role,
            f"{one.texts:,}",
            f"{one.distinct:,}",
            f"{one.repeated:,} ({share(one.repeated, one.texts)})",
            "" if one.near is None else f"{one.near:,} ({share(one.near, one.compared)})",
            f"{one.most:,}",
        )
        for role, one in found.repeated.items()
    )
    prompt = found.repeated.get("prompt")
    note = "equal after NFKC, without case and runs of white space"
    if prompt is not None and prompt.near is not None:
        note += "; near: Jaccard similarity of 5-grams at least 0.8"
        if prompt.compared < prompt.distinct:
            note += f", looked for among the first {prompt.compared:,} distinct prompts"
    head = ("text", "#rows", "#distinct", "#repeat an earlier", "#near an earlier", "#most frequent")
    return DescriptionTable("Duplicates", head, rows, note)


def _languages(found: Description) -> DescriptionTable:
    prompts, answers = found.languages.get("prompt", {}), found.languages.get("answer", {})
    names = sorted({*prompts, *answers}, key=lambda name: -prompts.get(name, 0) - answers.get(name, 0))
    shown = [(name, prompts.get(name, 0), answers.get(name, 0)) for name in names[:MOST_LANGUAGES]]
    rest = names[MOST_LANGUAGES:]
    if rest:
        one, other = (sum(of.get(name, 0) for name in rest) for of in (prompts, answers))
        shown.append((f"{len(rest)} others", one, other))
    rows = tuple(
        (name, f"{one:,}" if one else "", f"{other:,}" if other else "") for name, one, other in shown
    )
    note = "by script and common words, a rule of thumb"
    if found.languages_of < found.rows:
        note += f"; of {found.languages_of:,} rows, evenly spaced"
    if found.answers_in_another_language:
        note += f"; {found.answers_in_another_language:,} answers in another language than their prompt"
    return DescriptionTable("Languages", ("language", "#prompts", "#answers"), rows, note)


def _faults(found: Description) -> DescriptionTable:
    rows = tuple(
        (one.role, one.fault, f"{one.rows:,}", share(one.rows, one.looked_at), f"{one.first:,}")
        for one in found.faults
    )
    return DescriptionTable("Faults in texts", ("text", "fault", "#rows", "#share", "#first row"), rows)


def _kinds(found: Description) -> DescriptionTable | None:
    kinds = found.answer_kinds
    if kinds is None:
        return None
    rows = tuple((kind, f"{count:,}", share(count, kinds.looked_at)) for kind, count in kinds.kinds.items())
    marked = ", ".join(f"{mark} {count:,}" for mark, count in kinds.marks.items())
    note = f"of {kinds.looked_at:,} texts of {kinds.role}, as rewards read them; marked by: {marked}"
    return DescriptionTable("Kinds of answers", ("kind", "#rows", "#share"), rows, note)


def _facts(
    title: str, facts: Sequence[tuple[str, str]] | Iterator[tuple[str, str]], note: str = ""
) -> DescriptionTable:
    return DescriptionTable(title, ("", "#"), tuple(facts), note)


def _pairs(pairs: PairFacts) -> Iterator[tuple[str, str]]:
    yield "pairs of two answers", f"{pairs.pairs:,}"
    yield "same answer twice", f"{pairs.equal:,}"
    yield "longer answer chosen, of unequal lengths (95 %)", interval(pairs.longer_chosen)
    yield "equal lengths", f"{pairs.same_length:,}"
    if pairs.difference is not None:
        yield "chosen minus rejected, mean characters", number(pairs.difference.mean)
    yield "stand the other way round in another row", f"{pairs.contradicting:,}"
    yield "prompts with an answer both chosen and rejected", f"{pairs.both_ways:,}"
    if pairs.scored:
        yield "with two scores", f"{pairs.scored:,}"
        yield "scores equal", f"{pairs.score_ties:,}"
        yield "rejected scores higher", f"{pairs.score_reversed:,}"


def _ratings(ratings: RatingFacts) -> Iterator[tuple[str, str]]:
    yield "answers with a score", f"{ratings.scores.count:,}"
    yield "mean", number(ratings.scores.mean)
    yield (
        "smallest, median, largest",
        ", ".join(
            number(value)
            for value in (ratings.scores.smallest, ratings.scores.median, ratings.scores.largest)
        ),
    )
    values = ", ".join(f"{value}: {count:,}" for value, count in list(ratings.values.items())[:5])
    yield f"values: {ratings.distinct:,} different, the commonest", values
    yield "one prompt and answer with different scores", f"{ratings.contradicting:,}"
    if ratings.several:
        yield (
            "prompts with several answers, all scored alike",
            f"{ratings.one_score:,} of {ratings.several:,}",
        )


def _logs(logs: LogFacts) -> Iterator[tuple[str, str]]:
    yield "conversations", f"{logs.conversations:,}"
    if logs.turns is not None:
        yield (
            "user turns: median, 99 %, largest",
            ", ".join(number(value) for value in (logs.turns.median, logs.turns.p99, logs.turns.largest)),
        )
    for mark, count in logs.feedback.items():
        yield f"user turns marked: {mark}", f"{count:,}"
    if logs.complaints is not None:
        yield "complaints that data feedback would write", f"{logs.complaints:,}"
        yield "repaired ones (seed pairs)", f"{logs.repairs:,}"
        for reason, count in logs.dropped.items():
            yield f"dropped: {reason}", f"{count:,}"


def _entropy(same: AnswerEntropy | None, near: AnswerEntropy | None) -> DescriptionTable:
    rows = tuple(
        (title, f"{one.groups:,}", f"{one.answers:,}", f"{one.nats:.3f}", f"{one.relative:.3f}")
        for title, one in (("equal", same), ("equal or near", near))
        if one is not None
    )
    return DescriptionTable(
        "Entropy of the answers to one prompt",
        ("prompts", "#groups", "#answers", "#nats", "#of the largest"),
        rows,
        "0: all answers agree; 1 of the largest: no two do",
    )


def _coverage(found: Coverage) -> Iterator[tuple[str, str]]:
    yield "TQ", f"{found.quality:.3f}" if found.quality is not None else "not known"
    if found.mean_return is not None:
        yield "mean return of the data", number(found.mean_return)
    if found.minimum is not None and found.best is not None:
        yield "minimum and best of the reference", f"{number(found.minimum)} and {number(found.best)}"
    yield "SACo", f"{found.coverage:.3f}" if found.coverage is not None else "not known"
    yield "different pairs, data and reference", f"{found.pairs:,} and {found.reference_pairs:,}"
    yield "answers, data and reference", f"{found.rows:,} and {found.reference_rows:,}"
    yield "reference's prompts that the data has", f"{found.prompts_shared:.1%}".replace("%", " %")
    yield "reference's pairs that the data has", f"{found.pairs_shared:.1%}".replace("%", " %")


def _on_coverage(found: Coverage | None) -> str:
    note = "a trajectory is one prompt and its answer, a pair of both; docs/data.md says what else is transferred"
    return f"TQ: {found.why}; {note}" if found is not None and found.why else note


def _model(fit: ModelFit | None) -> DescriptionTable | None:
    if fit is None:
        return None
    rows = tuple(
        (
            role,
            f"{fit.by_row[role].count:,}",
            f"{fit.tokens[role]:,}",
            f"{fit.per_token[role]:.3f}",
            number(fit.perplexity[role]),
            f"{fit.by_row[role].median:.3f}",
        )
        for role in fit.per_token
    )
    note = f"under {fit.model}, nats, {fit.rows:,} rows, evenly spaced"
    if fit.left_out:
        note += f"; {fit.left_out:,} more too long, or not to be read"
    if fit.preferred is not None:
        note += f"; chosen likelier per token than rejected in {fit.preferred:.1%} of the pairs".replace(
            "%", " %"
        )
    head = ("text", "#rows", "#tokens", "#mean per token", "#perplexity", "#median of rows")
    return DescriptionTable("Log-probability of the answers under the model", head, rows, note)
