"""`data: {name: verifiers, args: {taskset: file.py:MyTaskset}}`: tasks of the package verifiers.

Each row carries its task as JSON, so that the environment of the same name (environments/verifiers.py) can make the
task again, its tools with it, and have it judged by its own rewards. Of verifiers 0.4: Taskset, Task,
Toolset. What drives the model there, a harness or an Env of its own, has no part in it: the trainer takes the turns.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from annotated_types import Ge
from pydantic import ValidationError
from pydantic.dataclasses import dataclass

from posttrain.data.decoding import DataError
from posttrain.recipe.errors import suggest
from posttrain.settings import STRICT

INSTALL = "pip install 'posttrain[verifiers]'"


@dataclass(frozen=True, config=STRICT)
class VerifiersTasks:
    taskset: str
    """path/file.py:Class, package.module:Class, or the id of an installed taskset"""
    config: dict[str, Any] = field(default_factory=dict)
    """the taskset's own settings"""
    held_out: Annotated[int, Ge(1)] = 64
    """tasks of the test split: the first"""
    size: Annotated[int, Ge(1)] | None = None
    """tasks of the train split, those behind the held-out ones; None: all"""

    def rows(self, split: str, *, completions: bool) -> Iterator[dict[str, Any]]:
        """prompt (messages, where the task has a system prompt), task, and name. DataError says what cannot be."""
        if completions:
            raise DataError(
                "tasks of verifiers have no completions; train on them with a method that samples"
            )
        taskset = load_taskset(self.taskset, self.config)
        if self.size is None and not taskset.bounded:
            raise DataError(f"args: taskset {self.taskset!r} never ends; say how many tasks in 'size'")
        last = None if self.size is None else self.held_out + self.size
        places = (0, self.held_out) if split == "test" else (self.held_out, last)
        for task in itertools.islice(taskset, *places):
            data = task.data
            row = {"prompt": _prompt(data), "task": data.model_dump_json(exclude_none=True)}
            yield row | ({"name": data.name} if data.name else {})


def _prompt(data: Any) -> str | list[dict[str, str]]:
    system, prompt = data.system_prompt, data.prompt
    if prompt is None:
        raise DataError(f"task {data.idx} has no prompt: a user opens its conversation, which no row can")
    if isinstance(prompt, str):
        if system is None:
            return prompt
        said = [{"role": "user", "content": prompt}]
    else:
        said = [{"role": one.role, "content": _text(one, data)} for one in prompt]
    return [*([{"role": "system", "content": system}] if system else []), *said]


def _text(message: Any, data: Any) -> str:
    if message.role == "tool" or getattr(message, "tool_calls", None):
        raise DataError(f"task {data.idx}: its prompt holds calls of tools, which a prompt cannot")
    content = message.content or ""
    if isinstance(content, str):
        return content
    if any(part.type != "text" for part in content):
        raise DataError(f"task {data.idx}: its prompt holds images; a language model reads text")
    return "\n".join(part.text for part in content)


def load_taskset(name: str, config: Mapping[str, Any]) -> Any:
    """The taskset, an object of verifiers' class. Raises DataError."""
    try:
        import verifiers.v1 as vf
    except ImportError as error:
        raise DataError(f"verifiers needs the package verifiers ({error}): {INSTALL}") from None
    found = _taskset_class(vf, name)
    try:
        return found(
            _config_class(vf, found).model_validate({**config, **({} if ":" in name else {"id": name})})
        )
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        known = tuple(_config_class(vf, found).model_fields)
        hint = suggest(key, known) or f"; it has {', '.join(known)}"
        raise DataError(f"args: config: {found.__name__}: {key}: {first['msg']}{hint}") from None


def _taskset_class(vf: Any, name: str) -> type:
    if ":" in name:
        found = _class_at(name)
        if not (isinstance(found, type) and issubclass(found, vf.Taskset)):
            raise DataError(f"args: taskset {name!r} is no subclass of verifiers' Taskset")
        return found
    from verifiers.v1.utils.loaders import taskset_class

    try:
        found = taskset_class(name)
        own = vf.environment_class(name)
    except (ImportError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"args: taskset {name!r}: {str(error).splitlines()[0]}") from None
    if own is not vf.SingleAgentEnv:
        raise DataError(
            f"args: taskset {name!r} comes with an environment of its own, {own.__name__}, which drives its agents "
            "itself; here the trainer takes the turns, and only tasks, tools and rewards can be used"
        )
    return found


def _class_at(name: str) -> Any:
    """What stands at path/file.py:NAME or package.module:NAME."""
    place, _, target = name.rpartition(":")
    try:
        module = _file_module(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # whatever the user's module raises is told, with its kind
        raise DataError(
            f"args: taskset {name!r}: {place} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, target):
        raise DataError(f"args: taskset {name!r}: {place} has no {target!r}{suggest(target, vars(module))}")
    return getattr(module, target)


def _file_module(path: Path) -> ModuleType:
    """The file's module, loaded once; listed in sys.modules, where pydantic looks for what its annotations name."""
    file = path.expanduser().resolve(strict=True)
    name = f"posttrain_tasks_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _config_class(vf: Any, found: type) -> Any:
    from verifiers.v1.utils.generic import concrete_type

    return concrete_type(found, vf.TasksetConfig, origin=vf.Taskset) or vf.TasksetConfig
