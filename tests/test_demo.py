"""The two runs of `make demo`, as a user starts them: the model learns, and the run folder tells the story."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.observe.writer import completion_files, read_metrics


def posttrain(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "posttrain", *words], cwd=cwd, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def demo(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which both recipes of the demo have run."""
    folder = tmp_path_factory.mktemp("demo")
    for recipe in ("sft", "bapo"):
        posttrain("train", str(root / "recipes" / "demo" / f"{recipe}.yaml"), cwd=folder)
    return folder / "runs" / "demo-bapo"


@pytest.mark.demo
def test_the_demo_learns(demo: Path):
    held_out = json.loads((demo / "evaluation" / "summary.json").read_text())
    assert held_out["before"]["reward"] < 0.6
    assert held_out["after"]["reward"] >= 0.85


@pytest.mark.demo
def test_the_run_folder_is_complete(demo: Path):
    rows = read_metrics(demo)
    assert [row["step"] for row in rows if "loss" in row] == list(
        range(1, len([r for r in rows if "loss" in r]) + 1)
    )
    for name in (
        "bapo/clip_low",
        "bapo/clip_high",
        "bapo/positive_share",
        "entropy",
        "grad_norm",
        "signal/carried",
    ):
        assert name in rows[-1], name
    shares = [
        value for name, value in rows[-1].items() if name.startswith("signal/") and name != "signal/tokens"
    ]
    assert sum(shares) == pytest.approx(1.0, abs=1e-6)
    assert completion_files(demo)
    assert (demo / "recipe.yaml").exists()
    assert (demo / "environment.json").exists()
    assert (
        "<svg" in (demo / "report.html").read_text() or "data:image/png" in (demo / "report.html").read_text()
    )


@pytest.mark.demo
def test_a_finished_run_is_not_written_over_unasked(demo: Path, root: Path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "posttrain", "train", str(root / "recipes" / "demo" / "bapo.yaml")),
            *("--set", "output.overwrite=false"),
        ],
        cwd=demo.parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert "already holds a run" in done.stderr
