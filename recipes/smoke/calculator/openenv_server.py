"""The calculator as an OpenEnv server: python recipes/smoke/calculator/openenv_server.py --port 8911

Needs the package openenv-core (or openenv), in an environment of its own if it must be; nothing of this repository. An
episode's problem comes with the reset; the reward of a step is 1 where it works out that problem, which ends the
episode. `--mcp` serves the same as a tool over MCP, and `--room` says how many episodes there may be at once.
"""

from __future__ import annotations

import argparse
import re
from typing import Any

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app

OPERATORS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def worked_out(expression: str) -> int:
    found = re.fullmatch(r"(\d{1,4})([-+*])(\d{1,4})", expression)
    if found is None:
        raise ValueError(f"{expression!r} is not two numbers with +, - or * between them")
    left, operator, right = found.groups()
    return OPERATORS[operator](int(left), int(right))


class Asks(Action):
    e: str


class Says(Observation):
    value: str = ""


class CalculatorWorld(Environment[Asks, Says, State]):
    """Works out an expression of two numbers."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self._state = State()

    def reset(
        self, seed: int | None = None, episode_id: str | None = None, answer: str = "", **_: Any
    ) -> Says:
        self._answer, self._state = answer, State(episode_id=episode_id)
        return Says()

    def step(self, action: Asks, timeout_s: float | None = None, **_: Any) -> Says:
        self._state.step_count += 1
        value = str(worked_out(action.e))
        right = value == self._answer
        return Says(value=value, reward=float(right), done=right)

    @property
    def state(self) -> State:
        return self._state


def tool_server_app(room: int) -> Any:
    """The same as an environment whose actions are calls of tools."""
    from fastmcp import FastMCP
    from openenv.core.env_server import CallToolAction, CallToolObservation, MCPEnvironment

    class CalculatorTools(MCPEnvironment):
        """Has a calculator."""

        SUPPORTS_CONCURRENT_SESSIONS = True

        def __init__(self) -> None:
            server = FastMCP("calculator")

            @server.tool
            def calc(e: str) -> str:
                """Works out an expression of two numbers."""
                return str(worked_out(e))

            super().__init__(server)
            self._state = State()

        def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> Observation:
            self._state = State(episode_id=episode_id)
            return Observation()

        def _step_impl(self, action: Action, timeout_s: float | None = None, **_: Any) -> Observation:
            raise ValueError("only calls of tools are actions here")

        @property
        def state(self) -> State:
            return self._state

    return create_fastapi_app(CalculatorTools, CallToolAction, CallToolObservation, max_concurrent_envs=room)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8911)
    parser.add_argument("--room", type=int, default=512)
    parser.add_argument("--mcp", action="store_true")
    given = parser.parse_args()
    app = (
        tool_server_app(given.room)
        if given.mcp
        else create_fastapi_app(CalculatorWorld, Asks, Says, max_concurrent_envs=given.room)
    )
    uvicorn.run(app, host="127.0.0.1", port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
