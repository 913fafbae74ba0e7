"""`posttrain data precedents FILE`: precedents of a policy from labelled responses, by critique and revision."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from posttrain.data.decoding import DataError
from posttrain.evaluation import store
from posttrain.evaluation.guard_command import add_shared_arguments, counted, judge_maker, rows_of
from posttrain.judges.judge_server import JudgeLost
from posttrain.judges.policy_judge import CollectedPrecedents, collect_precedents
from posttrain.judges.precedents import precedent_lines
from posttrain.process import exit_codes

ROUNDS = 2


def add_arguments(parser: ArgumentParser) -> None:
    add_shared_arguments(parser)
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, metavar="N",
        help="critiques and revisions of a reasoning that misses the label, at most (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--out", required=True, metavar="FILE", help="the precedents, .jsonl")


def main(args: Namespace) -> int:
    """Collect precedents of a written policy: a judge reasons about each labelled response; a reasoning that misses the
    label is criticised and written anew; what then reaches the label is kept. Interrupted, the same command goes on:
    answers are kept beside OUT."""
    try:
        return _run(args)
    except JudgeLost as error:
        print(f"posttrain data precedents: {error}", file=sys.stderr)
        return exit_codes.ENGINE_LOST
    except (DataError, ValueError, ImportError, OSError) as error:
        print(f"posttrain data precedents: {error}", file=sys.stderr)
        return exit_codes.REFUSED
    except KeyboardInterrupt:
        print(
            "posttrain data precedents: stopped; the same command goes on where it stopped", file=sys.stderr
        )
        return exit_codes.STOPPED


def _run(args: Namespace) -> int:
    out = Path(args.out)
    if args.rounds < 0:
        raise ValueError(f"--rounds {args.rounds}: 0 or more")
    if out.suffix != ".jsonl":
        raise ValueError(f"--out {out}: write a name that ends in .jsonl")
    if out.exists():
        raise ValueError(f"--out {out} exists; name another file, or remove it")
    rows = rows_of(args, needs_label=True)
    labelled = [(row.exchange, row.label) for row in rows if row.label is not None]
    judge = judge_maker(args, out.with_suffix(".judgements.jsonl"))(None, 1)
    exchanges, labels = [at for at, _ in labelled], [label for _, label in labelled]
    with counted("precedents: reasoning", len(set(exchanges))) as progress:
        found = collect_precedents(judge, exchanges, labels, rounds=args.rounds, progress=progress)
    _tell(found, len(rows), len(labelled), len(set(exchanges)))
    print(f"{judge.asked} questions asked, {judge.kept} answers were on file")
    if not found.precedents:
        if found.unjudged == len(set(exchanges)):
            raise JudgeLost("not one response was judged; the same command asks again")
        raise ValueError("no reasoning reached its label, so there is no precedent; nothing was written")
    store.write_text(out, precedent_lines(found.precedents))
    print(f"{out}: {len(found.precedents)} precedents")
    return exit_codes.DONE


def _tell(found: CollectedPrecedents, rows: int, labelled: int, different: int) -> None:
    print(f"{rows} rows, {rows - labelled} without a label, {labelled - different} repeated")
    rounds = ", ".join(f"{count} after revision {number}" for number, count in found.revised.items())
    print(
        f"reached the label: {found.first} at once{f', {rounds}' if rounds else ''}; dropped: {found.wrong} that never "
        f"did, {found.unjudged} without a verdict"
    )
