"""What a reward asks for is read in its source; nothing of the user's runs."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from posttrain.rewards.resolve import describe, load_reward
from posttrain.rewards.runner import RewardRunner
from posttrain.rewards.signature import RewardSpecError, completions_by_annotation

SOURCE = """
    import functools
    from functools import partial
    import beside
    import beside as other
    from beside import near as renamed
    from pathlib import Path
    try:
        from no_such_package import judge
    except ImportError:
        def judge(completions, gold): ...

    Path(__file__).with_suffix(".ran").touch()
    LIMIT = 3
    def plain(completions, answer, level=None, *, scale: float = 1.0): ...
    alias = plain
    short = lambda completions, *, target, **kw: []
    scaled = functools.partial(plain, scale=2.0, level=1)
    twice = partial(scaled, answer="x")
    attribute = other.near
    class Judge:
        def __init__(self, rubric): ...
        async def __call__(self, completions, *, rubric, **_): ...
    instance = Judge("strict")
    made = functools.lru_cache(plain)
    made_too = beside.factory()
    first, second = plain, plain
    around = around_again
    around_again = around
    scaled.answers = lambda completions: completions
    typed: object = plain
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(textwrap.dedent(SOURCE))
    (tmp_path / "beside.py").write_text(
        "raise RuntimeError('imported')\ndef near(completions, *, gold): ...\ndef factory(): ...\n"
    )
    inner = tmp_path / "pack_read" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "pack_read" / "__init__.py").write_text("from .inner import f as reward\n1 / 0\n")
    (inner / "__init__.py").write_text("from ..deep import g as f\n")
    (tmp_path / "pack_read" / "deep.py").write_text("def g(completions, deep): ...\n")
    (tmp_path / "stars.py").write_text("from beside import *\n")
    (tmp_path / "latin.py").write_bytes(
        "# -*- coding: latin-1 -*-\nNAME = 'é'\ndef f(completions): ...\n".encode("latin-1")
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "needed", "optional"),
    [
        ("plain", ("answer",), ("level",)),
        ("alias", ("answer",), ("level",)),
        ("typed", ("answer",), ("level",)),
        ("short", ("target",), ()),
        ("scaled", ("answer",), ()),
        ("twice", (), ()),
        ("renamed", ("gold",), ()),
        ("attribute", ("gold",), ()),
        ("judge", ("gold",), ()),
        ("instance", ("rubric",), ()),
    ],
)
def test_a_function_is_found_however_it_is_named(folder, name, needed, optional):
    signature = describe(f"mine.py:{name}", folder)
    assert (signature.known, signature.columns_needed, signature.optional) == (True, needed, optional)
    assert not (folder / "mine.ran").exists()
    assert signature.is_async == (name == "instance")
    assert signature.yields_answers == (name == "scaled")


def test_what_a_partial_has_filled_is_a_setting_and_takes_no_column(folder):
    scaled = describe({"name": "mine.py:scaled", "args": {"scale": 3.0}}, folder)
    assert scaled.wanted(["answer", "level", "scale"]) == ["answer"]


def test_packages_are_followed_through_relative_imports_without_importing_them(folder):
    assert describe("pack_read:reward", folder).columns_needed == ("deep",)
    assert describe("pack_read.inner:f", folder).columns_needed == ("deep",)
    assert not any(name.startswith("pack_read") for name in sys.modules)


@pytest.mark.parametrize("name", ["made", "made_too", "first", "around"])
def test_what_only_running_shows_is_not_known(folder, name):
    assert not describe(f"mine.py:{name}", folder).known
    assert not (folder / "mine.ran").exists()


def test_star_imports_and_compiled_modules_are_not_known(folder):
    assert not describe("stars.py:anything", folder).known
    assert not describe("math:sqrt", folder).known


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mine.py:LIMIT", "'LIMIT' is not a function"),
        ("mine.py:Judge", "'Judge' is a class; make an instance"),
        ("mine.py:beside", "'beside' is a module"),
        ("mine.py:plane", "mine.py has no function 'plane'; did you mean 'plain'"),
        ("pack_read.nothing:f", "there is no module 'pack_read.nothing'"),
        ("pack_read.deep.deeper:f", "there is no module 'pack_read.deep.deeper'"),
        ("pack_read:rewards", "pack_read has no function 'rewards'; did you mean 'reward'"),
    ],
)
def test_what_can_be_refused_without_running_is(folder, name, words):
    with pytest.raises(RewardSpecError) as caught:
        describe(name, folder)
    assert words in str(caught.value)


def test_a_file_is_read_in_the_encoding_it_declares(folder):
    assert describe("latin.py:f", folder).known
    (folder / "zero.py").write_bytes(b"def f(completions): ...\n\0")
    with pytest.raises(RewardSpecError, match="zero.py"):
        describe("zero.py:f", folder)


def test_the_runner_asks_a_process_what_the_source_does_not_show(folder):
    (folder / "factory.py").write_text(
        "def make(value):\n"
        "    def judge(completions, *, answer, prompts):\n"
        "        return [value if a == p else 0.0 for a, p in zip(answer, prompts)]\n"
        "    return judge\n"
        "two = make(2.0)\n"
    )
    with RewardRunner(["factory.py:two"], workers=1, base_dir=folder) as runner:
        assert runner.signatures[0].columns_needed == ("answer",)
        scores = runner.score(["x", "y"], columns={"answer": ["a", "b"]}, prompts=["a", "c"], group_size=2)
    assert scores.values == [[2.0], [0.0]]
    with pytest.raises(RewardSpecError, match="no setting 'scale'"):
        describe({"name": "mine.py:short", "args": {"scale": 1}}, folder)


@pytest.mark.parametrize(
    ("annotation", "reads"),
    [
        ("list[str]", "text"),
        ("Sequence[str]", "text"),
        ("typing.List[str]", "text"),
        ("list[list[dict]]", "messages"),
        ("'list[list[dict[str, str]]]'", "messages"),
        ("Sequence[Sequence[Mapping[str, Any]]]", "messages"),
        ("list[list[ChatMessage]]", "messages"),
        ("", None),
        ("list", None),
        ("Any", None),
        ("list[Any]", None),
        ("dict[str, str]", None),
    ],
)
def test_text_or_messages_by_annotation(annotation, reads):
    assert completions_by_annotation(annotation) == reads


def test_completions_as_is_checked_against_the_annotation():
    assert describe({"name": "reward", "function": lambda completions: []}).completions_as == "text"
    asked = describe({"name": "reward", "function": lambda completions: [], "completions_as": "messages"})
    assert asked.completions_as == "messages"
    with pytest.raises(
        RewardSpecError, match="completions_as is 'messages', and its parameter is annotated as Seq"
    ):
        describe({"name": "math_answer", "completions_as": "messages"})
    with pytest.raises(RewardSpecError, match="choose 'text', 'messages' or 'images'"):
        describe({"name": "math_answer", "completions_as": "tokens"})


def test_what_is_read_is_what_loading_would_give(tmp_path):
    """Against inspect, on what the parser could get wrong: positions, several definitions, modules of a package."""
    pack = tmp_path / "pack_loaded"
    pack.mkdir()
    (pack / "__init__.py").write_text("")
    (pack / "base.py").write_text(
        "import functools\n"
        "def f(level, completions, *, answer): ...\n"
        "def twice(completions, old): ...\n"
        "def twice(completions, new): ...\n"
        "bound = functools.partial(f, 3)\n"
    )
    (pack / "user.py").write_text("from .base import bound, twice as renamed\n")
    for name in (
        "pack_loaded.base:bound",
        "pack_loaded.base:twice",
        "pack_loaded.user:bound",
        "pack_loaded.user:renamed",
    ):
        read = describe(name, tmp_path)
        assert read.known
        loaded = describe({"name": name, "function": load_reward(name, tmp_path)})
        assert (read.columns_needed, read.optional) == (loaded.columns_needed, loaded.optional)
    assert describe("pack_loaded.user:renamed", tmp_path).columns_needed == ("new",)


def test_a_setting_is_not_given_a_column_of_its_name():
    def takes_all(completions, level=1, **columns): ...

    spec = {"name": "reward", "function": takes_all, "args": {"level": 3}}
    assert describe(spec).wanted(["level", "answer"]) == ["answer"]
