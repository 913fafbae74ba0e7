"""`data: {name: instructions}`: short writing requests with instructions whose keeping a program can check.

    prompt               "Write about the moon. Do not use any commas. Use the word \"light\"."
    instruction_id_list  ["punctuation:no_comma", "keywords:existence"]
    kwargs               '[{}, {"keywords": ["light"]}]'

Names and settings are IFEval's (Zhou et al. 2023, https://arxiv.org/abs/2311.07911), so the reward
`instructions_followed` judges these rows and IFEval's own alike; the wording is ours. Each prompt has a topic and one
to three kinds of instruction. The test split has only combinations of kinds that no training prompt has, and topics of
its own.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic.dataclasses import dataclass

from posttrain.settings import STRICT

TOPICS = (
    "the moon", "green tea", "a rainy day", "bicycles", "honey bees", "the desert", "old trains", "a library",
    "mountains", "breakfast", "a lighthouse", "gardening", "the alphabet", "winter", "a small village", "clocks",
    "the ocean", "learning to swim", "paper", "bridges", "a good friend", "the wind", "music", "cooking rice",
    "a walk in the forest", "bread", "the city at night", "penguins", "chess", "a long journey", "volcanoes",
    "the first day of school", "maps", "sleep", "a market", "apples", "rivers", "a birthday", "the color blue",
    "telescopes", "a quiet morning", "horses", "letters", "sailing", "autumn leaves", "a bakery", "stars", "kites",
)  # fmt: skip
_TEST_TOPICS = 12
"""Topics, of the last ones, that no training prompt has."""
REQUESTS = ("Write about {}.", "Tell me about {}.", "Write a few sentences about {}.", "Describe {}.")
WORDS = (
    "light", "water", "time", "people", "small", "warm", "old", "color", "home", "sound", "day", "hand", "quiet",
    "world", "morning", "story",
)  # fmt: skip
COMMON = ("the", "and", "is", "of", "it", "very", "with", "in")
"""Words that an answer without care would use: what is to be avoided."""
ENDINGS = ("That is all.", "Thank you for reading.", "The end.", "I hope this helps.")
_LENGTH = "length_constraints:number_words"
_ROOM = 5
"""Words between the fewest and the most that a prompt asks for."""
LANGUAGES = {"de": "German", "es": "Spanish", "fr": "French"}


@plain_dataclass(frozen=True)
class Kind:
    """name    IFEval's
    write   a random generator to the words of the instruction and its settings
    group   kinds of one group exclude each other
    """

    name: str
    write: Callable[[random.Random], tuple[str, dict[str, Any]]]
    group: str


def _fixed(words: str) -> Callable[[random.Random], tuple[str, dict[str, Any]]]:
    return lambda rng: (words, {})


def _present(rng: random.Random) -> tuple[str, dict[str, Any]]:
    chosen = rng.sample(WORDS, rng.randint(1, 2))
    listed = " and ".join(f'"{word}"' for word in chosen)
    return f"Use the word{'s' if len(chosen) > 1 else ''} {listed}.", {"keywords": chosen}


def _absent(rng: random.Random) -> tuple[str, dict[str, Any]]:
    word = rng.choice(COMMON)
    return f'Do not use the word "{word}".', {"forbidden_words": [word]}


def _short(rng: random.Random) -> tuple[str, dict[str, Any]]:
    count = rng.choice((12, 15, 20, 25))
    return f"Use fewer than {count} words.", {"relation": "less than", "num_words": count}


def _long(count: int) -> tuple[str, dict[str, Any]]:
    return f"Use at least {count} words.", {"relation": "at least", "num_words": count}


def _few_sentences(rng: random.Random) -> tuple[str, dict[str, Any]]:
    count = rng.choice((2, 3))
    words = {2: "Write one sentence only.", 3: "Write fewer than three sentences."}
    return words[count], {"relation": "less than", "num_sentences": count}


def _ends(rng: random.Random) -> tuple[str, dict[str, Any]]:
    ending = rng.choice(ENDINGS)
    return f'End with exactly these words: "{ending}"', {"end_phrase": ending}


def _begins(rng: random.Random) -> tuple[str, dict[str, Any]]:
    word = rng.choice(WORDS)
    settings = {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": word}
    return f'Write one paragraph whose first word is "{word}".', settings


def _list(rng: random.Random) -> tuple[str, dict[str, Any]]:
    count = rng.choice((2, 3, 4))
    return f"Answer with a list of exactly {count} points, each on a line that begins with *.", {
        "num_bullets": count
    }


def _language(rng: random.Random) -> tuple[str, dict[str, Any]]:
    code = rng.choice(sorted(LANGUAGES))
    return f"Answer in {LANGUAGES[code]}.", {"language": code}


KINDS = (
    Kind("punctuation:no_comma", _fixed("Do not use any commas."), "comma"),
    Kind("change_case:english_lowercase", _fixed("Use lowercase letters only."), "case"),
    Kind("change_case:english_capital", _fixed("Use capital letters only."), "case"),
    Kind("keywords:existence", _present, "present"),
    Kind("keywords:forbidden_words", _absent, "absent"),
    Kind(_LENGTH, _short, "length"),
    Kind("length_constraints:number_sentences", _few_sentences, "sentences"),
    Kind("startend:end_checker", _ends, "end"),
    Kind("length_constraints:nth_paragraph_first_word", _begins, "begin"),
    Kind("startend:quotation", _fixed("Put your whole answer in double quotation marks."), "quotes"),
    Kind("detectable_format:number_bullet_lists", _list, "form"),
    Kind("detectable_format:json_format", _fixed("Give the answer as JSON."), "form"),
    Kind("language:response_language", _language, "language"),
)
_APART = {
    "form": {"begin", "quotes", "end", "sentences", "language", "case"},
    "language": {"case", "present", "absent", "end", "begin", "quotes"},
    "quotes": {"begin", "end"},
    "case": {"end", "begin", "present"},
}
"""Groups that cannot be kept together, or only by a quibble."""
MOST_TOGETHER = 3


def combinations() -> list[tuple[Kind, ...]]:
    """All sets of one to three kinds that can be kept together."""
    sizes = range(1, MOST_TOGETHER + 1)
    return [
        kinds
        for size in sizes
        for kinds in itertools.combinations(KINDS, size)
        if all(_together(one, other) for one, other in itertools.combinations(kinds, 2))
    ]


def _together(one: Kind, other: Kind) -> bool:
    if one.group == other.group:
        return False
    return other.group not in _APART.get(one.group, ()) and one.group not in _APART.get(other.group, ())


@dataclass(frozen=True, config=STRICT)
class Instructions:
    size: Annotated[int, Ge(1), Le(1_000_000)] = 4096
    """prompts of the train split"""
    held_out: Annotated[int, Ge(1), Le(10_000)] = 128
    """prompts of the test split"""
    seed: Annotated[int, Ge(0)] = 0
    kinds: tuple[str, ...] = ()
    """only these kinds, by their names or the part behind the colon; () takes all"""
    at_least: Annotated[int, Ge(0), Le(15)] = 0
    """words that every prompt asks for besides; without it one word keeps most of the instructions"""

    def __post_init__(self) -> None:
        known = {name for kind in KINDS for name in (kind.name, kind.name.partition(":")[2])}
        unknown = [name for name in self.kinds if name not in known]
        if unknown:
            raise ValueError(
                f"instructions has no kind {unknown[0]!r}; there are {', '.join(k.name for k in KINDS)}"
            )
        if self.kinds and len(self.split("test")) == 0:
            raise ValueError(
                f"of {len(self.kinds)} kinds none are left for a test split of unseen combinations; name more of them"
            )

    def rows(self, split: str, *, completions: bool) -> Iterator[dict[str, str | list[str]]]:
        """The prompts of "train" or "test". ValueError for `completions`: nobody has written any."""
        if completions:
            raise ValueError("the instructions task has prompts only: fine-tuning on answers needs answers")
        rng = random.Random(f"instructions/{split}/{self.seed}")
        combined = self.split(split)
        topics = TOPICS[-_TEST_TOPICS:] if split == "test" else TOPICS[:-_TEST_TOPICS]
        for _ in range(self.held_out if split == "test" else self.size):
            kinds = list(rng.choice(combined))
            rng.shuffle(kinds)
            written = [self._written(kind, rng) for kind in kinds]
            if self.at_least:
                written.append(_long(self.at_least))
            request = rng.choice(REQUESTS).format(rng.choice(topics))
            yield {
                "prompt": " ".join([request, *(words for words, _ in written)]),
                "instruction_id_list": [kind.name for kind in kinds] + [_LENGTH] * (self.at_least > 0),
                "kwargs": json.dumps([settings for _, settings in written]),
            }

    def _written(self, kind: Kind, rng: random.Random) -> tuple[str, dict[str, Any]]:
        """The kind's words and settings, such that `at_least` words have room beside them."""
        while True:
            words, settings = kind.write(rng)
            if kind.name != _LENGTH or settings["num_words"] >= self.at_least + _ROOM:
                return words, settings

    def split(self, split: str) -> list[tuple[Kind, ...]]:
        """The combinations of a split: each kind alone trains, of two and three together a fifth is kept apart."""
        wanted = [
            kinds
            for kinds in combinations()
            if not self.kinds
            or all(kind.name in self.kinds or kind.name.partition(":")[2] in self.kinds for kind in kinds)
        ]
        more = [kinds for kinds in wanted if len(kinds) > 1]
        random.Random(f"instructions/combinations/{self.seed}").shuffle(more)
        apart = len(more) // 5
        return more[:apart] if split == "test" else [*(k for k in wanted if len(k) == 1), *more[apart:]]
