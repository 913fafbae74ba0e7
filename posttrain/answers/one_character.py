"""One character for what Unicode has in many: signs, digits, brackets, superscripts, currencies, spaces.

Everything that is graded passes through `plain_characters` before anything is read. Superscripts, subscripts and vulgar
fractions become LaTeX first, because NFKC would make 22 of 2².
"""

from __future__ import annotations

import re
import unicodedata

CURRENCY_SIGNS = "€£¥￥￡₹₽₩₪₫₺₴₦₱฿₡₲₵₸₼₾₿￦¢￠"

_SAME = {
    "-": "‐‑‒–—―−﹘﹣－⁃➖˗⎯─",
    "+": "➕﹢＋",
    "'": "′’‘ʹʼ`´＇",
    "''": "″",
    '"': "”“„«»＂「」『』",
    ",": "，、﹐﹑､،٬",
    ".": "．。｡٫․",
    ";": "；﹔؛",
    ":": "：﹕∶ː꞉",
    "?": "？؟",
    "!": "！﹗",
    "(": "（﹙⦅❨",
    ")": "）﹚⦆❩",
    "[": "［【〔〚",
    "]": "］】〕〛",
    "{": "｛﹛",
    "}": "｝﹜",
    "%": "％﹪٪",
    "$": "＄﹩",
    "/": "／∕⁄",
    "=": "＝﹦",
    "<": "＜﹤",
    ">": "＞﹥",
    "|": "｜∣❘￨",
    "*": "∗＊﹡",
    " ": "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000",
    "": "\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u2062\u2063\u2064\ufeff\u00ad\ufe0f\ufe0e",
    r"\times ": "×✕✖⨉⨯",
    r"\div ": "÷➗",
    r"\cdot ": "·⋅∙•‧・",
    r"\pm ": "±",
    r"\mp ": "∓",
    r"\infty ": "∞",
    r"\le ": "≤⩽≦",
    r"\ge ": "≥⩾≧",
    r"\ne ": "≠",
    r"\approx ": "≈≅≃∼",
    r"\equiv ": "≡",
    r"\cup ": "∪⋃",
    r"\cap ": "∩⋂",
    r"\in ": "∈",
    r"\notin ": "∉",
    r"\subset ": "⊂",
    r"\setminus ": "∖",
    r"\emptyset ": "∅",
    r"\to ": "→",
    r"\implies ": "⇒⟹",
    r"\therefore ": "∴",
    r"\angle ": "∠",
    r"\triangle ": "△",
    r"\perp ": "⊥",
    r"\parallel ": "∥",
    r"\mathbb{R}": "ℝ",
    r"\mathbb{Z}": "ℤ",
    r"\mathbb{N}": "ℕ",
    r"\mathbb{Q}": "ℚ",
    r"\mathbb{C}": "ℂ",
    r"^\circ ": "°º˚∘",
    r"\ldots ": "…⋯",
    r"\langle ": "⟨〈〈",
    r"\rangle ": "⟩〉〉",
    r"\lfloor ": "⌊",
    r"\rfloor ": "⌋",
    r"\lceil ": "⌈",
    r"\rceil ": "⌉",
    r"\sum ": "∑",
    r"\int ": "∫",
    r"\partial ": "∂",
    r"\ell ": "ℓ",
}
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ϵ": "epsilon", "ζ": "zeta", "η": "eta",
    "θ": "theta", "ϑ": "vartheta", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho",
    "σ": "sigma", "τ": "tau", "φ": "phi", "ϕ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega", "Γ": "Gamma",
    "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱᵃᵇᶜᵈᵉᶠᵍʰʲᵏˡᵐᵒᵖʳˢᵗᵘᵛʷˣʸᶻ"
_SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ"
_SHIFTED = re.compile(
    f"(?P<above>[{_SUPERSCRIPTS}]+)|(?P<below>[{_SUBSCRIPTS}]+)|(?P<root>[∛∜])|(?P<square>[㎜-㎥])"
)
_FRACTION = re.compile("[¼-¾⅐-⅞↉]")
_TABLE = str.maketrans({old: new for new, olds in _SAME.items() for old in olds})
_LETTERS = re.compile(r"[\u0370-\u03ff]+")
_DIGIT = re.compile(r"(?![0-9])\d")


def plain_characters(text: str) -> str:
    """The text with every sign in its usual character: − as -, （ as (, ３ as 3, ² as ^{2}, ½ as \\frac{1}{2}."""
    if text.isascii():
        return text
    text = _FRACTION.sub(_as_fraction, _SHIFTED.sub(_as_script, text))
    text = unicodedata.normalize("NFKC", text.translate(_TABLE)).translate(_TABLE)
    text = _DIGIT.sub(lambda match: str(unicodedata.decimal(match.group())), text)  # ٣ and ३ are 3
    return _LETTERS.sub(_as_commands, text)


def _as_commands(match: re.Match[str]) -> str:
    if len(match.group()) > 2:  # a word of modern Greek is no product of letters
        return match.group()
    return "".join(rf"\{_GREEK[letter]} " if letter in _GREEK else letter for letter in match.group())


def _as_script(match: re.Match[str]) -> str:
    if match["root"]:
        return r"\sqrt[3]" if match["root"] == "∛" else r"\sqrt[4]"
    if match["square"]:  # ㎠ is cm2 to NFKC
        return re.sub(r"(\d)$", r"^{\1}", unicodedata.normalize("NFKC", match["square"]))
    script = unicodedata.normalize("NFKC", match.group()).translate(_TABLE)
    return ("^{" if match["above"] else "_{") + script + "}"


def _as_fraction(match: re.Match[str]) -> str:
    above, below = unicodedata.normalize("NFKC", match.group()).split("⁄")
    return rf"\frac{{{above}}}{{{below}}}"
