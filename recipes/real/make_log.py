"""A feedback log out of pairs: a user asks, gets the rejected answer, complains, gets the chosen one, says thanks.

    python recipes/real/make_log.py PAIRS --out runs/real/log.jsonl [--rows 32] [--longest 600]

PAIRS has text columns prompt, chosen and rejected; the log has WildFeedback's shape, one turn a row. Questions and
answers are those of the pairs. **The complaints are not real**: they are five sentences in turn, and know nothing of
the answer. A log of one's own goes into `posttrain data feedback` as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from posttrain.data.files import DataError, iter_rows

COMPLAINTS = (
    "This is not what I asked for. Please answer my question.",
    "That is wrong or incomplete. Please try again.",
    "I cannot use this answer. Be more precise, please.",
    "You left out what matters. Please do it again, and better.",
    "This does not help me. Read my request once more.",
)
THANKS = "Thank you, that is better."


def usable(rows: Iterable[dict[str, Any]], longest: int) -> Iterator[dict[str, str]]:
    """Pairs of three texts, no one of them empty or longer than `longest` characters, with two different answers."""
    for row in rows:
        texts = {name: row.get(name) for name in ("prompt", "chosen", "rejected")}
        fit = all(isinstance(text, str) and text.strip() and len(text) <= longest for text in texts.values())
        if fit and texts["chosen"] != texts["rejected"]:
            yield {name: str(text) for name, text in texts.items()}


def turns(pair: dict[str, str], number: int) -> list[dict[str, Any]]:
    """The conversation of one pair in WildFeedback's shape; a user's turn judges the answer before it."""
    spoken = [
        ("User", pair["prompt"], None),
        ("Agent", pair["rejected"], None),
        ("User", COMPLAINTS[number % len(COMPLAINTS)], False),
        ("Agent", pair["chosen"], None),
        ("User", THANKS, True),
    ]
    return [
        {
            "ConversationId": number,
            "UtterranceId": place,
            "TurnId": place // 2 + 1,
            "Role": role,
            "Content": text,
            "Satisfaction": satisfied is True,
            "Disatisfaction": satisfied is False,
        }
        for place, (role, text, satisfied) in enumerate(spoken)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--longest", type=int, default=600, help="characters of a text")
    args = parser.parse_args()
    try:
        pairs = list(islice(usable(iter_rows(args.pairs), args.longest), args.rows))
    except DataError as error:
        print(f"make_log: {error}", file=sys.stderr)
        return 2
    if not pairs:
        print(
            f"make_log: {args.pairs}: no row with texts prompt, chosen and rejected of at most {args.longest} "
            "characters and two different answers",
            file=sys.stderr,
        )
        return 2
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [turn for number, pair in enumerate(pairs) for turn in turns(pair, number)]
    args.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{args.out}: {len(pairs)} conversations, {len(rows)} turns; the complaints are made up")
    return 0


if __name__ == "__main__":
    sys.exit(main())
