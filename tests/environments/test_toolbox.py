"""Tools and environments in processes of their own: what the model is told when they answer, hang, crash and flood."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from posttrain.data.reward_columns import marked
from posttrain.environments.tool_specs import EnvironmentFault, EnvironmentSpec, ToolFault, ToolSpec
from posttrain.environments.toolbox import Toolbox, ToolCallFailed

SOURCE = '''
import os
import random
import subprocess
import time


def add(a: int, b: int = 2, *, scale: int = 1) -> int:
    """Adds.

    Args:
        a: one
        b: other
    """
    return scale * (a + b)


async def later(a: int) -> int:
    """Waits.

    Args:
        a: how much
    """
    return a + 1


class Parent:
    def where(self) -> str:
        """Says where it is."""
        return str(os.getpid())


class Game(Parent):
    """A game."""

    def __init__(self, start=0):
        self.start = start

    def reset(self, *, hint=None, **row):
        self.n = self.start
        if hint == "boom":
            raise KeyError("no such game")
        return random.choice("abcdefgh") if hint == "draw" else hint

    def step(self, by: int) -> str:
        """Steps.

        Args:
            by: how far
        """
        self.n += by
        return f"n={self.n}"

    def hang(self) -> None:
        """Hangs, and has something hang beside it."""
        self.child = subprocess.Popen(["sleep", "77.7"], start_new_session=True)
        while True:
            time.sleep(0.01)

    def leave(self) -> None:
        """Ends its process."""
        os._exit(3)

    def flood(self) -> str:
        """Says too much."""
        return "y" * 100_000

    def fail(self) -> None:
        """Raises."""
        raise ValueError("not like that")

    def _hidden(self) -> None:
        pass

    def get_reward(self):
        return self.n
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tools") / "game.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture(scope="module")
def toolbox(file: Path) -> Iterator[Toolbox]:
    made = Toolbox(
        [ToolSpec(f"{file}:add", {"scale": 10}), ToolSpec(f"{file}:later")],
        EnvironmentSpec(f"{file}:Game", {"start": 5}, timeout_s=0.4, max_characters=30),
    )
    yield made
    made.close()


@pytest.fixture
def games(toolbox: Toolbox) -> list[Any]:
    assert toolbox.environment_factory is not None
    made = [toolbox.environment_factory() for _ in range(3)]
    toolbox.use.take()
    for game in made:
        game.reset(prompt="p")
    return made


def test_a_tool_is_shown_without_its_settings_and_called_with_them(toolbox: Toolbox) -> None:
    add, later = toolbox.functions
    assert add.__name__ == "add"
    assert list(inspect.signature(add).parameters) == ["a", "b"]
    assert (add(a=1), add(a=1, b=4), later(a=1)) == ("30", "50", "2")
    with pytest.raises(ToolCallFailed, match=r"TypeError: .*unexpected keyword argument 'c'"):
        add(a=1, c=2)


def test_each_environment_keeps_its_own_state_elsewhere(toolbox: Toolbox, games: list[Any]) -> None:
    a, b, _ = games
    assert type(a).__name__ == "Game"
    assert [a.step(by=1), a.step(by=1), b.step(by=7)] == ["n=6", "n=7", "n=12"]
    assert (a.get_reward(), b.get_reward(), a.n) == (7.0, 12.0, 7)
    assert len({a.where(), b.where(), str(os.getpid())}) == 3
    assert a.reset(hint="more") == "more"
    assert a.step(by=1) == "n=6"
    names = [name for name, _ in inspect.getmembers(type(a), inspect.isfunction) if not name.startswith("_")]
    assert names == ["fail", "flood", "get_reward", "hang", "leave", "reset", "step", "where"]
    with pytest.raises(AttributeError, match="'absent'"):
        _ = a.absent


def test_what_hangs_is_ended_alone_with_what_it_started(toolbox: Toolbox, games: list[Any]) -> None:
    a, b, _ = games
    begin = time.monotonic()
    with pytest.raises(ToolCallFailed, match=r"hang: no answer within 0\.4 s; it was ended"):
        a.hang()
    assert time.monotonic() - begin < 10
    assert b.step(by=1) == "n=6"
    with pytest.raises(ToolCallFailed, match="was ended before"):
        a.step(by=1)
    assert a.get_reward() is None  # it cannot be judged
    assert not any(
        b"77.7" in Path(f"/proc/{pid}/cmdline").read_bytes()
        for pid in os.listdir("/proc")
        if pid.isdigit() and os.path.exists(f"/proc/{pid}/cmdline")
    )
    a.reset()
    assert a.step(by=1) == "n=6"
    used = toolbox.use.take()
    assert {k: v for k, v in used.items() if v and k != "seconds"} == {
        "calls": 4.0, "timeouts": 1.0, "gone": 1.0, "lost_environments": 1.0,
    }  # fmt: skip
    assert used["seconds"] >= 0.4
    assert not any(toolbox.use.take().values())


def test_what_crashes_raises_or_floods_is_said_in_words(toolbox: Toolbox, games: list[Any]) -> None:
    a, b, _ = games
    with pytest.raises(ToolCallFailed, match="leave: its process exited with code 3"):
        a.leave()
    with pytest.raises(ToolCallFailed, match="ValueError: not like that"):
        b.fail()
    assert b.flood() == "y" * 30 + "\n[cut: 30 of 100000 characters]"
    used = toolbox.use.take()
    assert (used["crashes"], used["errors"], used["cut"], used["lost_environments"]) == (1, 1, 1, 1)


def test_an_episode_that_cannot_begin_stops_the_run(games: list[Any]) -> None:
    with pytest.raises(EnvironmentFault, match=r"reset: KeyError: 'no such game'\n(.|\n)*game\.py"):
        games[0].reset(hint="boom")


def test_a_row_of_a_recipe_is_told_under_its_own_names(games: list[Any]) -> None:
    """Its columns but the prompt travel through TRL under names that TRL does not look for."""
    row = marked(Dataset.from_list([{"prompt": "p", "hint": "left"}]))[0]
    assert "hint" not in row
    assert games[0].reset(**row) == "left"


def test_an_environment_draws_by_seed_and_place(toolbox: Toolbox, games: list[Any]) -> None:
    def drawn(seed: int) -> list[str]:
        toolbox.episode_seed = seed
        return [game.reset(hint="draw") for game in games for _ in range(2)]

    first = drawn(11)
    assert first == drawn(11)
    assert len(set(first)) > 1
    assert drawn(12) != first or drawn(13) != first


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ([ToolSpec("nothing")], "there is no tool 'nothing'; the built-in ones are python"),
        ([ToolSpec("absent.py:f")], r"tool 'absent.py:f': there is no file"),
        ([ToolSpec("FILE:ad")], "has no function 'ad'; did you mean 'add'"),
        ([ToolSpec("FILE:add", {"size": 1})], "has no parameter 'size'"),
        ([ToolSpec("FILE:add"), ToolSpec("FILE:add")], "two tools are called 'add'"),
    ],
)
def test_what_cannot_be_shown_to_a_model_is_refused(tools: list[ToolSpec], words: str, file: Path) -> None:
    given = [ToolSpec(one.name.replace("FILE", str(file)), one.args) for one in tools]
    with pytest.raises(ToolFault, match=words):
        Toolbox(given)
    with pytest.raises(ToolFault, match="environment .* is a function, not a class"):
        Toolbox([], EnvironmentSpec(f"{file}:add"))


def test_the_python_tool_says_what_a_program_printed_and_how_it_ended() -> None:
    box = Toolbox([ToolSpec("python", {"seconds": 2.0, "allow_unsafe": True}, timeout_s=60.0)])
    (python,) = box.functions
    assert list(inspect.signature(python).parameters) == ["code"]
    try:
        assert python(code="print(2**100)") == str(2**100)
        assert python(code="print(1)\n1/0").splitlines()[-1] == "ZeroDivisionError: division by zero"
        assert python(code="print('so far', flush=True)\nwhile 1: pass").splitlines() == [
            "[ended: it ran for more than 2 s]", "so far",
        ]  # fmt: skip
        assert python(code="x = 1") == "[it printed nothing]"
        said = python(code="print('z' * 10**6)")
        assert said.startswith("[ended: it printed more than 64 KiB]\nzzz")
        assert said.endswith("z\n[cut: 4000 of 65573 characters]")
    finally:
        box.close()
