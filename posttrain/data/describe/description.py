"""A data set in numbers, before anything is trained on it: one pass over the rows, no torch, nothing downloaded.

    found = describe(rows, "pairs.jsonl")      # rows: mappings, as data.files.iter_rows gives them
    warnings_of(found)                         # data_warnings.py

Counts are of all rows, but for those that take long: tokens, languages and answer kinds are read from a number of rows,
evenly spaced, that stands beside them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from posttrain.data.describe.answer_entropy import AnswerEntropy, answer_entropy
from posttrain.data.describe.answer_kinds import answer_kind, answer_mark
from posttrain.data.describe.coverage import Coverage
from posttrain.data.describe.described_rows import DescribedRow, RowFaults, described, flat
from posttrain.data.describe.duplicates import Grouped, Repeats, grouped, normalised, repeats, shown
from posttrain.data.describe.languages import UNTOLD, language_of
from posttrain.data.describe.log_facts import LogFacts, as_chats, log_facts
from posttrain.data.describe.pair_facts import (
    PairFacts,
    RatingFacts,
    contradicting_golds,
    pair_facts,
    rating_facts,
)
from posttrain.data.describe.row_roles import KINDS, RowRoles, find_roles
from posttrain.data.describe.spread import Spread, spread
from posttrain.data.describe.text_faults import (
    CUT,
    ECHO,
    EMPTY,
    ends_in_mid_sentence,
    fault_finders,
    holds_prompt,
)
from posttrain.data.files import DataError, Row
from posttrain.data.tokens import prompt_ids
from posttrain.data.values import plain

TOKENISED, LANGUAGES_OF, KINDS_OF = 2_000, 5_000, 5_000
"""Rows whose tokens are counted, whose language is told, whose answer is read."""
LONGEST_TOKENISED = 200_000
"""Characters of a text that are tokenised; a longer one is reckoned to go on alike."""
TEXT_ROLES = ("prompt", "completion", "chosen", "rejected", "answer")
_T = TypeVar("_T")


@dataclass(frozen=True)
class ColumnFacts:
    """role: "" for none; holds: kind of value -> rows; missing: rows without it, NaN and null among them."""

    name: str
    role: str
    holds: Mapping[str, int]
    missing: int


@dataclass(frozen=True)
class Lengths:
    """Of the texts under a role that are not empty. tokens: of `tokenised` of them."""

    characters: Spread
    tokens: Spread | None = None
    tokenised: int = 0


@dataclass(frozen=True)
class FoundFault:
    """A fault of text_faults: rows that have it of `looked_at`, the first one's number and the place in its text."""

    role: str
    fault: str
    rows: int
    looked_at: int
    first: int
    excerpt: str


@dataclass(frozen=True)
class AnswerKinds:
    """Of the texts under a role: kind -> rows, and how they mark their answer, of `looked_at`."""

    role: str
    kinds: Mapping[str, int]
    marks: Mapping[str, int]
    looked_at: int


@dataclass(frozen=True)
class ModelFit:
    """Mean log-probability per token of a role's answers under a model, in nats, the mean over rows of each row's mean.

    perplexity  exp(-mean over tokens); by_row: the rows' means
    preferred   of pairs: share whose chosen answer has the higher mean per token; else None
    """

    model: str
    rows: int
    tokens: Mapping[str, int]
    by_row: Mapping[str, Spread]
    per_token: Mapping[str, float]
    perplexity: Mapping[str, float]
    preferred: float | None = None
    left_out: int = 0


@dataclass(frozen=True)
class Description:
    """All that is known of a data set.

    dropped, refused  reason -> (rows, number of the first)
    entropy           of the answers to near-duplicate prompts; entropy_same: to equal ones
    """

    source: str
    rows: int
    kind: str
    columns: tuple[ColumnFacts, ...] = ()
    notes: tuple[str, ...] = ()
    dropped: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    refused: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    lengths: Mapping[str, Lengths] = field(default_factory=dict)
    repeated: Mapping[str, Repeats] = field(default_factory=dict)
    languages: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    answers_in_another_language: int = 0
    languages_of: int = 0
    faults: tuple[FoundFault, ...] = ()
    answer_kinds: AnswerKinds | None = None
    contradicting_golds: int = 0
    pairs: PairFacts | None = None
    ratings: RatingFacts | None = None
    logs: LogFacts | None = None
    entropy: AnswerEntropy | None = None
    entropy_same: AnswerEntropy | None = None
    coverage: Coverage | None = None
    model: ModelFit | None = None

    @property
    def kind_in_words(self) -> str:
        return KINDS[self.kind]


def describe(
    rows: Iterable[Row],
    source: str,
    *,
    roles: Mapping[str, str] | None = None,
    tokenizer: Any = None,
    near: bool = True,
) -> Description:
    """See `read` for the arguments."""
    return described_by(*read(rows, source, roles=roles), source, tokenizer=tokenizer, near=near)


def read(
    rows: Iterable[Row], source: str, *, roles: Mapping[str, str] | None = None
) -> tuple[list[Row], RowRoles, list[DescribedRow], RowFaults]:
    """The rows, the roles of their columns, and the rows as they are described.

    roles  column of a role (row_roles.ROLES), where the names do not tell
    Raises DataError where there are no rows, or for a role or column that there is not.
    """
    found = list(rows)
    if not found:
        raise DataError(f"{source}: holds no rows")
    found = as_chats(found, source)
    faults = RowFaults()
    known = find_roles(found, roles)
    return found, known, list(described(found, known, faults)), faults


def described_by(
    raw: Sequence[Row],
    roles: RowRoles,
    rows: Sequence[DescribedRow],
    faults: RowFaults,
    source: str,
    *,
    tokenizer: Any = None,
    near: bool = True,
) -> Description:
    """The description of what `read` read.

    tokenizer  as posttrain.data.tokens calls it: lengths are then in tokens too
    near       whether near duplicates are looked for, which takes longest
    """
    special = list(vars(tokenizer).get("special_tokens", {}).values()) if tokenizer is not None else []
    base = Description(source, len(raw), roles.kind, tuple(_columns(raw, roles)), roles.notes)
    if roles.kind == "unknown":
        return base
    prompts = [normalised(row.text("prompt") or "") for row in rows]
    groups = grouped(prompts, near=near)
    languages, other = _languages(evenly(rows, LANGUAGES_OF))
    return replace(
        base,
        dropped={reason: (count, first) for reason, (count, first) in faults.dropped.items()},
        refused={reason: (count, first) for reason, (count, first) in faults.refused.items()},
        lengths=_lengths(rows, tokenizer),
        repeated=_repeats(rows, prompts, groups),
        languages=languages,
        answers_in_another_language=other,
        languages_of=min(len(rows), LANGUAGES_OF),
        faults=tuple(text_faults(rows, [token for token in special if isinstance(token, str)])),
        answer_kinds=_answer_kinds(rows),
        contradicting_golds=contradicting_golds(rows),
        pairs=pair_facts(rows),
        ratings=rating_facts(rows),
        logs=log_facts(raw, source) if roles.kind == "logs" else None,
        entropy=answer_entropy(rows, groups.of(prompts)) if near else None,
        entropy_same=answer_entropy(rows, grouped(prompts, near=False).of(prompts)),
    )


def describe_mapped(rows: Sequence[Row], source: str) -> Description:
    """Of rows as data.rows maps them, only what takes no time: faults, pairs, golds, equal texts."""
    found = [
        DescribedRow(
            number,
            row["prompt"],
            {role: row[role] for role in TEXT_ROLES[1:4] if row.get(role) is not None},
            flat(row.get("answer")),
        )
        for number, row in enumerate(rows, start=1)
    ]
    kind = (
        "pairs"
        if rows and "chosen" in rows[0]
        else "demonstrations"
        if "completion" in rows[0]
        else "prompts"
    )
    prompts = [normalised(row.text("prompt") or "") for row in found]
    return Description(
        source,
        len(found),
        kind,
        repeated=_repeats(found, prompts, grouped(prompts, near=False)),
        faults=tuple(text_faults(found)),
        contradicting_golds=contradicting_golds(found),
        pairs=pair_facts(found),
    )


def evenly(items: Sequence[_T], count: int) -> list[_T]:
    """At most `count` of them, evenly spaced."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _columns(rows: Sequence[Row], roles: RowRoles) -> list[ColumnFacts]:
    holds: dict[str, Counter[str]] = {}
    for row in rows:
        for name, value in row.items():
            holds.setdefault(str(name), Counter())[_kind_of(plain(value))] += 1
    facts = []
    for name, counts in holds.items():
        counts.pop("", None)  # gaps
        present = sum(counts.values())
        facts.append(ColumnFacts(name, roles.role_of(name), dict(counts.most_common()), len(rows) - present))
    return facts


def _kind_of(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        first = plain(value[0]) if value else None
        return "messages" if isinstance(first, Mapping) and {"role", "from"} & first.keys() else "list"
    names = {"int": "number", "float": "number", "Decimal": "number", "dict": "mapping", "bytes": "bytes"}
    return names.get(type(value).__name__, type(value).__name__)


def _lengths(rows: Sequence[DescribedRow], tokenizer: Any) -> dict[str, Lengths]:
    found = {}
    for role in TEXT_ROLES:
        having = [row for row in rows if row.text(role)]
        characters = spread([len(row.text(role) or "") for row in having])
        if characters is None:
            continue
        found[role] = Lengths(characters)
        if tokenizer is not None:
            picked = evenly(having, TOKENISED)
            tokens = [_tokens(tokenizer, row, role) for row in picked]
            found[role] = Lengths(characters, spread(tokens), len(picked))
    return found


def _tokens(tokenizer: Any, row: DescribedRow, role: str) -> int:
    """A prompt as the policy reads it, with its chat template where it has one; an answer's text alone."""
    if (
        role == "prompt"
        and isinstance(row.prompt, list)
        and row.whole
        and tokenizer.chat_template is not None
    ):
        from jinja2 import TemplateError

        try:
            return len(prompt_ids(tokenizer, row.prompt))
        except (TemplateError, TypeError, ValueError):
            pass  # refused by the template; `plan` counts such rows
    text = row.text(role) or ""
    ids = tokenizer(text[:LONGEST_TOKENISED], add_special_tokens=False)["input_ids"]
    return int(len(ids) * max(len(text) / LONGEST_TOKENISED, 1.0))


def _repeats(rows: Sequence[DescribedRow], prompts: Sequence[str], groups: Grouped) -> dict[str, Repeats]:
    found = {"prompt": repeats(groups)}
    answers = [role for role in TEXT_ROLES[1:] if any(row.text(role) is not None for row in rows)]
    texts = {role: [normalised(row.text(role) or "") for row in rows] for role in answers}
    found |= {role: repeats(grouped(texts[role], near=False)) for role in answers}
    if answers:
        whole = [
            "\n".join(parts) if any(parts) else "" for parts in zip(prompts, *texts.values(), strict=True)
        ]
        found["whole row"] = repeats(grouped(whole, near=False))
    return {role: one for role, one in found.items() if one is not None}


def _languages(rows: Sequence[DescribedRow]) -> tuple[dict[str, dict[str, int]], int]:
    """Of prompts and learned answers, and how many answers are in another language than their prompt."""
    counts: dict[str, Counter[str]] = {"prompt": Counter(), "answer": Counter()}
    other = 0
    for row in rows:
        asked, said = row.text("prompt"), row.learned
        languages = [language_of(text) if text else None for text in (asked, said)]
        for role, language in zip(counts, languages, strict=True):
            if language is not None:
                counts[role][language] += 1
        told = {language for language in languages if language is not None and language not in UNTOLD}
        other += len(told) == 2
    return {role: dict(found.most_common()) for role, found in counts.items() if found}, other


def text_faults(rows: Sequence[DescribedRow], special: Sequence[str] = ()) -> list[FoundFault]:
    """Every fault that a text has, by role, the commonest first. `special`: a tokenizer's own marks."""
    alone = fault_finders(special)
    found: dict[tuple[str, str], list[Any]] = {}
    texts: Counter[str] = Counter()

    def add(role: str, fault: str, row: DescribedRow, excerpt: str) -> None:
        found.setdefault((role, fault), [0, row.number, shown(excerpt, 120)])[0] += 1

    for row in rows:
        prompt = row.text("prompt") or ""
        for role in TEXT_ROLES:
            text = row.text(role)
            if text is None:
                continue
            texts[role] += 1
            if not text.strip():
                add(role, EMPTY, row, "")
                continue
            for fault, search in alone.items():
                match = search(text)
                if match is not None:
                    add(role, fault, row, text[max(0, match.start() - 30) : match.end() + 50])
            if role in ("completion", "chosen", "rejected"):
                if holds_prompt(prompt, text):
                    add(role, ECHO, row, text[:120])
                if ends_in_mid_sentence(text):
                    add(role, CUT, row, text[-100:])
    faults = [
        FoundFault(*key, count, texts[key[0]], first, seen) for key, (count, first, seen) in found.items()
    ]
    return sorted(faults, key=lambda fault: -fault.rows)


def _answer_kinds(rows: Sequence[DescribedRow]) -> AnswerKinds | None:
    role = next((r for r in ("answer", "completion", "chosen") if any(row.text(r) for row in rows)), None)
    if role is None:
        return None
    picked = evenly([text for row in rows if (text := row.text(role))], KINDS_OF)
    kinds, marks = Counter(map(answer_kind, picked)), Counter(map(answer_mark, picked))
    return AnswerKinds(role, dict(kinds.most_common()), dict(marks.most_common()), len(picked))
