"""`posttrain eval guard`, and what it shares with `posttrain data precedents`: where the judge is, and its policy."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from posttrain.data.exchanges import LabelledExchange, labelled_exchanges
from posttrain.data.files import iter_rows
from posttrain.evaluation import policy_figures, store
from posttrain.evaluation.bar import bar
from posttrain.judges.judge_server import JudgeClient, JudgeLost, JudgeServer
from posttrain.judges.policy_judge import PolicyJudge
from posttrain.judges.precedents import PrecedentBook, read_policy, read_precedents

ANSWERS = "judgements.jsonl"


def add_arguments(parser: ArgumentParser) -> None:
    add_shared_arguments(parser)
    parser.add_argument("--precedents", help="file of `posttrain data precedents`; default: the policy alone")
    parser.add_argument("-k", type=int, default=4, help="precedents shown, at most (default: %(default)s)")
    parser.add_argument(
        "--compare",
        action="store_true",
        help="judge by the policy alone too, and compare on the same responses",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the results")


def add_shared_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "file", help="responses: .jsonl .json .parquet .csv; generations.jsonl of an evaluation"
    )
    parser.add_argument("--policy", required=True, metavar="FILE", help="text that responses must keep to")
    parser.add_argument(
        "--text", metavar="COLUMN", help="the response (default: text, response, completion, output)"
    )
    parser.add_argument(
        "--prompt", metavar="COLUMN", help="what it answers (default: prompt, instruction, question)"
    )
    parser.add_argument(
        "--label", metavar="COLUMN", help="complies or violates, safe or unsafe (default: label, verdict)"
    )
    parser.add_argument("--judge", required=True, metavar="MODEL", help="the judge's name at its server")
    parser.add_argument("--base-url", help="of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1")
    parser.add_argument(
        "--api-key-env", default="OPENAI_API_KEY", help="variable that holds the key (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=5, help="requests at once (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=60.0, help="seconds a request (default: %(default)s)"
    )
    parser.add_argument(
        "--retries", type=int, default=5, help="after a time-out, 429 or 5xx (default: %(default)s)"
    )
    parser.add_argument("--max-tokens", type=int, default=512, help="of an answer (default: %(default)s)")


def run_guard(args: Namespace, console: Console) -> int:
    """Judges, writes, shows. ValueError for what cannot be done; JudgeLost where not one response was judged."""
    rows = rows_of(args)
    if args.k < 1:
        raise ValueError(f"-k {args.k}: at least 1")
    if args.compare and args.precedents is None:
        raise ValueError("--compare needs --precedents FILE")
    out = Path(args.out)
    make = judge_maker(args, out / ANSWERS)
    judges: dict[str, PolicyJudge] = {}
    if args.precedents is not None:
        judges[policy_figures.WITH] = make(PrecedentBook(read_precedents(args.precedents)), args.k)
    if args.compare or args.precedents is None:
        judges[policy_figures.WITHOUT] = make(None, 1)
    with counted("guard: judging", len(rows) * len(judges)) as progress:
        found = policy_figures.judge_file(judges, rows, progress)
    result = {
        **policy_figures.figures(rows, found),
        "judge": {"model": args.judge, "base_url": args.base_url},
        "policy": store.file_hash([Path(args.policy)]),
        "precedents": None if args.precedents is None else store.file_hash([Path(args.precedents)]),
        "k": args.k,
        "asked": sum(one.asked for one in judges.values()),
        "from_file": sum(one.kept for one in judges.values()),
        "versions": store.versions(),
    }
    policy_figures.write(out, rows, found, result)
    show(result, console)
    console.print(f"verdicts: {out / policy_figures.VERDICTS}", highlight=False, soft_wrap=True, markup=False)
    if not any(arm["judged"] for arm in result["arms"].values()):
        raise JudgeLost(f"not one of {len(rows)} responses was judged; the same command asks again")
    return 0


def show(result: Mapping[str, Any], console: Console) -> None:
    """The figures, and a line for what went unjudged."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in (
        "",
        "judged",
        "violates",
        "agrees with labels",
        "missed",
        "false alarms",
        "precedents shown",
    ):
        table.add_column(name, justify="right" if name else "left")
    for arm, one in result["arms"].items():
        shares = [_percent(one[name]) for name in ("violates", "agreement", "missed", "false_alarms")]
        table.add_row(arm, f"{one['judged']} of {result['responses']}", *shares, f"{one['shown']:.1f}")
    console.print(table)
    d = result["difference"]
    if d is not None:
        low, high = (100 * end for end in d["interval"])
        console.print(
            f"precedents change the agreement by {100 * d['value']:+.1f} points ({low:+.1f} to {high:+.1f}, p "
            f"{d['p']:.3f}) on {d['of']} responses: {d['better']} better, {d['worse']} worse",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    console.print(
        f"{result['asked']} questions asked, {result['from_file']} answers were on file", highlight=False
    )
    for arm, one in result["arms"].items():
        if one["unjudged"]:
            why = ", ".join(f"{count} {fault}" for fault, count in one["unjudged"].items())
            console.print(f"unjudged {arm}: {why}; left out of the shares", highlight=False, soft_wrap=True)


def _percent(share: Mapping[str, Any] | None) -> str:
    if share is None:
        return "–"
    low, high = share["interval"]
    return f"{100 * share['value']:.1f} % ({100 * low:.0f} to {100 * high:.0f})"


# ---- shared


def rows_of(args: Namespace, *, needs_label: bool = False) -> list[LabelledExchange]:
    return labelled_exchanges(
        iter_rows(args.file),
        args.file,
        text=args.text,
        prompt=args.prompt,
        label=args.label,
        needs_label=needs_label,
    )


def judge_maker(args: Namespace, answers: Path) -> Callable[[PrecedentBook | None, int], PolicyJudge]:
    """Makes judges on one client and one file of answers. ValueError where no question can be asked."""
    for name in ("workers", "max_tokens"):
        if vars(args)[name] < 1:
            raise ValueError(f"--{name.replace('_', '-')} {vars(args)[name]}: at least 1")
    if args.retries < 0 or not args.timeout > 0:
        raise ValueError(f"--retries {args.retries}, --timeout {args.timeout:g}: 0 or more, and above 0")
    key = os.environ.get(args.api_key_env, "").strip() or None
    server = JudgeServer(
        args.judge, args.base_url, key, timeout_s=args.timeout, retries=args.retries, workers=args.workers
    )
    fault = server.fault()
    if fault is not None:
        raise ValueError(fault)
    policy, client = read_policy(args.policy), JudgeClient(server)

    def say(text: str) -> None:
        print(f"posttrain: {text}", file=sys.stderr, flush=True)

    def make(book: PrecedentBook | None, k: int) -> PolicyJudge:
        return PolicyJudge(client, policy, book, k=k, cache=answers, max_tokens=args.max_tokens, say=say)

    return make


@contextmanager
def counted(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar that moves by one a call, from any thread."""
    done = 0
    with bar(title, total) as move:

        def one_more() -> None:
            nonlocal done
            done += 1
            move(done, total)

        yield one_more
