"""The built-in tool `search`: BM25 (posttrain/judges/bm25_index.py) over passages of a local file.

The index is made once, in the worker of tools before it forks, so the processes that answer share its memory, and one
that was ended for its time leaves it to the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from posttrain.data.decoding import DataError
from posttrain.data.files import iter_rows
from posttrain.data.values import text_of
from posttrain.environments.orders import shortened
from posttrain.judges.bm25_index import Bm25Index

NOTHING = "[nothing found: no passage has a word of the query]"


@dataclass(frozen=True)
class Passage:
    title: str
    text: str


@dataclass(frozen=True)
class PassageIndex:
    """The passages of a corpus, and the index of their titles and texts."""

    passages: tuple[Passage, ...]
    index: Bm25Index

    def best(self, query: str, k: int) -> list[Passage]:
        """At most `k` passages that share a word with the query, the best first; of equal ones the earlier first."""
        return [self.passages[place] for place in self.index.best(query, k)]


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
    passages = []
    for number, row in enumerate(iter_rows(corpus), start=1):
        said = text_of(row.get(text), text)
        if said is None or not said.strip():
            raise DataError(f"{corpus}: row {number} has no text in column {text!r}; name it in args.text")
        passages.append(Passage(text_of(row.get(title), title) or "", said))
    if not passages:
        raise DataError(f"{corpus}: holds no passage to search")
    try:
        index = Bm25Index([f"{one.title}\n{one.text}" for one in passages])
    except ImportError as error:
        raise DataError(f"the tool search: {error}") from None
    except ValueError:
        raise DataError(f"{corpus}: its passages hold no word to search for") from None
    return PassageIndex(tuple(passages), index)
