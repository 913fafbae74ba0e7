"""An OpenEnv server that draws letters: openenv_letters.py PORT. A poke is worth what it is poked with."""

from __future__ import annotations

import random
import sys
from typing import Any

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app


class Poke(Action):
    x: str = ""


class Letters(Observation):
    said: str


class Drawer(Environment[Poke, Letters, State]):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> Letters:
        self._draw, self._state = random.Random(seed), State(episode_id=episode_id)
        return Letters(said=self._draw.choice("ab"))

    def step(self, action: Poke, timeout_s: float | None = None, **_: Any) -> Letters:
        self._state.step_count += 1
        return Letters(
            said=self._draw.choice("ab") * 2, reward=1.0 + len(action.x), done=self._state.step_count == 2
        )

    @property
    def state(self) -> State:
        return self._state


if __name__ == "__main__":
    app = create_fastapi_app(Drawer, Poke, Letters, max_concurrent_envs=64)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
