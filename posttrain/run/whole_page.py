"""The page of a run: training and benchmarks together."""

from __future__ import annotations

from pathlib import Path

from posttrain.evaluation.in_training import evaluation_section
from posttrain.observe.run_page import write_report


def report_run(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Writes the page of a run and returns its path."""
    return write_report(run_dir, out, benchmarks=evaluation_section(run_dir))
