"""BM25 over a list of texts, by the package bm25s: the tool `search` and the precedents of a policy look up by it.

Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond"; the variant is Lucene's, k1 1.5
and b .75. Words are lower-case, numbers and single letters too; no language's stop words are taken out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

INSTALL = "pip install 'posttrain[search]'"
_WORD = r"(?u)\b\w+\b"


class Bm25Index:
    """The index of `texts`. ImportError without bm25s, ValueError where no text holds a word."""

    def __init__(self, texts: Sequence[str]) -> None:
        try:
            import bm25s
        except ImportError as error:
            raise ImportError(f"looking texts up needs the package bm25s ({error}): {INSTALL}") from None
        words = _words(list(texts))
        if not any(words):
            raise ValueError("no text holds a word to search for")
        self._index: Any = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        self._index.index(words, show_progress=False)

    def scores(self, query: str) -> Any:
        """One a text, float32; None where no word of the query is in any of them."""
        import numpy

        words = sorted(set(_words([query])[0]) & self._index.vocab_dict.keys())
        return numpy.asarray(self._index.get_scores(words)) if words else None

    def best(self, query: str, k: int, without: Collection[int] = ()) -> list[int]:
        """Places of at most `k` texts that share a word with the query, the best first, of equal ones the earlier.

        without  places that are passed over
        """
        import numpy

        scores = self.scores(query)
        if scores is None:
            return []
        scores = scores.copy()
        scores[list(without)] = 0.0
        k = min(k, len(scores))
        least = numpy.partition(scores, -k)[-k]
        found = [int(place) for place in numpy.flatnonzero((scores >= least) & (scores > 0))]
        return sorted(found, key=lambda place: (-scores[place], place))[:k]


def _words(texts: list[str]) -> list[list[str]]:
    import bm25s

    found: Any = bm25s.tokenize(
        texts, stopwords=[], token_pattern=_WORD, return_ids=False, show_progress=False
    )
    return found
