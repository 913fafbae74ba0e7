"""Tasks of the package verifiers: their rows, tools, shared state, programs and rewards, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_recipe import POLICY, Load

from posttrain.data import DataError
from posttrain.data.rows import task_settings
from posttrain.environments.tool_specs import EnvironmentSpec, ToolFault
from posttrain.environments.toolbox import Toolbox, ToolCallFailed
from posttrain.run.plan import make_plan

needs_it = pytest.mark.verifiers
TASKS = '''
from __future__ import annotations

import asyncio
import itertools

import verifiers.v1 as vf


class Config(vf.TasksetConfig):
    word: str = "word"
    most: int = 5


class Riddle(vf.TaskData):
    answer: str


class Turns(vf.State):
    asked: list[str] = []


class Hints(vf.Toolset[vf.ToolsetConfig, Turns]):
    async def setup_task(self, task: Riddle) -> None:
        self.answer = task.answer

    @vf.tool
    async def hint(self, place: int, loud: bool = False) -> str:
        """Says a letter.

        Args:
            place: which
        """
        await asyncio.sleep(0)
        self.state.asked.append(str(place))
        letter = self.answer[place]
        return letter.upper() if loud else letter

    @vf.tool(name="all")
    def everything(self) -> dict:
        """Says what was asked."""
        return {"asked": self.state.asked}


class Guess(vf.Task[Riddle, Turns, vf.TaskConfig]):
    @classmethod
    def toolsets(cls, config):
        return [Hints(vf.ToolsetConfig())]

    @vf.reward(weight=2.0)
    async def right(self, trace) -> float:
        if trace.last_reply == "boom":
            raise RuntimeError("the judge is ill")
        return float(trace.last_reply == self.data.answer)

    @vf.reward(weight=-0.25)
    async def asked(self, trace) -> float:
        return float(len(trace.state.asked))

    @vf.metric
    async def shape(self, trace) -> float:
        """Turns of the model, tools' answers, calls: as a rollout of the package's own would have them."""
        calls = sum(len(one.tool_calls or []) for one in trace.assistant_messages)
        return trace.num_turns * 100 + len(trace.tool_messages) * 10 + calls

    @vf.stop
    async def enough(self, trace: vf.Trace) -> bool:
        return False


class Riddles(vf.Taskset[Guess, Config]):
    def load(self):
        for i in range(self.config.most):
            system = "Be short." if i % 2 else None
            data = Riddle(prompt=f"riddle {i}", system_prompt=system, answer=f"{self.config.word}{i}")
            yield Guess(data, self.config.task)


class Endless(Riddles):
    INFINITE = True

    def load(self):
        return (Guess(Riddle(prompt=str(i), answer=""), self.config.task) for i in itertools.count())


class Written(vf.Task[vf.TaskData, vf.State, vf.TaskConfig]):
    async def setup(self, trace, runtime) -> None:
        await runtime.write("told.txt", b"42")

    @vf.reward
    async def kept(self, trace, runtime) -> float:
        found = await runtime.run(["cat", "told.txt"], {})
        return float(found.stdout.strip() == trace.last_reply)


class Folders(vf.Taskset[Written, vf.TasksetConfig]):
    def load(self):
        yield Written(vf.TaskData(prompt="say it"), self.config.task)


class Boxed(Written):
    NEEDS_CONTAINER = True


class Boxes(vf.Taskset[Boxed, vf.TasksetConfig]):
    def load(self):
        yield Boxed(vf.TaskData(prompt="say it"), self.config.task)


class Unjudged(vf.Task[vf.TaskData, vf.State, vf.TaskConfig]):
    pass


class Silent(vf.Taskset[Unjudged, vf.TasksetConfig]):
    def load(self):
        yield Unjudged(vf.TaskData(prompt="say it"), self.config.task)
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks") / "riddles.py"
    path.write_text(TASKS)
    return path


def rows_of(file: Path, name: str = "Riddles", split: str = "test", **args: Any) -> list[dict[str, Any]]:
    given = {"taskset": f"{file}:{name}", "held_out": 2, **args}
    return list(task_settings("verifiers", given).rows(split, completions=False))


@pytest.fixture(scope="module")
def toolbox(file: Path) -> Iterator[Toolbox]:
    args = {"taskset": f"{file}:Riddles", "config": {"word": "tree"}}
    made = Toolbox([], EnvironmentSpec("verifiers", args, timeout_s=20))
    yield made
    made.close()


def test_without_the_package_the_plan_says_how_to_get_it(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verifiers.v1", None)
    changes = {
        "data": {"name": "verifiers", "args": {"taskset": "a.py:B"}},
        "environment": {"name": "verifiers"},
    }
    found = make_plan(load({**POLICY, "rewards": None, **changes})).refusals
    assert sum("needs the package verifiers" in line for line in found) >= 2
    assert all("posttrain[verifiers]" in line for line in found if "needs the package verifiers" in line)


@needs_it
def test_rows_are_the_tasks_and_the_splits_share_none(file: Path) -> None:
    test, train = rows_of(file), rows_of(file, split="train")
    assert [row["prompt"] for row in test] == [
        "riddle 0",
        [{"role": "system", "content": "Be short."}, {"role": "user", "content": "riddle 1"}],
    ]
    assert len(train) == 3
    assert len(rows_of(file, split="train", size=2)) == 2
    assert '"answer":"word0"' in test[0]["task"]
    assert len(rows_of(file, "Endless", "train", size=4)) == 4


@needs_it
@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("Endless", {}, "never ends; say how many tasks in 'size'"),
        ("Ridles", {}, "has no 'Ridles'; did you mean 'Riddles'?"),
        ("Guess", {}, "is no subclass of verifiers' Taskset"),
        ("Riddles", {"config": {"wrod": "a"}}, "Riddles: wrod"),
    ],
)
def test_rows_that_cannot_be_are_refused(file: Path, name: str, args: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as caught:
        rows_of(file, name, "train", **args)
    assert words in str(caught.value)


@needs_it
def test_a_taskset_that_drives_its_agents_itself_is_refused() -> None:
    with pytest.raises(DataError, match="drives its agents itself"):
        list(task_settings("verifiers", {"taskset": "harbor"}).rows("test", completions=False))


def call(name: str, **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


@needs_it
def test_tools_share_state_with_the_task_which_judges_by_its_own_rewards(
    toolbox: Toolbox, file: Path
) -> None:
    assert [one.__name__ for one in toolbox.shown_methods] == ["hints_all", "hints_hint"]
    assert "place: which" in (toolbox.shown_methods[1].__doc__ or "")
    assert toolbox.environment_factory is not None
    asked, silent = (toolbox.environment_factory() for _ in range(2))
    row = rows_of(file, config={"word": "tree"})[1]
    for one in (asked, silent):
        assert one.reset(**row) is None
    assert asked.hints_hint(place=0) == "t"
    assert asked.hints_hint(place="1", loud="true") == "R"  # converted by the type hints
    assert asked.hints_all() == '{"asked":["0","1"]}'
    with pytest.raises(ToolCallFailed, match="Input should be a valid integer"):
        asked.hints_hint(place="x")
    heard = [call("hints_hint", place=0), {"role": "tool", "name": "hints_hint", "content": "t"}]
    toolbox.hear(
        [asked, silent],
        [[*heard, {"role": "assistant", "content": "tree1"}], [{"role": "assistant", "content": "tree1"}]],
    )
    assert asked.get_reward() == pytest.approx(2.0 - 0.25 * 2)
    assert silent.get_reward() == pytest.approx(2.0)
    assert asked.rewards == {"right": 1.0, "asked": 2.0}
    assert asked.metrics == {"shape": 2 * 100 + 10 + 1}
    asked.reset(**row)  # nothing of the response before is left
    assert asked.hints_all() == '{"asked":[]}'


@needs_it
def test_a_reward_that_raises_leaves_its_response_unjudged_and_is_told(
    toolbox: Toolbox, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert toolbox.environment_factory is not None
    toolbox.use.take_unscored()
    one = toolbox.environment_factory()
    one.reset(**rows_of(file)[0])
    toolbox.hear([one], [[{"role": "assistant", "content": "boom"}]])
    assert one.get_reward() is None
    assert toolbox.use.take_unscored() == 1
    assert "the judge is ill" in caplog.text
    one.reset(**rows_of(file)[0])
    toolbox.hear([one], [[{"role": "assistant", "content": "word0"}]])
    assert one.get_reward() == 2.0


@needs_it
def test_a_task_may_prepare_and_judge_in_a_folder_of_its_own(file: Path) -> None:
    made = Toolbox([], EnvironmentSpec("verifiers", {"taskset": f"{file}:Folders"}, timeout_s=20))
    assert made.environment_factory is not None
    one = made.environment_factory()
    row = rows_of(file, "Folders")[0]
    for said, reward in (("42", 1.0), ("41", 0.0)):
        one.reset(**row)
        made.hear([one], [[{"role": "assistant", "content": said}]])
        assert one.get_reward() == reward
    made.close()


@needs_it
@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, "'taskset' is missing"),
        ({"tasket": "a"}, "no setting 'tasket'; did you mean 'taskset'?"),
        ({"taskset": "{file}:Boxes"}, "Boxed needs a container"),
    ],
)
def test_what_cannot_be_played_is_refused(file: Path, args: dict[str, Any], words: str) -> None:
    given = {key: value.format(file=file) for key, value in args.items()}
    with pytest.raises(ToolFault) as caught:
        Toolbox([], EnvironmentSpec("verifiers", given))
    assert words in str(caught.value)


@needs_it
def test_the_plan_says_what_it_found(file: Path, load: Load) -> None:
    def plan(name: str) -> Any:
        data = {"name": "verifiers", "chat": True, "args": {"taskset": f"{file}:{name}", "held_out": 2}}
        return make_plan(
            load({**POLICY, "rewards": None, "data": data, "environment": {"name": "verifiers"}})
        )

    said = "\n".join(plan("Riddles").tools)
    assert "verifiers Riddles: tasks are Guess, tools hints_all, hints_hint" in said
    assert "asked x -0.25, right x 2" in said
    assert "conditions to stop are not asked: enough" in said
    assert any("Unjudged has no rewards" in line for line in plan("Silent").refusals)
