"""NLTK's punkt_tab, with which IFEval counts sentences: found, or one line that says where to get it. No torch.

There is no way without it: 64 of IFEval's 541 prompts ask for a number of sentences or of words in capitals, which are
the words and sentences of this very model of English; another splitter would give other scores under the same name.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

RESOURCE = "tokenizers/punkt_tab/english/"
NEEDED = "IFEval is graded by lm-eval's checkers, and {!r} is missing: pip install 'posttrain[eval]'"


def find_punkt() -> None:
    """Makes NLTK find punkt_tab, also where another package brings it. LookupError or ImportError with the remedy."""
    try:
        import nltk
    except ModuleNotFoundError as error:
        raise ImportError(NEEDED.format(error.name)) from None
    if _found(nltk):
        return
    brought = _brought()
    if brought is not None and str(brought) not in nltk.data.path:
        nltk.data.path.append(str(brought))
    if not _found(nltk):
        raise LookupError(
            "IFEval counts sentences with NLTK's punkt_tab, which is not on this machine: run `python -m "
            "nltk.downloader punkt_tab`; without a network put that folder at $NLTK_DATA/tokenizers/punkt_tab, or, "
            "where only a package index is reached, `pip install --no-deps llama-index-core`, which brings it"
        )


def _found(nltk: object) -> bool:
    try:
        vars(nltk)["data"].find(RESOURCE)
    except LookupError:
        return False
    return True


def _brought() -> Path | None:
    """The NLTK data that llama-index-core carries; the package is not imported."""
    spec = find_spec("llama_index")
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        folder = Path(place) / "core" / "_static" / "nltk_cache"
        if (folder / RESOURCE).is_dir():
            return folder
    return None
