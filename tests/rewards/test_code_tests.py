"""The reward code_tests: which program, which tests, how many of them passed; and what a plan says of the machine."""

from __future__ import annotations

import gzip
import json
import signal
import threading
from pathlib import Path

import pytest

from posttrain.planning.rewards import machine_reports
from posttrain.recipe import load_recipe
from posttrain.rewards import code_reward
from posttrain.rewards.code_reward import NoSandbox, code_tests
from posttrain.rewards.program_text import fenced_blocks, program_of, row_tests, sources_of
from posttrain.rewards.resolve import RewardSpecError, describe, faults
from posttrain.rewards.runner import RewardRunner
from posttrain.rewards.sandbox import protection, run_program
from posttrain.rewards.sandbox.enclosure import Enclosure
from posttrain.rewards.sandbox.limits import ProgramLimits
from posttrain.rewards.sandbox.protection import find_protection, protection_of
from posttrain.rewards.sandbox.run_tests import InputOutput, Statements, run_tests, same_output

SQUARES = ["assert f(3) == 9", "assert f(4) == 16", "assert f(-9) == 81", "assert f(0) == 0"]
UNSAFE = {"allow_unsafe": True}  # a machine without a sandbox runs these harmless programs all the same


def score(text: str, **columns) -> float | None:
    return code_tests([text], **{name: [value] for name, value in columns.items()}, **UNSAFE)[0]


# ---- the program in a completion


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\na = 1\n```", "a = 1\n"),
        ("First\n```py\na = 1\n```\nbetter\n```python\na = 2\n```\nprints\n```\n2\n```", "a = 2\n"),
        ("```\na = 1\n```\nor\n~~~\na = 2\n~~~\n", "a = 2\n"),
        ("```json\n{}\n```\n```\na = 1\n```", "a = 1\n"),
        ("a = 1", "a = 1"),
        ("cut off:\n```python\na = 1\nb =", "a = 1\nb =\n"),
        ("````python\ntext = '''\n```\n'''\n````", "text = '''\n```\n'''\n"),
        ("<think>```python\na = 1\n```</think>```python\na = 2\n```", "a = 2\n"),
        ("<think>```python\na = 1\n```", None),
        ("", None),
        ("```python\n```", None),
    ],
)
def test_the_program_is_the_last_block_of_python(text: str, program: str | None) -> None:
    assert program_of(text) == program


def test_blocks_know_their_language() -> None:
    assert fenced_blocks("  ```Python x\n  a\n  ```\n```c++\nb\n```") == [("Python", "  a\n"), ("c++", "b\n")]


PREFIX = "import math\n\n\ndef helper(x):\n    return x + 1\n\n\ndef f(x):\n    '''Doubles.'''\n"


@pytest.mark.parametrize(
    "program",
    [
        "def f(x):\n    return 2 * x\n",
        "    return 2 * x\n",
        "    return 2 * x\n\n\ndef g(:\n",  # a base model goes on, and is cut off
        "return 2 * x\n",
        "    def f(x):\n        return helper(x) + math.floor(x) - 1\n",  # a block in a list
        "f = lambda x: 2 * x",
    ],
)
def test_a_program_is_the_function_or_the_rest_of_it(program: str) -> None:
    row = {
        "prefix": PREFIX,
        "entry_point": "f",
        "test": "def check(candidate):\n    assert candidate(4) == 8",
    }
    tests = row_tests(row)
    assert isinstance(tests, Statements)
    assert sources_of(program, tests)
    assert score(f"```python\n{program}```" if program.startswith("return") else program, **row) == 1.0


# ---- the tests in a row


@pytest.mark.parametrize(
    "tests",
    [
        {"inputs": ["1\n", "2\n"], "outputs": ["1\n", "4\n"]},
        {"input": ["1\n", "2\n"], "output": ["1\n", "4\n"]},
        [{"input": "1\n", "output": "1\n"}, {"input": "2\n", "output": "4\n"}],
        json.dumps({"inputs": ["1\n", "2\n"], "outputs": ["1\n", "4\n"]}),
    ],
)
def test_shapes_of_inputs_and_outputs(tests) -> None:
    assert row_tests({"tests": tests}) == InputOutput(("1\n", "2\n"), ("1\n", "4\n"))


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"tests": None},
        {"tests": "no json"},
        {"tests": {"inputs": ["1"], "outputs": []}},
        {"tests": {"inputs": [[1]], "outputs": [1], "fn_name": "f"}},
        {"tests": {"inputs": [1], "outputs": [1]}},
        {"tests": []},
        {"test_list": [1, 2]},
        {"test": "def check(candidate): pass"},  # which function?
        {"test": "def check(candidate): pass", "entry_point": "a.b"},
        {"test_list": ["assert f("]},
        {"test_list": ["assert f(lambda: 1) == 1"]},  # a function does not travel
    ],
)
def test_a_row_without_tests_that_can_be_run_cannot_be_judged(row) -> None:
    assert score("def f(x): return 1", **row) is None


# ---- the share that is passed


def test_the_share_of_tests_by_hand() -> None:
    assert score("def f(x): return x * x", test_list=SQUARES) == 1.0
    assert score("def f(x): return abs(3 * x)", test_list=SQUARES) == 0.5
    assert score("def f(x): return 5", test_list=SQUARES) == 0.0
    assert score("no program", test_list=SQUARES) == 0.0
    assert score("", test_list=SQUARES) == 0.0
    assert code_tests(["def f(x): return 3 * x"], test_list=[SQUARES], all_or_nothing=True, **UNSAFE) == [0.0]
    assert code_tests(["def f(x): return x * x"], test_list=[SQUARES], all_or_nothing=True, **UNSAFE) == [1.0]


@pytest.mark.parametrize(
    ("program", "passed"),
    [
        ("print(int(input()) ** 2)", 2),
        ("print(int(input()) ** 2, ' \\n\\n')", 2),  # spaces at the ends of lines, empty lines at the end
        ("import sys\nprint(int(sys.stdin.read()) ** 2, end='')", 2),
        ("if __name__ == '__main__':\n    print(1)", 1),
        ("print(1)\nprint(4)", 0),
        ("print(int(input()) ** 2)\nraise SystemExit(3)", 0),
        ("print(int(input()) ** 2)\n1 / 0", 0),
        ("", 0),
    ],
)
def test_standard_input_and_output(program: str, passed: int) -> None:
    rows = [{"inputs": ["1\n", "2\n"], "outputs": ["1\n", "4\n"]}]
    assert code_tests([f"```python\n{program}\n```"], tests=rows, **UNSAFE) == [passed / 2]


def test_outputs_are_compared_line_by_line() -> None:
    assert same_output(b"a \r\nb\n\n", "a\nb")
    assert not same_output(b"a b", "a\nb")
    assert not same_output(b" a", "a")
    assert not same_output(b"\xff", "a")


def test_tests_reached_before_the_time_is_over_count() -> None:
    program = "def f(x):\n    while x < 0: pass\n    return x * x"
    found = code_tests([program], test_list=[SQUARES], seconds=3.0, **UNSAFE)
    assert found == [0.5]  # the third never ends, the fourth is not reached


PLAIN = "[None, True, 2**70, 1.5, float('inf'), 1j, 'é\\ud800', b'x', (1,), {1: {2}}, frozenset([3]), range(3), int]"


def test_plain_data_travels_both_ways_as_itself() -> None:
    tests = [
        f"x = {PLAIN}\ny = f(x)\nassert x == y and [type(a) for a in x] == [type(b) for b in y]",
        "from decimal import Decimal\nfrom fractions import Fraction\n"
        "assert f([Decimal('1.10'), Fraction(1, 3)]) == [Decimal('1.1'), Fraction(1, 3)]",
        "assert f({1: 2}) is not None and math.isnan(f(float('nan')))",
    ]
    assert score("def f(x): return x", test_list=tests) == 1.0


def test_objects_stay_with_the_program_and_are_usable() -> None:
    program = (
        "import collections\n"
        "class Pair:\n"
        "    def __init__(self, a, b): self.a, self.b = a, b\n"
        "def total(pairs): return len([p.a + p.b for p in pairs])\n"
        "def squares(n): return (k * k for k in range(n))\n"
        "def count(text): return collections.Counter(text)\n"
        "def sum(a, b): return a + b\n"
    )
    tests = [
        "assert list(squares(4)) == [0, 1, 4, 9]",
        "pair = Pair(1, 2)\npair.a = 5\nassert pair.a + pair.b == 7",
        "assert count('aab') == {'a': 2, 'b': 1}",
        "assert total([Pair(1, 2), pair]) == 2",
        "assert not Pair(1, 2) == Pair(1, 2)",  # what it says of equality is not heard
    ]
    assert score(program, test_list=tests) == 1.0
    assert score("def sum(a, b): return a * b", test_list=["assert sum(2, 5) == 10"]) == 1.0
    assert (
        score("def sorted(x): return [1]\ndef f(x): return x", test_list=["assert sorted(f([2])) == [1]"])
        == 0.0
    )


def test_exceptions_of_the_program_are_what_they_were() -> None:
    test = (
        "try:\n    f(1)\nexcept ValueError as error:\n    assert 'odd' in str(error)\nelse:\n    assert False"
    )
    assert score("class Odd(ValueError): pass\ndef f(x): raise Odd('odd')", test_list=[test]) == 1.0
    assert score("def f(x): raise KeyError('odd')", test_list=[test]) == 0.0


# ---- a machine with much else to do


def stopped_at_its_start(monkeypatch: pytest.MonkeyPatch, seconds: float | None) -> None:
    """The program, not the tests, takes so long to start; None for ever."""
    start = run_tests.__globals__["_program"]

    def slow(*args, **words):
        program = start(*args, **words)
        program._process.send_signal(signal.SIGSTOP)
        if seconds is not None:
            threading.Timer(seconds, program._process.send_signal, (signal.SIGCONT,)).start()
        return program

    monkeypatch.setitem(run_tests.__globals__, "_program", slow)
    monkeypatch.setattr(run_program, "_GRACE_S", 0.2)


def test_a_slow_start_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_at_its_start(monkeypatch, seconds=1.2)
    limits, enclosure = ProgramLimits(seconds=1.0), find_protection().enclosure
    verdict = run_tests(["def f(x): return x * x"], Statements(tuple(SQUARES)), limits, enclosure)
    assert verdict.passed == len(SQUARES), verdict.why


def test_tests_that_cannot_be_run_need_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_at_its_start(monkeypatch, seconds=None)
    verdict = run_tests(["f = 1"], Statements(("assert f(",)), ProgramLimits(), find_protection().enclosure)
    assert verdict.passed is None
    assert verdict.why


# ---- as a reward of a run


def test_a_run_gets_scores_and_reasons() -> None:
    spec = {"name": "code_tests", "args": UNSAFE}
    texts = ["```python\ndef f(x): return x * x\n```", "```python\ndef f(x): return 1 / 0\n```", "words"]
    with RewardRunner([spec], workers=1) as runner:
        scores = runner.score(texts, columns={"test_list": [SQUARES] * 3}, group_size=3)
    assert scores.values == [[1.0], [0.0], [0.0]]
    assert scores.extra["code_tests"] == [
        "4 of 4",
        "0 of 4; ZeroDivisionError: division by zero",
        "0 of 4; NameError: name 'words' is not defined",
    ]


def test_settings_are_checked_before_anything_runs() -> None:
    for args, said in (
        ({"seconds": 0}, "seconds is 0"),
        ({"memory_mb": 10}, "memory_mb is 10"),
        ({"parallel": 0}, "parallel is 0"),
        ({"second": 3}, "did you mean 'seconds'"),
    ):
        with pytest.raises(RewardSpecError, match=said):
            describe({"name": "code_tests", "args": args})
    assert faults({"name": "code_tests"}, ["prompt", "test_list"]) == []
    assert (
        "needs one of 'tests', 'test_list', 'test'" in faults({"name": "code_tests"}, ["prompt", "cases"])[0]
    )


RECIPE = """
method: grpo
model: {scratch: {}}
data: {path: rows.jsonl}
rewards: [{name: code_tests, args: ARGS}]
objective: {clip_low: 0.2, clip_high: 0.2}
rollout: {group_size: 4, max_new_tokens: 8}
train: {max_steps: 1, per_device_train_batch_size: 4, learning_rate: 1.0e-4, use_cpu: true}
"""


def plan_of(folder: Path, args: str) -> tuple[list[str], list[str], list[str]]:
    (folder / "r.yaml").write_text(RECIPE.replace("ARGS", args))
    return machine_reports(load_recipe(folder / "r.yaml"))


@pytest.fixture
def without_namespaces(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Enclosure, "possible", lambda self: self.kind == "plain" and not self.other_user)
    find_protection.cache_clear()
    protection_of.cache_clear()
    yield
    find_protection.cache_clear()
    protection_of.cache_clear()


def test_a_plan_says_what_protects_and_what_does_not(tmp_path: Path) -> None:
    lines, warnings, refusals = plan_of(tmp_path, "{seconds: 2, parallel: 2}")
    assert f"code_tests: sandbox: {protection._NAMES[find_protection().kind]}" in lines
    assert any("does not protect against: faults of the kernel" in line for line in lines)
    assert warnings == []
    assert (refusals == []) == find_protection().isolates
    _, warnings, _ = plan_of(tmp_path, "{seconds: 20, parallel: 2}")
    assert "take 42 s, and a call has timeout_s 30" in warnings[0]


@pytest.mark.usefixtures("without_namespaces")
def test_a_plan_refuses_a_machine_without_sandbox_unless_told(tmp_path: Path) -> None:
    lines, _, refusals = plan_of(tmp_path, "{}")
    assert "rewards[0]: no sandbox on this machine" in refusals[0]
    assert "allow_unsafe: true" in refusals[0]
    assert any("not used: bubblewrap: not installed" in line for line in lines)
    assert any("does not protect against: reading files" in line for line in lines)
    assert plan_of(tmp_path, "{allow_unsafe: true}")[2] == []
    with pytest.raises(NoSandbox, match="allow_unsafe"):
        code_tests(["x"], test_list=[SQUARES])
    assert code_tests(["def f(x): return x * x"], test_list=[SQUARES], allow_unsafe=True) == [1.0]


def test_an_enclosure_that_does_not_keep_its_promise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    met = dict.fromkeys(protection._HOLES, 0) | {"network": 1}
    monkeypatch.setattr(protection, "_probe", lambda enclosure: met)
    said = protection_of.__wrapped__("namespaces")
    assert "does not keep its promise: use of the network" in said


def test_a_group_runs_several_programs_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_reward.os, "cpu_count", lambda: 64)
    assert code_reward.at_a_time() == 16
    monkeypatch.setattr(code_reward.os, "cpu_count", lambda: 1)
    assert code_reward.at_a_time() == 1


# ---- published tests


@pytest.mark.parametrize(
    ("name", "rows"), [("humaneval/HumanEval", [0, 32, 38, 50]), ("mbpp/mbpp", [125, 366, 532, 600])]
)
def test_reference_programs_pass_their_tests(name: str, rows: list[int], shared_data: Path) -> None:
    """Rows with helpers in the prompt, with a function called sum, objects of the program's in the tests, a type."""
    lines = gzip.decompress((shared_data / f"{name}.jsonl.gz").read_bytes()).splitlines()
    enclosure = find_protection().enclosure
    for row in (json.loads(lines[n]) for n in rows):
        row = row | {"prefix": row.get("prompt")}
        tests = row_tests({key: value for key, value in row.items() if value is not None})
        assert tests is not None
        program = row.get("code") or row["canonical_solution"]
        verdict = run_tests(sources_of(program, tests), tests, ProgramLimits(), enclosure)
        assert (verdict.passed, verdict.why) == (verdict.total, ""), row["task_id"]
