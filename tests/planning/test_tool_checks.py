"""Tools and environments in a recipe: what is read, what is refused before anything starts, what the plan says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_recipe import POLICY, SFT, Load, Refused, merged

from posttrain.environments import adapter_checks, tool_specs
from posttrain.environments.tool_specs import BUILT_IN_TOOLS
from posttrain.planning.tool_checks import BUILT_IN, BUILT_IN_ENVIRONMENTS
from posttrain.run.continuing import flat, verdict
from posttrain.run.plan import make_plan

TOOLS = '''
from math import sqrt as root
from typing import Any
raise RuntimeError("a plan runs nothing")

def look(word: str, most: int = 3, *, folder: str, deep: bool = False) -> str:
    """Looks a word up.

    Args:
        word: what to look for
        most: how many to give
    """

def silent(word: str) -> str:
    return word

def untyped(word):
    """Says.

    Args:
        word: what
    """

def undescribed(word: str) -> str:
    """Says a word."""

def loose(*words: str) -> str:
    """Says words."""

made = look

class Room:
    """A room."""
    def __init__(self, size: int = 3): ...
    def reset(self, **row): ...
    def walk(self, to: str) -> str:
        """Walks.

        Args:
            to: where
        """
    def look(self, word: str) -> str:
        """Looks.

        Args:
            word: at what
        """
    def _own(self): ...

class Judged(Room):
    pass

class Paying:
    def reset(self, **row): ...
    def get_reward(self): ...
    def act(self) -> str:
        """Acts."""

class Still:
    def get_reward(self): ...
'''
CHAT = (
    "{% for m in messages %}{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
    "{% endfor %}"
)
BASE: dict[str, Any] = merged(POLICY, {"model": {"chat_template": "chat.jinja"}, "data": {"chat": True}})


@pytest.fixture
def refusals(load: Load, monkeypatch: pytest.MonkeyPatch) -> Any:
    Path("tools.py").write_text(TOOLS)
    Path("chat.jinja").write_text(CHAT)

    def run(base: dict[str, Any] = BASE, **changes: Any) -> list[str]:
        return make_plan(load(base, **changes)).refusals

    return run


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"name": f"tools.py:{name}", **more}


def test_a_recipe_with_tools_is_read_and_told(load: Load, refusals: Any) -> None:
    given = {
        "tools": [tool("look", args={"folder": "here"}), "python"],
        "environment": {"name": "tools.py:Room"},
    }
    found = refusals(**{**given, "tools": [given["tools"][0] | {"timeout_s": 3}]}, rollout={"max_turns": 4})
    assert found == ["tools: two are called 'look', and a model could not tell them apart; rename one"]
    plan = make_plan(
        load(BASE, environment={"name": "tools.py:Room", "args": {"size": 4}}, rollout={"max_turns": 4})
    )
    assert plan.refusals == []
    assert plan.tools[0].startswith(
        "environment tools.py:Room with walk, look: 10 s and 4000 characters a call"
    )
    assert (
        "at most 4 turns of the model in a response, whose 9 tokens include what tools answer" in plan.tools
    )
    recipe = load(BASE, tools=["tools.py:look", {"name": "python", "args": {"seconds": 2}}])
    assert [one.name for one in recipe.tools] == ["tools.py:look", "python"]
    assert recipe.tools[1].args == {"seconds": 2}
    resolved = recipe.resolved()
    assert load(BASE, tools=resolved["tools"]).tools == recipe.tools
    assert {verdict(key, {}) for key in flat(resolved) if key.startswith(("tools", "environment"))} == {None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tools": ["pyton"]}, "tools[0]: there is no 'pyton'; did you mean 'python'?"),
        ({"tools": ["absent.py:f"]}, "tools[0]: 'absent.py:f': there is no file absent.py here or beside"),
        ({"tools": ["no_such_package.f:g"]}, "there is no module 'no_such_package'"),
        ({"tools": [tool("loook")]}, "has no function 'loook'; did you mean 'look'?"),
        ({"tools": [tool("Room")]}, "'tools.py:Room' is a class, and a tool is a function"),
        ({"tools": [tool("look")]}, "look needs its setting 'folder'; give it under args"),
        (
            {"tools": [tool("look", args={"folder": "x", "dep": 1})]},
            "no parameter 'dep'; did you mean 'deep'?",
        ),
        ({"tools": [tool("silent")]}, "silent has no docstring, which is what the model is told of it"),
        ({"tools": [tool("untyped")]}, "untyped has no type hint for 'word'"),
        ({"tools": [tool("undescribed")]}, "says nothing of 'word' under `Args:`"),
        ({"tools": [tool("loose")]}, "loose takes * or **, and a model calls by name"),
        (
            {"tools": [{"name": "python", "args": {"secnds": 1}}]},
            "python has no setting 'secnds'; did you mean",
        ),
        (
            {"tools": [{"name": "python", "args": {"seconds": 30}}]},
            "args.seconds 30 is not below timeout_s 10",
        ),
        ({"environment": tool("look")}, "'tools.py:look' is a function, and an environment is a class"),
        ({"environment": tool("Still")}, "has no method reset(self, **row), which begins an episode"),
        ({"environment": tool("Still")}, "no public method but reset and get_reward, so nothing to call"),
        ({"environment": tool("Room", args={"sise": 2})}, "Room takes no 'sise'; did you mean 'size'?"),
        (
            {"environment": tool("Room"), "rewards": None},
            "no method get_reward(self), and the recipe no rewards",
        ),
        ({"environment": tool("Room"), "rollout": {"resample": {}}}, "'resample' does not go with tools"),
        (
            {"tools": ["python"], "data": {"chat": False}},
            "tools take prompts that are messages; set data.chat: true",
        ),
        (
            {"tools": ["python"], "model": {"chat_template": "absent.jinja"}},
            "chat_template: no file 'absent.jinja'",
        ),
        ({"tools": ["python"], "model": {"chat_template": None}}, "no chat template"),
        ({"rollout": {"max_turns": 3}}, "'max_turns' does nothing without tools or an environment"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], words: str, refusals: Any) -> None:
    found = refusals(**changes)
    assert any(words in line for line in found), found


def test_the_plan_knows_every_built_in_environment(refusals: Any) -> None:
    assert set(BUILT_IN_ENVIRONMENTS) == set(tool_specs.BUILT_IN_ENVIRONMENTS) == set(adapter_checks._LINES)
    said = refusals(environment={"name": "openenvs", "args": {}})
    assert any("there is no 'openenvs'; did you mean 'openenv'?" in line for line in said)
    said = refusals(environment={"name": "openenv", "args": {"url": "http://127.0.0.1:9"}})
    assert any("no OpenEnv server answers at http://127.0.0.1:9/schema" in line for line in said)


def test_the_plan_knows_every_built_in_tool() -> None:
    assert set(BUILT_IN) == set(BUILT_IN_TOOLS)


def test_what_a_source_does_not_show_is_left_to_the_start(refusals: Any) -> None:
    """Another name for a function, an inherited class: nothing is said of them, and nothing run."""
    assert refusals(tools=[tool("made"), tool("root")]) == []
    assert refusals(environment=tool("Judged"), rewards=None) == []
    assert refusals(environment=tool("Paying"), rewards=None) == []


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "leaves out the calls of tools"),
        (
            "{% for m in messages if m.role != 'tool' %}{{ m.content }}{{ m.tool_calls or '' }}{% endfor %}",
            "leaves out what tools answer",
        ),
        (
            "{% if messages[2] is defined %}{{ raise_exception('no tools') }}{% endif %}a",
            "refuses calls of tools: no tools",
        ),
    ],
)
def test_a_template_without_tools_is_refused(template: str, words: str, refusals: Any) -> None:
    Path("chat.jinja").write_text(template)
    (found,) = refusals(tools=["python"])
    assert words in found


def test_methods_that_do_not_sample_turns_have_no_tools(refused: Refused) -> None:
    for section, given in (("tools", ["python"]), ("environment", {"name": "x.py:Y"})):
        assert f"r.yaml: {section}: has no effect with method 'sft'; remove the section" in refused(
            SFT, **{section: given}
        )
    assert any("tools: must be a list" in line for line in refused(tools="python"))
    assert any("rewards: the section is missing" in line for line in refused(rewards=None))
