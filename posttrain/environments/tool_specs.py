"""What a recipe says of a tool or an environment, and the way from its name to the function or class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.rewards.resolve import load_function
from posttrain.rewards.signature import RewardSpecError

BUILT_IN_TOOLS = {
    "python": "posttrain.environments.python_tool:python",
    "search": "posttrain.environments.search_tool:search",
}
"""Name in a recipe -> the tool."""
PREPARED = {"search": "posttrain.environments.search_tool:prepare"}
"""Name of a built-in tool -> what its worker calls once with its settings, before it forks: what that makes, the
processes that answer share."""


BUILT_IN_ENVIRONMENTS = {
    "openenv": "posttrain.environments.openenv:openenv_environment",
    "verifiers": "posttrain.environments.verifiers:verifiers_environment",
}
"""Name in a recipe -> what makes the class of an environment out of the recipe's args."""


class ToolFault(ValueError):
    """A tool or an environment that cannot be found or cannot be shown to a model."""


class EnvironmentFault(RuntimeError):
    """An environment that could not begin an episode, or a worker that cannot run: the run stops."""


@dataclass(frozen=True)
class ToolSpec:
    """
    name            "python", "search", `package.module:function` or `path/file.py:function`
    args            values of parameters that the model does not see
    timeout_s       of one call; what has not answered by then is ended
    max_characters  of an answer; the rest is left out, and the model is told
    """

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = 10.0
    max_characters: int = 4000


@dataclass(frozen=True)
class EnvironmentSpec(ToolSpec):
    """The same of a class; `args` are its constructor's, or the settings of a built-in one."""


def load_tool(name: str, base_dir: str | Path = ".") -> Callable[..., Any]:
    """The function itself; its module is imported. Raises ToolFault."""
    return _load(BUILT_IN_TOOLS.get(name, name), "tool", base_dir)


def prepare_tool(spec: ToolSpec) -> None:
    """Makes what all calls of a built-in tool share. Raises what its making raises."""
    if spec.name in PREPARED:
        _load(PREPARED[spec.name], "tool", ".")(**spec.args)


def load_environment(spec: EnvironmentSpec, base_dir: str | Path = ".") -> type:
    """The class itself; its module is imported, a built-in one is made of its args. Raises ToolFault."""
    name = spec.name
    if name in BUILT_IN_ENVIRONMENTS:
        try:
            return _load(BUILT_IN_ENVIRONMENTS[name], "environment", ".")(**spec.args)
        except ToolFault as error:
            raise ToolFault(f"environment {name}: {error}") from None
    found = _load(name, "environment", base_dir)
    if not isinstance(found, type):
        raise ToolFault(f"environment {name!r} is a {type(found).__name__}, not a class")
    return found


def _load(name: str, kind: str, base_dir: str | Path) -> Any:
    if ":" not in name:
        own = BUILT_IN_TOOLS if kind == "tool" else BUILT_IN_ENVIRONMENTS
        raise ToolFault(
            f"there is no {kind} {name!r}; the built-in ones are {', '.join(own)}; one of your own is named "
            "path/file.py:NAME"
        )
    try:
        return load_function(name, base_dir)
    except RewardSpecError as error:  # found as rewards are; the sentence is about this kind
        raise ToolFault(str(error).replace("reward ", f"{kind} ", 1)) from error
