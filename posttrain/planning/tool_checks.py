"""Tools and environments of a recipe, looked at in their source: nothing of the user's is run."""

from __future__ import annotations

import ast
import importlib.util
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.planning.search_checks import search_faults
from posttrain.planning.tokenizer import PlanTokenizer
from posttrain.recipe import Recipe
from posttrain.recipe.errors import suggest
from posttrain.recipe.sections import EnvironmentSection, ToolSection
from posttrain.rewards.code_reward import NoSandbox, require_protection

BUILT_IN = ("python", "search")
BUILT_IN_ENVIRONMENTS = ("openenv", "verifiers")
"""Looked at by environments/adapter_checks.py, which asks their package or their server."""
_NO_TOOLS = ("reset", "get_reward")
_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
_SEEN_IN_A_CALL = ("tool_name_q7", "tool_argument_q7", "tool_value_q7", "tool_answer_q7")
"""Words that a template which knows tools writes down when it is given them."""


def tool_faults(recipe: Recipe) -> Iterator[str]:
    """Why the recipe's tools or its environment cannot serve, a sentence each."""
    names: list[str] = []
    for position, tool in enumerate(recipe.tools):
        place = f"tools[{position}]"
        if tool.name == "python":
            names.append("python")
            yield from _python_faults(place, tool)
            continue
        if tool.name == "search":
            names.append("search")
            yield from _search_faults(place, tool)
            continue
        found = _definition(tool, "function")
        if isinstance(found, str):
            yield f"{place}: {found}"
        elif isinstance(found, _FUNCTION):
            names.append(found.name)
            yield from (f"{place}: {fault}" for fault in _shown_faults(found, tool.args))
        elif found is not None:
            yield f"{place}: {tool.name!r} is a class, and a tool is a function; an environment is a class"
    if recipe.environment is not None:
        names += yield from _environment_faults(recipe, recipe.environment)
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"tools: two are called {name!r}, and a model could not tell them apart; rename one"
    if recipe.has_tools:
        yield from _rollout_faults(recipe)
    for key in ("chat_template", "response_template"):
        path = vars(recipe.model)[key]
        if path is not None and not Path(path).is_file():
            yield f"model: {key}: no file {path!r} here or beside the recipe"


def _python_faults(place: str, tool: ToolSection) -> Iterator[str]:
    known = ("seconds", "memory_mb", "allow_unsafe")
    for key in tool.args:
        if key not in known:
            near = suggest(key, known) or f"; it has {', '.join(known)}"
            yield f"{place}: python has no setting {key!r}{near}"
    if tool.args.get("seconds", 0) >= tool.timeout_s:
        yield (
            f"{place}: args.seconds {tool.args['seconds']:g} is not below timeout_s {tool.timeout_s:g}, so a program "
            "that runs too long would be ended without a word of what it had printed; raise timeout_s"
        )
    try:
        require_protection(bool(tool.args.get("allow_unsafe", False)))
    except (NoSandbox, RuntimeError) as error:
        yield f"{place}: {error}"


def _search_faults(place: str, tool: ToolSection) -> Iterator[str]:
    known = ("corpus", "k", "text", "title", "passage_characters")
    for key in tool.args:
        if key not in known:
            near = suggest(key, known) or f"; it has {', '.join(known)}"
            yield f"{place}: search has no setting {key!r}{near}"
    yield from (f"{place}: {fault}" for fault in search_faults(tool.args))


def _environment_faults(recipe: Recipe, section: EnvironmentSection) -> Iterator[str]:
    """Also returns the names of its tools."""
    if section.name in BUILT_IN_ENVIRONMENTS:
        return []
    found = _definition(section, "class")
    if isinstance(found, str):
        yield f"environment: {found}"
    if not isinstance(found, ast.AST):
        return []
    if not isinstance(found, ast.ClassDef):
        yield f"environment: {section.name!r} is a function, and an environment is a class with a method reset"
        return []
    if found.bases:  # what it inherits is not looked for
        return []
    methods = {node.name: node for node in found.body if isinstance(node, _FUNCTION)}
    if "reset" not in methods:
        yield f"environment: {section.name!r} has no method reset(self, **row), which begins an episode"
    if "get_reward" not in methods and not recipe.rewards:
        yield (
            f"environment: {section.name!r} has no method get_reward(self), and the recipe no rewards: nothing would "
            "be learned; write one of them"
        )
    if "__init__" in methods:
        settings = methods["__init__"].args
        takes = [one.arg for one in (*settings.args[1:], *settings.kwonlyargs)]
        for key in section.args if settings.kwarg is None else ():
            if key not in takes:
                near = suggest(key, takes) or f"; it takes {', '.join(takes)}"
                yield f"environment: args: {found.name} takes no {key!r}{near}"
    shown = {k: v for k, v in methods.items() if not k.startswith("_") and k not in _NO_TOOLS}
    if not shown:
        yield f"environment: {section.name!r} has no public method but reset and get_reward, so nothing to call"
    for name, node in shown.items():
        yield from (f"environment: {name}: {fault}" for fault in _shown_faults(node, {}))
    return list(shown)


def _rollout_faults(recipe: Recipe) -> Iterator[str]:
    rollout = recipe.rollout
    if rollout is None:
        return
    for key in ("staleness", "partial_budget", "resample"):
        if key in rollout.changed():
            yield f"rollout: '{key}' does not go with tools: a turn waits for its tool; remove one of them"
    if "logged" in rollout.changed():
        yield (
            "rollout: 'logged' does not go with tools: an answer of the data has had no turns with them; remove one of "
            "them"
        )


def _definition(section: ToolSection | EnvironmentSection, kind: str) -> ast.AST | str | None:
    """The function or class; a sentence where there is none; None where only loading it would tell."""
    file, colon, target = section.name.rpartition(":")
    if not colon or not file or not target:
        known = BUILT_IN if kind == "function" else BUILT_IN_ENVIRONMENTS
        own = f"; the built-in ones are {', '.join(known)}"
        near = suggest(section.name, known)
        return f"there is no {section.name!r}{near or own}; one of your own is named path/file.py:NAME"
    if not file.endswith(".py"):
        first = file.partition(".")[0]
        there = (
            importlib.util.find_spec(first) is not None
            or Path(first).exists()
            or Path(f"{first}.py").exists()
        )
        return None if there else f"{section.name!r}: there is no module {first!r}"
    if not Path(file).is_file():
        return f"{section.name!r}: there is no file {file} here or beside the recipe"
    try:
        with tokenize.open(file) as stream:
            tree = ast.parse(stream.read(), filename=file)
    except (SyntaxError, ValueError, OSError) as error:
        return f"{section.name!r}: {file} cannot be read: {error}"
    defined = {node.name: node for node in tree.body if isinstance(node, (*_FUNCTION, ast.ClassDef))}
    if target in defined:
        return defined[target]
    named = {one.id for one in ast.walk(tree) if isinstance(one, ast.Name)}
    named |= {
        alias.asname or alias.name
        for one in ast.walk(tree)
        if isinstance(one, ast.ImportFrom)
        for alias in one.names
    }
    if target in named or "*" in named:
        return None
    return f"{section.name!r}: {file} has no {kind} {target!r}{suggest(target, defined)}"


def _shown_faults(node: ast.FunctionDef | ast.AsyncFunctionDef, given: Mapping[str, Any]) -> Iterator[str]:
    """Why a model cannot be told how to call it: it reads a docstring, and a type and a line for each parameter."""
    parameters = [*node.args.posonlyargs, *node.args.args]
    shown = [one for one in parameters if one.arg not in (*given, "self")]
    settings = {one.arg for one in node.args.kwonlyargs}
    defaults = {
        one.arg for one, value in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if value
    }
    for key in given:
        known = [one.arg for one in parameters] + sorted(settings)
        if key not in known:
            yield f"{node.name} has no parameter {key!r}{suggest(key, known)}"
    for key in sorted(settings - defaults - set(given)):
        yield f"{node.name} needs its setting {key!r}; give it under args"
    if node.args.vararg or node.args.kwarg:
        yield f"{node.name} takes * or **, and a model calls by name: give it plain parameters"
    doc = ast.get_docstring(node)
    if not doc:
        yield f"{node.name} has no docstring, which is what the model is told of it"
        return
    for one in shown:
        if one.annotation is None:
            yield f"{node.name} has no type hint for {one.arg!r}, which the model is told"
        _, found, lines = doc.partition("Args:")
        if not found or not any(
            line.strip().startswith((f"{one.arg}:", f"{one.arg} (")) for line in lines.splitlines()
        ):
            yield f"{node.name}: its docstring says nothing of {one.arg!r} under `Args:`, which the model is told"


# ---- the template and the rows


def template_faults(
    recipe: Recipe, tokenizer: PlanTokenizer | None, rows: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Why the model's chat template cannot tell of tools; nothing where its files are not here."""
    if not recipe.has_tools:
        return
    if rows and isinstance(rows[0]["prompt"], str):
        yield "data: tools take prompts that are messages; set data.chat: true"
    if tokenizer is None:
        return
    if tokenizer.chat_template is None:
        yield "tools: the model's tokenizer has no chat template, which shows calls; write one in model.chat_template"
        return
    missing = _not_rendered(tokenizer)
    if missing is not None:
        yield (
            f"tools: the model's chat template {missing}; take a model that was made for tools, or write a template in "
            "model.chat_template"
        )


def _not_rendered(tokenizer: PlanTokenizer) -> str | None:
    from jinja2 import TemplateError

    name, argument, value, answer = _SEEN_IN_A_CALL
    call = {"type": "function", "function": {"name": name, "arguments": {argument: value}}}
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": name, "content": answer},
    ]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except (TemplateError, TypeError, ValueError) as error:
        return f"refuses calls of tools: {str(error).strip().splitlines()[0]}"
    if answer not in text:
        return "leaves out what tools answer"
    return None if all(word in text for word in _SEEN_IN_A_CALL) else "leaves out the calls of tools"


def tool_lines(recipe: Recipe) -> Iterator[str]:
    """One line a tool, one for the environment, one for the turns."""
    for tool in recipe.tools:
        yield f"{tool.name}: {tool.timeout_s:g} s and {tool.max_characters} characters a call"
    if (one := recipe.environment) is not None and one.name in BUILT_IN_ENVIRONMENTS:
        limits = f"{one.timeout_s:g} s and {one.max_characters} characters a call"
        yield f"environment {one.name}: {limits}, an object and a process a response"
    elif one is not None:
        found = _definition(one, "class")
        methods = (
            [node.name for node in found.body if isinstance(node, _FUNCTION)]
            if isinstance(found, ast.ClassDef)
            else []
        )
        tools = [name for name in methods if not name.startswith("_") and name not in _NO_TOOLS]
        yield (
            f"environment {one.name}{' with ' if tools else ''}{', '.join(tools)}: {one.timeout_s:g} s and "
            f"{one.max_characters} characters a call, an object and a process a response"
        )
        if "get_reward" in methods:
            yield f"its own reward, get_reward, counts with weight 1{' beside the rewards' if recipe.rewards else ''}"
    if recipe.has_tools and recipe.rollout is not None:
        yield (
            f"at most {recipe.rollout.max_turns} turns of the model in a response, whose "
            f"{recipe.rollout.max_new_tokens} tokens include what tools answer"
        )
