"""`posttrain data feedback LOG --out DIR`: a log of conversations to the rows DRIFT trains on."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from posttrain.data.feedback_logs import read_feedback_log
from posttrain.data.files import DataError

COMPLAINTS = "complaints.jsonl"
SEEDS = "seeds.jsonl"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "log", help="WildFeedback's annotated turns, chat logs with marked complaints, or DRIFT rows"
    )
    parser.add_argument("--out", required=True, help=f"folder for {COMPLAINTS} and {SEEDS}")


def main(args: Namespace) -> int:
    """Write the complaints of a log, and the answers that repaired some of them, as rows for method drift."""
    try:
        log = read_feedback_log(args.log)
    except DataError as error:
        print(f"posttrain data feedback: {error}", file=sys.stderr)
        return 2
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    _write(
        out / COMPLAINTS,
        (
            {
                "prompt": row.prompt,
                "rejected": [{"role": "assistant", "content": row.rejected}],
                "user_preference": {"role": "user", "content": row.complaint},
            }
            for row in log.complaints
        ),
    )
    _write(
        out / SEEDS,
        (
            {
                "prompt": row.prompt,
                "chosen": [{"role": "assistant", "content": row.chosen}],
                "rejected": [{"role": "assistant", "content": row.rejected}],
            }
            for row in log.seeds
        ),
    )
    dropped = "".join(f"\n  dropped {count}: {reason}" for reason, count in sorted(log.dropped.items()))
    print(
        f"{log.found} complaints found, {len(log.complaints)} written to {out / COMPLAINTS}{dropped}\n"
        f"{len(log.seeds)} repaired ones written to {out / SEEDS}"
    )
    return 0


def _write(path: Path, rows: Iterable[Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
