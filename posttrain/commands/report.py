"""`posttrain report RUN`: the run as one HTML page, training and benchmarks together, and its summary here."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from rich.console import Console

from posttrain.evaluation.in_training import evaluation_section
from posttrain.observe.report import print_summary, write_report
from posttrain.observe.summary import summarise


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", help="a run folder, runs/NAME")
    parser.add_argument("--out", metavar="FILE", help="where the page goes; default: RUN/report.html")


def report_run(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Writes the page of a run and returns its path."""
    return write_report(run_dir, out, benchmarks=evaluation_section(run_dir))


def main(args: Namespace) -> int:
    """Draw RUN/report.html from a run folder, and print its summary. Works while the run is still going."""
    try:
        summary = summarise(args.run)
        path = report_run(args.run, args.out)
    except (OSError, ValueError) as error:
        print(f"posttrain report: {error}", file=sys.stderr)
        return 2
    console = Console()
    print_summary(summary, console)
    console.print(f"report: {path}", markup=False, highlight=False, soft_wrap=True)
    return 0
