"""The built-in tool `search`: BM25 over passages of a local file, by the package bm25s.

Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond"; the variant is Lucene's, k1 1.5
and b .75. The index is made once, in the worker of tools before it forks, so the processes that answer share its
memory, and one that was ended for its time leaves it to the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from posttrain.data.decoding import DataError
from posttrain.data.files import iter_rows
from posttrain.data.values import text_of
from posttrain.environments.orders import shortened

INSTALL = "pip install 'posttrain[search]'"
NOTHING = "[nothing found: no passage has a word of the query]"
_WORD = r"(?u)\b\w+\b"


@dataclass(frozen=True)
class Passage:
    title: str
    text: str


@dataclass(frozen=True)
class PassageIndex:
    """The passages of a corpus, and bm25s' index of their titles and texts."""

    passages: tuple[Passage, ...]
    index: Any

    def best(self, query: str, k: int) -> list[Passage]:
        """At most `k` passages that share a word with the query, the best first; of equal ones the earlier first."""
        import numpy

        words = sorted(set(_words([query])[0]) & self.index.vocab_dict.keys())
        if not words:
            return []
        scores = numpy.asarray(self.index.get_scores(words))
        k = min(k, len(scores))
        least = numpy.partition(scores, -k)[-k]
        found = [int(place) for place in numpy.flatnonzero((scores >= least) & (scores > 0))]
        return [
            self.passages[place] for place in sorted(found, key=lambda place: (-scores[place], place))[:k]
        ]


def search(
    query: str,
    *,
    corpus: str,
    k: int = 3,
    text: str = "text",
    title: str = "title",
    passage_characters: int = 1000,
) -> str:
    """Searches a collection of documents and gives back the passages that fit best.

    Args:
        query: the words to look for
    """
    found = passage_index(corpus, text, title).best(query, k)
    if not found:
        return NOTHING
    shown = []
    for number, passage in enumerate(found, start=1):
        head = f"[{number}] {passage.title}".rstrip()
        shown.append(f"{head}\n{shortened(passage.text, passage_characters)[0]}")
    return "\n\n".join(shown)


def prepare(*, corpus: str, text: str = "text", title: str = "title", **_: Any) -> None:
    """Makes the index that calls with these settings use. DataError where the corpus cannot be read."""
    passage_index(corpus, text, title)


@lru_cache(maxsize=8)
def passage_index(corpus: str, text: str, title: str) -> PassageIndex:
    """The index of a .jsonl, .json, .parquet or .csv file: a row a passage, its words in column `text`, what it is
    called in column `title` where there is one. DataError says what is wrong with it."""
    try:
        import bm25s
    except ImportError as error:
        raise DataError(f"the tool search needs the package bm25s ({error}): {INSTALL}") from None
    passages = []
    for number, row in enumerate(iter_rows(corpus), start=1):
        said = text_of(row.get(text), text)
        if said is None or not said.strip():
            raise DataError(f"{corpus}: row {number} has no text in column {text!r}; name it in args.text")
        passages.append(Passage(text_of(row.get(title), title) or "", said))
    if not passages:
        raise DataError(f"{corpus}: holds no passage to search")
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    words = _words([f"{one.title}\n{one.text}" for one in passages])
    if not any(words):
        raise DataError(f"{corpus}: its passages hold no word to search for")
    index.index(words, show_progress=False)
    return PassageIndex(tuple(passages), index)


def _words(texts: list[str]) -> list[list[str]]:
    """Lower-case words, numbers and single letters too; no language's stop words are taken out."""
    import bm25s

    found: Any = bm25s.tokenize(
        texts, stopwords=[], token_pattern=_WORD, return_ids=False, show_progress=False
    )
    return found
