"""`posttrain report RUN ...`: a run as one HTML page, training and benchmarks together, or several runs on one."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from rich.console import Console

from posttrain.observe.overlay import print_comparison, read_runs, write_comparison
from posttrain.observe.run_page import print_summary
from posttrain.observe.summary import summarise
from posttrain.run.whole_page import report_run

COMPARISON = "comparison.html"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run folder, runs/NAME; several are compared"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help=f"where the page goes; default: RUN/report.html, of several {COMPARISON} beside the first",
    )


def main(args: Namespace) -> int:
    """Draw RUN/report.html from a run folder, and print its summary; of several runs a page that compares them.
    Works while runs are still going."""
    console = Console()
    try:
        if len(args.runs) > 1:
            runs = read_runs(args.runs)
            path = write_comparison(runs, Path(args.out or Path(args.runs[0]).resolve().parent / COMPARISON))
            print_comparison(runs, console)
        else:
            summary = summarise(args.runs[0])
            path = report_run(args.runs[0], args.out)
            print_summary(summary, console)
    except (OSError, ValueError) as error:
        print(f"posttrain report: {error}", file=sys.stderr)
        return 2
    console.print(f"report: {path}", markup=False, highlight=False, soft_wrap=True)
    return 0
