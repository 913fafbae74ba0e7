from __future__ import annotations

import gzip
import subprocess
import sys

import pytest

from posttrain.evaluation import tasks

COUNTS = {
    "aime24": 30,
    "aime25": 30,
    "alpaca_eval": 805,
    "amc23": 40,
    "countdown": 256,
    "gsm8k": 1319,
    "humaneval": 164,
    "ifeval": 541,
    "math": 5000,
    "math500": 500,
    "mbpp": 500,
    "minerva_math": 272,
    "olympiadbench": 675,
    "sudoku4x4": 500,
}


def test_built_in_benchmarks_are_those_promised():
    assert {name: tasks.load(name).data.rows for name in tasks.names()} == COUNTS
    for name in tasks.names():
        benchmark = tasks.load(name)
        assert benchmark.name == name
        assert benchmark.data.sha256, "a built-in benchmark is checked by hash"


def test_eval_benchmarks_is_the_package_folder(root):
    assert (root / "eval" / "benchmarks").resolve() == tasks.FOLDER.resolve()


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_shared_data_matches_the_definition(name, shared_data):
    assert tasks.check(tasks.load(name), shared_data) is None


def test_shared_data_golds_by_hand(shared_data):
    def gold(name, index):
        return tasks.problems(tasks.load(name), shared_data)[index].gold

    assert gold("gsm8k", 0) == "18"
    assert gold("aime24", 7) == "25"  # the file says 025
    assert gold("amc23", 0) == "27"  # the file says 27.0
    assert gold("minerva_math", 1) == "4.5e33"
    assert gold("math", 0) == "2"
    assert gold("sudoku4x4", 1)["puzzle"] == "0140432014020000"  # text: the leading zero stays


def test_no_torch_is_needed_to_list_tasks():
    code = "import sys; from posttrain.evaluation import tasks; tasks.load('gsm8k'); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_prompt_gold_and_group(problems):
    first = problems[0]
    assert (first.id, first.prompt, first.gold, first.group) == ("0", "1+2 = ", "3", "1")


def test_compressed_file_is_the_same_file(sums, sums_folder, problems):
    path = sums_folder / "sums.jsonl"
    (sums_folder / "sums.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert tasks.problems(sums, sums_folder) == problems


def test_changed_file_short_file_and_absent_file_are_refused(sums_folder):
    text = (sums_folder / "sums.yaml").read_text()
    path = sums_folder / "sums.yaml"
    path.write_text(text.replace("sha256: null", f"sha256: {'ab' * 32}"))
    assert "sha256" in (tasks.check(tasks.load(path), sums_folder) or "")
    path.write_text(text.replace("rows: 6", "rows: 7"))
    assert "6 rows, defined are 7" in (tasks.check(tasks.load(path), sums_folder) or "")
    (sums_folder / "sums.jsonl").unlink()
    assert "absent" in (tasks.check(tasks.load(path), sums_folder) or "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("rows: 6", "row: 6"), r"data.row: .*did you mean 'rows'"),
        (("{question}", "{questoin}"), "did you mean 'question'"),
        (("column: answer", "column: question"), "row 0: no gold answer by rule 'hash'"),
        (("samples: 1", "samples: 4"), "temperature 0"),
        (("grader: math", "grader: maths"), "answer.grader"),
    ],
)
def test_errors_say_where_and_what(sums_folder, change, message):
    path = sums_folder / "sums.yaml"
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(ValueError, match=message):
        tasks.problems(tasks.load(path), sums_folder)


def test_unknown_name_suggests():
    with pytest.raises(ValueError, match="did you mean 'gsm8k'"):
        tasks.load("gsm8")


def test_hub_columns_are_renamed(sums_folder, problems, monkeypatch):
    import datasets

    path = sums_folder / "sums.yaml"
    hub = "sha256: null, hub: {path: me/sums, split: dev, columns: {q: question}}"
    path.write_text(path.read_text().replace("sha256: null", hub))
    rows = [
        {"q": p.prompt.removesuffix(" = "), "answer": f"#### {p.gold}", "size": p.group} for p in problems
    ]
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, split: rows if split == "dev" else [])
    found = tasks.problems(tasks.load(path), None)
    assert tasks.content_hash(found) == tasks.content_hash(problems)


@pytest.mark.parametrize(
    ("rule", "value", "gold"),
    [
        ("integer", "025", "25"),
        ("integer", 70, "70"),
        ("text", 27.0, "27"),
        ("text", 2.5, "2.5"),
        ("hash", "2 + 2 = 4\n#### 1,204", "1204"),
        ("list", ["1", "3"], "1,3"),
        ("boxed", r"so $\boxed{\frac12}$", r"\frac12"),
    ],
)
def test_gold_rules_by_hand(rule, value, gold, sums):
    changed = sums.model_copy(update={"gold": tasks.Gold(rule=rule, column="answer")})
    assert tasks._problem(changed, {"question": "q", "answer": value}, 0).gold == gold


def test_last_boxed_by_hand():
    assert tasks.last_boxed(r"so \boxed{1} then \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"
    assert tasks.last_boxed(r"\boxed{\{1, 2\}}") == r"\{1, 2\}"
    assert tasks.last_boxed(r"$\boxed 7$") == "7"
    assert tasks.last_boxed(r"\boxed{3} and \boxed{4") == "3"
    assert tasks.last_boxed("nothing") is None
