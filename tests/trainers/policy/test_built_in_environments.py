"""Environments of OpenEnv servers and verifiers' tasks in training: their own rewards, and a resume bit for bit."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from openenv_servers import free_port, served
from places import ROOT
from tiny_run import arguments
from tool_runs import conversations, talker, talking_model

from posttrain.environments.tool_specs import EnvironmentSpec
from posttrain.environments.toolbox import Toolbox
from posttrain.trainers.policy.bindings import GRPOConfig, GRPOTrainer
from posttrain.trainers.policy.tool_arguments import tool_arguments

TASKS = '''
import random

import verifiers.v1 as vf


class Turns(vf.State):
    pokes: int = 0


class Pokes(vf.Toolset[vf.ToolsetConfig, Turns]):
    TOOL_PREFIX = None

    @vf.tool
    def poke(self, x: str = "") -> str:
        """Pokes.

        Args:
            x: with what
        """
        self.state.pokes += 1
        return random.choice("ab") * 2


class Poking(vf.Task[vf.TaskData, Turns, vf.TaskConfig]):
    @classmethod
    def toolsets(cls, config):
        return [Pokes(vf.ToolsetConfig())]

    @vf.reward(weight=0.5)
    async def poked(self, trace) -> float:
        return float(trace.state.pokes)

    @vf.reward
    async def told(self, trace) -> float:
        return float(len(trace.tool_messages))


class Room(vf.Taskset[Poking, vf.TasksetConfig]):
    def load(self):
        for i in range(12):
            yield Poking(vf.TaskData(prompt="a" * (1 + i % 3) + "b" * (i % 2)), self.config.task)
'''


@contextlib.contextmanager
def environment(name: str, folder: Path) -> Iterator[tuple[EnvironmentSpec, Dataset]]:
    if name == "openenv":
        port = free_port()
        with served(str(ROOT / "tests" / "support" / "openenv_letters.py"), str(port), port=port) as url:
            yield EnvironmentSpec(name, {"url": url, "tool": "poke"}, timeout_s=20), conversations()
        return
    from posttrain.data.rows import task_settings

    (folder / "room.py").write_text(TASKS)
    args = {"taskset": f"{folder / 'room.py'}:Room"}
    rows = list(task_settings("verifiers", {**args, "held_out": 12}).rows("test", completions=False))
    asked = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    yield EnvironmentSpec(name, args, timeout_s=20), Dataset.from_list(asked)


def trained(
    folder: Path, spec: EnvironmentSpec, rows: Dataset, steps: int, resume: Path | None = None
) -> Any:
    toolbox, tokenizer = Toolbox([], spec), talker()
    given = {"max_completion_length": 40, "max_tool_calling_iterations": 3, "num_iterations": 2}
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": steps, "log_completions": False}
    args = GRPOConfig(**arguments(folder, **{**given, **saving}))
    made: Any = GRPOTrainer(
        talking_model(tokenizer), [], args, rows, processing_class=tokenizer,
        **tool_arguments(toolbox, tokenizer),
    )  # fmt: skip
    made.turns.toolbox = toolbox
    made.train(resume_from_checkpoint=None if resume is None else str(resume))
    toolbox.close()
    return made


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("openenv", marks=pytest.mark.openenv),
        pytest.param("verifiers", marks=pytest.mark.verifiers),
    ],
)
def test_their_reward_is_trained_on_and_a_resume_is_exact(name: str, tmp_path: Path) -> None:
    with environment(name, tmp_path) as (spec, rows):
        whole = trained(tmp_path / "whole", spec, rows, 3)
        resumed = trained(tmp_path / "cut", spec, rows, 3, tmp_path / "whole" / "checkpoint-1")
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    rollout = whole.rollout
    assert rollout.completion_ids == resumed.rollout.completion_ids
    position = len(whole.reward_func_names) - 1  # the environment's own stands last
    rewards = rollout.rewards_per_function[:, position].tolist()
    answered = [sum(one["role"] == "tool" for one in messages) for messages in rollout.messages]
    asked = [sum(len(one.get("tool_calls") or []) for one in messages) for messages in rollout.messages]
    assert max(answered) > 0
    for reward, least, most in zip(rewards, answered, asked, strict=True):
        made = range(least, most + 1)  # an answer that has no room is left out of the response
        if name == "verifiers":  # pokes half a point each, and what the conversation shows of them one
            assert reward in [0.5 * count + least for count in made]
        else:  # two steps are an episode, each worth 1 and the letter it is poked with
            assert reward in [2.0 * min(2, count) for count in made]
    assert len(set(rewards)) > 1
    logged = [entry for entry in whole.state.log_history if "tools/unscored" in entry]
    assert logged
    assert all(entry["tools/unscored"] == 0 for entry in logged)
    assert (
        json.loads((tmp_path / "whole" / "checkpoint-3" / "trainer_state.json").read_text())["global_step"]
        == 3
    )
