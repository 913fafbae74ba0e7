"""What a reward's name stands for, and what its signature asks for, without running it."""

from __future__ import annotations

import functools
import subprocess
import sys
import textwrap

import pytest

from posttrain.rewards.resolve import BUILT_IN, RewardSpec, describe, faults, load_reward
from posttrain.rewards.signature import RewardSpecError

USER_FILE = """
    import torch_is_not_here
    from typing import Literal
    from posttrain.rewards.hooks import judges_each, yields_answers

    def plain(completions, answer, level=None, scale: float = 1.0):
        return [0.0] * len(completions)

    async def waits(prompts, completions, *, numbers, mode: Literal["a", "b"] = "a", **columns):
        return [0.0] * len(completions)

    @judges_each
    @yields_answers(lambda completions: completions)
    def hooked(completions, *, completion_tokens, limit: int | None, **_):
        return [0.0] * len(completions)

    if True:
        def nested(completions):
            return [0.0]

    def no_completions(texts):
        return []
"""


@pytest.fixture
def user_file(tmp_path):
    (tmp_path / "mine.py").write_text(textwrap.dedent(USER_FILE))
    return tmp_path


def test_a_users_file_is_described_without_importing_it(user_file):
    plain = describe("mine.py:plain", user_file)
    assert plain.columns_needed == ("answer",)
    assert plain.optional == ("level",)  # scale is a setting: annotated with a plain type
    assert (plain.accepts_any, plain.is_async, plain.yields_answers) == (False, False, False)

    waits = describe(RewardSpec("mine.py:waits", {"mode": "b"}), user_file)
    assert waits.columns_needed == ("numbers",)
    assert waits.runtime == ("prompts",)
    assert (waits.accepts_any, waits.is_async) == (True, True)
    assert waits.args == {"mode": "b"}

    hooked = describe({"name": "mine.py:hooked", "args": {"limit": 3}}, user_file)
    assert hooked.columns_needed == ()
    assert hooked.runtime == ("completion_tokens",)
    assert (hooked.accepts_any, hooked.yields_answers, hooked.judges_each) == (False, True, True)
    assert describe("mine.py:nested", user_file).columns_needed == ()


def test_columns_are_chosen_by_signature(user_file):
    columns = ["prompts", "completion_tokens", "answer", "level", "scale", "numbers"]
    assert describe("mine.py:plain", user_file).wanted(columns) == ["answer", "level"]
    assert describe("mine.py:waits", user_file).wanted(columns) == columns
    assert describe({"name": "mine.py:hooked", "args": {"limit": 3}}, user_file).wanted(columns) == [
        "completion_tokens"
    ]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("math_anser", "there is no reward 'math_anser'; did you mean 'math_answer'"),
        ("nowhere.py:f", "there is no file"),
        ("mine.py:plane", "has no function 'plane'; did you mean 'plain'"),
        ("no_such_package.rewards:f", "there is no module 'no_such_package'"),
        ("posttrain.rewards.builtin:exact_mach", "did you mean 'exact_match'"),
        ("mine.py:no_completions", "has no parameter 'completions'"),
        ({"name": "mine.py:plain", "args": {"scal": 2.0}}, "no setting 'scal'; did you mean 'scale'"),
        (
            {"name": "mine.py:waits", "args": {"other": 1}},
            "no setting 'other'",
        ),  # **columns takes columns only
        ({"name": "mine.py:plain", "args": {"scale": "much"}}, "scale is 'much', which is not float"),
        ({"name": "mine.py:plain", "args": {"scale": True}}, "scale is True, which is not float"),
        ({"name": "mine.py:waits", "args": {"mode": "c"}}, "mode is 'c'"),
        ({"name": "math_answer", "args": {"answer_format": "box"}}, "answer_format is 'box'"),
        ({"name": "format_regex", "args": {"pattern": "("}}, "not a regular expression"),
        ({"name": "length_penalty", "args": {"max_tokens": 10, "buffer": 20}}, "buffer is 20"),
    ],
)
def test_refusals_say_what_is_wrong_and_what_to_do(user_file, spec, words):
    with pytest.raises(RewardSpecError) as caught:
        describe(spec, user_file)
    assert words in str(caught.value)


def test_a_syntax_error_names_file_and_line(tmp_path):
    (tmp_path / "broken.py").write_text("x = 1\ndef f(completions:\n    pass\n")
    with pytest.raises(RewardSpecError, match=r"broken.py, line 2"):
        describe("broken.py:f", tmp_path)


def test_missing_columns_are_faults_in_words(user_file):
    assert faults("mine.py:plain", ["answer"], user_file) == []
    (fault,) = faults("mine.py:plain", ["question", "answers"], user_file)
    assert fault == (
        "reward 'mine.py:plain' needs 'answer', which is neither a column of the data (question, answers) nor given "
        "under its args; did you mean 'answers'?"
    )
    (fault,) = faults({"name": "length_penalty", "args": {"buffer": 2}}, ["question"])
    assert "needs 'max_tokens'" in fault
    assert faults("no_such", ["question"])[0].startswith("there is no reward")


def test_built_in_rewards_are_described_and_loaded():
    needed = {name: describe(name).columns_needed for name in BUILT_IN}
    assert needed == {
        "math_answer": ("answer",),
        "exact_match": ("answer",),
        "format_regex": ("pattern",),
        "length_penalty": ("max_tokens", "buffer"),
        "repetition": (),
        "instructions_followed": ("instruction_id_list", "kwargs"),
        "countdown": ("numbers", "target"),
        "sudoku": ("puzzle",),
        "code_tests": (),
        "jpeg_size": (),
        "image_statistic": (),
        "image_class": ("folder",),
        "clip_score": ("folder",),
        "pickscore": ("folder",),
        "ocr_match": (),
        "drift_penalty": ("goal", "reference"),
        "policy_precedents": ("policy", "model", "base_url"),
        "tool_call_match": ("answer",),
        "reasoning_gym": ("puzzle",),
    }
    assert {name for name in BUILT_IN if describe(name).yields_answers} == {
        "math_answer", "exact_match", "countdown", "sudoku", "tool_call_match",
    }  # fmt: skip
    assert all(describe(name).judges_each for name in BUILT_IN)
    assert load_reward("exact_match")(["a"], answer=["a"], another_column=[1]) == [1.0]


def test_a_file_may_import_its_neighbours_and_a_package_its_modules(tmp_path):
    (tmp_path / "neighbour.py").write_text("VALUE = 4.0\n")
    (tmp_path / "near.py").write_text(
        "from neighbour import VALUE\n\ndef f(completions):\n    return [VALUE] * len(completions)\n"
    )
    (tmp_path / "pack_of_rewards").mkdir()
    (tmp_path / "pack_of_rewards" / "__init__.py").write_text("")
    (tmp_path / "pack_of_rewards" / "inner.py").write_text(
        "import functools\n\ndef g(completions, *, gold):\n    return gold\n"
    )
    assert load_reward("near.py:f", tmp_path)(["a"]) == [4.0]
    assert describe("pack_of_rewards.inner:g", tmp_path).columns_needed == ("gold",)
    assert load_reward("pack_of_rewards.inner:g", tmp_path)(["a"], gold=[1.0]) == [1.0]


def test_callables_of_many_kinds_are_described():
    class Judge:
        async def __call__(self, completions, *, rubric, **columns):
            return [1.0] * len(completions)

    def scaled(completions, *, answer, scale: float):
        return [scale] * len(completions)

    judge = describe(Judge())
    assert (judge.name, judge.columns_needed, judge.is_async, judge.accepts_any) == (
        "Judge",
        ("rubric",),
        True,
        True,
    )
    partial = describe(functools.partial(scaled, scale=2.0))
    assert (partial.name, partial.columns_needed) == ("scaled", ("answer",))
    assert describe(lambda completions: []).name == "reward"


def test_describing_rewards_imports_neither_torch_nor_sympy():
    code = (
        "import sys\nfrom posttrain.rewards.resolve import BUILT_IN, describe\n"
        "[describe(name) for name in BUILT_IN]\n"
        "print([name for name in ('torch', 'sympy', 'transformers', 'math_verify') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_settings_with_defaults_are_checked_too():
    with pytest.raises(RewardSpecError, match="words is 0"):
        describe({"name": "repetition", "args": {"words": 0}})
    with pytest.raises(RewardSpecError, match="buffer is 9"):
        describe({"name": "length_penalty", "args": {"max_tokens": 4, "buffer": 9}})
    assert describe({"name": "length_penalty", "args": {"max_tokens": 4}}).columns_needed == ("buffer",)
