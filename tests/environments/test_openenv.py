"""Environments of OpenEnv servers: a real one, with actions and with tools, and one that does what none should."""

from __future__ import annotations

import contextlib
import http
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from openenv_servers import free_port, served
from places import ROOT

from posttrain.environments.openenv import observation_text, openenv_settings, seed_of
from posttrain.environments.openenv_client import ActionRefused, ServerFault
from posttrain.environments.tool_specs import EnvironmentFault, EnvironmentSpec, ToolFault
from posttrain.environments.toolbox import Toolbox, ToolCallFailed

SERVER = ROOT / "recipes" / "smoke" / "calculator" / "openenv_server.py"
needs_it = pytest.mark.openenv


@contextlib.contextmanager
def server(*options: str) -> Iterator[str]:
    """The calculator's server, of the package itself, in a process."""
    port = free_port()
    with served(str(SERVER), "--port", str(port), *options, port=port) as url:
        yield url


@pytest.fixture(scope="module")
def calculator() -> Iterator[str]:
    with server() as url:
        yield url


@contextlib.contextmanager
def toolbox(url: str, timeout_s: float = 5.0, **args: Any) -> Iterator[Toolbox]:
    made = Toolbox([], EnvironmentSpec("openenv", {"url": url, **args}, timeout_s=timeout_s))
    try:
        yield made
    finally:
        made.close()


def episodes(made: Toolbox, count: int) -> list[Any]:
    assert made.environment_factory is not None
    return [made.environment_factory() for _ in range(count)]


# ---- without a server


def test_an_episode_begins_alike_for_all_responses_to_a_row() -> None:
    row = {"prompt": [{"role": "user", "content": "1+1"}], "answer": "2"}
    assert seed_of(row) == seed_of(json.loads(json.dumps(row)))
    assert 0 <= seed_of(row) < 2**31
    assert seed_of({**row, "answer": "3"}) != seed_of(row)
    assert seed_of({**row, "seed": 7}) == 7


@pytest.mark.parametrize(
    ("observation", "show", "text"),
    [
        ({"value": "4"}, None, "4"),
        ({"value": "4", "left": None, "metadata": {}}, None, "4"),
        ({"metadata": {}}, None, ""),
        ({"board": [[1, 2]], "turn": 3}, None, "board: [[1, 2]]\nturn: 3"),
        ({"board": "x", "turn": 3}, "turn", "3"),
        ({"tool_name": "calc", "result": {"data": 4, "content": []}, "error": None}, None, "4"),
    ],
)
def test_what_a_model_reads_of_an_observation(observation: Any, show: str | None, text: str) -> None:
    assert observation_text(observation, show) == text


def test_an_observation_without_the_field_and_a_call_that_failed_are_told() -> None:
    with pytest.raises(ServerFault, match="no field 'text'; its fields are value"):
        observation_text({"value": 1}, "text")
    with pytest.raises(ActionRefused, match="no such tool"):
        observation_text({"tool_name": "t", "result": None, "error": {"message": "no such tool"}}, None)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, "url"),
        ({"url": "127.0.0.1:8000"}, "url"),
        ({"url": "http://here", "colums": []}, "no setting 'colums'; did you mean 'columns'?"),
        ({"url": "http://here", "tool": "_act"}, "'_act' is no name"),
    ],
)
def test_settings_that_cannot_be_are_refused(args: dict[str, Any], words: str) -> None:
    with pytest.raises(ToolFault) as caught:
        openenv_settings(args)
    assert words in str(caught.value)


# ---- the package's own server


@needs_it
def test_an_action_is_a_tool_and_the_server_gives_the_reward(calculator: str) -> None:
    with toolbox(calculator, tool="calc", columns=["answer"], about="Works it out.") as made:
        (method,) = made.shown_methods
        assert method.__name__ == "calc"
        assert (method.__doc__ or "").startswith("Works it out.")
        right, wrong, silent = episodes(made, 3)
        for one in (right, wrong, silent):
            assert one.reset(prompt="17*46", answer="782") is None
        assert wrong.calc(e="1+1") == "2"
        assert right.calc(e="17*46") == "782"
        assert right.calc(e="17*46") == "The episode is over."
        with pytest.raises(ToolCallFailed, match="is not two numbers"):
            wrong.calc(e="x")
        with pytest.raises(ToolCallFailed, match="e: Input should be a valid string"):
            wrong.calc(e=4)
        assert [one.get_reward() for one in (right, wrong, silent)] == [1.0, 0.0, 0.0]
        assert right.rewards == [1.0]
        assert made.use.take()["errors"] == 2
        right.reset(prompt="1+2", answer="3")  # the object serves the next response
        assert (right.calc(e="1+2"), right.get_reward()) == ("3", 1.0)


@needs_it
def test_tools_of_a_server_are_the_models_and_a_full_server_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("posttrain.environments.toolbox._WAIT_S", 0.01)
    with server("--mcp", "--room", "2") as url, toolbox(url) as made:
        assert [one.__name__ for one in made.shown_methods] == ["calc"]
        first, second, third = episodes(made, 3)
        first.reset(prompt="p")
        second.reset(prompt="p")
        assert first.calc(e="17*46") == "782"
        with pytest.raises(ToolCallFailed, match="is not two numbers"):
            first.calc(e="x")
        with pytest.raises(EnvironmentFault, match="has no room for another session"):
            third.reset(prompt="p")
        assert made.use.take()["begun_again"] == 2
        first.get_reward()  # ends its session
        monkeypatch.setattr("posttrain.environments.toolbox._WAIT_S", 0.5)
        third.reset(prompt="p")
        assert third.calc(e="1+1") == "2"


@needs_it
def test_a_server_that_goes_away_leaves_its_responses_unjudged() -> None:
    with contextlib.ExitStack() as stack, server() as url:
        made = stack.enter_context(toolbox(url, columns=["answer"]))
        (one,) = episodes(made, 1)
        one.reset(prompt="p", answer="2")
        stack.callback(lambda: _is_lost(made, one))  # once the server is gone
        gone = stack.pop_all()
    gone.close()


def _is_lost(made: Toolbox, one: Any) -> None:
    with pytest.raises(ToolCallFailed, match="closed the session"):
        one.act(e="1+1")
    assert one.get_reward() is None
    assert made.use.take_unscored() == 1


# ---- a server that does what it should not


class Odd:
    """Answers a reset as a server does, and each step by what the row's column `answer` says."""

    def __init__(self) -> None:
        from websockets.sync.server import serve

        self.sessions = 0
        self._server = serve(self._talk, "127.0.0.1", 0, process_request=self._page)
        self.url = f"http://127.0.0.1:{self._server.socket.getsockname()[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()

    def _page(self, connection: Any, request: Any) -> Any:
        if request.path == "/ws":
            return None
        body = {"action": {"properties": {"x": {"type": "string"}}, "required": ["x"]}}
        return connection.respond(http.HTTPStatus.OK, json.dumps(body))

    def _talk(self, connection: Any) -> None:
        self.sessions += 1
        asked = json.loads(connection.recv())
        kind = asked["data"].get("answer")
        if kind == "late" and self.sessions == 1:
            return
        connection.send(
            json.dumps({"type": "observation", "data": {"observation": {"seed": asked["data"]["seed"]}}})
        )
        connection.recv()
        if kind == "nonsense":
            connection.send("<html>")
        elif kind == "list":
            connection.send("[1]")
        elif kind == "nan":
            connection.send(
                '{"type": "observation", "data": {"observation": {}, "reward": NaN, "done": false}}'
            )
        elif kind == "word":
            connection.send(
                json.dumps({"type": "observation", "data": {"observation": {}, "reward": "good"}})
            )
        elif kind == "hang":
            connection.recv()  # until the other side has gone


@pytest.fixture
def odd() -> Iterator[Odd]:
    made = Odd()
    yield made
    made.close()


@needs_it
def test_answers_that_are_none_hang_or_break_off_are_told_counted_and_not_judged(odd: Odd) -> None:
    with toolbox(odd.url, timeout_s=1.5, columns=["answer"]) as made:
        kinds = {
            "nonsense": "answered what is no answer",
            "list": "answered what is no answer",
            "nan": "a reward that is no number: nan",
            "word": "a reward that is no number: 'good'",
            "leave": "closed the session",
            "hang": "no answer within 1.5 s",
        }
        found = episodes(made, len(kinds))
        for one, (kind, words) in zip(found, kinds.items(), strict=True):
            assert one.reset(prompt="p", answer=kind, seed=5) == "5"
            with pytest.raises(ToolCallFailed, match=words):
                one.act(x="a")
        with pytest.raises(ToolCallFailed, match="the episode was lost before"):
            found[0].act(x="a")
        assert [one.get_reward() for one in found] == [None] * len(kinds)
        use = made.use.take()
        assert (use["errors"], use["timeouts"], use["lost_environments"]) == (6, 1, 1)
        assert made.use.take_unscored() == len(kinds)


@needs_it
def test_an_episode_that_does_not_begin_is_begun_once_more(odd: Odd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.environments.toolbox._WAIT_S", 0.01)
    with toolbox(odd.url, columns=["answer"]) as made:
        (one,) = episodes(made, 1)
        assert one.reset(prompt="p", answer="late", seed=5) == "5"
        assert made.use.take()["begun_again"] == 1


@needs_it
def test_no_server_is_told_before_anything_starts() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ToolFault, match="no OpenEnv server answers at"):
        Toolbox([], EnvironmentSpec("openenv", {"url": url}))
