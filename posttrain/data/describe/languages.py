"""Which language a text is likely in: by the script of its letters, and for Latin letters by the commonest words.

It tells what a data set mostly consists of, and finds rows in another language; it does not tell dialects, short texts
or mixtures, and nothing in Latin letters beyond the ten languages of _COMMON. Words of one letter do not count, but for
English: they are variables. What stands between code fences is left out. No model, nothing fetched.
"""

from __future__ import annotations

import re

READ = 1_000
"""Characters of a text that are looked at."""
UNDECIDED = "Latin letters, undecided"
NONE = "no words"
CODE = "code"
UNTOLD = (UNDECIDED, NONE, CODE)
"""What is no language."""
_SCRIPTS = {
    "Han": re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]"),
    "Kana": re.compile(r"[\u3040-\u30ff]"),
    "Korean": re.compile(r"[\uac00-\ud7af\u1100-\u11ff]"),
    "Cyrillic": re.compile(r"[\u0400-\u04ff]"),
    "Arabic": re.compile(r"[\u0600-\u06ff]"),
    "Hebrew": re.compile(r"[\u0590-\u05ff]"),
    "Devanagari": re.compile(r"[\u0900-\u097f]"),
    "Thai": re.compile(r"[\u0e00-\u0e7f]"),
    "Greek": re.compile(r"[\u0370-\u03ff]"),
    "Latin": re.compile(r"[a-z\u00df-\u024f]"),
}
_UKRAINIAN, _RUSSIAN = re.compile("[іїєґ]"), re.compile("[ыэъё]")
_NO_PROSE = re.compile(r"```.*?(?:```|\Z)|\\[a-z]+|https?://\S+|\$[^$]*\$", re.DOTALL)
_CODE = re.compile(
    r"^\s*(?:def \w+\(|class \w+[(:]|import [\w.]+\s*$|from [\w.]+ import |#include|public |function \w+\(|return\b|"
    r"(?:for|while|if) .*[:{]\s*$)",
    re.MULTILINE,
)
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_LEAST_WORDS = 3
_LEAST_SHARE = 0.08  # of the words that must be among a language's common ones

_COMMON: dict[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "English": "a the of and to in is that it for you with are this be on as was have what how not can an by if "
        "from or at do does has there which your we they he she his her will each many much more all than then would",
        "German": "der die das und ist nicht ein eine zu den mit von auf für sich dem im es wie wird sind als auch "
        "bei wenn wir sie ich hat oder was kann einen aus",
        "French": "le la les des et est une un dans que pour qui pas sur avec ce du il au nous vous sont plus par "
        "comme ou je cette être aux quel quelle",
        "Spanish": "el la los las de que en un una es por con para se no como del al su más qué cuál este esta son "
        "pero lo sus hay cómo",
        "Portuguese": "os as de que em um uma é por com para não se como do da dos das no na mais ao qual seu "
        "sua são você isso",
        "Italian": "il lo la gli le di che in un una è per con non si come del della dei sono più nel alla qual "
        "questo quale anche ma ha",
        "Dutch": "de het een en van is dat niet te in op voor met zijn die er aan ook als je wat hoe maar bij kan "
        "naar om wordt deze",
        "Polish": "nie na się jest to że do jak co po czy są dla od przez lub który ale tym tego",
        "Turkish": "ve bir bu için ile de da ne olarak çok daha gibi en olan nasıl mı ama değil var kadar",
        "Indonesian": "yang dan di untuk dengan dari ini itu pada tidak adalah dalam ke apa akan bisa atau oleh saya "
        "anda bagaimana",
    }.items()
}
_LANGUAGES_OF: dict[str, tuple[str, ...]] = {}
for _language, _words in _COMMON.items():
    for _one in _words:
        _LANGUAGES_OF[_one] = (*_LANGUAGES_OF.get(_one, ()), _language)


def language_of(text: str) -> str:
    """A language, a script where that is all that can be told, "code", "no words", or "Latin letters, undecided"."""
    beginning = text[:READ]
    if 3 * len(_CODE.findall(beginning)) > beginning.count("\n") + 1:
        return CODE
    text = _NO_PROSE.sub(" ", beginning.casefold())
    letters = (
        {name: len(pattern.findall(text)) for name, pattern in _SCRIPTS.items()} if not text.isascii() else {}
    )
    # A Han character carries about as much as three letters: a Chinese text that names products stays Chinese.
    letters = {
        name: count * (3 if name in ("Han", "Kana", "Korean") else 1) for name, count in letters.items()
    }
    script = max(letters, key=lambda name: letters[name]) if letters else "Latin"
    if script in ("Han", "Kana"):
        return "Japanese" if letters["Kana"] > 0.1 * (letters["Kana"] + letters["Han"]) else "Chinese"
    if script == "Cyrillic":
        return _cyrillic(text)
    if script != "Latin":
        return script
    return _latin(_WORD.findall(text))


def _cyrillic(text: str) -> str:
    ukrainian, russian = len(_UKRAINIAN.findall(text)), len(_RUSSIAN.findall(text))
    if ukrainian == russian:
        return "Cyrillic"
    return "Ukrainian" if ukrainian > russian else "Russian"


def _latin(words: list[str]) -> str:
    words = [word for word in words if len(word) > 1 or not word.isascii() or word in "ai"]
    if sum(len(word) > 1 for word in words) < _LEAST_WORDS:
        return NONE
    hits: dict[str, int] = {}
    for word in words:
        for language in _LANGUAGES_OF.get(word, ()):
            hits[language] = hits.get(language, 0) + 1
    ranked = sorted(hits.values(), reverse=True)
    if not ranked or ranked[0] < max(2 if len(words) > 8 else 1, _LEAST_SHARE * len(words)):
        return UNDECIDED
    if len(ranked) > 1 and ranked[0] < 1.2 * ranked[1]:
        return UNDECIDED
    return max(hits, key=lambda language: hits[language])
