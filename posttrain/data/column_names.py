"""What public data sets call their columns, in the order in which a column of that name is taken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

PROMPTS = ("prompt", "question", "problem", "instruction", "query", "input", "text")
COMPLETIONS = (
    *(
        "completion",
        "output",
        "response",
        "answer",
        "solution",
        "canonical_solution",
        "target",
        "code",
        "text",
    ),
    "chosen",  # the better answers of a file of pairs
)
ANSWERS = (
    "answer",
    "final_answer",
    "gold",
    "ground_truth",
    "target",
    "label",
    "solution",
    "output",
    "response",
)
LABELS = (
    "label",
    "kto_tag",
    "desirable",
    "is_desirable",
    "thumbs_up",
    "liked",
    "good",
    "is_good",
    "upvote",
    "feedback",
)
"""Columns that mark an answer good or bad."""
PAIRS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("preferred", "dispreferred"),
    ("positive", "negative"),
    ("win", "lose"),
    ("winner", "loser"),
)
ALPACA = "{instruction}\n\n{input?}"
"""Alpaca's two columns as one prompt; the second is empty where the first says all."""


def first_column(present: Iterable[str], names: Sequence[str], taken: str | None = None) -> str | None:
    """The column that bears the first of these names, in whatever capitals."""
    plain = {str(column).lower(): str(column) for column in reversed(list(present)) if column != taken}
    return next((plain[name] for name in names if name in plain), None)
