"""`environment: {name: verifiers, args: {taskset: file.py:MyTaskset}}`: tools and rewards of verifiers' tasks.

The rows are those of data: {name: verifiers} (data/verifiers_tasks.py). Every response has an object of its task: the
tools of its toolsets, called in its process rather than over MCP, the state they share with the task, and the task's
own rewards, weighted and added up as verifiers does, over a trace of the conversation. A reward that raises leaves
the response unjudged.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from posttrain.data.decoding import DataError
from posttrain.data.verifiers_tasks import load_taskset
from posttrain.environments.schema_tools import described
from posttrain.environments.tool_specs import ToolFault
from posttrain.recipe.errors import suggest


def verifiers_environment(**args: Any) -> type:
    """The class of the taskset's environment. Raises ToolFault."""
    taskset = _taskset(args)
    task = type(taskset).task_type()
    _refuse_elsewhere(task)
    tools = {}
    for position, toolset in enumerate(toolsets_of(taskset)):
        for name, function in toolset_functions(toolset):
            if name in tools:
                raise ToolFault(f"two tools are called {name!r}; give their toolsets a TOOL_PREFIX")
            tools[name] = _method(name, function, position)
    return type(type(taskset).__name__, (VerifiersEpisode,), {"_taskset": taskset, **tools})


def _taskset(args: Mapping[str, Any]) -> Any:
    known = ("taskset", "config")
    for key in args:
        if key not in known:
            near = suggest(key, known) or f"; it has {', '.join(known)}"
            raise ToolFault(f"args: verifiers has no setting {key!r}{near}")
    if not isinstance(args.get("taskset"), str):
        raise ToolFault("args: 'taskset' is missing: path/file.py:Class, or the id of an installed one")
    try:
        return load_taskset(args["taskset"], args.get("config") or {})
    except DataError as error:
        raise ToolFault(str(error)) from None


def _refuse_elsewhere(task: type) -> None:
    if getattr(task, "NEEDS_CONTAINER", False):
        raise ToolFault(f"{task.__name__} needs a container, and tasks run in processes of this machine")


def toolsets_of(taskset: Any) -> list[Any]:
    """Of the taskset and of each task, made anew. Raises ToolFault for one that is served elsewhere."""
    made = [
        *type(taskset).toolsets(taskset.config),
        *type(taskset).task_type().toolsets(taskset.config.task),
    ]
    for one in made:
        where = getattr(one.config, "url", None)
        runtime = getattr(getattr(one.config, "runtime", None), "type", "subprocess")
        if where or runtime != "subprocess":
            raise ToolFault(
                f"toolset {type(one).__name__} is served at {where or runtime}; here toolsets run in the response's "
                "process: leave its url and runtime as they are"
            )
    return made


def toolset_functions(toolset: Any) -> Iterator[tuple[str, Any]]:
    """Name as the model is shown it, and the bound function, of each tool."""
    from verifiers.v1.utils.decorators import discover_decorated

    prefix = f"{toolset.server_name}_" if toolset.server_name else ""
    for function in discover_decorated(toolset, "tool"):
        yield f"{prefix}{getattr(function, 'tool_name', None) or function.__name__}", function


def _method(name: str, function: Any, position: int) -> Any:
    """The tool as a method of an episode; its parameters are checked and converted by its type hints, as MCP does."""
    from pydantic import PydanticUserError, TypeAdapter

    def call(self: Any, arguments: dict[str, Any]) -> str:
        return self._call(position, name, arguments)

    try:
        schema = TypeAdapter(function).json_schema()
    except PydanticUserError as error:
        raise ToolFault(f"tool {name!r}: its parameters cannot be told to a model: {error}") from None
    about, told = _docstring(inspect.getdoc(function) or "")
    return described(name, about, schema, call, told=told)


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """What stands before `Args:`, and the lines under it."""
    about, _, below = text.partition("Args:")
    told = {}
    for line in below.splitlines():
        name, colon, said = line.strip().partition(":")
        if colon:
            told[name.partition(" ")[0]] = said.strip()
    return about.strip(), told


class VerifiersEpisode:
    """A response's task.

    rewards, metrics  name -> number, as the task gave them, once it was judged
    """

    _taskset: Any
    _unjudged_on_error = True

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._toolsets = toolsets_of(self._taskset)
        self._runtime: Any = None
        for one in self._toolsets:
            self._runner.run(one.setup())

    def reset(self, *, task: str | None = None, prompt: Any = None, **row: Any) -> None:
        """Makes the row's task again."""
        import verifiers.v1 as vf
        from verifiers.v1.state import state_cls

        if task is None:
            raise KeyError("the row has no column 'task'; take the rows of data: {name: verifiers}")
        kind = type(self._taskset).task_type()
        self._task = made = kind(kind.data_type().model_validate_json(task), self._taskset.config.task)
        self._trace = vf.Trace(
            task=vf.TraceTask(type=kind.__name__, data=made.data, key=made.key, hash=made.hash),
            state=state_cls(kind)(),
            agent=vf.AgentInfo(config=vf.AgentConfig()),
        )
        self.rewards: dict[str, float] = {}
        self.metrics: dict[str, float] = {}
        self._prompt = prompt if isinstance(prompt, list) else [{"role": "user", "content": str(prompt)}]
        self._functions = []
        for one in self._toolsets:
            one._inert_state = self._trace.state  # what state() gives where no server stands between
            self._runner.run(one.setup_task(made.data))
            self._functions.append(dict(toolset_functions(one)))
        if _needs_runtime(made):
            self._runner.run(self._begin_runtime())

    def get_reward(self, messages: Sequence[Mapping[str, Any]]) -> float:
        """The task's rewards, weighted and added up; `messages`: the response. Raises what a reward raises."""
        self._trace.nodes += nodes(self._prompt, messages)
        self._trace.is_completed = self._trace.ok = True
        self._runner.run(self._judged())
        missing = [name for name, one in self._trace.rewards.items() if one is None]
        if missing:
            raise ValueError(f"reward {missing[0]!r} gave nothing")
        self.rewards = {name: one.score for name, one in self._trace.rewards.items() if one is not None}
        self.metrics = {name: value for name, value in self._trace.metrics.items() if value is not None}
        total = float(self._trace.reward)
        if not math.isfinite(total):
            raise ValueError(f"the task's rewards come to {total}: {self.rewards}")
        return total

    def _call(self, position: int, name: str, arguments: dict[str, Any]) -> str:
        from pydantic import validate_call
        from pydantic_core import to_json

        found = validate_call(self._functions[position][name])(**arguments)
        if inspect.isawaitable(found):
            found = self._runner.run(_awaited(found))
        return found if isinstance(found, str) else to_json(found, fallback=str).decode()

    async def _begin_runtime(self) -> None:
        from verifiers.v1.runtimes import SubprocessConfig, make_runtime

        if self._runtime is not None:
            await self._runtime.stop()
        self._runtime = make_runtime(SubprocessConfig())
        self._runtime.env = self._task.runtime_env()
        await self._runtime.start()
        await self._task.setup(self._trace, self._runtime)

    async def _judged(self) -> None:
        try:
            if self._runtime is not None:
                await self._task.finalize(self._trace, self._runtime)
            await self._task.score(self._trace, self._runtime)
        finally:
            if self._runtime is not None:
                await self._runtime.stop()
                self._runtime = None


async def _awaited(value: Any) -> Any:
    return await value


def _needs_runtime(task: Any) -> bool:
    """Whether the task prepares or judges in a folder with programs of its own."""
    import verifiers.v1 as vf

    own = any(getattr(type(task), name) is not getattr(vf.Task, name) for name in ("setup", "finalize"))
    asked = [*task.hooks("reward"), *task.hooks("metric")]
    return own or any("runtime" in inspect.signature(one).parameters for one in asked)


def nodes(prompt: Sequence[Mapping[str, Any]], response: Sequence[Mapping[str, Any]]) -> list[Any]:
    """A conversation as verifiers' trace has it: a chain of messages, those the model wrote marked as sampled."""
    import verifiers.v1 as vf

    made: list[Any] = []
    open_calls: list[str] = []
    for place, message in enumerate([*prompt, *response]):
        content = message.get("content") or ""
        role, sampled = message["role"], False
        if role == "assistant":
            calls = [
                _tool_call(vf, one, f"call_{place}_{i}")
                for i, one in enumerate(message.get("tool_calls") or [])
            ]
            open_calls = [one.id for one in calls]
            said: Any = vf.AssistantMessage(content=content, tool_calls=calls or None)
            sampled = place >= len(prompt)
        elif role == "tool":
            answered = open_calls.pop(0) if open_calls else f"call_{place}"
            said = vf.ToolMessage(tool_call_id=answered, content=str(content), name=message.get("name"))
        else:
            said = (vf.SystemMessage if role == "system" else vf.UserMessage)(content=content)
        made.append(vf.MessageNode(parent=place - 1 if place else None, message=said, sampled=sampled))
    return made


def _tool_call(vf: Any, call: Mapping[str, Any], fallback: str) -> Any:
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return vf.ToolCall(id=str(call.get("id") or fallback), name=str(function.get("name")), arguments=text)


def verifiers_lines(args: Mapping[str, Any]) -> list[str]:
    """What `plan` says of the tasks. Raises ToolFault."""
    found = verifiers_environment(**args)
    taskset: Any = vars(found)["_taskset"]
    kind = taskset.task_type()
    tools = [name for one in toolsets_of(taskset) for name, _ in toolset_functions(one)]
    decorated = {attr: _decorated(kind, attr) for attr in ("reward", "metric", "stop")}
    weights = [f"{one.__name__} x {getattr(one, '_vf_weight', 1.0):g}" for one in decorated["reward"]]
    if not weights and not taskset.config.task.rewards and not taskset.config.task.judges:
        raise ToolFault(f"{kind.__name__} has no rewards, so nothing would be learned of it")
    lines = [
        f"verifiers {type(taskset).__name__}: tasks are {kind.__name__}, tools {', '.join(tools) or 'none'}",
        f"their own rewards {', '.join(weights) or 'of the config'} count with weight 1, added up",
    ]
    if decorated["stop"]:
        names = ", ".join(one.__name__ for one in decorated["stop"])
        lines.append(f"their conditions to stop are not asked: {names}; rollout.max_turns ends a response")
    return lines


def _decorated(kind: type, attr: str) -> list[Any]:
    found = {name: one for name, one in inspect.getmembers(kind, inspect.isfunction) if hasattr(one, attr)}
    return [found[name] for name in sorted(found)]
