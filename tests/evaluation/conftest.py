"""A tiny benchmark, its file, and a random model with a character tokenizer: no network, no shared data."""

from __future__ import annotations

import json

import pytest

BENCHMARK = """
name: sums
title: Sums
licence: MIT
source: made here
data: {file: sums.jsonl, rows: 6, sha256: null}
gold: {rule: hash, column: answer, group: size}
prompt: {template: "{question} = "}
sampling: {samples: 1, max_new_tokens: 8}
answer: {grader: math, args: {rule: hash}}
"""


@pytest.fixture
def sums_folder(tmp_path):
    rows = [
        {"question": f"{a}+{b}", "answer": f"so\n#### {a + b}", "size": len(str(a + b))}
        for a, b in [(1, 2), (10, 20), (3, 4), (500, 600), (7, 8), (90, 9)]
    ]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sums.yaml").write_text(BENCHMARK)
    return tmp_path


@pytest.fixture
def sums(sums_folder):
    from posttrain.evaluation import tasks

    return tasks.load(sums_folder / "sums.yaml")


@pytest.fixture
def problems(sums, sums_folder):
    from posttrain.evaluation import tasks

    return tasks.problems(sums, sums_folder)
