"""HumanEval and MBPP: which rows, which prompts, and how programs are graded into pass@k."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from posttrain.evaluation import tasks
from posttrain.evaluation.grade import judge_in_workers
from posttrain.evaluation.grade_metrics import summarise
from posttrain.evaluation.graders import Attempt, make_grader, missing_for
from posttrain.rewards.sandbox.protection import find_protection
from posttrain.rewards.worker_pool import WorkerPool

UNSAFE = {"allow_unsafe": True}  # harmless programs, also on a machine without a sandbox
GOLD = {"test_list": ["assert f(2) == 4", "assert f(3) == 9"], "test_setup_code": ""}
RIGHT, HALF, HANGS = (
    "```python\ndef f(x): return x * x\n```",
    "```python\ndef f(x): return 2 * x\n```",
    "```python\ndef f(x):\n    while True: pass\n```",
)

BENCHMARK = """
name: squares
title: Squares
licence: MIT
source: made here
data: {file: squares.jsonl.gz, keep: {column: number, first: 2, last: 3}, rows: 2, sha256: null}
gold: {rule: columns, id: number, columns: {test_list: tests}}
prompt: {template: "{text}\\n{tests}"}
sampling: {samples: 4, max_new_tokens: 8, temperature: 0.8}
answer: {grader: code, args: {allow_unsafe: true}}
"""


@pytest.fixture
def squares(tmp_path: Path) -> tuple[tasks.Benchmark, Path]:
    rows = [
        {"number": n, "text": f"Task {n}", "tests": [f"assert f({n}) == {n * n}", "assert f(0) == 0"]}
        for n in range(1, 6)
    ]
    (tmp_path / "squares.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    (tmp_path / "squares.yaml").write_text(BENCHMARK)
    return tasks.load(tmp_path / "squares.yaml"), tmp_path


def test_kept_rows_and_a_list_in_a_prompt(squares: tuple[tasks.Benchmark, Path]) -> None:
    found = tasks.problems(*squares)
    assert [problem.id for problem in found] == ["2", "3"]
    assert found[0].prompt == "Task 2\nassert f(2) == 4\nassert f(0) == 0"
    assert found[0].gold == {"test_list": ["assert f(2) == 4", "assert f(0) == 0"]}


def test_a_program_is_right_when_it_passes_every_test() -> None:
    judge = make_grader("code", UNSAFE | {"seconds": 2.0})
    found = judge([Attempt(GOLD, text) for text in (RIGHT, HALF, HANGS, "")])
    assert [one["score"] for one in found] == [1.0, 0.0, 0.0, 0.0]
    assert [one["reason"] for one in found] == ["passed", "AssertionError", "timeout", "no program"]
    assert [one["tests"].partition(";")[0] for one in found] == ["2 of 2", "1 of 2", "0 of 2", "0 of 2"]
    assert (found[0]["answer"], found[3]["answer"]) == ("def f(x): return x * x\n", None)
    assert judge([Attempt({"test_list": []}, RIGHT)])[0]["score"] is None


def test_pass_at_k_by_hand() -> None:
    """Two problems, four samples: 2 of 4 right, and none. pass@2 = 1 - C(2,2)/C(4,2) = 5/6, and 0."""
    pool = WorkerPool(
        "posttrain.evaluation.graders:make_grader", {"name": "code", "arguments": UNSAFE}, 1, 30.0
    )
    texts = [RIGHT, HALF, RIGHT, HALF, HALF, HALF, HALF, HALF]
    try:
        verdicts = judge_in_workers(pool, [Attempt(GOLD, text) for text in texts])
    finally:
        pool.close()
    grades = [
        {"id": str(n // 4), "sample": n % 4, "group": None, "tokens": 9, "truncated": False, **verdict}
        for n, verdict in enumerate(verdicts)
    ]
    metrics = summarise({"benchmark": "squares", "task": {"hash": "x"}}, grades)["metrics"]
    assert metrics["accuracy"]["value"] == pytest.approx(1 / 4)
    assert metrics["pass@2"]["value"] == pytest.approx(5 / 12)
    assert metrics["pass@4"]["value"] == pytest.approx(1 / 2)
    assert not any(name.startswith("maj@") for name in metrics)


def test_a_machine_without_sandbox_is_said_before_anything_is_generated() -> None:
    missing = missing_for("code")
    assert (missing is None) == find_protection().isolates
    assert missing is None or "allow_unsafe" in missing
    assert missing_for("code", UNSAFE) is None


def test_shared_data_prompts_and_golds_by_hand(shared_data: Path) -> None:
    mbpp = tasks.problems(tasks.load("mbpp"), shared_data)
    assert (mbpp[0].id, mbpp[-1].id) == ("11", "510")
    assert mbpp[0].prompt.endswith('assert remove_Occ("PHP","P") == "H"\n```')
    humaneval = tasks.problems(tasks.load("humaneval"), shared_data)
    assert humaneval[0].id == "HumanEval/0"
    assert humaneval[0].prompt.endswith('True\n    """\n```')
    assert set(humaneval[0].gold) == {"prefix", "entry_point", "test"}


def test_shared_data_as_rows_to_train_on(shared_data: Path, tmp_path: Path, root: Path) -> None:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("make_mbpp", root / "recipes" / "grpo" / "make_mbpp.py")
    assert spec is not None
    assert spec.loader is not None
    maker = module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert maker.main([str(shared_data / "mbpp" / "mbpp.jsonl.gz"), "--out", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert (len(rows), rows[0]["task_id"], rows[-1]["task_id"]) == (374, 601, 974)
    assert rows[0]["test_list"][0] in rows[0]["prompt"]
    assert rows[0]["test_list"][1] not in rows[0]["prompt"]
