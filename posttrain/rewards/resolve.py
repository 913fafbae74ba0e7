"""From a reward's name in a recipe to a function, and what that function asks for.

A name is a built-in one, `package.module:function`, or `path/file.py:function`. `describe` reads the function's
signature from its source: nothing of the user's is run or imported by it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from posttrain.rewards.hooks import MachineReport
from posttrain.rewards.signature import (
    CompletionsAs,
    Outline,
    RewardSignature,
    RewardSpecError,
    callable_name,
    did_you_mean,
    needs_environments,
    outline_of,
    signature_of,
    unknown_signature,
)
from posttrain.rewards.source import NotKnown, SourceReader

BUILT_IN = {
    "math_answer": "posttrain.rewards.builtin:math_answer",
    "exact_match": "posttrain.rewards.builtin:exact_match",
    "format_regex": "posttrain.rewards.builtin:format_regex",
    "length_penalty": "posttrain.rewards.builtin:length_penalty",
    "repetition": "posttrain.rewards.builtin:repetition",
    "instructions_followed": "posttrain.rewards.instruction_reward:instructions_followed",
    "countdown": "posttrain.rewards.puzzles:countdown",
    "sudoku": "posttrain.rewards.puzzles:sudoku",
    "code_tests": "posttrain.rewards.code_reward:code_tests",
    "tool_call_match": "posttrain.rewards.tool_call_reward:tool_call_match",
    "jpeg_size": "posttrain.rewards.image_rewards:jpeg_size",
    "image_statistic": "posttrain.rewards.image_rewards:image_statistic",
    "image_class": "posttrain.rewards.image_rewards:image_class",
    "clip_score": "posttrain.rewards.image_model_reward:clip_score",
    "pickscore": "posttrain.rewards.image_model_reward:pickscore",
    "ocr_match": "posttrain.rewards.ocr_reward:ocr_match",
    "drift_penalty": "posttrain.rewards.drift_reward:drift_penalty",
    "policy_precedents": "posttrain.rewards.policy_reward:policy_precedents",
    "reasoning_gym": "posttrain.rewards.reasoning_gym_reward:reasoning_gym",
}


@dataclass(frozen=True)
class RewardSpec:
    """One reward of a recipe.

    `label` is what it is counted and logged as (None: the function's name). `timeout_s` and `on_error` override the
    runner's. `completions_as` is "text", "messages" or "images" (None: as the function's annotation says, else text).
    `function` is a callable given from Python instead of a name to look up.
    """

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    label: str | None = None
    timeout_s: float | None = None
    on_error: Literal["raise", "skip"] | None = None
    completions_as: CompletionsAs | None = None
    function: Callable[..., Any] | None = None

    @classmethod
    def of(cls, given: Any) -> RewardSpec:
        """From a spec, a name, a callable, or a mapping with name, args and weight."""
        if isinstance(given, RewardSpec):
            return given
        if isinstance(given, str):
            return cls(given)
        if isinstance(given, Mapping):
            return cls(**given)
        if callable(given):
            return cls(callable_name(given), function=given)
        raise RewardSpecError(f"a reward is a name, a mapping or a callable, not {type(given).__name__}")

    @property
    def title(self) -> str:
        """The name under which it is counted and logged."""
        return self.label or self.name.rpartition(":")[2]


# ---- the three questions


def describe(spec: Any, base_dir: str | Path = ".") -> RewardSignature:
    """What a reward asks for, found without running it. Raises RewardSpecError with what is wrong and what to do.

    `known` is False where only loading the reward would show it: what a factory or a decorator returns.
    """
    spec = RewardSpec.of(spec)
    if spec.completions_as not in (None, "text", "messages", "images"):
        raise RewardSpecError(
            f"reward {spec.name!r}: completions_as is {spec.completions_as!r}; choose 'text', 'messages' or 'images'"
        )
    try:
        if spec.function is not None:
            outline = outline_of(spec.function)
        else:
            outline = _outline_of_name(spec.name, Path(base_dir))
    except NotKnown:
        return unknown_signature(spec.name, spec.args, spec.completions_as)
    signature = signature_of(spec.name, spec.args, outline, spec.completions_as)
    if spec.name in BUILT_IN and spec.args:
        check_settings(spec, load_function(spec.name, base_dir))
    elif spec.function is not None:
        check_settings(spec, spec.function)
    return signature


def describe_loaded(spec: RewardSpec, function: Callable[..., Any]) -> RewardSignature:
    """What a reward asks for, once its function is loaded."""
    signature = signature_of(spec.name, spec.args, outline_of(function), spec.completions_as)
    check_settings(spec, function)
    return signature


def faults(
    spec: Any, columns: Iterable[str], base_dir: str | Path = ".", *, has_environments: bool = False
) -> list[str]:
    """Everything wrong with a reward, in sentences: it cannot be found, a setting is unknown, a column is missing."""
    columns = list(columns)
    try:
        signature = describe(spec, base_dir)
    except RewardSpecError as error:
        return [str(error)]
    if "environments" in signature.objects_needed and not has_environments:
        return [needs_environments(signature.name)]
    found = [_missing_column(signature, name, columns) for name in signature.missing(columns)]
    wanted = _hook(spec, "needs_one_of", base_dir) or ()
    if wanted and not {*wanted} & {*columns, *signature.args}:
        found.append(
            f"reward {signature.name!r} needs one of {', '.join(map(repr, wanted))}, and none is a column of the data "
            f"({', '.join(columns) or 'none'}); name the data's own in data.columns"
        )
    return found


def machine_report(
    spec: Any, group_size: int, timeout_s: float, base_dir: str | Path = "."
) -> MachineReport | None:
    """What a built-in reward says of this machine, where it looks at it. Raises RewardSpecError as `describe`."""
    spec = RewardSpec.of(spec)
    describe(spec, base_dir)
    look = _hook(spec, "looks_at_machine", base_dir)
    return None if look is None else look(group_size, timeout_s, **spec.args)


def _hook(spec: Any, name: str, base_dir: str | Path) -> Any:
    """What a built-in reward's decorator attached; no code of the user's is loaded to see."""
    spec = RewardSpec.of(spec)
    if spec.function is not None or spec.name not in BUILT_IN:
        return None
    return vars(load_function(spec.name, base_dir)).get(name)


def load_reward(spec: Any, base_dir: str | Path = ".") -> Callable[..., Any]:
    """The reward's function itself; its module is imported."""
    spec = RewardSpec.of(spec)
    return spec.function if spec.function is not None else load_function(spec.name, base_dir)


def load_function(name: str, base_dir: str | Path = ".") -> Callable[..., Any]:
    """The function a reward's name stands for."""
    module_name, function = _split(name)
    if module_name.endswith(".py"):
        module = _import_file(_file(name, module_name, Path(base_dir)))
    else:
        module = _import_module(name, module_name, Path(base_dir))
    found = vars(module).get(function)
    if found is None:
        raise RewardSpecError(_no_function(name, module_name, function, vars(module)))
    if not callable(found):
        raise RewardSpecError(f"reward {name!r}: {function!r} is not a function")
    return found


# ---- names


def _split(name: str) -> tuple[str, str]:
    name = BUILT_IN.get(name, name)
    module, colon, function = name.rpartition(":")
    if not colon or not module or not function:
        hint = did_you_mean(name, BUILT_IN)
        raise RewardSpecError(
            f"there is no reward {name!r}{hint}; the built-in ones are {', '.join(BUILT_IN)}, and one of your own is "
            "named package.module:function or path/file.py:function"
        )
    return module, function


def _file(name: str, path: str, base_dir: Path) -> Path:
    file = (base_dir / Path(path).expanduser()).resolve()
    if not file.is_file():
        raise RewardSpecError(f"reward {name!r}: there is no file {file}")
    return file


def _no_function(name: str, module: str, function: str, names: Iterable[str]) -> str:
    public = [other for other in names if not other.startswith("_")]
    return f"reward {name!r}: {module} has no function {function!r}{did_you_mean(function, public)}"


def _import_file(file: Path) -> Any:
    module_name = f"posttrain_reward_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    if str(file.parent) not in sys.path:  # so that it can import its neighbours, as a script can
        sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise RewardSpecError(f"cannot import {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _import_module(name: str, module: str, base_dir: Path) -> Any:
    for folder in (str(base_dir.resolve()), str(Path.cwd())):
        if folder not in sys.path:
            sys.path.append(folder)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise
        raise RewardSpecError(
            f"reward {name!r}: there is no module {error.name!r} in {base_dir.resolve()}, the current folder or the "
            "installed packages"
        ) from error


# ---- signatures


def _outline_of_name(name: str, base_dir: Path) -> Outline:
    module, function = _split(name)
    reader = SourceReader(name, (str(base_dir.resolve()), str(Path.cwd())))
    if module.endswith(".py"):
        return reader.in_file(_file(name, module, base_dir), function, shown=module)
    return reader.in_module(module, function)


def check_settings(spec: RewardSpec, function: Callable[..., Any]) -> None:
    """Raises RewardSpecError for settings that the function's own check refuses."""
    check = vars(function).get("check_settings") if hasattr(function, "__dict__") else None
    if check is None:
        return
    accepted = inspect.signature(check).parameters
    required = {key for key, p in accepted.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
    given = {key: value for key, value in spec.args.items() if key in accepted}
    if required <= set(given):
        try:
            check(**given)
        except ValueError as error:
            raise RewardSpecError(f"reward {spec.name!r}: {error}") from error


def _missing_column(signature: RewardSignature, name: str, columns: list[str]) -> str:
    return (
        f"reward {signature.name!r} needs {name!r}, which is neither a column of the data "
        f"({', '.join(columns) or 'none'}) nor given under its args{did_you_mean(name, columns)}"
    )
