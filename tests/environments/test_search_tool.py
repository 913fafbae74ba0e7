"""The built-in tool `search`: BM25 over a file, one index for all calls, told to the model like any tool."""

from __future__ import annotations

import inspect
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from small_recipe import POLICY, Load, merged
from transformers.utils import get_json_schema

from posttrain.environments.search_tool import NOTHING, passage_index, search
from posttrain.environments.tool_specs import EnvironmentFault, ToolSpec
from posttrain.environments.toolbox import Toolbox, ToolCallFailed
from posttrain.planning.search_checks import search_faults
from posttrain.run.plan import make_plan

needs_it = pytest.mark.search
PASSAGES = [
    {"title": "Otters", "text": "The sea otter floats on its back and opens shells with a stone."},
    {"title": "Beavers", "text": "A beaver fells trees and builds a dam across the stream."},
    {"text": "The stream runs to the sea. The sea is cold, and the stream is long."},
    {"title": "Planet 9", "text": "A planet that nobody has seen."},
    {"title": "Planet 9", "text": "A planet that nobody has seen."},
]


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    file = tmp_path / "docs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PASSAGES))
    return str(file)


def words(passage: dict[str, str]) -> list[str]:
    return [word.strip(".,").lower() for word in f"{passage.get('title', '')} {passage['text']}".split()]


def bm25(query: str, passage: int) -> float:
    """Lucene's BM25 written down: idf ln(1 + (N - n + .5) / (n + .5)), k1 1.5, b .75, without the factor k1 + 1."""
    all_words = [words(one) for one in PASSAGES]
    mean = sum(map(len, all_words)) / len(all_words)
    score = 0.0
    for word in set(query.lower().split()):
        holding = sum(word in one for one in all_words)
        count = all_words[passage].count(word)
        idf = math.log(1 + (len(all_words) - holding + 0.5) / (holding + 0.5))
        score += idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(all_words[passage]) / mean))
    return score


@needs_it
@pytest.mark.parametrize("query", ["sea stream", "the planet 9", "beaver sea a", "stone"])
def test_the_order_is_that_of_the_formula(corpus: str, query: str) -> None:
    scores = [bm25(query, place) for place in range(len(PASSAGES))]
    expected = sorted((place for place in range(5) if scores[place] > 0), key=lambda p: (-scores[p], p))
    found = passage_index(corpus, "text", "title")
    assert [one.text for one in found.best(query, 9)] == [PASSAGES[place]["text"] for place in expected]
    assert [float(x) for x in found.index.scores(query)] == pytest.approx(scores, rel=1e-5)
    assert found.best(query, 1) == found.best(query, 9)[:1]


@needs_it
def test_what_the_model_reads(corpus: str) -> None:
    assert search("otter SHELLS", corpus=corpus, k=1) == f"[1] Otters\n{PASSAGES[0]['text']}"
    two = search("sea", corpus=corpus, k=2, passage_characters=10)
    assert two.startswith("[1]\nThe stream\n[cut: 10 of 68 characters]\n\n[2] Otters\nThe sea ot\n[cut:")
    assert search("9", corpus=corpus).count("Planet 9") == 2
    for nothing in ("zebra", "", "?!"):
        assert search(nothing, corpus=corpus) == NOTHING


@needs_it
def test_calls_run_in_a_process_and_share_one_index(corpus: str, tmp_path: Path) -> None:
    box = Toolbox([ToolSpec("search", {"corpus": corpus, "k": 2}, timeout_s=5.0, max_characters=40)])
    try:
        (shown,) = box.functions
        assert list(inspect.signature(shown).parameters) == ["query"]
        schema = get_json_schema(shown)["function"]
        assert schema["parameters"]["required"] == ["query"]
        assert list(schema["parameters"]["properties"]) == ["query"]
        box.start()
        Path(corpus).unlink()  # made before the first call: nothing is read again
        said = shown(query="beaver dam")
        assert said == "[1] Beavers\nA beaver fells trees and bui\n[cut: 40 of 68 characters]"
        with pytest.raises(ToolCallFailed, match="TypeError"):
            shown(words="beaver")
        assert shown(query="zebra") == NOTHING[:40] + f"\n[cut: 40 of {len(NOTHING)} characters]"
        assert box.use.take()["cut"] == 3  # the error's text too
    finally:
        box.close()


@needs_it
def test_a_corpus_without_texts_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "docs.jsonl"
    file.write_text('{"text": "a"}\n{"text": " "}\n')
    box = Toolbox([ToolSpec("search", {"corpus": str(file)})])
    try:
        with pytest.raises(EnvironmentFault, match="row 2 has no text in column 'text'"):
            box.start()
    finally:
        box.close()


CHAT = (
    "{% for m in messages %}{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
    "{% endfor %}"
)


def refusals(load: Load, corpus: str, **args: Any) -> list[str]:
    Path("chat.jinja").write_text(CHAT)
    base = merged(POLICY, {"model": {"chat_template": "chat.jinja"}, "data": {"chat": True}})
    given = {key: value for key, value in {"corpus": corpus, **args}.items() if value is not None}
    return make_plan(load(base, tools=[{"name": "search", "args": given}])).refusals


@needs_it
def test_a_recipe_with_it_is_planned_and_its_faults_are_said(load: Load, corpus: str) -> None:
    assert refusals(load, corpus, k=5) == []
    for args, said in (
        ({"corpus": None}, "search needs its setting 'corpus'"),
        ({"corpus": "absent.jsonl"}, "there is no corpus 'absent.jsonl' here or beside the recipe"),
        ({"k": 0}, "args.k must be a whole number of at least 1, not 0"),
        ({"k": True}, "args.k must be a whole number of at least 1, not True"),
        ({"text": "body"}, "has no column 'body'; its columns are title, text: name one in args.text"),
        ({"corpsu": "x"}, "search has no setting 'corpsu'; did you mean 'corpus'?"),
    ):
        (line,) = refusals(load, **{"corpus": corpus, **args})
        assert line.startswith("tools[0]: ")
        assert said in line


@needs_it
def test_a_corpus_beside_the_recipe_is_found(
    load: Load, corpus: str, tmp_path: Path, monkeypatch: Any
) -> None:
    from posttrain.recipe import load_recipe

    assert refusals(load, "docs.jsonl") == []
    monkeypatch.chdir("/")
    (tool,) = load_recipe(tmp_path / "r.yaml").tools
    assert tool.args["corpus"] == corpus


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert search_faults({"corpus": "x"}) == [
        "search needs the package bm25s: pip install 'posttrain[search]'"
    ]
